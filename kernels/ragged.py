"""Top-k of packed segments, and over the levels of packed samples."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import Amount, Slots
from .arithmetic import bounds, cdiv
from .gathering import copy_rows, packed_row, packed_start
from .launch import launch
from .radix import (
    histogram,
    load_words,
    next_digit,
    ranks,
    ranks_of_all,
    select_threshold,
    slot_places,
    take_best,
)
from .scoring import score_levels
from .tiles import (
    chunk_tiles,
    gather_tiles,
    many_segments,
    one_program,
    order_tiles,
    rank_all_tiles,
    rank_limit,
    rank_tiles,
    rank_work,
    select_tiles,
)


@triton.jit
def _clear(x):
    """The integer that `opaque` hid."""
    return ((tl.zeros((), tl.int64) + x) >> 4).to(tl.int32)


@triton.jit
def budget_of(budgets_ptr, budgets, segment):
    """One from the device for each segment, or those of the tuple over and over."""
    if budgets_ptr is not None:
        return tl.load(budgets_ptr + segment)
    budget = _clear(budgets[0])
    for s in tl.static_range(1, len(budgets)):
        budget = tl.where(segment % len(budgets) == s, _clear(budgets[s]), budget)
    return budget


@triton.jit
def _segment(cu_ptrs, sizes, budgets_ptr, budgets, segment, max_seqlen, capacity):
    """(start among all keys, length, budget, first slot in the sample) of segment sample · levels + level."""
    sample = segment // len(cu_ptrs)
    level = segment % len(cu_ptrs)
    start = tl.zeros((), tl.int32)
    base = tl.zeros((), tl.int32)
    length = tl.zeros((), tl.int32)
    wanted = tl.zeros((), tl.int32)
    slot = tl.zeros((), tl.int32)
    taken = tl.zeros((), tl.int32)
    for k in tl.static_range(len(cu_ptrs)):
        size = _clear(sizes[k])
        first, here = bounds(cu_ptrs[k], sample, size)
        here = tl.minimum(here, max_seqlen)
        budget = tl.maximum(budget_of(budgets_ptr, budgets, sample * len(cu_ptrs) + k), 0)
        budget = tl.minimum(tl.minimum(budget, here), capacity - taken)
        start = tl.where(level == k, base + first, start)
        length = tl.where(level == k, here, length)
        wanted = tl.where(level == k, budget, wanted)
        slot = tl.where(level == k, taken, slot)
        taken += budget
        base += size
    return start, length, wanted, slot


@triton.jit(do_not_specialize=["max_seqlen", "capacity"])
def _select_segment_kernel(
    keys_ptr, chosen_ptr, chosen_keys_ptr, counts_ptr, cu_ptrs, sizes, budgets_ptr, budgets, max_seqlen, capacity,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program selects from one segment; `chosen` [B, capacity] are ascending indices in the segment."""
    segment = tl.program_id(0)
    start, length, wanted, slot = _segment(cu_ptrs, sizes, budgets_ptr, budgets, segment, max_seqlen, capacity)
    tl.store(counts_ptr + segment, wanted)
    keys_ptr += start
    out = (segment // len(cu_ptrs)).to(tl.int64) * capacity + slot
    threshold, ties_wanted = select_threshold(keys_ptr, length, wanted, BLOCK)
    zero = tl.zeros((), tl.int32)
    take_best(
        keys_ptr, chosen_ptr + out, chosen_keys_ptr + out, 0, length, zero, threshold, ties_wanted, zero, zero, BLOCK
    )


@triton.jit
def _find_threshold(histograms_ptr, segments, segment, wanted, DIGITS: tl.constexpr):
    """The first DIGITS digits of the threshold from the histograms [3, segments, 2048], and what is still wanted."""
    threshold = tl.zeros((), tl.uint32)
    for digit in tl.static_range(DIGITS):
        row_ptr = histograms_ptr + (digit * segments + segment).to(tl.int64) * 2048
        counts = tl.load(row_ptr + tl.arange(0, 2048))
        threshold, wanted = next_digit(counts, threshold, wanted, 21 - 11 * digit if digit < 2 else 0)
    return threshold, wanted


@triton.jit(do_not_specialize=["max_seqlen", "capacity", "segments", "chunks"])
def _count_kernel(
    keys_ptr, histograms_ptr, tallies_ptr, cu_ptrs, sizes, budgets_ptr, budgets, max_seqlen, capacity, segments, chunks,
    DIGIT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A chunk of a segment adds to the segment's histogram of one digit; after the last it tallies (better, equal)."""
    segment = tl.program_id(0) // chunks
    chunk = tl.program_id(0) % chunks
    start, length, wanted, _ = _segment(cu_ptrs, sizes, budgets_ptr, budgets, segment, max_seqlen, capacity)
    keys_ptr += start
    begin = tl.minimum(chunk * CHUNK, length)
    end = tl.minimum(begin + CHUNK, length)
    threshold, wanted = _find_threshold(histograms_ptr, segments, segment, wanted, DIGIT)
    if DIGIT < 3:
        BITS: tl.constexpr = 11 if DIGIT < 2 else 10
        SHIFT: tl.constexpr = 21 if DIGIT == 0 else 10 if DIGIT == 1 else 0
        counts = histogram(keys_ptr, begin, end, threshold, SHIFT, BITS, BLOCK)
        row_ptr = histograms_ptr + (DIGIT * segments + segment).to(tl.int64) * 2048
        # Integers: the sum is the same in any order.
        tl.atomic_add(row_ptr + tl.arange(0, 1 << BITS), counts, mask=counts > 0, sem="relaxed")
    else:
        better = tl.zeros((), tl.int32)
        equal = tl.zeros((), tl.int32)
        for i in range(begin, end, BLOCK):
            index = i + tl.arange(0, BLOCK)
            word = load_words(keys_ptr, index, index < end)
            better += tl.sum(((word < threshold) & (index < end)).to(tl.int32))
            equal += tl.sum(((word == threshold) & (index < end)).to(tl.int32))
        tally_ptr = tallies_ptr + 2 * tl.program_id(0).to(tl.int64)
        tl.store(tally_ptr, better)
        tl.store(tally_ptr + 1, equal)


@triton.jit(do_not_specialize=["max_seqlen", "capacity", "segments", "chunks"])
def _take_chunk_kernel(
    keys_ptr, histograms_ptr, tallies_ptr, chosen_ptr, chosen_keys_ptr, counts_ptr, cu_ptrs, sizes, budgets_ptr,
    budgets, max_seqlen, capacity, segments, chunks, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A chunk of a segment stores what it contributes, at the place that the tallies of earlier chunks give."""
    segment = tl.program_id(0) // chunks
    chunk = tl.program_id(0) % chunks
    start, length, wanted, slot = _segment(cu_ptrs, sizes, budgets_ptr, budgets, segment, max_seqlen, capacity)
    if chunk == 0:
        tl.store(counts_ptr + segment, wanted)
    begin = tl.minimum(chunk * CHUNK, length)
    end = tl.minimum(begin + CHUNK, length)
    threshold, ties_wanted = _find_threshold(histograms_ptr, segments, segment, wanted, 3)
    tallies_ptr += 2 * segment.to(tl.int64) * chunks
    better = tl.zeros((), tl.int32)
    equal = tl.zeros((), tl.int32)
    for i in range(0, chunk, 256):
        earlier = i + tl.arange(0, 256)
        better += tl.sum(tl.load(tallies_ptr + 2 * earlier, mask=earlier < chunk, other=0))
        equal += tl.sum(tl.load(tallies_ptr + 2 * earlier + 1, mask=earlier < chunk, other=0))
    taken = better + tl.minimum(equal, ties_wanted)
    out = (segment // len(cu_ptrs)).to(tl.int64) * capacity + slot
    zero = tl.zeros((), tl.int32)
    take_best(
        keys_ptr + start, chosen_ptr + out, chosen_keys_ptr + out, begin, end, zero, threshold, ties_wanted, equal,
        taken, BLOCK,
    )  # fmt: skip


@triton.jit(do_not_specialize=["size", "capacity"])
def _order_kernel(
    chosen_ptr, chosen_keys_ptr, counts_ptr, scores_ptr, cu_ptr, values_ptr, indices_ptr, size, capacity,
    BY_INDEX: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Move ROWS slots of a segment to their place: as they stand, or by rank."""
    programs = tl.cdiv(capacity, ROWS)
    segment = tl.program_id(0) // programs
    candidate = (tl.program_id(0) % programs) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    row = segment.to(tl.int64) * capacity
    count = tl.load(counts_ptr + segment)
    used = candidate < count
    place = slot_places(chosen_keys_ptr + row, candidate, count, BY_INDEX, BLOCK)
    index = tl.load(chosen_ptr + row + candidate, mask=used, other=-1)
    first, _ = bounds(cu_ptr, segment, size)
    value = tl.load(scores_ptr + first.to(tl.int64) + index, mask=used, other=float("-inf"))
    tl.store(indices_ptr + row + place, index.to(tl.int64), mask=candidate < capacity)
    tl.store(values_ptr + row + place, value, mask=candidate < capacity)


@triton.jit(do_not_specialize=["size", "max_seqlen", "capacity"])
def _rank_segment_kernel(
    scores_ptr, cu_ptr, budgets_ptr, budgets, values_ptr, indices_ptr, counts_ptr, size, max_seqlen, capacity,
    ROWS: tl.constexpr, RANK_BLOCK: tl.constexpr,
):  # fmt: skip
    """Of ROWS tokens of a segment those among its best move to the place of their rank; other slots are filled."""
    programs = tl.maximum(tl.cdiv(tl.maximum(max_seqlen, capacity), ROWS), 1)
    segment = tl.program_id(0) // programs
    first, length = bounds(cu_ptr, segment, size)
    length = tl.minimum(length, max_seqlen)
    wanted = tl.minimum(tl.maximum(budget_of(budgets_ptr, budgets, segment), 0), tl.minimum(length, capacity))
    if tl.program_id(0) % programs == 0:
        tl.store(counts_ptr + segment, wanted)
    candidate = (tl.program_id(0) % programs) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    row = segment.to(tl.int64) * capacity
    if (tl.min(candidate) < length) & (wanted > 0):
        rank = ranks_of_all(scores_ptr + first, candidate, length, ROWS, RANK_BLOCK)
        mask = (candidate < length) & (rank < wanted)
        value = tl.load(scores_ptr + first + candidate, mask=mask, other=0)
        tl.store(indices_ptr + row + rank, candidate.to(tl.int64), mask=mask)
        tl.store(values_ptr + row + rank, value, mask=mask)
    unused = (candidate >= wanted) & (candidate < capacity)
    tl.store(indices_ptr + row + candidate, tl.full((ROWS,), -1, tl.int64), mask=unused)
    none = tl.full((ROWS,), float("-inf"), tl.float32).to(values_ptr.dtype.element_ty)
    tl.store(values_ptr + row + candidate, none, mask=unused)


@triton.jit(do_not_specialize=["batch", "capacity"])
def _gather_packed_kernel(
    chosen_ptr, chosen_keys_ptr, counts_ptr, cu_ptrs, level_ptrs, strides_n, sizes, tokens_ptr, indices_ptr,
    rows_ptr, offsets_ptr, batch, capacity, width, BY_INDEX: tl.constexpr, RANK_BLOCK: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Move ROWS slots of a sample to their rows; one program of each sample stores where the sample starts."""
    programs = tl.cdiv(capacity, ROWS)
    sample = tl.program_id(0) // programs
    candidate = (tl.program_id(0) % programs) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    start, total = packed_start(counts_ptr, sample * len(cu_ptrs), batch * len(cu_ptrs), capacity)
    if tl.program_id(0) % programs == 0:
        tl.store(offsets_ptr + sample, start)
        tl.store(offsets_ptr + batch, total)
    slots = sample.to(tl.int64) * capacity
    index = tl.load(chosen_ptr + slots + candidate, mask=candidate < capacity, other=0)
    level = tl.full((ROWS,), -1, tl.int32)
    token = index
    first = tl.zeros((ROWS,), tl.int32)  # [first, last) are the slots of the candidate's level
    last = first
    used = tl.zeros((), tl.int32)
    clear_sizes = ()
    for k in tl.static_range(len(cu_ptrs)):
        size = _clear(sizes[k])
        clear_sizes = clear_sizes + (size,)
        begin, _ = bounds(cu_ptrs[k], sample, size)
        end = used + tl.load(counts_ptr + sample * len(cu_ptrs) + k)
        here = (candidate >= used) & (candidate < end)
        level = tl.where(here, k, level)
        token = tl.where(here, begin + index, token)
        first = tl.where(here, used, first)
        last = tl.where(here, end, last)
        used = end
    place = candidate
    if not BY_INDEX:
        key = tl.load(chosen_keys_ptr + slots + candidate, mask=candidate < used, other=0)
        begin = tl.min(tl.where(candidate < used, first, used))
        place = first + ranks(
            chosen_keys_ptr + slots, key, candidate, first, last, begin, tl.max(last), RANK_BLOCK
        )  # fmt: skip
    row = packed_row(place, candidate, used, start, total, sample, capacity)
    mask = candidate < capacity
    pair = 2 * row[:, None] + tl.arange(0, 2)[None, :]  # [ROWS, 2]
    index = tl.where(level < 0, -1, index)
    token = tl.where(level < 0, -1, token)
    tl.store(indices_ptr + pair, tl.join(level, index).to(tl.int64), mask=mask[:, None])
    tl.store(rows_ptr + pair, tl.join(level, token).to(tl.int64), mask=mask[:, None])
    copy_rows(
        tokens_ptr, level_ptrs, strides_n, strides_n, clear_sizes, sample - sample, level, token, row, mask, width,
        ROWS, BLOCK, VECTOR,
    )  # fmt: skip


def opaque(values: Sequence[int]) -> tuple[int, ...]:
    """Integers that are never 1 or a multiple of 16: for each such in a tuple the JIT would compile anew."""
    return tuple(16 * value + 2 for value in values)


def select_segments(
    keys: Tensor,
    cu_seqlens: Sequence[Tensor],
    sizes: Sequence[int],
    budgets: Amount,
    slots: Slots,
) -> tuple[Tensor, Tensor, Tensor]:
    """(chosen `[B, capacity]` ascending in each level, their keys, counts `[B, L]`)."""
    batch = cu_seqlens[0].shape[0] - 1
    segments = batch * len(cu_seqlens)
    max_seqlen, capacity = slots
    chosen, chosen_keys = torch.empty(2, batch, capacity, dtype=torch.int32, device=keys.device)
    counts = torch.empty(batch, len(cu_seqlens), dtype=torch.int32, device=keys.device)
    numbers = opaque([min(k, capacity) for k in budgets.numbers])
    arguments = (tuple(cu_seqlens), opaque(sizes), budgets.tensor, numbers, max_seqlen, capacity)
    if max_seqlen <= one_program() or segments > many_segments():
        tiles = select_tiles(2048)  # the smaller tiles spill with several levels
        launch(_select_segment_kernel, segments, keys, chosen, chosen_keys, counts, *arguments, **tiles)
        return chosen, chosen_keys, counts
    tiles = chunk_tiles()
    chunks = cdiv(max_seqlen, tiles["CHUNK"])
    histograms = torch.zeros(3, segments, 2048, dtype=torch.int32, device=keys.device)
    tallies = torch.empty(segments, chunks, 2, dtype=torch.int32, device=keys.device)
    programs = segments * chunks
    for digit in range(4):
        launch(
            _count_kernel, programs,
            keys, histograms, tallies, *arguments, segments, chunks, DIGIT=digit, **tiles
        )  # fmt: skip
    launch(
        _take_chunk_kernel, programs,
        keys, histograms, tallies, chosen, chosen_keys, counts, *arguments, segments, chunks, **tiles,
    )  # fmt: skip
    return chosen, chosen_keys, counts


def sorted_slots(chosen: Tensor, keys: Tensor, counts: Tensor) -> Tensor:
    """What is `chosen` `[S, capacity]`, ascending, by descending key: the first `counts` `[S, 1]` of each segment."""
    capacity = chosen.shape[1]
    # No two of these integers are equal; slots ascend with indices.
    slot = torch.arange(capacity, device=chosen.device)
    unique = torch.where(slot < counts, (keys.to(torch.int64) << 32) + (capacity - 1 - slot), -1 << 63)
    slot = capacity - 1 - (unique.sort(dim=1, descending=True, stable=True).values & 0xFFFFFFFF)
    return chosen.gather(1, slot.clamp(0, capacity - 1))


def segmented_topk(
    scores: Tensor,
    cu_seqlens: Tensor,
    k: Amount,
    slots: Slots,
    by_index: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    segments, capacity = cu_seqlens.shape[0] - 1, slots.capacity
    values = torch.empty(segments, capacity, dtype=scores.dtype, device=scores.device)
    indices = torch.empty(segments, capacity, dtype=torch.int64, device=scores.device)
    if not segments:
        return values, indices, torch.empty(0, dtype=torch.int32, device=scores.device)
    if not by_index and segments * slots.max_seqlen**2 <= rank_work():
        tiles = rank_all_tiles(slots.max_seqlen)
        counts = torch.empty(segments, dtype=torch.int32, device=scores.device)
        numbers = opaque([min(number, capacity) for number in k.numbers])
        launch(
            _rank_segment_kernel, segments * max(1, cdiv(max(slots.max_seqlen, capacity), tiles["ROWS"])),
            scores, cu_seqlens, k.tensor, numbers, values, indices, counts, scores.shape[0], slots.max_seqlen, capacity,
            **tiles,
        )  # fmt: skip
        return values, indices, counts
    chosen, keys, counts = select_segments(scores, [cu_seqlens], [scores.shape[0]], k, slots)
    if capacity > rank_limit() and not by_index:
        chosen, by_index = sorted_slots(chosen, keys, counts), True
    if capacity:
        tiles = order_tiles(capacity, by_index)
        launch(
            _order_kernel, segments * cdiv(capacity, tiles["ROWS"]),
            chosen, keys, counts, scores, cu_seqlens, values, indices, scores.shape[0], capacity,
            BY_INDEX=by_index, **tiles,
        )  # fmt: skip
    return values, indices, counts[:, 0]


def select_topk_levels_packed(
    levels: Sequence[Tensor],
    cu_seqlens: Sequence[Tensor],
    scores: Sequence[Tensor],
    saliency: str,
    budgets: Amount,
    slots: Slots,
    by_index: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, width, device = cu_seqlens[0].shape[0] - 1, levels[0].shape[1], levels[0].device
    sizes, capacity = [level.shape[0] for level in levels], slots.capacity
    tokens = torch.empty(batch * capacity, width, dtype=levels[0].dtype, device=device)
    indices = torch.empty(batch * capacity, 2, dtype=torch.int64, device=device)
    rows = torch.empty(batch * capacity, 2, dtype=torch.int64, device=device)
    offsets = torch.zeros(batch + 1, dtype=torch.int32, device=device)
    if not batch * capacity:
        return tokens, indices, rows, offsets, torch.zeros(batch, len(levels), dtype=torch.int32, device=device)
    keys = torch.empty(1, sum(sizes), dtype=torch.int32, device=device)
    score_levels([x[None] for x in scores or levels], saliency, 1, keys)
    chosen, chosen_keys, counts = select_segments(keys, cu_seqlens, sizes, budgets, slots)
    tiles = gather_tiles([level[None] for level in levels])
    launch(
        _gather_packed_kernel, batch * cdiv(capacity, tiles["ROWS"]),
        chosen, chosen_keys, counts, tuple(cu_seqlens), tuple(levels), tuple(x.stride(0) for x in levels),
        opaque(sizes), tokens, indices, rows, offsets, batch, capacity, width,
        BY_INDEX=by_index, **rank_tiles(capacity), **tiles,
    )  # fmt: skip
    return tokens, indices, rows, offsets, counts
