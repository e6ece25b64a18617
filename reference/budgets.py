"""Token budgets on the device: integers whose sum is exact."""

from typing import Optional

import torch
from torch import Tensor

from .arguments import Amount, Bounds

MOST = (1 << 31) - 1


def allocate_budgets_batch(
    weights: Tensor,
    totals: Optional[Tensor],
    total: int,
    sizes: Amount,
    bounds: Bounds,
) -> Tensor:
    """Largest-remainder shares of a total (`totals` `[B]`, else `total`) for weights `[B, L]`, within bounds.

    `sizes`, `[B, L]` or of each level, and the maximum bound a level from above, the minimum from below. A level whose
    weight is not a positive finite number is off, and its maximum 0; where all are, all levels have equal weights.
    """
    device = weights.device
    scaled, on = _weight_integers(weights)
    most = torch.tensor(sizes.numbers, device=device)[None] if sizes.tensor is None else sizes.tensor.to(torch.int64)
    ceiling = torch.tensor(bounds.maximum, device=device)
    most = torch.where(on, torch.where(most < ceiling, most, ceiling).clamp(0, MOST), 0)
    least = torch.tensor(bounds.minimum, device=device)
    least = torch.where(least < most, least, most)
    wanted = torch.full((1,), total, dtype=torch.int64, device=device) if totals is None else totals.to(torch.int64)
    wanted = wanted.clamp(0, MOST)[:, None]
    # All sums here are of int64, exact in any order.
    capacity = most.sum(-1)[:, None]
    wanted = torch.where(wanted < capacity, wanted, capacity)

    whole = scaled.sum(-1)[:, None]
    shares, remainders = wanted * scaled // whole, wanted * scaled % whole
    level = torch.arange(weights.shape[1], device=device)
    mine, other = remainders[:, :, None], remainders[:, None, :]
    rank = ((other > mine) | ((other == mine) & (level < level[:, None]))).to(torch.int64).sum(-1)
    shares += rank < wanted - shares.sum(-1)[:, None]

    budgets = torch.where(shares > least, shares, least)
    budgets = torch.where(budgets < most, budgets, most)
    # What is missing fills the levels in order; what is too much is taken in descending order, minimums last.
    missing, room = wanted - budgets.sum(-1)[:, None], most - budgets
    budgets = budgets + _between(missing - (room.cumsum(-1) - room), room)
    for spare_over in (least, 0):
        excess, spare = budgets.sum(-1)[:, None] - wanted, budgets - spare_over
        budgets = budgets - _between(excess - (spare.sum(-1)[:, None] - spare.cumsum(-1)), spare)
    return budgets.to(torch.int32)


def _between(x: Tensor, high: Tensor) -> Tensor:
    """`x` within 0 … high."""
    x = torch.where(x > 0, x, 0)
    return torch.where(x < high, x, high)


def _weight_integers(weights: Tensor) -> tuple[Tensor, Tensor]:
    """(float32 weights as multiples of 2^-30 of the power of two above the largest, rounded down; which levels are on).

    A level is on if its weight is a positive finite number; where none is, all are, with equal weights.
    """
    bits = weights.contiguous().view(torch.int32)
    usable = (bits > 0) & (bits < 0x7F800000)
    exponent = torch.where(usable & (bits >= 0x00800000), bits >> 23, 1)
    significand = torch.where(usable, (bits & 0x007FFFFF) + torch.where(bits >= 0x00800000, 0x00800000, 0), 0)
    shift = (exponent.amax(-1)[:, None] - exponent).clamp(0, 31)
    scaled = ((significand << 6) >> shift).to(torch.int64)
    none = (~usable).all(-1)[:, None]
    return torch.where(none, 1, scaled), usable | none
