"""Fused kernels that reduce visual tokens, with the same bits on every device.

Every op works on CPU and CUDA tensors, needs no gradient, never synchronises with the host, and returns the same bits
as its specification in :mod:`pyramid_ops.reference`.
"""

from ._dispatch import use_backend
from .attention import attention_importance, attention_walk, text_relevance
from .budgets import adaptive_budgets, adaptive_weights, allocate_budgets, allocate_budgets_batch
from .compaction import Compaction, compact
from .merging import (
    BestMatch,
    MergedTokens,
    MergePlan,
    assign_mean,
    best_match,
    merge_indices,
    merge_tokens,
    tome_matching,
    unmerge_tokens,
)
from .numerics import unit_rows
from .pyramid import blur_downsample, gaussian_pyramid, patch_positions, patchify
from .regions import broadcast_regions, patch_entropy, region_variance
from .scoring import combine_scores, pool_scores, token_norm, token_variance
from .selection import (
    LevelSelection,
    PackedLevelSelection,
    SegmentedTopK,
    gather_levels,
    progressive_select,
    segmented_topk,
    select_topk_levels,
    select_topk_levels_packed,
)

__version__ = "0.1.0"

__all__ = [
    "BestMatch",
    "Compaction",
    "LevelSelection",
    "MergePlan",
    "MergedTokens",
    "PackedLevelSelection",
    "SegmentedTopK",
    "adaptive_budgets",
    "adaptive_weights",
    "allocate_budgets",
    "allocate_budgets_batch",
    "assign_mean",
    "attention_importance",
    "attention_walk",
    "best_match",
    "blur_downsample",
    "broadcast_regions",
    "combine_scores",
    "compact",
    "gather_levels",
    "gaussian_pyramid",
    "merge_indices",
    "merge_tokens",
    "patch_entropy",
    "patch_positions",
    "patchify",
    "pool_scores",
    "progressive_select",
    "region_variance",
    "segmented_topk",
    "select_topk_levels",
    "select_topk_levels_packed",
    "text_relevance",
    "token_norm",
    "token_variance",
    "tome_matching",
    "unit_rows",
    "unmerge_tokens",
    "use_backend",
]
