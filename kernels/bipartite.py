"""Which of the even tokens merge into which of the odd ones."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import Halves
from .arithmetic import NO_KEY, bounds, cdiv, ordered_key
from .launch import launch
from .matching import match_evens, unpacked
from .tiles import scan_tiles


@triton.jit(do_not_specialize=["count", "targets", "r"])
def _place_pairs_kernel(
    partner_ptr, similarity_ptr, a_ptr, b_ptr, sources_ptr, destinations_ptr, unmerged_ptr, similarities_ptr, rows_ptr,
    count, targets, r, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The places of ROWS tokens of `a`, by how many go before each, and of ROWS of `b`."""
    programs = tl.cdiv(tl.maximum(count, targets), ROWS)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    i = (tl.program_id(0) % programs) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    mask = i < count
    size = count + targets
    similarity = tl.load(similarity_ptr + sample * count + i, mask=mask, other=0.0)
    key = ordered_key(similarity)
    rank = tl.zeros((ROWS,), tl.int32)
    for first in range(0, count, BLOCK):
        other = first + tl.arange(0, BLOCK)
        value = tl.load(similarity_ptr + sample * count + other, mask=other < count, other=0.0)
        other_key = ordered_key(value)[None, :]
        ahead = (other_key > key[:, None]) | ((other_key == key[:, None]) & (other[None, :] < i[:, None]))
        rank += tl.sum((ahead & (other < count)[None, :]).to(tl.int32), axis=1)
    merged = mask & (rank < r)
    target = tl.load(partner_ptr + sample * count + i, mask=merged, other=-1)
    found = (target >= 0) & (target < targets)
    token = tl.load(a_ptr + i, mask=mask, other=-1)
    destination = tl.load(b_ptr + target, mask=found, other=-1)
    tl.store(sources_ptr + sample * r + rank, token, mask=merged)
    tl.store(destinations_ptr + sample * r + rank, destination, mask=merged)
    tl.store(similarities_ptr + sample * r + rank, similarity, mask=merged)
    left = count - r
    kept = mask & (rank >= r)
    tl.store(unmerged_ptr + sample * left + rank - r, token, mask=kept)
    row = tl.where(merged, tl.where(found, left + target, -1), rank - r)
    rows_ptr += sample * size
    tl.store(rows_ptr + token, row, mask=mask & (token >= 0) & (token < size))
    token = tl.load(b_ptr + i, mask=i < targets, other=-1)
    tl.store(rows_ptr + token, (left + i).to(tl.int64), mask=(token >= 0) & (token < size))


