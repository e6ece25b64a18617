"""Fused kernels that reduce visual tokens, with the same bits on every device.

Every op works on CPU and CUDA tensors, needs no gradient, never synchronises with the host, and returns the same bits
as its specification in :mod:`pyramid_ops.reference`.
"""

from ._dispatch import use_backend
from .budgets import adaptive_budgets, adaptive_weights, allocate_budgets, allocate_budgets_batch
from .numerics import unit_rows
from .pyramid import blur_downsample, gaussian_pyramid, patch_positions, patchify
from .regions import broadcast_regions, patch_entropy, region_variance
from .scoring import token_norm, token_variance
from .selection import LevelSelection, gather_levels, progressive_select, select_topk_levels

__version__ = "0.1.0"

__all__ = [
    "LevelSelection",
    "adaptive_budgets",
    "adaptive_weights",
    "allocate_budgets",
    "allocate_budgets_batch",
    "blur_downsample",
    "broadcast_regions",
    "gather_levels",
    "gaussian_pyramid",
    "patch_entropy",
    "patch_positions",
    "patchify",
    "progressive_select",
    "region_variance",
    "select_topk_levels",
    "token_norm",
    "token_variance",
    "unit_rows",
    "use_backend",
]
