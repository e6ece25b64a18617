"""Leaders: tokens that stand for all that are like them."""

from typing import Optional

import torch
from torch import Tensor

from .arguments import Alike
from .arithmetic import ordered_key, widen
from .blocks import PRODUCT_BYTES
from .dots import LOW_BITS, grid_products, grid_rows
from .segments import segments

# Tokens whose leaders are found at a time, from the products of all pairs of them.
HEAD = 256


def suppress(
    x: Tensor,
    scores: Optional[Tensor],
    candidates: Optional[Tensor],
    alike: Alike,
    cu_seqlens: Optional[Tensor],
    max_seqlen: int,
) -> Tensor:
    """The leader of each token of `[B, N, D]`, or with ascending `cu_seqlens` of each segment of `[1, T, D]`: int64.

    By descending score, then ascending index, a token is like an earlier leader, the first of which is its own, or
    becomes a leader. −1 for what is no candidate, has a norm that is not finite or is outside of the segments, of
    which the first `max_seqlen` tokens count.
    """
    batch, count = x.shape[:2]
    leaders = torch.full((batch, count), -1, dtype=torch.int64, device=x.device)
    if cu_seqlens is None:
        parts = [(b, 0, count) for b in range(batch)]
    else:
        starts, lengths = segments(cu_seqlens, count, max_seqlen)
        parts = [(0, start, start + length) for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)]
    for (b, start, stop), threshold in zip(parts, _thresholds(alike, len(parts)), strict=True):
        if start == stop:
            continue
        rows = slice(start, stop)
        (units,), (norms,) = grid_rows(x[b : b + 1, rows], alike.limbs, LOW_BITS)
        usable = norms.abs() < torch.inf
        if candidates is not None:
            usable = usable & candidates[b, rows]
        order = torch.arange(stop - start, device=x.device)
        if scores is not None:
            order = ordered_key(widen(scores[b, rows])).argsort(descending=True, stable=True)
        order = order[usable[order]]
        # Products are multiples of 2⁻¹² units, which are rounded halves up, or in one limb of 2⁸ units in float32.
        least = threshold - 0.5 if alike.limbs == 2 else -(-threshold // 256) * 256
        leaders[b, start + order] = order[_first_leaders(units[order], least)]
    return leaders


def _thresholds(alike: Alike, parts: int) -> list[int]:
    """The least similarity of each part in units of 2⁻³⁰, rounded up; what no two tokens have for NaN."""
    if alike.thresholds is None:
        return [alike.threshold] * parts
    units = widen(alike.thresholds).double() * 2.0**30
    units = torch.where(units == units, units, 2.0**31).clamp_(-(2.0**31), 2.0**31)
    return (-(-units).floor()).to(torch.int64).tolist()


def _first_leaders(rows: Tensor, least: float) -> Tensor:
    """The first leader of each of `rows`, which are in order, all leaders being found on the way."""
    found = torch.full((len(rows),), -1, dtype=torch.int64, device=rows.device)
    left = torch.arange(len(rows), device=rows.device)
    while len(left):
        lead = _leading(grid_products(rows[:HEAD], rows[:HEAD]) >= least).nonzero()[:, 0]
        found[left[lead]] = left[lead]
        # A leader is like no other one.
        step = max(1, PRODUCT_BYTES // (rows.element_size() * len(lead)))
        for start in range(0, len(rows), step):
            part = left[start : start + step]
            close = grid_products(rows[start : start + step], rows[lead]) >= least
            first = left[lead[close.view(torch.uint8).argmax(1)]]
            found[part] = torch.where((found[part] < 0) & (close.to(torch.uint8).amax(1) > 0), first, found[part])
        rest = (found[left] < 0).nonzero()[:, 0]
        rows, left = rows[rest], left[rest]
    return found


def _leading(close: Tensor) -> Tensor:
    """Which tokens are like no earlier leader: what remains when leaders are looked for again and again."""
    index = torch.arange(len(close), device=close.device)
    earlier = close & (index < index[:, None])
    lead = torch.ones_like(index, dtype=torch.bool)
    while True:
        again = (earlier & lead).to(torch.uint8).amax(1) == 0
        if bool((again == lead).all()):
            return lead
        lead = again
