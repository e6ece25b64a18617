"""Variance over groups of tokens, and scores of regions for each of their tokens."""

from typing import Any, Optional

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from ..reference import regions as reference
from ..reference.arguments import Grid

__all__ = ["broadcast_regions", "region_variance"]


def _region_variance_fake(features: Tensor, lengths: Optional[Tensor], grid: Grid) -> Tensor:
    return features.new_empty(features.shape[0], grid.rows * grid.columns, dtype=torch.float32)


region_variance_op = Op(reference.region_variance, _region_variance_fake)
broadcast_regions_op = Op(
    reference.broadcast_regions,
    lambda scores, grid: scores.new_empty(scores.shape[0], grid.height * grid.width),
)


def region_variance(
    features: Tensor,
    grid: tuple[int, int],
    regions: tuple[int, int] = (4, 4),
    *,
    lengths: Optional[Tensor] = None,
) -> Tensor:
    """Variance over all features of all tokens of each region, as ``torch.var`` of the region, from one read.

    Parameters
    ----------
    features : Tensor
        ``[B, N, D]`` or ``[N, D]``; uint8, float16, bfloat16 or float32; D from 1 to 16384. Token n stands at row
        ``n // W``, column ``n % W`` of the grid.
    grid : (int, int)
        Height H and width W of the token grid, H · W = N.
    regions : (int, int)
        Rows R_h and columns R_w of regions. Region row i covers the token rows from ``i * H // R_h`` to
        ``(i + 1) * H // R_h - 1``, and where there is none, as in a grid smaller than the regions, row
        ``i * H // R_h`` all the same; region columns likewise. So each token is a region where the grid is no larger
        than the regions, and some tokens are several.
    lengths : Tensor, optional
        int32, int64 or bool ``[B]``, ``[1]`` for one sample: only the first ``lengths[b]`` tokens of a sample count
        (text of several lengths is ``grid=(1, N), regions=(1, 1)``).

    Returns
    -------
    Tensor
        float32 ``[B, R_h * R_w]`` or ``[R_h * R_w]``, regions row by row. For regions of at most 2¹⁶ tokens
        within 8 ulp of the exact unbiased variance, whatever the mean, for finite features whose squares neither
        overflow nor vanish; above, rounding grows with the tokens of a lane (see the notes). NaN for a region of fewer
        than two features, where a feature is NaN or infinite, and where a sum of unequal features of a token, or of
        unequal token means, overflows float32. Otherwise exactly 0 where all features of a region are the same finite
        number.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or dtype, a grid that is not that of the tokens, or an input that requires grad.

    Notes
    -----
    Two launches: the mean, what rounding took from it and the squared deviations of each token, as in
    :func:`token_variance`; then Σ squares + D · Σ (token mean − region mean)², over T · D − 1. Sums over the T tokens
    of a region add token j, j + 256, … in order, then 256 lanes in a tree of adjacent pairs: the same bits on every
    device, for any tile, batch or stride. Rows that are not contiguous in their last dimension are copied first.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> features = torch.arange(16.0).view(1, 16, 1)
    >>> pyramid_ops.region_variance(features, (4, 4), (2, 2))
    tensor([[5.6667, 5.6667, 5.6667, 5.6667]])
    """
    op = "region_variance"
    x = check.feature_rows(op, "features", features)
    of = _regions(op, grid, regions)
    if of.height * of.width != x.shape[1]:
        raise ValueError(f"{op}: grid: expected H·W = {x.shape[1]}, the number of tokens, got {of.height}×{of.width}")
    counts = None if lengths is None else check.int_vector(op, "lengths", lengths, x)
    variance = region_variance_op(x, counts, of)
    return variance if features.dim() == 3 else variance[0]


def _regions(op: str, grid: Any, regions: Any) -> Grid:
    of = Grid(*check.pair(op, "grid", grid), *check.pair(op, "regions", regions))
    check.packed_size(op, "regions", of.rows * of.columns)
    return of


def broadcast_regions(scores: Tensor, grid: tuple[int, int], regions: tuple[int, int] = (4, 4)) -> Tensor:
    """The entry of its region for each token of a grid: region scores as token scores.

    Parameters
    ----------
    scores : Tensor
        ``[B, R_h * R_w]`` or ``[R_h * R_w]``, any dtype of at most 8 bytes.
    grid, regions : (int, int)
        Token grid (H, W) and regions (R_h, R_w), as in :func:`region_variance`.

    Returns
    -------
    Tensor
        ``[B, H * W]`` or ``[H * W]`` in the dtype of `scores`, bits unchanged. Every token is in one region, of those
        that are the same token the last.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or dtype, or an input that requires grad.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> pyramid_ops.broadcast_regions(torch.tensor([[1, 2]]), (2, 3), (1, 2))
    tensor([[1, 2, 2, 1, 2, 2]])
    """
    op = "broadcast_regions"
    check.tensor(op, "scores", scores, "B R", "R", dtypes=())
    if scores.element_size() > 8:
        raise TypeError(f"{op}: scores: expected a dtype of at most 8 bytes, got {check.describe(scores)}")
    of = _regions(op, grid, regions)
    if scores.shape[-1] != of.rows * of.columns:
        raise ValueError(f"{op}: scores: expected {of.rows * of.columns} a sample, got {check.describe(scores)}")
    words = scores.resolve_neg().resolve_conj().view(check.bits(scores.dtype))
    tokens = broadcast_regions_op(words if scores.dim() == 2 else words[None], of).view(scores.dtype)
    return tokens if scores.dim() == 2 else tokens[0]
