"""Public calls with device integers of any value, and their comparison in both rooms."""

import torch
from torch import Tensor

import pyramid_ops
from pyramid_ops import compat, plans
from tests.bits import assert_same_bits, poisoned

HUGE = (1 << 31) - 1
RULES = ("maxmin", "dpp", "coverage")
OFFSETS = [
    [0, 1, 0, 1],
    [4, 3, 2, 0],
    [0, 3, 1, 4],
    [3, 0, 4, 0],
    [2, 2, 1, 1],
    [-1, 2, -3, 9],
    [1, 5, 2, 3],
    [HUGE, -HUGE - 1, HUGE, 0],
    [-HUGE - 1, HUGE, -HUGE - 1, HUGE],
    [HUGE, HUGE, 0, 4],
]
FAR = [-(1 << 63), -(1 << 32) - 1, -HUGE - 2, -2, -1, 0, 1, 3, 4, 5, HUGE, (1 << 32) + 1, (1 << 63) - 1]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def int32(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def far(*shape: int, seed: int = 0) -> Tensor:
    """int64 of which many are out of any range."""
    return torch.tensor(FAR)[torch.randint(0, len(FAR), shape, generator=torch.Generator().manual_seed(seed))]


X, Y, HEADS = rand(4, 3), rand(5, 3, seed=1), rand(4, 2, 3)
SCORES = torch.tensor([3.0, -1.0, torch.inf, 0.5])


def plan_results(plan: pyramid_ops.MergePlan) -> list:
    results = [*plan[:5]]
    for order in ("tome", "original"):
        x = rand(*plan.rows.shape, 3)
        merged = pyramid_ops.merge_tokens(x, plan, order=order)
        results += [*merged, pyramid_ops.unmerge_tokens(merged.tokens, plan, order=order)]
        results.append(pyramid_ops.merge_indices(plan, order=order))
    return results


def moved(plan: pyramid_ops.Keep | pyramid_ops.Merge, x: Tensor) -> list:
    """What every function of plans makes of a plan for the tokens of x."""
    results = [plan.indices, plan.counts, plans.mask(plan), *plans.apply(plan, [x, x[..., 0]])]
    if isinstance(plan, pyramid_ops.Keep):
        merge = plans.join(x, plan)
        results += [merge.rows, merge.members, merge.bounds, plans.apply(merge, x)]
    return results


def kept(cu: Tensor, order: str) -> list:
    k, most = cu[1:].contiguous(), {"max_seqlen": 3, "capacity": 2}
    plan = plans.keep(SCORES, k, cu_seqlens=cu, forced=SCORES < 0, threshold=rand(len(k)), order=order, **most)
    second = plans.keep(rand(len(plan.indices)), 1, cu_seqlens=plan.cu_seqlens)
    return [*moved(plan, X), *moved(plans.then(plan, second), X)]


def far_plan(seed: int) -> list:
    plan = pyramid_ops.Keep(far(2, 3, seed=seed), far(2, seed=seed).clamp(-HUGE, HUGE).int(), 4)
    merge = pyramid_ops.Merge(*plan, far(2, 4, seed=seed), far(2, 4), far(2, 4, seed=seed + 1))
    right = plans.apply(merge, [TOKENS, TOKENS.bfloat16()], align="right", fill=7, mode=["amax", "owner"])
    second = plans.then(plan, plans.keep(rand(2, 3), 2))
    both = plans.concat(merge, plan)
    return [*moved(plan, TOKENS), *plans.apply(merge, [TOKENS]), *right, *moved(second, TOKENS), *moved(both, TOKENS)]


OF_OFFSETS = {
    "keep": lambda cu: kept(cu, "index"),
    "keep-value": lambda cu: kept(cu, "value"),
    "greedy": lambda cu: [
        part
        for rule in RULES
        for part in pyramid_ops.greedy_select(X, 2, rule=rule, cu_seqlens=cu, max_seqlen=3)
        if not isinstance(part, int)
    ],
    "prune": lambda cu: moved(
        pyramid_ops.bipartite_prune(X, cu[1:], step=1, cu_seqlens=cu, max_seqlen=3, capacity=2), X
    ),
    "tome": lambda cu: moved(plans.tome(X, 1, cu_seqlens=cu, max_seqlen=3), X),
    "tome-original": lambda cu: moved(plans.tome(X, 1, cu_seqlens=cu, class_token=True, order="original"), X),
    "best_match": lambda cu: pyramid_ops.best_match(X, Y, cu_seqlens_q=cu, cu_seqlens_k=cu.flip(0)),
    "best_match-grid": lambda cu: pyramid_ops.best_match(
        X, Y, cu_seqlens_q=cu, cu_seqlens_k=cu, max_seqlen_q=3, max_seqlen_k=2, precision="grid"
    ),
    "nearest": lambda cu: pyramid_ops.nearest(X, X, 2, cu_seqlens_q=cu, cu_seqlens_k=cu.flip(0), rank=SCORES),
    "nearest-euclidean": lambda cu: pyramid_ops.nearest(
        X, Y, 2, metric="euclidean", exclude_self=True, cu_seqlens_q=cu, cu_seqlens_k=cu, max_seqlen_q=3, max_seqlen_k=2
    ),
    "dpc_knn": lambda cu: [
        part
        for clusters in (2, cu[1:].contiguous())
        for part in pyramid_ops.dpc_knn(X, clusters, 2, cu_seqlens=cu, max_seqlen=3, capacity=2)
    ],
    "attention_importance": lambda cu: pyramid_ops.attention_importance(
        HEADS, HEADS, cu_seqlens_q=cu, cu_seqlens_k=cu.flip(0), causal=True
    ),
    "attention_importance-indices": lambda cu: pyramid_ops.attention_importance(
        HEADS, HEADS, cu_seqlens_q=cu, cu_seqlens_k=cu, query_indices=[-1, 0], center_keys=True
    ),
    "attention_importance-weights": lambda cu: pyramid_ops.attention_importance(
        HEADS, HEADS, cu_seqlens_q=cu, cu_seqlens_k=cu, query_weights=X[:, 0].abs(), head_reduction="max"
    ),
    "attention_walk": lambda cu: pyramid_ops.attention_walk(HEADS, HEADS, cu_seqlens=cu, max_seqlen=3, steps=2),
    "channel_variance": lambda cu: pyramid_ops.channel_variance(X, cu_seqlens=cu),
    "combine_scores": lambda cu: pyramid_ops.combine_scores([SCORES], [2.0], normalize="minmax", cu_seqlens=cu),
    "segment_threshold": lambda cu: [
        pyramid_ops.segment_threshold(SCORES, cu, rule, candidates=SCORES > 0) for rule in ("mean", "quantile", "iqr")
    ],
    "pool_scores_packed": lambda cu: pyramid_ops.pool_scores_packed(
        SCORES, cu, far(len(cu) - 1, 2, seed=int(cu[-1]) % 97), window=(1, 2), capacity=5
    ),
    "region_variance": lambda cu: pyramid_ops.region_variance(
        X, far(len(cu) - 1, 2, seed=int(cu[-1]) % 89), (2, 1), cu_seqlens=cu, lengths=cu[1:].contiguous()
    ),
    "broadcast_regions": lambda cu: pyramid_ops.broadcast_regions(
        rand(len(cu) - 1, 2), far(len(cu) - 1, 2, seed=int(cu[-1]) % 83), (1, 2), cu_seqlens=cu, capacity=6
    ),
    "segmented_topk": lambda cu: pyramid_ops.segmented_topk(SCORES, cu, cu[1:].contiguous(), max_seqlen=3, capacity=3),
    "select_topk_levels_packed": lambda cu: pyramid_ops.select_topk_levels_packed(
        [X, Y], [cu, cu.flip(0)], torch.stack((cu[1:], cu[:-1]), 1), max_seqlen=4, capacity=5
    ),
    "select_topk_levels_packed-attention": lambda cu: pyramid_ops.select_topk_levels_packed(
        [X, Y], [cu, cu.flip(0)], [2, 1], max_seqlen=4, saliency="attention"
    ),
    "compact": lambda cu: pyramid_ops.compact(
        [X, X.T], far(len(cu) - 1, 3), cu[1:].contiguous(), cu_seqlens=cu, token_dims=(0, 1)
    ),
    "suppress": lambda cu: pyramid_ops.suppress(X, rand(len(cu) - 1), cu_seqlens=cu, scores=SCORES),
    "suppress-short": lambda cu: pyramid_ops.suppress(X, 0.1, cu_seqlens=cu, max_seqlen=2, candidates=SCORES > 0),
    "text_relevance": lambda cu: [
        pyramid_ops.text_relevance(
            X, Y, cu_seqlens_tokens=cu, cu_seqlens_text=cu.flip(0), reduction=reduction, token_mask=X[:, 0] > -1
        )
        for reduction in ("max", "var", "softmax")
    ],
    "assign_mean": lambda cu: pyramid_ops.assign_mean(X, far(len(X), seed=1) % 3, 5, cu_seqlens=cu, cu_clusters=cu),
    "tome_matching": lambda cu: plan_results(pyramid_ops.tome_matching(X, 1, cu_seqlens=cu)),
    "tome_matching-tokens": lambda cu: plan_results(
        pyramid_ops.tome_matching(X, 2, cu_seqlens=cu, class_token=True, distill_token=True, max_seqlen=3)
    ),
}

TOKENS = rand(2, 4, 3)
OF_INTEGERS = {
    "far-plan": far_plan,
    "keep": lambda s: moved(plans.keep(rand(2, 4), far(2, seed=s)), TOKENS),
    "gather_levels": lambda s: pyramid_ops.gather_levels([TOKENS, TOKENS[:1, :2]], far(2, 9, 2, seed=s)),
    "assign_mean": lambda s: pyramid_ops.assign_mean(TOKENS, far(2, 4, seed=s), 3),
    "attention_importance": lambda s: pyramid_ops.attention_importance(
        TOKENS[:, None], TOKENS[:, None], query_indices=far(2, 5, seed=s), causal=bool(s % 2)
    ),
    "attention_importance-packed": lambda s: pyramid_ops.attention_importance(
        HEADS, HEADS, query_indices=far(3, 5, seed=s), cu_seqlens_q=int32(OFFSETS[2]), cu_seqlens_k=int32(OFFSETS[0])
    ),
    "pool_scores_packed": lambda s: pyramid_ops.pool_scores_packed(
        SCORES, int32(OFFSETS[s % 10]), far(3, 2, seed=s), window=(2, 1), reduction="max"
    ),
    "region_variance": lambda s: pyramid_ops.region_variance(TOKENS, (2, 2), (1, 2), lengths=far(2, seed=s)),
    "adaptive_budgets": lambda s: pyramid_ops.adaptive_budgets(
        far(2, seed=s), TOKENS, far(2, 4, seed=s + 1), lengths=far(2, seed=s + 2)
    ),
    "allocate_budgets_batch": lambda s: pyramid_ops.allocate_budgets_batch(
        far(2, seed=s), rand(2, 3, seed=s), far(2, 3, seed=s + 1), minimum=2, maximum=[3, 4, 5]
    ),
    "plan": lambda s: plan_results(
        pyramid_ops.MergePlan(
            far(2, 2, seed=s), far(2, 2), far(2, 1), TOKENS[:, :2, 0], far(2, 4, seed=s + 1), 2 + s % 3
        )
    ),
    "plan-packed": lambda s: plan_results(
        pyramid_ops.MergePlan(far(4, seed=s), far(4), far(4), X[:, 0], far(4, seed=s + 1), s % 5)
    ),
    "random2d": lambda s: compat.bipartite_soft_matching_random2d(
        TOKENS.repeat(1, 3, 1), 3, 4, 2, 2, 5, choices=far(2, 1, seed=s)
    )[0](TOKENS.repeat(1, 3, 1)),
}


def assert_rooms_agree(call, argument):
    with pyramid_ops.use_backend("reference"):
        expected = call(argument)
    with pyramid_ops.use_backend("kernel"), poisoned():
        actual = call(argument)
    assert_same_bits(actual, expected)
