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
    """Shares of a total (`totals` `[B]`, else `total`) for weights `[B, L]`, rounded and within bounds.

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

    shares = _shares(wanted, scaled, bounds.remainder)
    budgets = torch.where(shares > least, shares, least)
    budgets = torch.where(budgets < most, budgets, most)
    # What is missing goes to levels with room; what is too much is taken in descending order, minimums last.
    missing, room = wanted - budgets.sum(-1)[:, None], most - budgets
    if bounds.surplus == "weight":
        budgets = budgets + _by_weight(torch.where(missing > 0, missing, 0), scaled, room, bounds.remainder)
    else:
        budgets = budgets + _between(missing - (room.cumsum(-1) - room), room)
    for spare_over in (least, 0):
        excess, spare = budgets.sum(-1)[:, None] - wanted, budgets - spare_over
        budgets = budgets - _between(excess - (spare.sum(-1)[:, None] - spare.cumsum(-1)), spare)
    return budgets.to(torch.int32)


def _shares(wanted: Tensor, weights: Tensor, remainder: str) -> Tensor:
    """⌊wanted · w / Σw⌋, and what that leaves, one each, to the largest fractions or weights, the lower of equals.

    Sums are of int64, exact in any order.
    """
    whole = weights.sum(-1)[:, None].clamp(min=1)
    shares = wanted * weights // whole
    keys = weights if remainder == "weight" else wanted * weights % whole
    rank = keys.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return shares + (rank < wanted - shares.sum(-1)[:, None])


def _by_weight(missing: Tensor, weights: Tensor, room: Tensor, remainder: str) -> Tensor:
    """`missing` shared by the levels with room; those whose share reaches it are filled first, until there are none.

    Levels that are left and all have weight 0 share it equally.
    """
    given = torch.zeros_like(room)
    while True:
        has_room = given < room
        open_weights = torch.where(has_room, weights, 0)
        none = open_weights.sum(-1)[:, None] == 0
        open_weights = torch.where(none, has_room, open_weights)
        whole = open_weights.sum(-1)[:, None].clamp(min=1)
        filled = torch.where(has_room & (missing * open_weights // whole >= room), room, 0)
        if (filled == 0).all():
            return given + _shares(missing, open_weights, remainder)
        given, missing = given + filled, missing - filled.sum(-1)[:, None]


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
