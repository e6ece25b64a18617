"""Similarity of paired rows."""

import torch
from torch import Tensor

from .blocks import CACHE_ELEMENTS, each_block, work_rows
from .dots import LOW_BITS, grid_rows


def paired_similarity(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of row n of `x` and row n of `y`, `[B, N]`: the dot product of unit rows in two limbs.

    In multiples of 2⁻³⁰, halves rounded up; −inf where a norm is not finite.
    """
    out = x.new_empty(x.shape[:2], dtype=torch.float32)
    buffers = work_rows(x, 2, CACHE_ELEMENTS // 2)

    def pair(x_rows: Tensor, y_rows: Tensor, out: Tensor) -> None:
        (x_units,), (x_norms,) = grid_rows(x_rows[None], 2, LOW_BITS, 1, buffers)
        (y_units,), (y_norms,) = grid_rows(y_rows[None], 2, LOW_BITS, 1, buffers)
        x_units *= y_units
        products = (x_units.sum(-1, dtype=torch.float64) + 0.5).floor_()  # exact, in units of 2⁻³⁰
        finite = (x_norms < torch.inf) & (y_norms < torch.inf)
        out.copy_(torch.where(finite, products.to(torch.float32) * 2.0**-30, -torch.inf))

    each_block(pair, CACHE_ELEMENTS // 2, x, y, out)
    return out
