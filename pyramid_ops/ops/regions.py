"""Variance over groups of tokens, and scores of regions for each of their tokens."""

from typing import Any, Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from ..reference import regions as reference
from ..reference.arguments import Grid

__all__ = ["broadcast_regions", "region_variance"]


def _region_variance_fake(features: Tensor, lengths: Optional[Tensor], grid: Grid) -> Tensor:
    parts = features.shape[0] if grid.sides is None else grid.sides.shape[0]
    return features.new_empty(parts, grid.rows * grid.columns, dtype=torch.float32)


def _broadcast_regions_fake(scores: Tensor, grid: Grid) -> Tensor:
    if grid.sides is None:
        return scores.new_empty(scores.shape[0], grid.height * grid.width)
    return scores.new_empty(1, grid.tokens)


region_variance_op = Op(reference.region_variance, _region_variance_fake)
broadcast_regions_op = Op(reference.broadcast_regions, _broadcast_regions_fake)


def region_variance(
    features: Tensor,
    grid: Union[tuple[int, int], Tensor],
    regions: tuple[int, int] = (4, 4),
    *,
    lengths: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
) -> Tensor:
    """Variance over all features of all tokens of each region, as ``torch.var`` of the region, from one read.

    Parameters
    ----------
    features : Tensor
        ``[B, N, D]`` or ``[N, D]``, or packed ``[T, D]`` with `cu_seqlens`; uint8, float16, bfloat16 or float32; D
        from 1 to 16384. Token n stands at row ``n // W``, column ``n % W`` of the grid.
    grid : (int, int) or Tensor
        Height H and width W of the token grid, H · W = N. For packed tokens int32 or int64 ``[S, 2]`` on the device:
        those of each segment. Of a segment that is longer the first H · W tokens count; in one that is shorter, the
        rows that it has in full.
    regions : (int, int)
        Rows R_h and columns R_w of regions. Region row i covers the token rows from ``i * H // R_h`` to
        ``(i + 1) * H // R_h - 1``, and where there is none, as in a grid smaller than the regions, row
        ``i * H // R_h`` all the same; region columns likewise. So each token is a region where the grid is no larger
        than the regions, and some tokens are several.
    lengths : Tensor, optional
        int32, int64 or bool ``[B]``, ``[1]`` for one sample, ``[S]`` for packed tokens: only the first ``lengths[b]``
        tokens of a sample or segment count (text of several lengths is ``grid=(1, N), regions=(1, 1)``).
    cu_seqlens : Tensor, optional
        int32 or int64 ``[S + 1]``: segment s has the tokens ``features[cu_seqlens[s] : cu_seqlens[s + 1]]``. Offsets
        are clamped to [0, T], negative lengths, heights and widths to 0, widths to the length.

    Returns
    -------
    Tensor
        float32 ``[B, R_h * R_w]``, ``[R_h * R_w]`` or packed ``[S, R_h * R_w]``, regions row by row; the bits of each
        segment alone. For regions of at most 2¹⁶ tokens within 8 ulp of the exact unbiased variance, whatever the mean,
        for finite features whose squares neither overflow nor vanish; above, rounding grows with the tokens of a lane
        (see the notes). NaN for a region of fewer than two features, so for those of an empty grid, where a feature is
        NaN or infinite, and where a sum of unequal features of a token, or of unequal token means, overflows float32.
        Otherwise exactly 0 where all features of a region are the same finite number.

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
    >>> sides, bounds = torch.tensor([[2, 2], [3, 4]]), torch.tensor([0, 4, 16])
    >>> pyramid_ops.region_variance(features[0], sides, (1, 1), cu_seqlens=bounds)
    tensor([[ 1.6667],
            [13.0000]])
    """
    op = "region_variance"
    if cu_seqlens is not None:
        check.tensor(op, "features", features, "T D")
    x = check.feature_rows(op, "features", features)
    of = _regions(op, grid, regions, x, cu_seqlens)
    if of.sides is not None:
        check.packed_size(op, "features", x.shape[1])
        counts = None if lengths is None else check.int_vector(op, "lengths", lengths, of.sides)
        return region_variance_op(x, counts, of)
    if of.height * of.width != x.shape[1]:
        raise ValueError(f"{op}: grid: expected H·W = {x.shape[1]}, the number of tokens, got {of.height}×{of.width}")
    counts = None if lengths is None else check.int_vector(op, "lengths", lengths, x)
    variance = region_variance_op(x, counts, of)
    return variance if features.dim() == 3 else variance[0]


