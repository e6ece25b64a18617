"""Tokens that go because they are like others, some at a time."""

from typing import Optional

import torch
from torch import Tensor

from .arguments import Amount, Slots
from .dots import LOW_BITS, gram, grid_rows
from .keeping import ascending_bounds, placed
from .ragged import amounts

# The similarity of a token that is like none.
NONE = -1 << 31


def bipartite_prune(
    x: Tensor, cu_seqlens: Optional[Tensor], k: Amount, slots: Slots, step: int, limbs: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(tokens that are left, ascending, counts, offsets, bounds) as `keep_tokens` has them.

    Only packed tokens have offsets and bounds. Similarities are dot products of unit rows in units of 2⁻³⁰, halves
    rounded up; a token whose norm is not finite is like none.
    """
    bounds = ascending_bounds(x.shape[0], x.shape[1], cu_seqlens, x.device)
    starts, lengths = bounds[:-1], (bounds[1:] - bounds[:-1]).clamp(max=slots.max_seqlen)
    counts = torch.minimum(amounts(k, len(starts), x.device).clamp(0, slots.capacity), lengths)
    left = torch.full((len(starts), slots.capacity), -1, dtype=torch.int64, device=x.device)
    rows = x.flatten(0, 1)
    for s, (start, length, count) in enumerate(zip(starts.tolist(), lengths.tolist(), counts.tolist(), strict=True)):
        if count:
            left[s, :count] = _left(rows[start : start + length], count, step, limbs).sort().values
    if cu_seqlens is None:
        none, nothing = (torch.zeros(0, dtype=torch.int32, device=x.device) for _ in range(2))
        return left, counts.to(torch.int32), none, nothing
    return placed(left, counts, starts, bounds, True)


def _left(x: Tensor, count: int, step: int, limbs: int) -> Tensor:
    """The tokens of `[N, D]` that are left after all rounds, in their last order.

    In a round tokens alternate between two sets. Of the first, each is as like the second as it is to the most similar
    of it; those that are most alike go, the first of equals first. Then the others stand by descending similarity, the
    second set behind them.
    """
    order = torch.arange(len(x), device=x.device)
    if count == len(x):
        return order
    (units,), (norms,) = grid_rows(x[None], limbs, LOW_BITS)
    dots, usable = gram(units), norms < torch.inf
    while len(order) > count:
        even, odd = order[::2], order[1::2]
        gone = min(step, len(order) - count, max(1, len(odd)))
        odd_usable = odd[usable[odd]]
        like = torch.full_like(even, NONE)
        if len(odd_usable):
            most = dots[even].index_select(1, odd_usable).amax(1).to(torch.int64)
            like = torch.where(usable[even], most, NONE)
        place = torch.arange(len(even), device=x.device)
        key = (like << 32) + (len(even) - 1 - place)
        order = torch.cat((even[key.argsort(descending=True)[gone:]], odd))
    return order
