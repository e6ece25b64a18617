"""The nearest keys of each query: blocks of distances on tensor cores, then the best of each row."""

from typing import NamedTuple, Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import Allowed, Nearest, Segments
from .arithmetic import bounds, cdiv, highest_bit, ordered_key, segment_of, widen
from .dots import LOW_BITS, exact_dots, own_dots
from .launch import launch, target_arch
from .tiles import nearest_rows, nearest_tiles, similarity_tiles, square_tiles
from .units import unit_rows

# Below every score.
LEAST = tl.constexpr(-(1 << 31))


@triton.jit
def _squares_kernel(units_ptr, squares_ptr, rows, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Products of rows of two limbs with themselves, in units of 2⁻³⁰, halves up."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    tl.store(squares_ptr + row, own_dots(units_ptr, row, row < rows, D, 2, ROWS, BLOCK), mask=row < rows)


@triton.jit
def _home(cu_ptr, row, size, longest, segments, top_bit):
    """(sample or segment of rows, place in it, whether that is one of its first `longest`)."""
    if cu_ptr is None:
        return (row // size).to(tl.int32), (row % size).to(tl.int32), row >= 0
    else:
        segment = segment_of(cu_ptr, row, segments, top_bit)
        inside = (segment >= 0) & (segment < segments)
        start = tl.maximum(tl.load(cu_ptr + segment, mask=inside, other=0), 0)
        stop = tl.minimum(tl.load(cu_ptr + segment + 1, mask=inside, other=0), size)
        place = row.to(tl.int32) - start
        return segment, place, inside & (row < stop) & (place < longest)


@triton.jit
def _keys_of(cu_ptr, segment, size, longest):
    """(first key of a sample or segment, how many)."""
    start = (tl.zeros((), tl.int64) + segment) * size
    count = longest
    if cu_ptr is not None:
        first, length = bounds(cu_ptr, segment, size)
        start = tl.zeros((), tl.int64) + first
        count = tl.minimum(length, longest)
    return start, count


@triton.jit(do_not_specialize=["first", "end", "queries", "keys", "longest_q", "longest_k", "segments", "top_bit"])
def _similarity_kernel(
    queries_ptr, keys_ptr, cu_seqlens_q_ptr, cu_seqlens_k_ptr, dots_ptr, first, end, queries, keys, longest_q,
    longest_k, segments, top_bit, stride, DOT: tl.constexpr,
):  # fmt: skip
    """Products of a tile of query rows, of whatever samples or segments, with keys of the same: in units of 2⁻³⁰."""
    BLOCK_M: tl.constexpr = DOT.BLOCK_M
    BLOCK_N: tl.constexpr = DOT.BLOCK_N
    tiles = tl.cdiv(longest_k, BLOCK_N)
    column = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N], in the sample or segment
    line = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M], in the block
    row = first + line
    segment, _, live = _home(cu_seqlens_q_ptr, row, queries, longest_q, segments, top_bit)
    live = live & (row < end)
    for s in range(tl.min(tl.where(live, segment, 0x7FFFFFFE)), tl.max(tl.where(live, segment, -1)) + 1):
        key_start, key_count = _keys_of(cu_seqlens_k_ptr, s, keys, longest_k)
        if tl.program_id(0) % tiles * BLOCK_N < key_count:
            mine = live & (segment == s)
            inside = column < key_count
            dots = exact_dots(queries_ptr, row, mine, keys_ptr, key_start + column, inside, DOT)
            if DOT.LIMBS == 1:
                dots = (dots * 1073741824.0).to(tl.int32)
            # 16 bytes at a time, some of them past the last key.
            inside = column < tl.cdiv(key_count, 16) * 16
            tl.store(dots_ptr + (line * stride)[:, None] + column[None, :], dots, mask=mine[:, None] & inside[None, :])