def _regions(op: str, grid: Any, regions: Any, like: Tensor, cu_seqlens: Any, tokens: int = 0) -> Grid:
    rows, columns = check.pair(op, "regions", regions)
    check.packed_size(op, "regions", rows * columns)
    if cu_seqlens is None:
        if isinstance(grid, Tensor):
            raise ValueError(f"{op}: grid: expected a tensor only with cu_seqlens, got {check.describe(grid)}")
        return Grid(*check.pair(op, "grid", grid), rows, columns)
    cu_seqlens = check.cu_seqlens(op, "cu_seqlens", cu_seqlens, like)
    sides = check.packed_grids(op, "grid", grid, like, cu_seqlens)
    return Grid(0, 0, rows, columns, cu_seqlens, sides, tokens)


def broadcast_regions(
    scores: Tensor,
    grid: Union[tuple[int, int], Tensor],
    regions: tuple[int, int] = (4, 4),
    *,
    cu_seqlens: Optional[Tensor] = None,
    capacity: Optional[int] = None,
) -> Tensor:
    """The entry of its region for each token of a grid: region scores as token scores.

    Parameters
    ----------
    scores : Tensor
        ``[B, R_h * R_w]`` or ``[R_h * R_w]``, or with `cu_seqlens` ``[S, R_h * R_w]``; any dtype of at most 8 bytes.
    grid : (int, int) or Tensor
        Token grid (H, W), or with `cu_seqlens` ``[S, 2]``, as in :func:`region_variance`.
    regions : (int, int)
        Rows R_h and columns R_w of regions.
    cu_seqlens : Tensor, optional
        int32 or int64 ``[S + 1]``: where the tokens of each segment are. Where offsets descend, a token is in the
        segment that a binary search for the last offset not above it finds.
    capacity : int, optional
        With `cu_seqlens`: T, the tokens of the result, at most 2³⁰; offsets are clamped to [0, T].

    Returns
    -------
    Tensor
        ``[B, H * W]``, ``[H * W]`` or packed ``[T]`` in the dtype of `scores`, bits unchanged. Every token is in one
        region, of those that are the same token the last. A packed token that is in no grid gets 0.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or dtype, or an input that requires grad.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> pyramid_ops.broadcast_regions(torch.tensor([[1, 2]]), (2, 3), (1, 2))
    tensor([[1, 2, 2, 1, 2, 2]])
    >>> sides, bounds = torch.tensor([[1, 2], [2, 3]]), torch.tensor([0, 2, 8])
    >>> scores = torch.tensor([[1, 2], [3, 4]])
    >>> pyramid_ops.broadcast_regions(scores, sides, (1, 2), cu_seqlens=bounds, capacity=9)
    tensor([1, 2, 3, 4, 4, 3, 4, 4, 0])
    """
    op = "broadcast_regions"
    if cu_seqlens is None:
        check.tensor(op, "scores", scores, "B R", "R", dtypes=())
    else:
        check.tensor(op, "scores", scores, "S R", dtypes=())
    if scores.element_size() > 8:
        raise TypeError(f"{op}: scores: expected a dtype of at most 8 bytes, got {check.describe(scores)}")
    if (cu_seqlens is None) != (capacity is None):
        raise ValueError(f"{op}: capacity: expected with cu_seqlens and only with it, got {capacity}")
    tokens = 0 if capacity is None else check.packed_size(op, "capacity", check.integer(op, "capacity", capacity, 0))
    of = _regions(op, grid, regions, scores, cu_seqlens, tokens)
    if scores.shape[-1] != of.rows * of.columns:
        raise ValueError(f"{op}: scores: expected {of.rows * of.columns} a sample, got {check.describe(scores)}")
    if of.sides is not None and of.sides.shape[0] != scores.shape[0]:
        raise ValueError(f"{op}: scores: expected {of.sides.shape[0]} segments, got {check.describe(scores)}")
    words = scores.resolve_neg().resolve_conj().view(check.bits(scores.dtype))
    spread = broadcast_regions_op(words if scores.dim() == 2 else words[None], of).view(scores.dtype)
    return spread if scores.dim() == 2 and of.sides is None else spread[0]
