"""Scores and tokens pooled over windows."""

from typing import Literal, Optional

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from ..reference import pooling as reference
from ..reference.arguments import Grid, Windows
from ..results import PooledScores

__all__ = ["pool_scores", "pool_scores_packed", "pool_tokens"]


def _pool_scores_fake(scores: Tensor, windows: Windows, reduction: str) -> Tensor:
    height, width, down, across = windows
    return scores.new_empty(scores.shape[0], -(-height // down) * -(-width // across), dtype=torch.float32)


def _pool_scores_packed_fake(
    scores: Tensor, cu_seqlens: Tensor, grids: Tensor, down: int, across: int, capacity: int, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    return scores.new_empty(capacity, dtype=torch.float32), torch.empty_like(cu_seqlens), torch.empty_like(grids)


pool_scores_op = Op(reference.pool_scores, _pool_scores_fake)
pool_scores_packed_op = Op(reference.pool_scores_packed, _pool_scores_packed_fake)
pool_tokens_op = Op(
    reference.pool_tokens,
    lambda tokens, grid, mode: tokens.new_empty(tokens.shape[0], grid.rows * grid.columns, tokens.shape[2]),
)


def pool_scores(
    scores: Tensor,
    grid: tuple[int, int],
    *,
    window: tuple[int, int] = (2, 2),
    reduction: Literal["mean", "sum", "max"] = "mean",
) -> Tensor:
    """Scores of merged tokens from the scores of their patches, for models that merge patches before the LLM.

    Vision encoders often join each 2×2 block of patches into one token; a score per patch becomes a score per token.

    Parameters
    ----------
    scores : Tensor
        ``[B, N]`` or ``[N]``; float16, bfloat16 or float32; at most 2³⁰ for each sample. Score n stands at row
        ``n // W``, column ``n % W`` of the grid: row by row, not block by block, as some models order their patches.
    grid : (int, int)
        Height H and width W of the grid of patches, H · W = N.
    window : (int, int)
        Rows w_h and columns w_w of patches that become one token. Windows do not overlap; those that the lower or
        right border cuts off reduce over what is there.
    reduction : "mean", "sum" or "max"
        The mean is over the patches that are there.

    Returns
    -------
    Tensor
        float32 ``[B, M]`` or ``[M]``, M = ⌈H / w_h⌉ · ⌈W / w_w⌉ windows row by row.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or option, a grid that is not that of the scores, or an input that requires grad.

    Notes
    -----
    A sum adds the scores of a window row by row in float32, from +0; a mean divides it by their number: as
    ``avg_pool2d`` with ``ceil_mode=True, count_include_pad=False``, up to the order. A maximum is the first of the
    largest, its bits unchanged: −0 equals 0, NaN ranks above +inf. The same bits on every device, for any tile, batch
    or stride.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> scores = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    >>> pyramid_ops.pool_scores(scores, (2, 3))
    tensor([[3.0000, 4.5000]])
    >>> pyramid_ops.pool_scores(scores, (2, 3), reduction="max")
    tensor([[5., 6.]])
    """
    op = "pool_scores"
    check.tensor(op, "scores", scores, "B N", "N", dtypes=check.FLOATS)
    height, width = check.pair(op, "grid", grid)
    down, across = check.pair(op, "window", window)
    check.choice(op, "reduction", reduction, "mean", "sum", "max")
    if height * width != scores.shape[-1]:
        raise ValueError(f"{op}: grid: expected H·W = {scores.shape[-1]}, the number of scores, got {height}×{width}")
    check.packed_size(op, "scores", scores.shape[-1])
    rows = scores.resolve_neg() if scores.dim() == 2 else scores.resolve_neg()[None]
    pooled = pool_scores_op(rows, Windows(height, width, min(down, height), min(across, width)), reduction)
    return pooled if scores.dim() == 2 else pooled[0]


def pool_scores_packed(
    scores: Tensor,
    cu_seqlens: Tensor,
    grids: Tensor,
    *,
    window: tuple[int, int] = (2, 2),
    reduction: Literal["mean", "sum", "max"] = "mean",
    capacity: Optional[int] = None,
) -> PooledScores:
    """:func:`pool_scores` for ragged batches: images of any size, packed one after another.

    Parameters
    ----------
    scores : Tensor
        Packed ``[T]``; float16, bfloat16 or float32; at most 2³⁰ of them. Those of an image stand row by row.
    cu_seqlens : Tensor
        int32 or int64 ``[S + 1]``: image s, or frame s of a video, has the scores ``cu_seqlens[s]`` to
        ``cu_seqlens[s + 1] - 1``.
    grids : Tensor
        int32 or int64 ``[S, 2]`` on the device: height and width of each image in patches. Of a segment that is longer
        the first height · width scores count; in one that is shorter, the rows that it has in full.
    window : (int, int)
        Rows and columns of patches that become one token, the same for all images; cut off at the border.
    reduction : "mean", "sum" or "max"
        As in :func:`pool_scores`.
    capacity : int, optional
        Slots of the result, at most 2³⁰. Default: T, which is enough where segments do not overlap. What is beyond is
        left out.

    Returns
    -------
    PooledScores
        ``scores`` float32 ``[capacity]``: the windows of image after image, row by row, without gaps; zeros past the
        last. ``cu_seqlens`` int32 ``[S + 1]``: where those of each image start, at most the capacity. ``grids`` int32
        ``[S, 2]``: rows and columns of windows of each image.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype, device or option, or an input that requires grad.

    Notes
    -----
    The bits of :func:`pool_scores` for each image. No host synchronisation: offsets on the device are clamped to
    [0, T], negative lengths, heights and widths to 0, widths to the length. Two launches. Offsets and grids that are
    not int32 are converted first.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> scores = torch.arange(10.0)  # an image of 2×3 patches, and one of 1×4
    >>> bounds, grids = torch.tensor([0, 6, 10]), torch.tensor([[2, 3], [1, 4]])
    >>> pooled = pyramid_ops.pool_scores_packed(scores, bounds, grids, capacity=6)
    >>> pooled.scores.tolist(), pooled.cu_seqlens.tolist(), pooled.grids.tolist()
    ([2.0, 3.5, 6.5, 8.5, 0.0, 0.0], [0, 2, 4], [[1, 2], [1, 2]])
    """
    op = "pool_scores_packed"
    scores = check.tensor(op, "scores", scores, "T", dtypes=check.FLOATS).resolve_neg()
    size = check.packed_size(op, "scores", scores.shape[0])
    cu_seqlens = check.cu_seqlens(op, "cu_seqlens", cu_seqlens, scores)
    check.packed_size(op, "cu_seqlens", cu_seqlens.shape[0])
    grids = check.packed_grids(op, "grids", grids, scores, cu_seqlens)
    down, across = (min(side, max(size, 1)) for side in check.pair(op, "window", window))
    check.choice(op, "reduction", reduction, "mean", "sum", "max")
    slots = size if capacity is None else check.packed_size(op, "capacity", check.integer(op, "capacity", capacity, 0))
    return PooledScores(*pool_scores_packed_op(scores, cu_seqlens, grids, down, across, slots, reduction))


def pool_tokens(
    tokens: Tensor,
    grid: tuple[int, int],
    out_grid: tuple[int, int],
    *,
    mode: Literal["mean", "amax"] = "mean",
) -> Tensor:
    """Tokens of a grid pooled to a grid of any other size, as ``adaptive_avg_pool2d`` or ``adaptive_max_pool2d``.

    Parameters
    ----------
    tokens : Tensor
        ``[B, N, D]`` or ``[N, D]``; uint8, float16, bfloat16 or float32; D from 1 to 16384. Token n stands at row
        ``n // W``, column ``n % W`` of the grid.
    grid : (int, int)
        Height H and width W of the token grid, H · W = N.
    out_grid : (int, int)
        Rows h and columns w of bins. Row i of them covers the token rows ⌊i · H / h⌋ to ⌈(i + 1) · H / h⌉ − 1, columns
        likewise: bins overlap where h does not divide H. h may exceed H: tokens are then repeated, or averaged.
    mode : "mean" or "amax"
        What is taken of a bin, feature by feature.

    Returns
    -------
    Tensor
        ``[B, h * w, D]`` or ``[h * w, D]`` in the dtype of `tokens`, bins row by row.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or option, a grid that is not that of the tokens, or an input that requires grad.

    Notes
    -----
    One launch. A mean adds the tokens of a bin row by row in float32, from +0, divides by their number and rounds
    once; the largest is the first of them, its bits unchanged: −0 equals 0, NaN ranks above +inf. The same bits on
    every device, for any tile, batch or stride. Rows that are not contiguous in their last dimension are copied first.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> tokens = torch.arange(12.0).view(1, 12, 1)
    >>> pyramid_ops.pool_tokens(tokens, (3, 4), (2, 2)).flatten()
    tensor([2.5000, 4.5000, 6.5000, 8.5000])
    """
    op = "pool_tokens"
    rows = check.feature_rows(op, "tokens", tokens)
    of = Grid(*check.pair(op, "grid", grid), *check.pair(op, "out_grid", out_grid))
    if of.height * of.width != rows.shape[1]:
        raise ValueError(
            f"{op}: grid: expected H·W = {rows.shape[1]}, the number of tokens, got {of.height}×{of.width}"
        )
    check.packed_size(op, "tokens", rows.shape[1])
    check.packed_size(op, "out_grid", of.rows * of.columns)
    pooled = pool_tokens_op(rows, of, check.choice(op, "mode", mode, "mean", "amax"))
    return pooled if tokens.dim() == 3 else pooled[0]
