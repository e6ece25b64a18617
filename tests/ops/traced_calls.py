"""A call of every public function, and inputs of any size for it."""

from collections.abc import Callable

import torch
from torch import Tensor

import pyramid_ops
from pyramid_ops import compat

CALLS: dict[str, tuple[Callable, Callable]] = {}


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def offsets(batch: int, tokens: int) -> Tensor:
    return (tokens * torch.arange(batch + 1)).to(torch.int32)


def integers(high: int, *shape: int) -> Tensor:
    return torch.randint(-1, high, shape, generator=torch.Generator().manual_seed(sum(shape)))


def call(*inputs: Callable[[int, int], Tensor]) -> Callable[[Callable], Callable]:
    """A function of tensors that batch and tokens make, under its name."""

    def register(function: Callable) -> Callable:
        CALLS[function.__name__] = function, lambda batch, tokens: [make(batch, tokens) for make in inputs]
        return function

    return register


def tokens(batch: int, n: int) -> Tensor:
    return rand(batch, n, 8)


def more_tokens(batch: int, n: int) -> Tensor:
    return rand(batch, n + 3, 8)


def packed(batch: int, n: int) -> Tensor:
    return rand(batch * n, 8)


def scores(batch: int, n: int) -> Tensor:
    return rand(batch, n)


def heads(batch: int, n: int) -> Tensor:
    return rand(batch, 2, n, 8)


def packed_heads(batch: int, n: int) -> Tensor:
    return rand(batch * n, 2, 8)


def images(batch: int, n: int) -> Tensor:
    return rand(batch, 3, 4 * n, 8 * n)


def weights(batch: int, n: int) -> Tensor:
    return rand(batch, 3)


def numbers(batch: int, n: int) -> Tensor:
    return torch.arange(batch) + n // 2


@call(tokens, numbers)
def adaptive_budgets(x, lengths):
    return pyramid_ops.adaptive_budgets(7, x, (x.shape[1], 4, 2), lengths=lengths, weights=[[1, 2, 3]], thresholds=[])


@call(tokens)
def adaptive_weights(x):
    return pyramid_ops.adaptive_weights(x)


