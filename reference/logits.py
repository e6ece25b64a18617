"""Attention logits from exact dot products of unit rows."""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from .arithmetic import exp2
from .dots import LOW_BITS, grid_products, grid_rows

# Integers that float64 adds up at a time.
SUMMED = 1 << 22
# A probability of 1; the largest norm, times scale too, that counts, so that logits are finite; the logit of no key.
ONE = 2.0**30
LARGEST = 2.0**60
MASKED = -(2.0**121)


class Rows(NamedTuple):
    """Grid rows of one head, and the factor that each brings to its logits; 0 where a row is of no use."""

    units: Tensor
    factor: Tensor
    usable: Tensor

    def take(self, part: slice) -> "Rows":
        return Rows(*[x[part] for x in self])


def head_rows(x: Tensor, scale: float, limbs: int, mask: Optional[Tensor] = None, *buffers: Tensor) -> list[Rows]:
    """Rows of each head of `x` `[H, N, D]`; of no use where `mask` `[N]` is False. In `buffers` of `grid_rows`."""
    units, norms = grid_rows(x, limbs, LOW_BITS, 1, *buffers)
    usable = norms < torch.inf
    if mask is not None:
        usable = usable & mask
    factor = norms * scale
    factor = torch.where(usable, torch.where(factor < LARGEST, factor, LARGEST), 0.0)
    return [Rows(*head) for head in zip(units, factor, usable, strict=True)]


def exact_cosines(a: Rows, b: Rows, out: Optional[Tensor] = None, double: Optional[Tensor] = None) -> Tensor:
    """Exact dot products of unit rows in units of 2⁻³⁰, halves up: float32 `[M, N]`."""
    if a.units.dtype == torch.float32:
        return grid_products(a.units, b.units, out)
    products = grid_products(a.units, b.units, double).add_(0.5).floor_()
    return products.to(torch.float32) if out is None else out.copy_(products)


def logits(
    q: Rows, k: Rows, first: Optional[Tensor], last: Optional[Tensor], cap: float, out: Tensor, double: Tensor
) -> Tensor:
    """Logits to base 2 `[R, N]`, MASKED for keys that are of no use, before the query's `first` or past its `last`.

    `first` only beside `last`.
    """
    products = exact_cosines(q, k, out, double)
    products *= (q.factor * 2.0**-30)[:, None]
    products *= k.factor
    if cap:
        power = exp2(products.clamp_(-60.0, 60.0), 5, 0) + 1.0
        products = (1.0 - torch.full_like(power, 2.0) / power) * cap
    if last is not None:
        key = torch.arange(len(k.units), device=last.device)
        visible = key <= last[:, None]
        if first is not None:
            visible &= key >= first[:, None]
        products = torch.where(visible, products, MASKED)
    if not bool(k.usable.all()):
        products[:, (~k.usable).nonzero()[:, 0]] = MASKED
    return products


def row_sums(x: Tensor) -> Tensor:
    """int64 `[M]` from float64 integers `[M, N]` within ±2³¹: of parts that stay below 2⁵³, so exact in any order."""
    total = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for start in range(0, x.shape[1], SUMMED):
        total += x[:, start : start + SUMMED].sum(1, dtype=torch.float64).to(torch.int64)
    return total
