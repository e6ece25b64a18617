"""Fused kernels that reduce visual tokens, with the same bits on every device.

Every op works on CPU and CUDA tensors, needs no gradient, never synchronises with the host, and returns the same bits
as its specification in :mod:`pyramid_ops.reference`.
"""

from ._dispatch import use_backend
from .compaction import Compaction, compact
from .numerics import unit_rows
from .pyramid import blur_downsample, gaussian_pyramid, patch_positions, patchify
from .scoring import token_norm, token_variance
from .selection import (
    LevelSelection,
    PackedLevelSelection,
    SegmentedTopK,
    allocate_budgets,
    gather_levels,
    segmented_topk,
    select_topk_levels,
    select_topk_levels_packed,
)

__version__ = "0.1.0"

__all__ = [
    "Compaction",
    "LevelSelection",
    "PackedLevelSelection",
    "SegmentedTopK",
    "allocate_budgets",
    "blur_downsample",
    "compact",
    "gather_levels",
    "gaussian_pyramid",
    "patch_positions",
    "patchify",
    "segmented_topk",
    "select_topk_levels",
    "select_topk_levels_packed",
    "token_norm",
    "token_variance",
    "unit_rows",
    "use_backend",
]
