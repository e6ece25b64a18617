"""Scores of regions: variance over groups of tokens, entropy over patches of pixels."""

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from . import _checks as check
from ._dispatch import Op
from .numerics import feature_rows
from .pyramid import _grid as patch_grid

_LARGEST_PATCH = 1 << 24
_MOST_BINS = 1024


def _region_variance_fake(
    features: Tensor, lengths: Sequence[Tensor], height: int, width: int, rows: int, columns: int
) -> Tensor:
    return features.new_empty(features.shape[0], rows * columns, dtype=torch.float32)


_region_variance = Op("regions", "region_variance", _region_variance_fake)
_broadcast_regions = Op(
    "regions",
    "broadcast_regions",
    lambda scores, height, width, rows, columns: scores.new_empty(scores.shape[0], height * width),
)
_patch_entropy = Op(
    "regions",
    "patch_entropy",
    lambda images, patch_size, bins: images.new_empty(
        images.shape[0], (images.shape[2] // patch_size) * (images.shape[3] // patch_size), dtype=torch.float32
    ),
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
        ``[B, N, D]``; uint8, float16, bfloat16 or float32; D from 1 to 16384. Token n stands at row ``n // W``, column
        ``n % W`` of the grid.
    grid : (int, int)
        Height H and width W of the token grid, H · W = N.
    regions : (int, int)
        Rows R_h and columns R_w of regions. Region row i covers the token rows from ``i * H // R_h`` to
        ``(i + 1) * H // R_h - 1``, region columns likewise.
    lengths : Tensor, optional
        int32 or int64 ``[B]``: only the first ``lengths[b]`` tokens of a sample count (text of several lengths is
        ``grid=(1, N), regions=(1, 1)``).

    Returns
    -------
    Tensor
        float32 ``[B, R_h * R_w]``, regions row by row. For regions of at most 2¹⁶ tokens within 8 ulp of the exact
        unbiased variance, whatever the mean, for finite features whose squares neither overflow nor vanish; above,
        rounding grows with the tokens of a lane (see the notes). NaN for a region of fewer than two features, where a
        feature is NaN or infinite, and where a sum of unequal features of a token, or of unequal token means, overflows
        float32. Otherwise exactly 0 where all features of a region are the same finite number.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or dtype, a grid that is not that of the tokens or smaller than the regions, or an input
        that requires grad.

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
    check.tensor(op, "features", features, "B N D")
    x = feature_rows(op, "features", features)
    height, width, rows, columns = _regions(op, grid, regions)
    if height * width != x.shape[1]:
        raise ValueError(f"{op}: grid: expected H·W = {x.shape[1]}, the number of tokens, got {height}×{width}")
    counts = [] if lengths is None else int_vector(op, "lengths", lengths, x)
    return _region_variance(x, counts, height, width, rows, columns)


def int_vector(op: str, name: str, values: Tensor, x: Tensor) -> list[Tensor]:
    """A checked int tensor `[B]` beside `x`, contiguous, as the list of one that an op takes for an optional tensor."""
    check.tensor(op, name, values, "B", dtypes=(torch.int32, torch.int64))
    if values.shape[0] != x.shape[0] or values.device != x.device:
        raise ValueError(f"{op}: {name}: expected [{x.shape[0]}] on {x.device}, got {check.describe(values)}")
    return [values.resolve_neg().contiguous()]


def _regions(op: str, grid: Any, regions: Any) -> tuple[int, int, int, int]:
    height, width = check.pair(op, "grid", grid)
    rows, columns = check.pair(op, "regions", regions)
    if height < rows or width < columns:
        raise ValueError(f"{op}: grid: expected at least the {rows}×{columns} regions, got {height}×{width}")
    return height, width, rows, columns


def broadcast_regions(scores: Tensor, grid: tuple[int, int], regions: tuple[int, int] = (4, 4)) -> Tensor:
    """The entry of its region for each token of a grid: region scores as token scores.

    Parameters
    ----------
    scores : Tensor
        ``[B, R_h * R_w]``, any dtype of at most 8 bytes.
    grid, regions : (int, int)
        Token grid (H, W) and regions (R_h, R_w), as in :func:`region_variance`.

    Returns
    -------
    Tensor
        ``[B, H * W]`` in the dtype of `scores`, bits unchanged.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or dtype, a grid smaller than the regions, or an input that requires grad.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> pyramid_ops.broadcast_regions(torch.tensor([[1, 2]]), (2, 3), (1, 2))
    tensor([[1, 2, 2, 1, 2, 2]])
    """
    op = "broadcast_regions"
    check.tensor(op, "scores", scores, "B R", dtypes=())
    if scores.element_size() > 8:
        raise TypeError(f"{op}: scores: expected a dtype of at most 8 bytes, got {check.describe(scores)}")
    height, width, rows, columns = _regions(op, grid, regions)
    if scores.shape[1] != rows * columns:
        raise ValueError(f"{op}: scores: expected [B, {rows * columns}], got {check.describe(scores)}")
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[scores.element_size()]
    words = scores.resolve_neg().resolve_conj().view(bits)
    return _broadcast_regions(words, height, width, rows, columns).view(scores.dtype)


def patch_entropy(images: Tensor, patch_size: int, *, bins: int = 256) -> Tensor:
    """Shannon entropy of the pixel values of each patch, in bits, all channels together.

    Parameters
    ----------
    images : Tensor
        ``[B, C, H, W]``, H and W multiples of the patch size; uint8, or float16, bfloat16 or float32 in [0, 1].
    patch_size : int
        Side P of a patch in pixels; C · P · P at most 2²⁴.
    bins : int
        Number of bins of the histogram, 2 to 1024. uint8 values fall into bin ⌊v · bins / 256⌋: each value into its own
        if there are 256. Floats fall into ⌊x · bins⌋ (the product rounded to float32), those below 0 into the first
        bin, 1 and above into the last.

    Returns
    -------
    Tensor
        float32 ``[B, N]``, patches in the order of :func:`patchify`; from 0, a constant patch, to log2(bins). Within
        8 ulp of the exact entropy of the histogram. NaN where a patch holds a NaN.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or dtype, a size that is no multiple of the patch size, a patch that is too large, a
        number of bins out of range, or an input that requires grad.

    Notes
    -----
    Σ (c / n) · log2(n / c) over the counts c of the bins, n = C · P · P. Counts are integers; the logarithm is a
    written polynomial of (n − c·2ᵏ) / (n + c·2ᵏ), exact for powers of two; terms are added in a tree of adjacent bins:
    the same bits on every device. With uint8 and 256 bins it is ``skimage.measure.shannon_entropy`` of each patch.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> image = torch.tensor([[0, 0, 1, 2], [0, 0, 3, 4]], dtype=torch.uint8).view(1, 1, 2, 4)
    >>> pyramid_ops.patch_entropy(image, 2)
    tensor([[0., 2.]])
    """
    op = "patch_entropy"
    check.tensor(op, "images", images, "B C H W")
    patch = check.integer(op, "patch_size", patch_size, 1)
    if check.integer(op, "bins", bins, 2) > _MOST_BINS:
        raise ValueError(f"{op}: bins: expected at most {_MOST_BINS}, got {bins}")
    patch_grid(op, "images", images.shape[2], images.shape[3], patch)
    values = images.shape[1] * patch * patch
    if not 1 <= values <= _LARGEST_PATCH:
        raise ValueError(f"{op}: patch_size: expected 1 to {_LARGEST_PATCH} values in a patch, got {values}")
    return _patch_entropy(check.rows(images), patch, int(bins))