@triton.jit
def _scores(
    dots_ptr, key_norms_ptr, key_squares_ptr, key_mask_ptr, rank_ptr, key, count, place, norm, square, rank,
    EXCLUDE_SELF: tl.constexpr, INVERTED: tl.constexpr,
):  # fmt: skip
    """Scores of a query with keys: the greatest is the best, the least integer is for one that it cannot have.

    Similarities in units of 2⁻³⁰, or bits of (|a| − |b|)² + |a| |b| (u·u + v·v − 2 u·v); if INVERTED all the other way
    round.
    """
    inside = key < count
    score = tl.load(dots_ptr + key, mask=key < tl.cdiv(count, 16) * 16, other=0)
    key_norm = tl.load(key_norms_ptr + key, mask=inside, other=float("inf"))
    if key_squares_ptr is not None:
        own = tl.load(key_squares_ptr + key, mask=inside, other=0)
        chord = tl.maximum(square.to(tl.int64) + own - 2 * score.to(tl.int64), 0).to(tl.float32)
        apart = (norm * key_norm) * (chord * (1.0 / 1073741824.0))
        gap = norm - key_norm
        score = (gap * gap + tl.where(chord > 0, apart, 0.0)).to(tl.int32, bitcast=True)
    if INVERTED:
        score = ~score
    usable = key_norm < float("inf")
    if key_mask_ptr is not None:
        usable = usable & (tl.load(key_mask_ptr + key, mask=inside, other=0) != 0)
    if EXCLUDE_SELF:
        usable = usable & (key != place)
    if rank_ptr is not None:
        other = ordered_key(widen(tl.load(rank_ptr + key, mask=inside, other=0.0)))
        usable = usable & ((other > rank) | ((other == rank) & (key < place)))
    return tl.where(usable, score, LEAST)


