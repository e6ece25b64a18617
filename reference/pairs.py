"""Similarity of paired rows."""

import torch
from torch import Tensor

from .blocks import CACHE_ELEMENTS, each_block, work_rows
from .dots import LOW_BITS, on_grid, rounded


def paired_similarity(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of row n of `x` and row n of `y`, `[B, N]`: the dot product of unit rows in two limbs.

    In multiples of 2⁻³⁰, halves rounded up; −inf where a norm is not finite.
    """
    out = x.new_empty(x.shape[:2], dtype=torch.float32)
    # Rows of `x`, then as many of `y`.
    both_rows, both_work = work_rows(x, 4, CACHE_ELEMENTS // 2).unflatten(0, (2, 2)).flatten(1, 2)
    doubles = torch.empty(both_rows.shape, dtype=torch.float64, device=x.device)

    def pair(x_rows: Tensor, y_rows: Tensor, out: Tensor) -> None:
        count = len(x_rows)
        rows, work, norms = both_rows[: 2 * count], both_work[: 2 * count], out.new_empty(2 * count)
        rows[:count], rows[count:] = x_rows, y_rows
        on_grid(rows, 2, LOW_BITS, rows, work, norms)
        x_units, y_units = doubles[: 2 * count].copy_(rows).unflatten(0, (2, count))
        # Sums that are exact in any order.
        products = rounded(x_units.mul_(y_units).sum(-1, dtype=torch.float64))
        finite = (norms < torch.inf).view(2, count).all(0)
        out.copy_(torch.where(finite, products.to(torch.float32) * 2.0**-30, -torch.inf))

    each_block(pair, CACHE_ELEMENTS // 2, x, y, out)
    return out
