"""Which of the even tokens merge into which of the odd ones."""

from typing import Optional

import torch
from torch import Tensor

from .arguments import Halves, Segments
from .arithmetic import NO_KEY, ordered_key
from .matching import best_match
from .segments import segments


def match_halves(
    metric: Tensor, cu_seqlens: Optional[Tensor], halves: Halves, limbs: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """ToMe's plan for `metric` `[B, N, D]`, or packed `[1, T, D]` with ascending offsets.

    (sources, destinations, unmerged, similarities: by descending similarity; the row of each token and the owner of
    each row; rows of each sample or segment int32, and where the rows of each begin). Of n tokens min(r, half of those
    that are not protected) merge away. For packed tokens each is `[1, T]`, segment after segment, −1 (−inf) in unused
    places.
    """
    batch, size = metric.shape[:2]
    device = metric.device
    if cu_seqlens is None:
        starts, lengths = [0] * batch, [size] * batch
    else:
        bounds = segments(cu_seqlens, size, halves.max_seqlen)
        starts, lengths = bounds[0].tolist(), bounds[1].tolist()
    many = [min(max((n - halves.class_token - halves.distill_token) // 2, 0), halves.r) for n in lengths]
    partner, similarity = _matches(metric, starts, lengths, cu_seqlens is not None, halves, limbs)
    capacity = (halves.r, (size + 1) // 2 - halves.r, size - halves.r) if cu_seqlens is None else (size, size, size)
    indices = [torch.full((batch, n), -1, dtype=torch.int64, device=device) for n in (capacity[0], *capacity)]
    sources, destinations, unmerged, owners = indices
    similarities = torch.full(sources.shape, -torch.inf, dtype=torch.float32, device=device)
    rows = torch.full((batch, size), -1, dtype=torch.int64, device=device)
    offsets, source, other, even = [0], 0, 0, 0
    for s, (start, length, r) in enumerate(zip(starts, lengths, many, strict=True)):
        b, base = (s, 0) if cu_seqlens is None else (0, offsets[-1])
        if cu_seqlens is None:
            source = other = even = 0
        evens = (length + 1) // 2
        of = partner[b, even : even + evens], similarity[b, even : even + evens]
        merged, kept, row, target = _places(*of, length, r, halves)
        found = target >= 0
        sources[b, source : source + r] = start + 2 * merged
        destinations[b, source : source + r] = torch.where(found, start + 2 * target + 1, -1)
        similarities[b, source : source + r] = of[1][merged]
        unmerged[b, other : other + evens - r] = start + 2 * kept
        rows[b, start : start + length] = torch.where(row < 0, -1, base + row)
        stays = torch.ones(length, dtype=torch.bool, device=device)
        stays[2 * merged] = False
        stays = stays.nonzero()[:, 0]
        owners[b, base + row[stays]] = start + stays
        offsets.append(offsets[-1] + length - r)
        source, other, even = source + r, other + evens - r, even + evens
    counts = torch.tensor([n - r for n, r in zip(lengths, many, strict=True)], dtype=torch.int32, device=device)
    return (
        sources, destinations, unmerged, similarities, rows, owners, counts,
        torch.tensor(offsets, dtype=torch.int32, device=device),
    )  # fmt: skip


def _matches(
    metric: Tensor, starts: list[int], lengths: list[int], packed: bool, halves: Halves, limbs: int
) -> tuple[Tensor, Tensor]:
    """(number of the most similar odd token of its segment, similarity) of each even token; the evens in a row."""
    device = metric.device
    evens, odds, usable = [], [], []
    for start, length in zip(starts if packed else [0], lengths if packed else [metric.shape[1]], strict=False):
        token = torch.arange(start, start + length, device=device)
        evens.append(token[::2])
        odds.append(token[1::2])
        # The first one only where there is no other.
        first = torch.arange(len(odds[-1]), device=device) > 0
        usable.append(first if length > 3 else torch.ones_like(first))
    none = [torch.zeros(0, dtype=torch.int64, device=device)]
    a, b, mask = torch.cat(none + evens), torch.cat(none + odds), torch.cat([none[0] > 0, *usable])
    bounds_a, bounds_b = (
        torch.tensor([0, *map(len, part)], device=device).cumsum(0).to(torch.int32) if packed else None
        for part in (evens, odds)
    )
    of = Segments(bounds_a, bounds_b, len(a), len(b))
    key_mask = mask.expand(metric.shape[0], len(mask)) if halves.distill_token else None
    queries, keys = (metric.index_select(1, index) for index in (a, b))
    partner, similarity = best_match(queries, keys, key_mask, of, limbs)
    if halves.distill_token:
        similarity = torch.where(partner > 0, similarity, -torch.inf)
    return partner, similarity


def _places(
    partner: Tensor, similarity: Tensor, length: int, r: int, halves: Halves
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(evens that merge away, by similarity, and the others; row of each token; odd that each of the former joins)."""
    device = partner.device
    evens, last = len(partner), len(partner) - 1
    keys = ordered_key(similarity).to(torch.int64)
    if halves.class_token:
        keys[:1] = NO_KEY
    keys = (keys << 32) + (last - torch.arange(evens, device=device))
    order = last - (keys.sort(0, descending=True).values & 0xFFFFFFFF)
    merged, kept = order[:r], order[r:]
    if halves.class_token:
        kept = kept.sort(0).values
    place, odd = torch.arange(evens - r, device=device), torch.arange(length // 2, device=device)
    if halves.distill_token:
        # Behind the class token.
        place, odd = torch.where(place > 0, place + 1, 0), torch.where(odd > 0, evens - r + odd, 1)
    else:
        odd = evens - r + odd
    row = torch.full((length,), -1, dtype=torch.int64, device=device)
    row[2 * kept] = place
    row[1::2] = odd
    if halves.in_order:
        stays = row >= 0
        row = torch.where(stays, stays.cumsum(0) - 1, -1)
    target = partner[merged]
    row[2 * merged] = torch.where(target >= 0, row[2 * target.clamp(min=0) + 1] if r else target, -1)
    return merged, kept, row, target


def place_pairs(
    partner: Tensor, similarity: Tensor, a: Tensor, b: Tensor, r: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The plan by which r of the tokens `a` `[nA]` become part of tokens `b` `[nB]`, which are all others.

    (sources, destinations, unmerged, similarities: by descending `similarity` `[B, nA]`, the first of equals first; the
    row of each token: unmerged ones, then those of `b`.) The `partner` of a token of `a` is a number in `b`, −1 for
    none.
    """
    batch, last = partner.shape[0], partner.shape[1] - 1
    keys = ordered_key(similarity).to(torch.int64) << 32
    keys = keys + (last - torch.arange(last + 1, device=partner.device))
    order = last - (keys.sort(1, descending=True).values & 0xFFFFFFFF)
    merged, kept = order[:, :r], order[:, r:]
    sample, left = torch.arange(batch, device=partner.device)[:, None], last + 1 - r
    target = partner[sample, merged]
    target = torch.where(target < len(b), target, -1)
    rows = torch.full((batch, len(a) + len(b)), -1, dtype=torch.int64, device=partner.device)
    rows[sample, a[kept]] = torch.arange(left, device=partner.device)
    rows[:, b] = left + torch.arange(len(b), device=partner.device)
    rows[sample, a[merged]] = torch.where(target < 0, -1, left + target)
    spare = torch.cat((b, torch.full((1,), -1, device=b.device)))
    destinations = spare[torch.where(target < 0, len(b), target)]
    return a[merged], destinations, a[kept], similarity[sample, merged], rows


def trace_rows(rows: Tensor, sources: Tensor, num_rows: int, in_order: bool) -> tuple[Tensor, Tensor]:
    """(row of each token `[B, N]`, owner of each row `[B, num_rows]`) of a plan; −1 for none.

    A row is owned by its last token that is none of the `sources`. Rows are those of the plan, or `in_order` of the
    tokens that could own them. What is outside is no row and no token.
    """
    batch, count = rows.shape
    rows = torch.where((rows >= 0) & (rows < num_rows), rows, -1)
    token = torch.arange(count, device=rows.device).expand(batch, count)
    is_source = torch.zeros(batch, count + 1, dtype=torch.int64, device=rows.device)
    spare = torch.where((sources >= 0) & (sources < count), sources, count)
    is_source.scatter_reduce_(1, spare, torch.ones_like(spare), "amax")
    owns = (is_source[:, :count] == 0) & (rows >= 0)
    owner = _owners(torch.where(owns, rows, num_rows), token, num_rows)
    if not in_order or not count:
        return rows, owner[:, :num_rows].contiguous()
    place = torch.where(owns, owns.cumsum(1) - 1, num_rows).clamp(max=num_rows)
    sample = torch.arange(batch, device=rows.device)[:, None].expand(batch, count)
    of_row = owner[sample, torch.where(rows < 0, num_rows, rows)]
    rows = torch.where(of_row < 0, num_rows, place[sample, of_row.clamp(min=0)])
    return torch.where(rows < num_rows, rows, -1), _owners(place, token, num_rows)[:, :num_rows].contiguous()


def _owners(place: Tensor, token: Tensor, count: int) -> Tensor:
    """The token at each of `count` places, the last of several; −1 where there is none, and at a last one more."""
    owner = torch.full((len(place), count + 1), -1, dtype=torch.int64, device=place.device)
    owner.scatter_reduce_(1, place, token, "amax")
    owner[:, count] = -1
    return owner