@call(scores)
def allocate_budgets(x):
    first, second = pyramid_ops.allocate_budgets(7, (0.6, 0.4), (x.shape[1], x.shape[1] // 2))
    return x[:, :first], x[:, :second]


@call(weights, numbers)
def allocate_budgets_batch(x, total):
    return pyramid_ops.allocate_budgets_batch(total, x, (5, 9, 20)), pyramid_ops.allocate_budgets_batch(
        8, x, (5, 9, 20), minimum=1
    )


@call(tokens, packed, offsets)
def channel_variance(x, y, bounds):
    return pyramid_ops.channel_variance(x), pyramid_ops.channel_variance(y, cu_seqlens=bounds)


@call(heads, heads)
def attention_importance(q, k):
    return pyramid_ops.attention_importance(q, k, causal=True)


@call(heads, heads)
def attention_importance_of_the_last_query(q, k):
    return pyramid_ops.attention_importance(q, k, causal=True, query_indices=[-1], key_range=(1, 5))


@call(heads, heads)
def attention_importance_of_chosen_queries(q, k):
    return pyramid_ops.attention_importance(q, k, causal=True, query_indices=[0, 2], center_keys=True)


@call(heads, heads, lambda batch, n: integers(n, batch, 3))
def attention_importance_of_queries_on_the_device(q, k, indices):
    return pyramid_ops.attention_importance(q, k, query_indices=indices)


@call(heads, heads, scores, lambda batch, n: rand(batch, 2, n))
def attention_importance_of_weighted_queries(q, k, x, lse):
    return pyramid_ops.attention_importance(q, k, query_weights=x, log_sum_exp=lse + 3, head_reduction="max")


@call(packed_heads, packed_heads, offsets)
def attention_importance_packed(q, k, bounds):
    return pyramid_ops.attention_importance(q, k, cu_seqlens_q=bounds, cu_seqlens_k=bounds, query_indices=[-1])


@call(heads, heads)
def attention_walk(q, k):
    return pyramid_ops.attention_walk(q, k, steps=2)


@call(lambda batch, n: rand(batch * n, 2, 8), offsets)
def attention_walk_packed(q, bounds):
    return pyramid_ops.attention_walk(q, q[:, :1], steps=2, cu_seqlens=bounds, max_seqlen=9)


@call(tokens, more_tokens, lambda batch, n: rand(batch, n + 3) > 0.4)
def best_match(q, k, mask):
    return pyramid_ops.best_match(q, k, key_mask=mask)


@call(packed, packed, offsets)
def best_match_packed(q, k, bounds):
    return pyramid_ops.best_match(q, k, cu_seqlens_q=bounds, cu_seqlens_k=bounds, max_seqlen_q=6, max_seqlen_k=9)


@call(tokens, scores)
def greedy_select(x, relevance):
    return list(pyramid_ops.greedy_select(x, 3, rule="dpp", relevance=relevance)[:2])


@call(packed, offsets)
def greedy_select_packed(x, bounds):
    return list(pyramid_ops.greedy_select(x, 2, cu_seqlens=bounds, max_seqlen=6)[:2])


@call(tokens, tokens, scores)
def nearest(q, k, rank):
    return pyramid_ops.nearest(q, k, 3, metric="euclidean", rank=rank)


@call(packed, offsets)
def nearest_packed(x, bounds):
    return pyramid_ops.nearest(x, x, 2, exclude_self=True, cu_seqlens_q=bounds, cu_seqlens_k=bounds)


@call(tokens)
def bipartite_prune(x):
    return list(pyramid_ops.bipartite_prune(x, 3)[:2])


@call(tokens)
def dpc_knn(x):
    return list(pyramid_ops.dpc_knn(x, 3, 2)[:3])


@call(packed, offsets, lambda batch, n: (torch.arange(batch) % 5).int())
def dpc_knn_packed(x, bounds, clusters):
    return list(pyramid_ops.dpc_knn(x, clusters, 2, cu_seqlens=bounds, capacity=4))


@call(images)
def blur_downsample(x):
    return pyramid_ops.blur_downsample(x, downsample="decimate")


@call(lambda batch, n: rand(batch, 4))
def broadcast_regions(x):
    return pyramid_ops.broadcast_regions(x, (5, 6), (2, 2))


@call(scores, scores)
def combine_scores(x, y):
    return pyramid_ops.combine_scores([x, y], [1.0, 0.5], normalize="minmax")


@call(lambda batch, n: rand(batch * n), offsets)
def combine_scores_packed(x, bounds):
    return pyramid_ops.combine_scores([x], [1.0], normalize="minmax", cu_seqlens=bounds)


@call(packed, offsets, lambda batch, n: integers(n, batch, 3), lambda batch, n: torch.full((batch,), 2).int())
def compact(x, bounds, indices, counts):
    moved = pyramid_ops.compact([x, x.T], indices, counts, cu_seqlens=bounds, token_dims=(0, 1))
    return *moved.tensors, *moved[1:]


@call(tokens, more_tokens, lambda batch, n: torch.stack((integers(2, batch, 5), integers(n, batch, 5)), 2))
def gather_levels(x, y, indices):
    return pyramid_ops.gather_levels([x, y], indices)


@call(images)
def gaussian_pyramid(x):
    return pyramid_ops.gaussian_pyramid(x, 3)[1:]


@call(tokens, lambda batch, n: integers(4, batch, n), scores)
def assign_mean(x, assignment, weight):
    return pyramid_ops.assign_mean(x, assignment, 3, weights=weight)


@call(tokens)
def merge_indices(x):
    return pyramid_ops.merge_indices(pyramid_ops.tome_matching(x, 2, class_token=True), order="original")


@call(tokens)
def merge_tokens(x):
    return pyramid_ops.merge_tokens(x, pyramid_ops.tome_matching(x, x.shape[1] // 3))


@call(packed, offsets)
def merge_tokens_packed(x, bounds):
    return pyramid_ops.merge_tokens(x, pyramid_ops.tome_matching(x, 2, cu_seqlens=bounds), order="original")


@call(images)
def patch_entropy(x):
    return pyramid_ops.patch_entropy(x, 4, bins=16), pyramid_ops.patch_entropy(x[:, 0], bins=16)


@call(images)
def patch_positions(x):
    return pyramid_ops.patch_positions([x], 4)[0]


@call(images)
def patchify(x):
    return pyramid_ops.patchify(x, 4)


@call(lambda batch, n: rand(batch, 6 * n))
def pool_scores(x):
    return pyramid_ops.pool_scores(x, (x.shape[1] // 6, 6), reduction="max")


@call(lambda batch, n: rand(batch * n), offsets, lambda batch, n: torch.tensor([[2, n // 2]]).repeat(batch, 1))
def pool_scores_packed(x, bounds, grids):
    return pyramid_ops.pool_scores_packed(x, bounds, grids, window=(2, 3), capacity=x.shape[0] // 2)


@call(images)
def progressive_select(x):
    return pyramid_ops.progressive_select(x, lambda y: pyramid_ops.patchify(y, 2), (6, 3), target_tokens=5)


@call(lambda batch, n: rand(batch, 4 * n, 8), numbers)
def region_variance(x, lengths):
    return pyramid_ops.region_variance(x, (4, x.shape[1] // 4), (2, 2), lengths=lengths)


@call(packed, offsets)
def regions_of_packed_grids(x, bounds):
    sides = torch.stack((bounds.diff() // 2, torch.full_like(bounds[1:], 2)), 1)
    scores = pyramid_ops.region_variance(x, sides, (2, 2), cu_seqlens=bounds)
    return scores, pyramid_ops.broadcast_regions(scores, sides, (2, 2), cu_seqlens=bounds, capacity=x.shape[0])


@call(lambda batch, n: rand(batch * n), offsets)
def segmented_topk(x, bounds):
    return pyramid_ops.segmented_topk(x, bounds, 3, max_seqlen=x.shape[0])


@call(lambda batch, n: rand(batch * n), offsets, lambda batch, n: (torch.arange(batch) % 5).int())
def segmented_topk_of_numbers_on_the_device(x, bounds, k):
    return pyramid_ops.segmented_topk(x, bounds, k, max_seqlen=6, capacity=4, order="index")


@call(scores)
def segment_threshold(x):
    rules = ("mean", "quantile", "iqr")
    return [pyramid_ops.segment_threshold(x, rule=rule, q=0.9, candidates=x > 0.2) for rule in rules]


@call(lambda batch, n: rand(batch * n), offsets)
def segment_threshold_packed(x, bounds):
    return pyramid_ops.segment_threshold(x, bounds, "iqr", max_seqlen=9)


@call(tokens, more_tokens)
def select_topk_levels(x, y):
    return pyramid_ops.select_topk_levels([x, y], 7, (0.5, 0.5), saliency="norm")


@call(tokens, more_tokens)
def select_topk_levels_by_budgets(x, y):
    return pyramid_ops.select_topk_levels([x, y], budgets=[x.shape[1] // 2, 3], saliency="attention")


@call(tokens, more_tokens)
def select_topk_levels_union(x, y):
    return pyramid_ops.select_topk_levels([x, y], 7, None, saliency=[x[..., 0], y[..., 0]])


@call(packed, packed, offsets)
def select_topk_levels_packed(x, y, bounds):
    return pyramid_ops.select_topk_levels_packed([x, y], [bounds, bounds], [3, 2], max_seqlen=6)


@call(tokens, scores)
def suppress(x, y):
    return pyramid_ops.suppress(x, 0.8), pyramid_ops.suppress(x, y[:, 0], scores=y, candidates=y > 0.2)


@call(packed, lambda batch, n: rand(batch * n), offsets)
def suppress_packed(x, y, bounds):
    return pyramid_ops.suppress(x, 0.8, scores=y, cu_seqlens=bounds, max_seqlen=9)


@call(tokens, more_tokens, lambda batch, n: rand(batch, n + 3) > 0.4)
def text_relevance(x, text, mask):
    return [
        pyramid_ops.text_relevance(x, text, text_mask=mask, reduction=reduction)
        for reduction in ("max", "mean", "var", "softmax")
    ]


@call(packed, packed, offsets, lambda batch, n: rand(batch * n) > 0.4)
def text_relevance_packed(x, text, bounds, mask):
    options = {"cu_seqlens_tokens": bounds, "cu_seqlens_text": bounds, "max_seqlen_text": 7, "token_mask": mask}
    return pyramid_ops.text_relevance(x, text, **options), pyramid_ops.text_relevance(
        x, text, reduction="softmax", **options
    )


@call(scores, numbers)
def hash_uniform(x, seeds):
    return pyramid_ops.hash_uniform(x.shape, seeds), pyramid_ops.hash_uniform(x.shape[1:], 3, device=x.device)


@call(tokens, tokens)
def paired_similarity(x, y):
    return pyramid_ops.paired_similarity(x, y), pyramid_ops.paired_similarity(x, y[:1, :1])


@call(lambda batch, n: rand(batch, 12, 8))
def pool_tokens(x):
    return pyramid_ops.pool_tokens(x, (3, 4), (2, 3))


@call(tokens)
def token_norm(x):
    return pyramid_ops.token_norm(x), pyramid_ops.token_norm(x, p=1)


@call(packed)
def token_variance(x):
    return pyramid_ops.token_variance(x)


def plan_tensors(plan: pyramid_ops.MergePlan) -> list:
    return [x for x in plan if isinstance(x, Tensor)]


@call(tokens)
def tome_matching(x):
    return plan_tensors(pyramid_ops.tome_matching(x, 2, class_token=True, distill_token=True))


@call(packed, offsets)
def tome_matching_packed(x, bounds):
    return plan_tensors(pyramid_ops.tome_matching(x, 2, cu_seqlens=bounds, max_seqlen=9, distill_token=True))


@call(tokens)
def unit_rows(x):
    return pyramid_ops.unit_rows(x, limbs=2)


@call(tokens)
def unmerge_tokens(x):
    plan = pyramid_ops.tome_matching(x, 2)
    return pyramid_ops.unmerge_tokens(pyramid_ops.merge_tokens(x, plan).tokens, plan)


def merged_both_ways(x: Tensor, merge: Callable, unmerge: Callable) -> list:
    tokens, sizes = compat.merge_wavg(merge, x)
    return [tokens, sizes, merge(x, mode="amax"), unmerge(tokens), compat.merge_source(merge, x)]


@call(tokens)
def bipartite_soft_matching(x):
    return merged_both_ways(x, *compat.bipartite_soft_matching(x, 3, class_token=True))


@call(tokens)
def kth_bipartite_soft_matching(x):
    return merged_both_ways(x, *compat.kth_bipartite_soft_matching(x, 3))


@call(lambda batch, n: rand(batch, 6 * n, 8))
def bipartite_soft_matching_random2d(x):
    return merged_both_ways(x, *compat.bipartite_soft_matching_random2d(x, x.shape[1] // 6, 6, 2, 2, 9, seed=3))


@call(lambda batch, n: rand(batch, 24, 8), lambda batch, n: integers(4, 3, 2))
def bipartite_soft_matching_random2d_of_choices(x, choices):
    return merged_both_ways(x, *compat.bipartite_soft_matching_random2d(x, 4, 6, 2, 2, 9, choices=choices))


@call(lambda batch, n: rand(batch, 24, 8))
def bipartite_soft_matching_random2d_without_chance(x):
    return merged_both_ways(x, *compat.bipartite_soft_matching_random2d(x, 4, 6, 2, 2, 9, no_rand=True))
