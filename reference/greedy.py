"""Tokens picked one after another, each the best beside those before it."""

import math
from typing import Optional

import torch
from torch import Tensor

from .arguments import Amount, Slots
from .arithmetic import ordered_key, widen
from .blocks import CACHE_ELEMENTS
from .dots import LOW_BITS, gram, grid_products, grid_rows, own_dots, products
from .keeping import ascending_bounds, placed
from .ragged import amounts

# Not to be picked: below every key. A distance to no token is the greatest integer.
GONE, FAR = -1 << 31, (1 << 31) - 1
# What is left of a token, in units of 2⁻⁶⁰, that counts as nothing.
FLOOR = 1 << 36
# So many of the next best tokens are multiplied with all others together with a pick.
AHEAD = 32
# More similarities of a sample than this do not exist at a time: for "maxmin" those of a pick are multiplied anew.
SIMILARITIES = 1 << 29


def greedy_select(
    x: Tensor,
    relevance: Optional[Tensor],
    candidates: Optional[Tensor],
    cu_seqlens: Optional[Tensor],
    k: Amount,
    slots: Slots,
    rule: str,
    by_index: bool,
    limbs: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(tokens, counts, offsets, bounds) as `keep_tokens` has them, in the order of the picks unless `by_index`.

    Only packed tokens have offsets and bounds.

    Similarities are dot products of unit rows in units of 2⁻³⁰, halves rounded up. Candidates whose norm is finite can
    be picked; at most one time each. A tie goes to the lower index.
    """
    bounds = ascending_bounds(x.shape[0], x.shape[1], cu_seqlens, x.device)
    starts, lengths = bounds[:-1], (bounds[1:] - bounds[:-1]).clamp(max=slots.max_seqlen)
    wanted = amounts(k, len(starts), x.device).clamp(0, slots.capacity)
    chosen = torch.full((len(starts), slots.capacity), -1, dtype=torch.int64, device=x.device)
    counts = torch.zeros_like(wanted)
    rows = x.flatten(0, 1)
    for s, (start, length, most) in enumerate(zip(starts.tolist(), lengths.tolist(), wanted.tolist(), strict=True)):
        part = slice(start, start + length)
        (units,), (norms,) = grid_rows(rows[None, part], limbs, LOW_BITS)
        usable = norms.abs() < torch.inf
        if candidates is not None:
            usable &= candidates.flatten()[part]
        weights = None if relevance is None else widen(relevance.flatten()[part])
        counts[s] = min(most, int(usable.sum()))
        if counts[s]:
            function = RULES[rule]
            with torch.inference_mode():  # many small steps: without what autograd takes of each
                picked = function(units, usable, weights, int(counts[s]))
            picks = torch.tensor(picked, device=x.device)
            chosen[s, : len(picks)] = picks.sort().values if by_index else picks
    if cu_seqlens is None:
        none, nothing = (torch.zeros(0, dtype=torch.int32, device=x.device) for _ in range(2))
        return chosen, counts.to(torch.int32), none, nothing
    return placed(chosen, counts, starts, bounds, True)


def _maxmin(rows: Tensor, usable: Tensor, relevance: Optional[Tensor], count: int) -> list[int]:
    """The token farthest from all others, or the most relevant, then always the one farthest from those picked.

    The distance of two tokens is half the square of the chord of their unit rows, less 1, in units of 2⁻³⁰.
    """
    size = len(rows)
    apart = gram(rows) if size * size <= SIMILARITIES else None
    own = (own_dots(rows) if apart is None else apart.diagonal()).to(torch.int32) - (1 << 30)

    def distances(part: slice) -> Tensor:
        return ((own[part, None] + own) >> 1).sub_(products(rows[part], rows) if apart is None else apart[part])

    key = torch.empty_like(own) if relevance is None else ordered_key(relevance)
    if apart is not None or relevance is None:
        step = max(1, CACHE_ELEMENTS // size)
        for i in range(0, size, step):
            part = slice(i, i + step)
            block = distances(part)
            if apart is not None:
                apart[part] = block
            if relevance is None:
                block.diagonal(i).fill_(FAR)
                key[part] = torch.where(usable, block, FAR).amin(1)
    least = torch.where(usable, key, GONE)
    picks: list[int] = []
    while True:
        pick = int(least.argmax())
        picks.append(pick)
        if len(picks) == count:
            return picks
        row = distances(slice(pick, pick + 1))[0] if apart is None else apart[pick]
        least = torch.where(usable, row, GONE) if len(picks) == 1 else torch.minimum(least, row)
        least[pick] = GONE


def _dpp(rows: Tensor, usable: Tensor, relevance: Optional[Tensor], count: int) -> list[int]:
    """Each pick multiplies the determinant of the similarities of the picks, times their relevance squared, the most.

    Column t of the Cholesky factor of the similarities is in units of 2⁻³⁰, what is left of each token beside the picks
    in units of 2⁻⁶⁰; sums are exact, of which the difference is rounded once. A token of which nothing is left stays so
    and has no part in further columns, so that no integer overflows, whatever rounding does.
    """
    own = own_dots(rows).to(torch.int32).clamp(min=1)
    left, length = torch.where(usable, own.to(torch.int64) << 30, 0), own.to(torch.float32) * 2.0**30
    # No number is negative, and a NaN is one of them: bits in order.
    weight = None if relevance is None else ordered_key(relevance * relevance).view(torch.float32)
    spent = torch.where(usable, 0, GONE).to(torch.int32)
    # In units of 2⁻¹⁵: so products are in those of similarities. A pick of which nothing is left has a column of 0.
    factor = torch.zeros(count, len(rows), dtype=torch.float64, device=rows.device)
    dots: dict[int, Tensor] = {}
    picks: list[int] = []
    while True:
        gain = left / length
        if weight is not None:
            gain *= weight
        key = torch.where(left > FLOOR, gain.view(torch.int32), spent)
        pick = int(key.argmax())
        picks.append(pick)
        t = len(picks) - 1
        if t + 1 == count:
            return picks
        spent[pick] = GONE
        rest = int(left[pick])
        if rest > FLOOR:
            if pick not in dots:
                # The next best will soon be picks, and one row alone takes as long to multiply.
                best = key.topk(min(AHEAD, len(rows))).indices.tolist()
                new = [pick, *(other for other in best if other not in dots and other != pick)]
                for token, similarities in zip(new, products(rows[new], rows).double(), strict=True):
                    dots[token] = similarities
            mine = factor[:t, pick]
            high = mine.floor()
            upper, lower = grid_products(torch.stack((high, mine - high)), factor[:t].mT).unbind()
            column = (dots[pick] - upper).sub_(lower).mul_(2.0**30 / math.sqrt(rest)).round_().clamp_(-FAR, FAR)
            torch.mul(column, 2.0**-15, out=factor[t])
            column = column.to(torch.int64)
            left -= column.mul_(column)
            left.clamp_(min=0)


def _coverage(rows: Tensor, usable: Tensor, relevance: Optional[Tensor], count: int) -> list[int]:
    """Each pick adds the most to the sum over tokens of their greatest similarity to a pick, times its relevance.

    Sums are of int64: exact in any order.
    """
    dots, covered = gram(rows), torch.where(usable, 0, FAR).to(torch.int64)
    free, picks = usable.clone(), []
    step = max(1, CACHE_ELEMENTS // len(rows))
    while True:
        parts = [dots[i : i + step].to(torch.int64) - covered for i in range(0, len(rows), step)]
        gain = torch.cat([part.clamp_(min=0).sum(1) for part in parts]).to(torch.float32)
        if relevance is not None:
            gain = gain * relevance
        pick = int(torch.where(free, ordered_key(gain), GONE).argmax())
        picks.append(pick)
        if len(picks) == count:
            return picks
        free[pick] = False
        covered = torch.maximum(covered, dots[pick].to(torch.int64))


RULES = {"maxmin": _maxmin, "dpp": _dpp, "coverage": _coverage}