def place_pairs(
    partner: Tensor, similarity: Tensor, a: Tensor, b: Tensor, r: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (batch, count), targets, device = partner.shape, b.shape[0], partner.device
    shapes = (batch, r), (batch, r), (batch, count - r), (batch, count + targets)
    sources, destinations, unmerged, rows = (torch.empty(shape, dtype=torch.int64, device=device) for shape in shapes)
    similarities = torch.empty(batch, r, dtype=torch.float32, device=device)
    if rows.numel():
        tiles = scan_tiles()
        launch(
            _place_pairs_kernel, batch * cdiv(max(count, targets), tiles["ROWS"]),
            partner.contiguous(), similarity.contiguous(), a.contiguous(), b.contiguous(), sources, destinations,
            unmerged, similarities, rows, count, targets, r, **tiles,
        )  # fmt: skip
    return sources, destinations, unmerged, similarities, rows


@triton.jit
def _partner(best_ptr, norms_ptr, token, mask, DISTILL: tl.constexpr):
    """(number of the most similar odd token of the segment, −1 for none, and the similarity) of even tokens."""
    partner, similarity = unpacked(best_ptr, norms_ptr, token, mask)
    if DISTILL:
        similarity = tl.where(partner > 0, similarity, float("-inf"))
    return partner.to(tl.int32), similarity


@triton.jit
def _extent(cu_ptr, segment, size, max_seqlen):
    """(first token, tokens) of a sample or packed segment."""
    start = segment.to(tl.int64) * size
    length = tl.zeros((), tl.int32) + size
    if cu_ptr is not None:
        first, length = bounds(cu_ptr, segment, size)
        start = first.to(tl.int64)
        length = tl.minimum(length, max_seqlen)
    return start, length


@triton.jit
def _merged_away(length, r, PROTECTED: tl.constexpr):
    return tl.minimum(tl.maximum(length - PROTECTED, 0) // 2, r)


@triton.jit
def _even_keys(best_ptr, norms_ptr, start, even, evens, CLASS: tl.constexpr, DISTILL: tl.constexpr):
    """Keys of even tokens of a segment by their number: of the similarity, a protected one last."""
    _, similarity = _partner(best_ptr, norms_ptr, start + 2 * even, even < evens, DISTILL)
    key = ordered_key(similarity)
    if CLASS:
        key = tl.where(even == 0, NO_KEY, key)
    return key


@triton.jit(do_not_specialize=["size", "max_seqlen", "share"])
def _rank_halves_kernel(
    best_ptr, norms_ptr, cu_ptr, ranks_ptr, indices_ptrs, similarities_ptr, size, max_seqlen, share,
    CLASS: tl.constexpr, DISTILL: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many even tokens of the segment go before each of ROWS; what the next kernel may leave unused is emptied."""
    tiles = tl.cdiv((max_seqlen + 1) // 2, ROWS)
    segment = tl.program_id(0) // tiles
    start, length = _extent(cu_ptr, segment, size, max_seqlen)
    evens = (length + 1) // 2
    even = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    key = _even_keys(best_ptr, norms_ptr, start, even, evens, CLASS, DISTILL)
    rank = tl.zeros((ROWS,), tl.int32)
    for i in range(0, evens, BLOCK):
        other = i + tl.arange(0, BLOCK)
        other_key = _even_keys(best_ptr, norms_ptr, start, other, evens, CLASS, DISTILL)[None, :]
        ahead = (other_key > key[:, None]) | ((other_key == key[:, None]) & (other[None, :] < even[:, None]))
        rank += tl.sum((ahead & (other < evens)[None, :]).to(tl.int32), axis=1)
    tl.store(ranks_ptr + start + even, rank, mask=even < evens)
    if cu_ptr is not None:
        for i in range(tl.program_id(0) * share, tl.minimum((tl.program_id(0) + 1) * share, size), BLOCK):
            at = i + tl.arange(0, BLOCK)
            for k in tl.static_range(len(indices_ptrs)):
                tl.store(indices_ptrs[k] + at, tl.full((BLOCK,), -1, tl.int64), mask=at < size)
            tl.store(similarities_ptr + at, tl.full((BLOCK,), float("-inf"), tl.float32), mask=at < size)


@triton.jit
def _places_before(cu_ptr, segment, segments, size, max_seqlen, r, PROTECTED: tl.constexpr):
    """(rows, sources, other even tokens) of the segments before one, and the rows of all."""
    rows = tl.zeros((), tl.int32)
    sources = tl.zeros((), tl.int32)
    others = tl.zeros((), tl.int32)
    total = tl.zeros((), tl.int32)
    for i in range(0, segments, 256):
        at = i + tl.arange(0, 256)
        _, length = bounds(cu_ptr, tl.minimum(at, segments - 1), size)
        length = tl.where(at < segments, tl.minimum(length, max_seqlen), 0)
        many = _merged_away(length, r, PROTECTED)
        before = at < segment
        rows += tl.sum(tl.where(before, length - many, 0))
        sources += tl.sum(tl.where(before, many, 0))
        others += tl.sum(tl.where(before, (length + 1) // 2 - many, 0))
        total += tl.sum(length - many)
    return rows, sources, others, total


@triton.jit(do_not_specialize=["size", "max_seqlen", "segments", "r"])
def _place_halves_kernel(
    best_ptr, norms_ptr, cu_ptr, ranks_ptr, sources_ptr, destinations_ptr, unmerged_ptr, similarities_ptr, rows_ptr,
    owners_ptr, counts_ptr, offsets_ptr, size, max_seqlen, segments, r, CLASS: tl.constexpr, DISTILL: tl.constexpr,
    IN_ORDER: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The row of each of ROWS tokens of a segment, and all that follows from the ranks."""
    PROTECTED: tl.constexpr = CLASS + DISTILL
    tiles = tl.cdiv(max_seqlen, ROWS)
    segment = tl.program_id(0) // tiles
    start, length = _extent(cu_ptr, segment, size, max_seqlen)
    many = _merged_away(length, r, PROTECTED)
    evens = (length + 1) // 2
    left = evens - many
    if cu_ptr is None:  # each sample begins where the same number of all before it ends
        base = segment.to(tl.int64) * (length - many)
        source = segment.to(tl.int64) * many
        other = segment.to(tl.int64) * left
        total = segments * (length - many)
        first_row = base - base
        first_token = start - start
    else:
        base, source, other, total = _places_before(cu_ptr, segment, segments, size, max_seqlen, r, PROTECTED)
        first_row = base
        first_token = start
    if tl.program_id(0) % tiles == 0:
        tl.store(counts_ptr + segment, length - many)
        tl.store(offsets_ptr + segment, base)
        tl.store(offsets_ptr + segments, total)

    token = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    inside = token < length
    is_even = inside & (token % 2 == 0)
    even = token // 2
    rank = tl.load(ranks_ptr + start + even, mask=is_even, other=0)
    merged = is_even & (rank < many)
    partner, similarity = _partner(best_ptr, norms_ptr, start + token, merged, DISTILL)
    found = merged & (partner >= 0)
    odd = tl.where(merged, partner, even)
    place = rank - many
    if CLASS or IN_ORDER:
        # How many are merged away before the token whose row it is.
        goal = tl.where(merged, 2 * odd + 1, token)
        before = tl.zeros((ROWS,), tl.int32)
        for i in range(0, evens, BLOCK):
            at = i + tl.arange(0, BLOCK)
            gone = tl.load(ranks_ptr + start + at, mask=at < evens, other=0x7FFFFFFF) < many
            before += tl.sum((gone[None, :] & (2 * at[None, :] < goal[:, None])).to(tl.int32), axis=1)
        if CLASS:
            place = even - before
    if IN_ORDER:
        row = goal - before
    else:
        kept_row = place
        odd_row = left + odd
        if DISTILL:  # behind the class token
            kept_row = tl.where(place > 0, place + 1, 0)
            odd_row = tl.where(odd > 0, odd_row, 1)
        row = tl.where(is_even & (rank >= many), kept_row, odd_row)
    there = inside & ((merged == 0) | found)
    tl.store(rows_ptr + start + token, tl.where(there, first_row + row, -1).to(tl.int64), mask=inside)
    whole = (first_token + token).to(tl.int64)
    tl.store(owners_ptr + base + row, whole, mask=inside & (merged == 0))
    tl.store(sources_ptr + source + rank, whole, mask=merged)
    joined = (first_token + 2 * partner + 1).to(tl.int64)
    tl.store(destinations_ptr + source + rank, tl.where(found, joined, -1), mask=merged)
    tl.store(similarities_ptr + source + rank, similarity, mask=merged)
    tl.store(unmerged_ptr + other + place, whole, mask=is_even & (rank >= many))


def match_halves(
    metric: Tensor, cu_seqlens: Optional[Tensor], halves: Halves, limbs: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, size = metric.shape[:2]
    device, packed = metric.device, cu_seqlens is not None
    segments = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    longest = min(size, halves.max_seqlen) if packed else size
    most = (size,) * 4 if packed else (halves.r, halves.r, (size + 1) // 2 - halves.r, size - halves.r)
    indices = [torch.empty(batch, n, dtype=torch.int64, device=device) for n in (*most, size)]
    sources, destinations, unmerged, owners, rows = indices
    similarities = torch.empty(batch, most[0], dtype=torch.float32, device=device)
    counts, offsets = (torch.empty(n, dtype=torch.int32, device=device) for n in (segments, segments + 1))
    if not segments * longest:
        for x in indices:
            x.fill_(-1)
        similarities.fill_(-torch.inf)
        return (
            sources, destinations, unmerged, similarities, rows, owners, counts.zero_(), offsets.zero_(),
        )  # fmt: skip
    best, norms = match_evens(metric, cu_seqlens, longest, segments, halves.distill_token, limbs)
    ranks = torch.empty(batch, size, dtype=torch.int32, device=device)
    flags = {"CLASS": halves.class_token, "DISTILL": halves.distill_token}
    tiles = scan_tiles()
    programs = segments * cdiv((longest + 1) // 2, tiles["ROWS"])
    launch(
        _rank_halves_kernel, programs,
        best, norms, cu_seqlens, ranks, tuple(indices), similarities, size, longest, cdiv(size, programs), **flags,
        **tiles,
    )  # fmt: skip
    launch(
        _place_halves_kernel, segments * cdiv(longest, tiles["ROWS"]),
        best, norms, cu_seqlens, ranks, sources, destinations, unmerged, similarities, rows, owners, counts, offsets,
        size, longest, segments, halves.r, **flags, IN_ORDER=halves.in_order, **tiles,
    )  # fmt: skip
    return sources, destinations, unmerged, similarities, rows, owners, counts, offsets


@triton.jit(do_not_specialize=["count", "merged", "groups"])
def _owning_kernel(
    rows_ptr, sources_ptr, traced_ptr, own_ptr, count, merged, groups, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The rows of ROWS tokens of a sample, −1 for none, and again of those that are no sources."""
    programs = tl.cdiv(count, ROWS)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    token = (tl.program_id(0) % programs) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    row = tl.load(rows_ptr + sample * count + token, mask=token < count, other=-1)
    row = tl.where((row >= 0) & (row < groups), row, -1)
    is_source = tl.zeros((ROWS,), tl.int32)
    for i in range(0, merged, BLOCK):
        at = i + tl.arange(0, BLOCK)
        source = tl.load(sources_ptr + sample * merged + at, mask=at < merged, other=-1)
        is_source += tl.sum((source[None, :] == token[:, None]).to(tl.int32), axis=1)
    tl.store(traced_ptr + sample * count + token, row, mask=token < count)
    tl.store(own_ptr + sample * count + token, tl.where(is_source > 0, -1, row).to(tl.int32), mask=token < count)


@triton.jit(do_not_specialize=["count", "groups"])
def _owners_kernel(own_ptr, owners_ptr, count, groups, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The last token that owns each of ROWS rows of a sample."""
    programs = tl.cdiv(groups, ROWS)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    row = (tl.program_id(0) % programs) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    owner = tl.full((ROWS,), -1, tl.int32)
    for i in range(0, count, BLOCK):
        token = i + tl.arange(0, BLOCK)
        own = tl.load(own_ptr + sample * count + token, mask=token < count, other=-1)
        owner = tl.maximum(owner, tl.max(tl.where(own[None, :] == row[:, None], token[None, :], -1), axis=1))
    tl.store(owners_ptr + sample * groups + row, owner.to(tl.int64), mask=row < groups)


@triton.jit(do_not_specialize=["count", "groups"])
def _order_rows_kernel(
    own_ptr, owner_ptr, traced_ptr, owners_ptr, count, groups, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows (in place) and owners in the order of the tokens that could own a row."""
    programs = tl.cdiv(tl.maximum(count, groups), ROWS)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    token = (tl.program_id(0) % programs) * ROWS + tl.arange(0, ROWS)  # [ROWS]: tokens, and places
    row = tl.load(traced_ptr + sample * count + token, mask=token < count, other=-1)
    owner = tl.load(owner_ptr + sample * groups + row, mask=row >= 0, other=-1)
    own = tl.load(own_ptr + sample * count + token, mask=token < count, other=-1)
    row_place = tl.zeros((ROWS,), tl.int32)
    place = tl.zeros((ROWS,), tl.int32)
    total = tl.zeros((), tl.int32)
    for i in range(0, count, BLOCK):
        other = i + tl.arange(0, BLOCK)
        owns = tl.load(own_ptr + sample * count + other, mask=other < count, other=-1) >= 0
        row_place += tl.sum((owns[None, :] & (other[None, :] < owner[:, None])).to(tl.int32), axis=1)
        place += tl.sum((owns[None, :] & (other[None, :] < token[:, None])).to(tl.int32), axis=1)
        total += tl.sum(owns.to(tl.int32))
    row = tl.where((owner >= 0) & (row_place < groups), row_place, -1)
    tl.store(traced_ptr + sample * count + token, row.to(tl.int64), mask=token < count)
    tl.store(owners_ptr + sample * groups + place, token.to(tl.int64), mask=(own >= 0) & (place < groups))
    none = (token >= total) & (token < groups)
    tl.store(owners_ptr + sample * groups + token, tl.full((ROWS,), -1, tl.int64), mask=none)


def trace_rows(rows: Tensor, sources: Tensor, num_rows: int, in_order: bool) -> tuple[Tensor, Tensor]:
    batch, count = rows.shape
    traced = torch.empty(batch, count, dtype=torch.int64, device=rows.device)
    owners = torch.empty(batch, num_rows, dtype=torch.int64, device=rows.device)
    if not traced.numel():
        return traced, owners.fill_(-1)
    own = torch.empty(batch, count, dtype=torch.int32, device=rows.device)
    tiles = scan_tiles()
    launch(
        _owning_kernel, batch * cdiv(count, tiles["ROWS"]),
        rows.contiguous(), sources.contiguous(), traced, own, count, sources.shape[1], num_rows, **tiles,
    )  # fmt: skip
    if owners.numel():
        launch(_owners_kernel, batch * cdiv(num_rows, tiles["ROWS"]), own, owners, count, num_rows, **tiles)
        if in_order:
            first, owners = owners, torch.empty_like(owners)
            launch(
                _order_rows_kernel, batch * cdiv(max(count, num_rows), tiles["ROWS"]),
                own, first, traced, owners, count, num_rows, **tiles,
            )  # fmt: skip
    return traced, owners
