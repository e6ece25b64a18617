"""Public calls, and how many kernels each launches: Triton's and PyTorch's."""

from functools import partial

import torch

import pyramid_ops
from pyramid_ops import plans
from pyramid_ops.plans.halves import bipartite_plan


def _images():
    image = torch.zeros(2, 3, 256, 256)
    yield "blur_downsample", "one level", partial(pyramid_ops.blur_downsample, image), (1, 0)
    yield "blur_downsample", "gaussian_pyramid, 4 levels", partial(pyramid_ops.gaussian_pyramid, image, 4), (3, 0)
    yield "patch_entropy", "", partial(pyramid_ops.patch_entropy, image, 16), (1, 0)
    yield "patch_entropy", "rows", partial(pyramid_ops.patch_entropy, torch.zeros(512, 768)), (1, 0)
    encode = partial(pyramid_ops.patchify, patch_size=16)
    call = partial(pyramid_ops.progressive_select, image, encode, (9, 4, 1), target_tokens=12)
    yield "select_topk_levels", "progressive_select", call, (11, 6)


def _scoring():
    x, scores = torch.zeros(2, 1360, 1024, dtype=torch.bfloat16), torch.zeros(2, 256)
    yield "token_variance", "dense", partial(pyramid_ops.token_variance, x), (1, 0)
    yield "token_norm", "dense", partial(pyramid_ops.token_norm, x), (1, 0)
    yield "token_norm", "p = 1", partial(pyramid_ops.token_norm, x, p=1), (1, 0)
    yield "unit_rows", "", partial(pyramid_ops.unit_rows, x), (1, 0)
    yield "region_variance", "", partial(pyramid_ops.region_variance, x[:, :256], (16, 16)), (2, 0)
    call = partial(pyramid_ops.region_variance, x[0, :512], GRIDS, cu_seqlens=HALVES)
    yield "region_variance", "packed", call, (2, 0)
    call = partial(pyramid_ops.broadcast_regions, scores[:, :16], GRIDS, cu_seqlens=HALVES, capacity=512)
    yield "broadcast_regions", "packed", call, (1, 0)
    yield "channel_variance", "", partial(pyramid_ops.channel_variance, x), (2, 0)
    call = partial(pyramid_ops.channel_variance, x.flatten(0, 1), cu_seqlens=BOUNDS)
    yield "channel_variance", "packed", call, (2, 1)
    yield "broadcast_regions", "", partial(pyramid_ops.broadcast_regions, scores[:, :16], (16, 16)), (1, 0)
    yield "pool_scores", "", partial(pyramid_ops.pool_scores, scores, (16, 16)), (1, 0)
    yield "pool_tokens", "", partial(pyramid_ops.pool_tokens, x[:, :576], (24, 24), (12, 12)), (1, 0)
    call = partial(pyramid_ops.pool_scores_packed, scores.flatten(), HALVES, GRIDS)
    yield "pool_scores_packed", "", call, (2, 0)
    yield "segment_threshold", "", partial(pyramid_ops.segment_threshold, scores, rule="iqr"), (1, 0)
    call = partial(pyramid_ops.combine_scores, [scores, scores], [0.5, 0.5])
    yield "combine_scores", "", call, (1, 0)
    yield "combine_scores", "min-max", partial(call, normalize="minmax"), (2, 1)
    yield "paired_similarity", "", partial(pyramid_ops.paired_similarity, x[1:], x[:-1]), (1, 0)
    yield "paired_similarity", "one partner", partial(pyramid_ops.paired_similarity, x, x[:1, :1]), (1, 0)
    yield "hash_uniform", "", partial(pyramid_ops.hash_uniform, (2, 999), 3), (1, 1)
    call = partial(pyramid_ops.hash_uniform, (2, 999), torch.arange(2))
    yield "hash_uniform", "seeds on the device", call, (1, 0)
    words, heads = x[:, :64], torch.zeros(2, 4, 256, 32)
    yield "text_relevance", "max", partial(pyramid_ops.text_relevance, x, words), (3, 0)
    yield "text_relevance", "softmax", partial(pyramid_ops.text_relevance, x, words, reduction="softmax"), (7, 0)
    yield "attention_walk", "5 steps", partial(pyramid_ops.attention_walk, heads, heads, steps=5), (16, 2)
    flat = heads.transpose(1, 2).flatten(0, 1)
    call = partial(pyramid_ops.attention_walk, flat, flat, steps=5, cu_seqlens=HALVES)
    yield "attention_walk", "packed, 5 steps", call, (17, 3)
    call = partial(pyramid_ops.allocate_budgets_batch, 99, torch.zeros(2, 4), [64] * 4)
    yield "allocate_budgets_batch", "", call, (1, 0)
    call = partial(pyramid_ops.allocate_budgets_batch, 9, torch.zeros(2, 500), torch.ones(2, 500).int())
    yield "allocate_budgets_batch", "500 levels, by weight", partial(call, surplus="weight"), (1, 0)
    yield "adaptive_weights", "", partial(pyramid_ops.adaptive_weights, x), (3, 0)