@triton.jit(do_not_specialize=["first", "queries", "keys", "longest_q", "longest_k", "segments", "top_bit", "k"])
def _nearest_kernel(
    dots_ptr, query_norms_ptr, key_norms_ptr, query_squares_ptr, key_squares_ptr, key_mask_ptr, rank_ptr,
    cu_seqlens_q_ptr, cu_seqlens_k_ptr, indices_ptr, values_ptr, first, queries, keys, longest_q, longest_k, segments,
    top_bit, k, stride, EXCLUDE_SELF: tl.constexpr, INVERTED: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The k best keys of a query. The best of each group of keys is kept; only one that gave a pick is read again."""
    row = first + tl.program_id(0).to(tl.int64)
    dots_ptr += tl.program_id(0).to(tl.int64) * stride
    segment, place, live = _home(cu_seqlens_q_ptr, row, queries, longest_q, segments, top_bit)
    count = tl.zeros((), tl.int32)
    norm = tl.load(query_norms_ptr + row)
    square = tl.zeros((), tl.int32)
    if query_squares_ptr is not None:
        square = tl.load(query_squares_ptr + row)
    rank = tl.zeros((), tl.int32)
    if rank_ptr is not None:
        rank = ordered_key(widen(tl.load(rank_ptr + row)))
    if live & (norm < float("inf")):
        start, count = _keys_of(cu_seqlens_k_ptr, segment, keys, longest_k)
        key_norms_ptr += start
        if key_squares_ptr is not None:
            key_squares_ptr += start
        if key_mask_ptr is not None:
            key_mask_ptr += start
        if rank_ptr is not None:
            rank_ptr += start
    group = tl.arange(0, GROUPS)
    tops = tl.full((GROUPS,), LEAST, tl.int32)
    for g in range(0, tl.cdiv(count, SIZE)):
        score = _scores(
            dots_ptr, key_norms_ptr, key_squares_ptr, key_mask_ptr, rank_ptr, g * SIZE + tl.arange(0, SIZE), count,
            place, norm, square, rank, EXCLUDE_SELF, INVERTED,
        )  # fmt: skip
        tops = tl.where(group == g, tl.max(score, axis=0), tops)
    last = tl.full((), 0x7FFFFFFF, tl.int32)
    at = tl.full((), -1, tl.int32)
    for pick in range(0, k):
        top = tl.max(tops, axis=0)
        best = tl.min(tl.where(tops == top, group, GROUPS - 1), axis=0)
        key = best * SIZE + tl.arange(0, SIZE)
        score = _scores(
            dots_ptr, key_norms_ptr, key_squares_ptr, key_mask_ptr, rank_ptr, key, count,
            place, norm, square, rank, EXCLUDE_SELF, INVERTED,
        )  # fmt: skip
        # Picks descend: those so far are what comes before the last one.
        fresh = (score == top) & ((top < last) | (key > at))
        at = tl.min(tl.where(fresh, key, 0x7FFFFFFF), axis=0)
        last = top
        left = (score < top) | ((score == top) & (key > at))
        tops = tl.where(group == best, tl.max(tl.where(left, score, LEAST), axis=0), tops)
        found = top > LEAST
        value = ~top if INVERTED else top
        if query_squares_ptr is not None:
            value = value.to(tl.float32, bitcast=True)
        else:
            value = value.to(tl.float32) * (1.0 / 1073741824.0)
        tl.store(indices_ptr + row * k + pick, tl.where(found, at, -1).to(tl.int64))
        tl.store(values_ptr + row * k + pick, tl.where(found, value, float("inf") if INVERTED else float("-inf")))


class Rows(NamedTuple):
    """Unit rows, norms, and products of unit rows with themselves where distances are wanted."""

    units: Tensor
    norms: Tensor
    squares: Optional[Tensor]


def rows_of(x: Tensor, limbs: int, euclidean: bool) -> Rows:
    units, norms = unit_rows(x, limbs, LOW_BITS)
    if not euclidean:
        return Rows(units, norms, None)
    squares = torch.empty(norms.shape, dtype=torch.int32, device=x.device)
    if norms.numel():
        tiles = square_tiles(x.shape[2])
        programs = cdiv(norms.numel(), tiles["ROWS"])
        launch(_squares_kernel, programs, units, squares, norms.numel(), D=x.shape[2], **tiles)
    return Rows(units, norms, squares)


def search(
    queries: Rows, keys: Rows, allowed: Allowed, segments: Segments, wanted: Nearest, kept: Optional[Tensor] = None
) -> tuple[Tensor, Tensor, Optional[Tensor]]:
    """(indices and values of `nearest`, products of all pairs); these are `kept` for another search if few enough."""
    batch, count = queries.norms.shape
    limbs, features = queries.units.shape[2:]
    cu_seqlens_q, cu_seqlens_k, longest_q, longest_k = segments
    device = queries.norms.device
    indices = torch.empty(batch, count, wanted.k, dtype=torch.int64, device=device)
    values = torch.empty(batch, count, wanted.k, dtype=torch.float32, device=device)
    mask, rank = (None if x is None else x.contiguous() for x in allowed)
    mask = None if mask is None else mask.view(torch.uint8)
    parts = 0 if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
    place = count, keys.norms.shape[1], longest_q, longest_k, parts, highest_bit(parts)
    stride = max(1, cdiv(longest_k, 16)) * 16
    tiles, select = similarity_tiles(features, limbs, target_arch()), nearest_tiles(max(1, longest_k))
    step = max(1, min(nearest_rows(stride), batch * count))
    dots = torch.empty(step, stride, dtype=torch.int32, device=device) if kept is None else kept
    for first in range(0, indices.numel() and batch * count, step):
        end = min(first + step, batch * count)
        programs = cdiv(end - first, tiles["DOT"].BLOCK_M) * cdiv(longest_k, tiles["DOT"].BLOCK_N)
        if programs and kept is None:
            launch(
                _similarity_kernel, programs,
                queries.units, keys.units, cu_seqlens_q, cu_seqlens_k, dots, first, end, *place, stride, **tiles,
            )  # fmt: skip
        launch(
            _nearest_kernel, end - first,
            dots, queries.norms, keys.norms, queries.squares, keys.squares, mask, rank, cu_seqlens_q, cu_seqlens_k,
            indices, values, first, *place, wanted.k, stride,
            EXCLUDE_SELF=wanted.exclude_self, INVERTED=wanted.inverted, **select,
        )  # fmt: skip
    return indices, values, dots if step == batch * count else None


def nearest(
    queries: Tensor, keys: Tensor, allowed: Allowed, segments: Segments, wanted: Nearest, limbs: int
) -> tuple[Tensor, Tensor]:
    query_rows = rows_of(queries, limbs, wanted.euclidean)
    key_rows = query_rows if keys is queries else rows_of(keys, limbs, wanted.euclidean)
    indices, values, _ = search(query_rows, key_rows, allowed, segments, wanted)
    return indices, values
