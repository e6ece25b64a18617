"""Leaders: tokens that stand for all that are like them."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import Alike
from .arithmetic import bounds, cdiv, highest_bit, segment_of, widen
from .dots import LOW_BITS, exact_dots
from .launch import launch, target_arch
from .logits import segment_rows
from .radix import load_key, ranks
from .tiles import alike_tiles, join_tiles, leader_tiles, order_tiles
from .units import masked_units


@triton.jit
def _segment(cu_ptr, sample, row, size, longest, segments, top_bit):
    """(segment, its first row, one past its last row that counts) of rows of a sample; the latter is 0 for none."""
    segment = tl.zeros(row.shape, tl.int64) + sample
    first = tl.zeros_like(row)
    last = tl.zeros_like(row) + size
    if cu_ptr is not None:
        found = segment_of(cu_ptr, row, segments, top_bit)
        inside = (found >= 0) & (found < segments)
        segment = tl.where(inside, found, 0).to(tl.int64)
        first, length = bounds(cu_ptr, tl.where(inside, found, 0), size)
        last = tl.where(inside, first + tl.minimum(length, longest), 0)
    return segment, first, last


@triton.jit(do_not_specialize=["size", "longest", "segments", "top_bit"])
def _order_tokens_kernel(
    scores_ptr, cu_ptr, order_ptr, size, longest, segments, top_bit, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """order[start + rank] = token for ROWS tokens of a sample, both counted in their segment."""
    programs = tl.cdiv(size, ROWS)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    row = (tl.program_id(0) % programs) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    scores_ptr += sample * size
    _, first, last = _segment(cu_ptr, sample, row, size, longest, segments, top_bit)
    inside = row < last
    first = tl.where(inside, first, size)
    last = tl.where(inside, last, 0)
    key = load_key(scores_ptr, row, inside)
    rank = ranks(scores_ptr, key, row, first, last, tl.min(first), tl.max(last), BLOCK)
    tl.store(order_ptr + sample * size + first + rank, row - first, mask=inside)


@triton.jit
def _units_of(threshold):
    """A similarity in units of 2⁻³⁰, rounded up; more than any for NaN."""
    units = threshold * 1073741824.0
    whole = tl.where((units > -2147483648.0) & (units < 2147483648.0), units, 0.0).to(tl.int32)
    whole += (whole.to(tl.float32) < units).to(tl.int32)
    whole = tl.where(units <= -2147483648.0, -(1 << 31), whole)
    return tl.where(units < 2147483648.0, whole, 0x7FFFFFFF)


@triton.jit
def _token_at(order_ptr, start, place, mask):
    """The tokens at places of the order of a segment; without one these are their numbers."""
    if order_ptr is not None:
        return tl.load(order_ptr + start + place, mask=mask, other=0)
    return place


@triton.jit(do_not_specialize=["size", "longest", "words", "threshold"])
def _alike_kernel(
    units_ptr, order_ptr, thresholds_ptr, cu_ptr, words_ptr, size, longest, words, threshold, PACKED: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Bit e of words[row, w]: the tokens at this place of their segment's order and at place 32 w + e are alike.

    Products are symmetric: tiles below the diagonal are those above it, stored again.
    """
    BLOCK_M: tl.constexpr = DOT.BLOCK_M
    BLOCK_N: tl.constexpr = DOT.BLOCK_N
    down = tl.cdiv(longest, BLOCK_M)
    across = tl.cdiv(longest, BLOCK_N)
    segment = (tl.program_id(0) // (down * across)).to(tl.int64)
    start, count = segment_rows(cu_ptr, None, segment, size, longest, PACKED)
    if PACKED == 0:
        start += segment * size
    m = tl.program_id(0) // across % down * BLOCK_M
    n = tl.program_id(0) % across * BLOCK_N
    if (n + BLOCK_N > m) & (m < count) & (n < count):
        row = m + tl.arange(0, BLOCK_M)
        column = n + tl.arange(0, BLOCK_N)
        row_token = _token_at(order_ptr, start, row, row < count)
        column_token = _token_at(order_ptr, start, column, column < count)
        score = exact_dots(
            units_ptr, start + row_token, row < count, units_ptr, start + column_token, column < count, DOT
        )  # fmt: skip
        if DOT.LIMBS == 1:
            score = (score * 1073741824.0).to(tl.int32)
        least = threshold
        if thresholds_ptr is not None:
            least = _units_of(widen(tl.load(thresholds_ptr + segment)))
        alike = (score >= least) & (row < count)[:, None] & (column < count)[None, :]
        alike = alike.to(tl.int32)
        bit = tl.arange(0, 32)
        words_ptr += start * words
        word = n // 32 + tl.arange(0, BLOCK_N // 32)
        packed = tl.sum(tl.reshape(alike, (BLOCK_M, BLOCK_N // 32, 32)) << bit[None, None, :], axis=2)
        at = row.to(tl.int64)[:, None] * words + word[None, :]
        tl.store(words_ptr + at, packed, mask=(row < count)[:, None] & (word < words)[None, :])
        # What another program stores as above is left to it.
        word = m // 32 + tl.arange(0, BLOCK_M // 32)
        packed = tl.sum(tl.reshape(alike, (BLOCK_M // 32, 32, BLOCK_N)) << bit[None, :, None], axis=1)
        below = (word * 32 // BLOCK_N * BLOCK_N + BLOCK_N)[:, None] <= (column // BLOCK_M * BLOCK_M)[None, :]
        at = column.to(tl.int64)[None, :] * words + word[:, None]
        tl.store(words_ptr + at, packed, mask=below & (column < count)[None, :] & (word < words)[:, None])


@triton.jit
def _or(a, b):
    return a | b


@triton.jit(do_not_specialize=["size", "longest", "words"])
def _leaders_kernel(
    words_ptr, norms_ptr, order_ptr, cu_ptr, leaders_ptr, joined_ptr, size, longest, words, PACKED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program finds the leaders of a segment, 32 places at a time; bits of words, as those that have joined."""
    segment = tl.program_id(0).to(tl.int64)
    start, count = segment_rows(cu_ptr, None, segment, size, longest, PACKED)
    if PACKED == 0:
        start += segment * size
    words_ptr += start * words
    leaders_ptr += segment * words
    joined_ptr += segment * words
    bit = tl.arange(0, 32)
    later = tl.where(bit == 31, 0, -2 << bit)
    used = tl.cdiv(count, 32)
    for w in range(0, used):
        place = w * 32 + bit
        mask = place < count
        token = _token_at(order_ptr, start, place, mask)
        usable = tl.load(norms_ptr + start + token, mask=mask, other=float("inf")) < float("inf")
        close = tl.load(words_ptr + place.to(tl.int64) * words + w, mask=mask, other=0) & later
        tl.debug_barrier()
        joined = tl.load(joined_ptr + w, mask=w > 0, other=0)
        free = tl.sum(tl.where(usable, 1 << bit, 0), axis=0) & ~joined
        # Right for one place more each time.
        lead = free
        again = free & ~tl.reduce(tl.where((lead >> bit) & 1 != 0, close, 0), 0, _or)
        while again != lead:
            lead = again
            again = free & ~tl.reduce(tl.where((lead >> bit) & 1 != 0, close, 0), 0, _or)
        tl.store(leaders_ptr + w, lead)
        leads = (lead >> bit) & 1 != 0
        for n in range(w + 1, used, BLOCK):
            at = n + tl.arange(0, BLOCK)
            before = tl.load(joined_ptr + at, mask=(at < used) & (w > 0), other=0)
            rows = tl.load(
                words_ptr + place.to(tl.int64)[:, None] * words + at[None, :],
                mask=leads[:, None] & (at < used)[None, :],
                other=0,
            )
            tl.store(joined_ptr + at, before | tl.reduce(rows, 0, _or), mask=at < used)


@triton.jit(do_not_specialize=["size", "longest", "words", "segments", "top_bit"])
def _join_leaders_kernel(
    words_ptr, leaders_ptr, norms_ptr, order_ptr, cu_ptr, out_ptr, size, longest, words, segments, top_bit,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The leaders of the tokens at ROWS places: the first that they are like, or themselves."""
    programs = tl.cdiv(size, ROWS)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    row = (tl.program_id(0) % programs) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    segment, first, last = _segment(cu_ptr, sample, row, size, longest, segments, top_bit)
    inside = row < last
    place = tl.where(inside, row - first, 0)
    start = sample * size + first
    leaders_ptr += segment * words
    best = tl.full((ROWS, BLOCK), 0x7FFFFFFF, tl.int32)
    for n in range(0, tl.max(tl.where(inside, place // 32 + 1, 0)), BLOCK):
        at = n + tl.arange(0, BLOCK)[None, :]
        mask = inside[:, None] & (at <= (place // 32)[:, None])
        word = tl.load(words_ptr + ((start + place) * words)[:, None] + at, mask=mask, other=0)
        word = word & tl.load(leaders_ptr[:, None] + at, mask=mask, other=0)
        # The exponent of the lowest bit is its number.
        low = (word & (0 - word)).to(tl.uint32, bitcast=True).to(tl.float32).to(tl.int32, bitcast=True) >> 23
        best = tl.minimum(best, tl.where(word != 0, at * 32 + (low - 127), 0x7FFFFFFF))
    best = tl.min(best, axis=1)
    leads = (tl.load(leaders_ptr + place // 32, mask=inside, other=0) >> (place & 31)) & 1 != 0
    best = tl.where(leads, place, best)
    token = _token_at(order_ptr, start, place, inside)
    leader = _token_at(order_ptr, start, best, inside & (best < size))
    usable = tl.load(norms_ptr + start + token, mask=inside, other=float("inf")) < float("inf")
    leader = tl.where(usable & (best < size), leader, -1)
    out = sample * size + tl.where(inside, first + token, row)
    tl.store(out_ptr + out, leader.to(tl.int64), mask=row < size)


def suppress(
    x: Tensor,
    scores: Optional[Tensor],
    candidates: Optional[Tensor],
    alike: Alike,
    cu_seqlens: Optional[Tensor],
    max_seqlen: int,
) -> Tensor:
    batch, count, features = x.shape
    leaders = torch.empty(batch, count, dtype=torch.int64, device=x.device)
    parts = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    words = cdiv(max_seqlen, 32)
    if not leaders.numel() or not parts * words:
        return leaders.fill_(-1)
    candidates = None if candidates is None else candidates.contiguous().view(torch.uint8)
    units, norms = masked_units(x, candidates, alike.limbs, LOW_BITS)
    order: Optional[Tensor] = None
    if scores is not None:
        order = torch.empty(batch, count, dtype=torch.int32, device=x.device)
        tiles = order_tiles(max_seqlen, False)
        launch(
            _order_tokens_kernel, batch * cdiv(count, tiles["ROWS"]),
            scores.contiguous(), cu_seqlens, order, count, max_seqlen, parts, highest_bit(parts), **tiles,
        )  # fmt: skip
    close = torch.empty(batch, count, words, dtype=torch.int32, device=x.device)
    leading, joined = torch.empty(2, parts, words, dtype=torch.int32, device=x.device)
    thresholds = None if alike.thresholds is None else alike.thresholds.contiguous()
    packed = cu_seqlens is not None
    tiles = alike_tiles(features, alike.limbs, target_arch())
    programs = parts * cdiv(max_seqlen, tiles["DOT"].BLOCK_M) * cdiv(max_seqlen, tiles["DOT"].BLOCK_N)
    launch(
        _alike_kernel, programs,
        units, order, thresholds, cu_seqlens, close, count, max_seqlen, words, alike.threshold, PACKED=packed, **tiles,
    )  # fmt: skip
    launch(
        _leaders_kernel, parts,
        close, norms, order, cu_seqlens, leading, joined, count, max_seqlen, words, PACKED=packed,
        **leader_tiles(words),
    )  # fmt: skip
    tiles = join_tiles(words)
    launch(
        _join_leaders_kernel, batch * cdiv(count, tiles["ROWS"]),
        close, leading, norms, order, cu_seqlens, leaders, count, max_seqlen, words, parts, highest_bit(parts), **tiles,
    )  # fmt: skip
    return leaders
