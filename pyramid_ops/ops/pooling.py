"""Scores pooled over windows."""

from typing import Literal

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from ..reference import pooling as reference
from ..reference.arguments import Windows

__all__ = ["pool_scores"]


def _pool_scores_fake(scores: Tensor, windows: Windows, reduction: str) -> Tensor:
    height, width, down, across = windows
    return scores.new_empty(scores.shape[0], -(-height // down) * -(-width // across), dtype=torch.float32)


pool_scores_op = Op(reference.pool_scores, _pool_scores_fake)


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