def _attention():
    query, key = (torch.zeros(2, heads, count, 64, dtype=torch.bfloat16) for heads, count in ((4, 100), (2, 300)))
    score, op = partial(pyramid_ops.attention_importance, query, key), "attention_importance"
    yield op, "all", score, (7, 0)
    yield op, "last", partial(score, query_indices=[-1]), (6, 0)
    yield op, "last-causal", partial(score, query_indices=[-1], causal=True), (6, 0)
    yield op, "list", partial(score, query_indices=[3, 5, 9], causal=True), (6, 2)
    yield op, "list-on-device", partial(score, query_indices=torch.tensor([3, 5, 9])), (6, 0)
    yield op, "weights", partial(score, query_weights=torch.ones(2, 100), causal=True), (8, 0)
    yield op, "range", partial(score, key_range=(3, 100)), (7, 1)
    yield "center_keys", "all", partial(score, center_keys=True), (10, 0)
    given = partial(score, log_sum_exp=torch.zeros(2, 4, 100))
    yield op, "log-sum-exp", given, (5, 0)
    yield "center_logits", "log-sum-exp", partial(given, center_keys=True), (9, 0)
    offsets = {"cu_seqlens_q": torch.tensor([0, 50, 100]).int(), "cu_seqlens_k": torch.tensor([0, 100, 300]).int()}
    packed = partial(pyramid_ops.attention_importance, query[0].transpose(0, 1), key[0].transpose(0, 1), **offsets)
    yield op, "packed", packed, (7, 2)
    yield op, "packed-last", partial(packed, query_indices=[-1]), (6, 3)
    yield op, "packed-weights", partial(packed, query_weights=torch.ones(100)), (8, 2)


def _selection():
    levels = [torch.zeros(2, size, 64) for size in (1024, 256, 64)]
    select = partial(pyramid_ops.select_topk_levels, levels, 100)
    yield "select_topk_levels", "three levels", select, (2, 0)
    yield "select_topk_levels", "by index", partial(select, order="index"), (3, 0)
    scores, bounds = torch.zeros(3000), torch.tensor([0, 1000, 3000], dtype=torch.int32)
    call = partial(pyramid_ops.segmented_topk, scores, bounds, 100)
    yield "segmented_topk", "", partial(call, max_seqlen=2000), (1, 0)
    yield "segmented_topk", "by index", partial(call, max_seqlen=2000, order="index"), (2, 0)
    call = partial(pyramid_ops.segmented_topk, torch.zeros(40000), bounds * 10, 100, max_seqlen=20000)
    yield "segmented_topk", "long", call, (6, 1)
    indices, cache = torch.zeros(2, 9, dtype=torch.int64), torch.zeros(2, 4, 1024, 16)
    call = partial(pyramid_ops.compact, [levels[0], cache], indices, token_dims=(1, 2))
    yield "compact", "", call, (3, 1)
    call = partial(pyramid_ops.gather_levels, levels, torch.zeros(2, 9, 2, dtype=torch.int64))
    yield "gather_levels", "", call, (1, 0)


def _greedy():
    x, op = torch.zeros(2, 576, 256, dtype=torch.bfloat16), "greedy_select"
    pick = partial(pyramid_ops.greedy_select, x)
    yield op, "maxmin", partial(pick, 64), (4, 0)
    yield op, "maxmin, by index", partial(pick, 64, order="index"), (5, 0)
    yield op, "dpp", partial(pick, 64, rule="dpp"), (3, 0)
    yield op, "dpp, a launch for each pick", partial(pick, 500, rule="dpp"), (503, 1)
    yield op, "coverage, a launch for each pick", partial(pick, 64, rule="coverage"), (67, 1)
    bounds = torch.tensor([0, 500, 1152], dtype=torch.int32)
    packed = partial(pyramid_ops.greedy_select, x.flatten(0, 1), 64, cu_seqlens=bounds, max_seqlen=652)
    yield op, "maxmin, packed", packed, (6, 2)
    prune, op = partial(pyramid_ops.bipartite_prune, x), "bipartite_prune"
    yield op, "64 of 576", partial(prune, 64), (4, 0)
    wide = torch.zeros(1, 1100, 64)
    yield op, "two launches a round", partial(pyramid_ops.bipartite_prune, wide, 1060), (14, 0)
    packed = partial(pyramid_ops.bipartite_prune, x.flatten(0, 1), 64, cu_seqlens=bounds, max_seqlen=652)
    yield op, "packed", packed, (5, 2)


