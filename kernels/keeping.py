"""Which tokens stay, and what belongs to them moved."""

import functools
from collections.abc import Sequence
from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import Amount, Choice, Placed, Slots
from .arithmetic import NO_KEY, cdiv, ordered_key, widen
from .gathering import packed_row, packed_start
from .launch import launch
from .radix import slot_places
from .ragged import budget_of, opaque, select_segments, sorted_slots
from .tiles import flat_tiles, keep_tiles, order_tiles, rank_limit, token_tiles

FORCED = tl.constexpr((1 << 31) - 1)


@triton.jit
def ascending_bounds(cu_ptr, segment, segments, size):
    """(start, end) of a packed segment: an offset below an earlier one counts as that one."""
    start = tl.zeros((), tl.int32)
    end = tl.zeros((), tl.int32)
    for i in range(0, segment + 2, 256):
        at = i + tl.arange(0, 256)
        offset = tl.load(cu_ptr + at, mask=at <= segments, other=0)
        offset = tl.minimum(tl.maximum(offset, 0), size)
        start = tl.maximum(start, tl.max(tl.where(at <= segment, offset, 0)))
        end = tl.maximum(end, tl.max(tl.where(at <= segment + 1, offset, 0)))
    return start, end


@triton.jit(do_not_specialize=["size", "segments", "max_seqlen", "threshold"])
def _keep_keys_kernel(
    scores_ptr, candidates_ptr, forced_ptr, thresholds_ptr, threshold, cu_ptr, k_ptr, k, keys_ptr, wanted_ptr,
    bounds_ptr, size, segments, max_seqlen, LARGEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Keys of one segment, the higher the better, how many tokens are wanted, and where the segment is."""
    segment = tl.program_id(0)
    if cu_ptr is None:
        start = segment * size
        end = start + size
    else:
        start, end = ascending_bounds(cu_ptr, segment, segments, size)
    tl.store(bounds_ptr + segment, start)
    if segment == segments - 1:
        tl.store(bounds_ptr + segments, end)
    if thresholds_ptr is not None:
        threshold = tl.load(thresholds_ptr + segment)
    length = tl.minimum(end - start, max_seqlen)
    several = tl.zeros((BLOCK,), tl.int32)
    many = tl.zeros((BLOCK,), tl.int32)
    for i in range(0, length, BLOCK):
        place = i + tl.arange(0, BLOCK)
        inside = place < length
        token = start + place
        value = widen(tl.load(scores_ptr + token, mask=inside, other=0.0))
        key = ordered_key(value)
        if not LARGEST:
            key = ~key
        key = tl.minimum(tl.maximum(key, NO_KEY + 1), FORCED - 1)
        allowed = inside
        if candidates_ptr is not None:
            allowed = allowed & (tl.load(candidates_ptr + token, mask=inside, other=0) != 0)
        if threshold is not None or thresholds_ptr is not None:
            allowed = allowed & ((value > threshold) if LARGEST else (value < threshold))
        if forced_ptr is not None:
            forced = tl.load(forced_ptr + token, mask=inside, other=0) != 0
            allowed = allowed & (forced == 0)
            many += forced.to(tl.int32)
        key = tl.where(allowed, key, NO_KEY)
        if forced_ptr is not None:
            key = tl.where(forced, FORCED, key)
        several += allowed.to(tl.int32)
        tl.store(keys_ptr + token, key, mask=inside)
    wanted = tl.minimum(tl.maximum(budget_of(k_ptr, k, segment), 0), tl.sum(several)) + tl.sum(many)
    tl.store(wanted_ptr + segment, wanted)


@triton.jit(do_not_specialize=["segments", "capacity"])
def _keep_tokens_kernel(
    chosen_ptr, chosen_keys_ptr, counts_ptr, bounds_ptr, tokens_ptr, offsets_ptr, segments, capacity,
    PACKED: tl.constexpr, BY_INDEX: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Move ROWS slots of a segment to their place: as they stand, or by rank; packed ones without gaps."""
    programs = tl.cdiv(capacity, ROWS)
    segment = tl.program_id(0) // programs
    candidate = (tl.program_id(0) % programs) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    slots = segment.to(tl.int64) * capacity
    count = tl.load(counts_ptr + segment)
    start, total = packed_start(counts_ptr, segment, segments, capacity)
    if tl.program_id(0) % programs == 0:
        tl.store(offsets_ptr + segment, start)
        tl.store(offsets_ptr + segments, total)
    used = candidate < count
    if not BY_INDEX:
        chosen_keys_ptr += slots
    place = slot_places(chosen_keys_ptr, candidate, count, BY_INDEX, BLOCK)
    token = tl.load(chosen_ptr + slots + candidate, mask=used, other=-1)
    row = slots + place
    if PACKED:
        row = packed_row(place, candidate, count, start, total, segment, capacity)
        token = tl.where(used, tl.load(bounds_ptr + segment) + token, -1)
    tl.store(tokens_ptr + row, token.to(tl.int64), mask=candidate < capacity)


def keep_tokens(
    scores: Tensor, cu_seqlens: Optional[Tensor], choice: Choice, k: Amount, slots: Slots, by_index: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    packed, device, capacity = cu_seqlens is not None, scores.device, slots.capacity
    segments = scores.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (1, segments * capacity) if packed else (segments, capacity)
    tokens = torch.empty(shape, dtype=torch.int64, device=device)
    offsets, bounds = (torch.empty(segments + 1, dtype=torch.int32, device=device) for _ in range(2))
    wanted = torch.empty(segments, dtype=torch.int32, device=device)
    if not segments:
        return tokens, wanted, offsets.zero_(), bounds.zero_()
    keys = torch.empty(scores.numel(), dtype=torch.int32, device=device)
    candidates, forced = (None if x is None else x.view(torch.uint8) for x in (choice.candidates, choice.forced))
    numbers = opaque([min(number, slots.max_seqlen) for number in k.numbers])
    launch(
        _keep_keys_kernel, segments,
        scores, candidates, forced, choice.thresholds, choice.threshold, cu_seqlens, k.tensor, numbers, keys,
        wanted, bounds, scores.shape[1], segments, slots.max_seqlen, LARGEST=choice.largest,
        **keep_tiles(slots.max_seqlen),
    )  # fmt: skip
    if not capacity:
        return tokens, wanted.zero_(), offsets.zero_(), bounds
    chosen, chosen_keys, counts = select_segments(keys, [bounds], [keys.shape[0]], Amount(wanted, [0]), slots)
    counts = counts[:, 0]
    placed(chosen, None if by_index else chosen_keys, counts, bounds, (tokens, offsets), packed)
    return tokens, counts, offsets, bounds


def placed(
    chosen: Tensor,
    keys: Optional[Tensor],
    counts: Tensor,
    bounds: Optional[Tensor],
    rows: tuple[Tensor, Tensor],
    packed: bool,
) -> None:
    """Put tokens chosen within segments `[S, capacity]` into `rows` of tokens: as they stand or, with `keys`, by rank.

    Packed ones without gaps: from where the offsets of `rows` will say.
    """
    segments, capacity = chosen.shape
    if keys is not None and capacity > rank_limit():
        chosen, keys = sorted_slots(chosen, keys, counts[:, None]), None
    tiles = order_tiles(capacity, keys is None)
    launch(
        _keep_tokens_kernel, segments * cdiv(capacity, tiles["ROWS"]),
        chosen, keys, counts, bounds, *rows, segments, capacity, PACKED=packed, BY_INDEX=keys is None,
        **tiles,
    )  # fmt: skip


@triton.jit
def _source(tokens_ptr, counts_ptr, sample, slot, slots, size, RIGHT: tl.constexpr):
    """The token at a slot; −1 for none."""
    count = slots
    if counts_ptr is not None:
        count = tl.minimum(tl.maximum(tl.load(counts_ptr + sample), 0), slots)
    place = slot
    if RIGHT:
        place = slot - (slots - count)
    live = (slot < slots) & (place >= 0) & (place < count)
    token = place.to(tl.int64)
    if tokens_ptr is not None:
        token = tl.load(tokens_ptr + sample * slots + place, mask=live, other=-1)
    return tl.where(live & (token >= 0) & (token < size), token, -1)


@triton.jit(do_not_specialize=["slots", "size"])
def _move_tokens_kernel(
    x_ptrs, out_ptrs, strides_b, strides_o, strides_n, outers, fills, tokens_ptr, counts_ptr, slots, size, width,
    samples, RIGHT: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """ROWS slots of one plane, a sample's outer index, of one tensor: its tokens, or its fill where there is none."""
    programs = tl.cdiv(slots, ROWS)
    plane = (tl.program_id(0) // programs).to(tl.int64)
    slot = (tl.program_id(0) % programs) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    first = plane - plane
    for k in tl.static_range(len(x_ptrs)):
        outer = outers[k] + first - first
        here = plane - first
        if (here >= 0) & (here < samples * outer):
            sample = here // outer
            base = x_ptrs[k] + tl.multiple_of(sample * strides_b[k] + (here % outer) * strides_o[k], VECTOR)
            source = _source(tokens_ptr, counts_ptr, sample, slot, slots, size, RIGHT)
            there = source >= 0
            offset = tl.multiple_of(tl.where(there, source, 0) * strides_n[k], VECTOR)
            fill = (tl.zeros((ROWS, BLOCK), tl.int64) + fills[k]).to(out_ptrs[k].dtype.element_ty)
            for start in range(0, width, BLOCK):
                column = start + tl.arange(0, BLOCK)
                mask = there[:, None] & (column < width)[None, :]
                at = column
                if COLUMNS:
                    at = _source(tokens_ptr, counts_ptr, sample, column, slots, size, RIGHT)
                    mask = mask & (at >= 0)[None, :]
                x = tl.load(base + offset[:, None] + at[None, :], mask=mask, other=0)
                x = tl.where(mask, x, fill)
                row = out_ptrs[k] + (here * slots + slot)[:, None] * width + column[None, :]
                tl.store(row, x, mask=(slot < slots)[:, None] & (column < width)[None, :])
        first += samples * outer


@functools.lru_cache(1024)
def _bits(fill: float, dtype: torch.dtype, integers: torch.dtype) -> int:
    return torch.tensor([fill], dtype=torch.float64).to(dtype).view(integers).tolist()[0] if fill else 0


def move_tokens(
    tensors: Sequence[Tensor],
    tokens: Optional[Tensor],
    counts: Optional[Tensor],
    placed: Placed,
    fills: Sequence[float],
) -> list[Tensor]:
    samples, slots = max(x.shape[0] for x in (counts, tokens) if x is not None), placed.slots
    tokens = None if tokens is None else tokens.contiguous()
    moved = [
        torch.empty(samples, x.shape[1], slots, slots if placed.columns else x.shape[3], dtype=x.dtype, device=x.device)
        for x in tensors
    ]
    alike: dict[tuple, list[int]] = {}
    for i, out in enumerate(moved):
        if out.numel():
            alike.setdefault((out.shape[3], tensors[i].shape[2], out.element_size()), []).append(i)
    for (width, size, element), group in alike.items():
        integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[element]
        xs = [tensors[i].view(integers) for i in group]
        strides = [(x.stride(0) if x.shape[0] > 1 else 0, x.stride(1), x.stride(2)) for x in xs]
        tiles = token_tiles(xs, width)
        launch(
            _move_tokens_kernel, sum(samples * x.shape[1] for x in xs) * cdiv(slots, tiles["ROWS"]),
            tuple(xs), tuple(moved[i].view(integers) for i in group), *zip(*strides, strict=True),
            tuple(x.shape[1] for x in xs),
            tuple(_bits(fills[i], tensors[i].dtype, integers) for i in group),
            tokens, counts, slots, size, width, samples, RIGHT=placed.right, COLUMNS=placed.columns, **tiles,
        )  # fmt: skip
    return moved


@triton.jit(do_not_specialize=["count", "size"])
def _mark_tokens_kernel(tokens_ptr, marked_ptr, count, size, total, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(tokens_ptr + at, mask=at < total, other=-1)
    tl.store(marked_ptr + at // count * size + token, tl.full((BLOCK,), 1, tl.int8), mask=(token >= 0) & (token < size))


def mark_tokens(tokens: Tensor, size: int) -> Tensor:
    marked = torch.zeros(tokens.shape[0], size, dtype=torch.bool, device=tokens.device)
    if marked.numel() and tokens.numel():
        tiles = flat_tiles()
        launch(
            _mark_tokens_kernel, cdiv(tokens.numel(), tiles["BLOCK"]),
            tokens.contiguous(), marked.view(torch.int8), tokens.shape[1], size, tokens.numel(), **tiles,
        )  # fmt: skip
    return marked