def _plans():
    scores, flags = torch.zeros(2, 640), torch.zeros(2, 640, dtype=torch.bool)
    hidden, cache = torch.zeros(2, 640, 1024), torch.zeros(2, 8, 640, 64)
    positions, square = torch.zeros(2, 640, dtype=torch.int64), torch.zeros(2, 1, 640, 640)
    keep = partial(plans.keep, scores, 144, candidates=flags, forced=flags, capacity=208)
    yield "keep_tokens", "keep", keep, (3, 0)
    yield "keep_tokens", "keep, long", partial(plans.keep, torch.zeros(2, 20000), 144), (7, 1)
    packed = partial(plans.keep, scores.flatten(), 144, cu_seqlens=BOUNDS, max_seqlen=640)
    yield "keep_tokens", "keep, packed", packed, (3, 0)
    yield "keep_tokens", "keep, apply", lambda: plans.apply(keep(), [hidden, positions, cache, cache]), (6, 0)
    plan = keep()
    yield "move_tokens", "apply", partial(plans.apply, plan, [hidden, positions, cache, cache], align="right"), (3, 0)
    yield "move_tokens", "apply, mask", partial(plans.apply, plan, square, dims=(2, 3)), (1, 0)
    yield "mark_tokens", "mask", partial(plans.mask, plan), (1, 1)
    yield "join_tokens", "join", partial(plans.join, hidden, plan), (7, 1)
    yield "join_tokens", "then", partial(plans.then, plan, plans.keep(scores[:, :208], 9)), (1, 0)
    yield "join_tokens", "concat", partial(plans.concat, plan, plan), (4, 3)


def _tome():
    x, flat = torch.zeros(2, 577, 64), torch.zeros(1154, 64)
    options = {"cu_seqlens": BOUNDS, "max_seqlen": 640, "class_token": True}
    dense = partial(plans.tome, x, 16, class_token=True)
    packed = partial(plans.tome, flat, 16, **options)
    yield "match_halves", "tome", dense, (5, 0)
    yield "match_halves", "tome, apply", lambda: plans.apply(dense(), x), (7, 0)
    yield "match_halves", "tome, apply, packed", lambda: plans.apply(packed(), flat), (7, 1)
    yield "match_halves", "tome_matching", partial(pyramid_ops.tome_matching, x, 16, class_token=True), (4, 0)
    plan = pyramid_ops.tome_matching(x, 16, class_token=True)
    yield "fold_groups", "merge_tokens", partial(pyramid_ops.merge_tokens, x, plan), (5, 0)
    call = partial(pyramid_ops.merge_tokens, x, plan, order="original")
    yield "fold_groups", "merge_tokens, original order", call, (6, 0)
    yield "trace_rows", "merge_indices", partial(pyramid_ops.merge_indices, plan), (2, 0)
    yield "gather_levels", "unmerge_tokens", partial(pyramid_ops.unmerge_tokens, x[:, :561], plan), (3, 2)
    yield "fold_groups", "assign_mean", partial(pyramid_ops.assign_mean, x, plan.rows, 561), (3, 1)
    call = partial(pyramid_ops.assign_mean, flat, plan.rows.flatten(), 1122, mode="amax")
    yield "cluster_rows", "assign_mean, packed", partial(call, cu_seqlens=BOUNDS, cu_clusters=BOUNDS), (4, 1)
    shared = torch.arange(577)
    call = partial(bipartite_plan, x[:, 99:], x[:, :99], shared[99:], shared[:99], 100, 1)
    yield "place_pairs", "bipartite_plan", call, (5, 0)
    yield "best_match", "dense", partial(pyramid_ops.best_match, x, x), (4, 0)
    for count in (1, 8):
        yield "nearest", f"cosine, {count}", partial(pyramid_ops.nearest, x, x, count, exclude_self=True), (3, 0)
    call = partial(pyramid_ops.nearest, x, x, 8, metric="euclidean", rank=x[..., 0])
    yield "nearest", "euclidean", call, (4, 1)
    yield "nearest", "of other tokens", partial(pyramid_ops.nearest, x, x[:, :99], 8, metric="euclidean"), (6, 0)
    options = {"cu_seqlens_q": BOUNDS, "cu_seqlens_k": BOUNDS, "max_seqlen_k": 640}
    yield "nearest", "packed", partial(pyramid_ops.nearest, flat, flat, 8, **options), (3, 0)
    yield "dpc_knn", "dense", partial(pyramid_ops.dpc_knn, x, 60, 7), (13, 1)
    call = partial(pyramid_ops.dpc_knn, flat, 60, 7, cu_seqlens=BOUNDS, max_seqlen=640)
    yield "dpc_knn", "packed", call, (13, 2)
    yield "suppress", "dense", partial(pyramid_ops.suppress, x, 0.8), (4, 0)
    yield "suppress", "scores", partial(pyramid_ops.suppress, x, 0.8, scores=x[..., 0]), (5, 1)
    call = partial(pyramid_ops.suppress, flat, 0.8, scores=flat[:, 0].contiguous(), cu_seqlens=BOUNDS, max_seqlen=654)
    yield "suppress", "packed", call, (5, 1)


HALVES, GRIDS = torch.tensor([0, 200, 512]).int(), torch.tensor([[10, 20], [26, 12]]).int()
BOUNDS = torch.tensor([0, 500, 1154], dtype=torch.int32)
# (op, what, call, (Triton launches, PyTorch kernels)) of each family.
TABLE = [row for family in (_images, _scoring, _attention, _selection, _greedy, _plans, _tome) for row in family()]
