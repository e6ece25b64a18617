"""Top-k over the levels of a pyramid in three launches: score, select, gather. Levels are never concatenated."""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .numerics import LAUNCH
from .scoring import score_levels


@triton.jit
def _radix_step(keys_ptr, size, threshold, wanted, SHIFT: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """The next digit of the threshold, and how many words that agree with it so far are still wanted."""
    counts = tl.zeros((1 << BITS,), tl.int32)
    for start in range(0, size, BLOCK):
        index = start + tl.arange(0, BLOCK)
        key = tl.load(keys_ptr + index, mask=index < size, other=0)
        word = (key ^ 0x7FFFFFFF).to(tl.uint32, bitcast=True)
        live = index < size
        if SHIFT + BITS < 32:
            live = live & ((word >> (SHIFT + BITS)) == (threshold >> (SHIFT + BITS)))
        counts += tl.histogram(((word >> SHIFT) & ((1 << BITS) - 1)).to(tl.int32), 1 << BITS, mask=live)
    before = tl.cumsum(counts, 0)
    bucket = tl.sum((before < wanted).to(tl.int32))
    wanted -= tl.max(tl.where(before < wanted, before, 0))
    return threshold | (bucket.to(tl.uint32) << SHIFT), wanted


@triton.jit
def _select_kernel(
    keys_ptr, chosen_ptr, chosen_keys_ptr, sizes, budgets, total_size, total_budget, BLOCK: tl.constexpr
):  # fmt: skip
    """One program selects the budget of one segment: 11 + 11 + 10 bit radix select, then compaction in index order.

    `chosen` holds positions in the concatenation of all segments, ascending within a segment.
    """
    sample = (tl.program_id(0) // len(sizes)).to(tl.int64)
    segment = tl.program_id(0) % len(sizes)
    size = sizes[0]
    budget = budgets[0]
    start = size - size
    out_start = start
    next_start = sizes[0]
    next_out = budgets[0]
    for s in tl.static_range(1, len(sizes)):
        if segment == s:
            size = sizes[s]
            budget = budgets[s]
            start = next_start
            out_start = next_out
        next_start += sizes[s]
        next_out += budgets[s]
    keys_ptr += sample * total_size + start
    chosen_ptr += sample * total_budget + out_start
    chosen_keys_ptr += sample * total_budget + out_start

    # Words ascend where keys descend, so `threshold` is the word of the budget-th best key.
    threshold = tl.zeros((), tl.uint32)
    threshold, wanted = _radix_step(keys_ptr, size, threshold, budget, 21, 11, BLOCK)
    threshold, wanted = _radix_step(keys_ptr, size, threshold, wanted, 10, 11, BLOCK)
    threshold, wanted = _radix_step(keys_ptr, size, threshold, wanted, 0, 10, BLOCK)

    taken = tl.zeros((), tl.int32)
    ties = tl.zeros((), tl.int32)
    for i in range(0, size, BLOCK):
        index = i + tl.arange(0, BLOCK)
        key = tl.load(keys_ptr + index, mask=index < size, other=0)
        word = (key ^ 0x7FFFFFFF).to(tl.uint32, bitcast=True)
        tie = ((word == threshold) & (index < size)).to(tl.int32)
        tie_rank = ties + tl.cumsum(tie, 0) - tie
        better = (word < threshold) & (index < size)
        take = (better | ((tie == 1) & (tie_rank < wanted))).to(tl.int32)
        position = taken + tl.cumsum(take, 0) - take
        tl.store(chosen_ptr + position, start + index, mask=take == 1)
        tl.store(chosen_keys_ptr + position, key, mask=take == 1)
        ties += tl.sum(tie)
        taken += tl.sum(take)


@triton.jit
def _locate(position, sizes):
    """(level, index in the level) of a position in the concatenation of levels."""
    level = tl.zeros_like(position)
    index = position
    end = sizes[0]
    for k in tl.static_range(1, len(sizes)):
        level = tl.where(position >= end, k, level)
        index = tl.where(position >= end, position - end, index)
        end += sizes[k]
    return level, index


@triton.jit
def _copy_rows(
    out_ptr, level_ptrs, strides_b, strides_n, sizes, sample, level, index, row, mask, width,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """out[row] = levels[level][sample, index]; zeros where (level, index) names no token."""
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        x = tl.zeros((ROWS, BLOCK), out_ptr.dtype.element_ty)
        for k in tl.static_range(len(level_ptrs)):
            here = (level == k) & (index >= 0) & (index < sizes[k]) & mask
            base = level_ptrs[k] + tl.multiple_of(sample * strides_b[k], VECTOR)
            offset = tl.multiple_of(tl.where(here, index, 0).to(tl.int64) * strides_n[k], VECTOR)
            x = tl.load(base + offset[:, None] + column, mask=here[:, None] & (column < width), other=x)
        tl.store(out_ptr + (row * width)[:, None] + column, x, mask=mask[:, None] & (column < width))


@triton.jit
def _gather_selected_kernel(
    chosen_ptr, chosen_keys_ptr, tokens_ptr, indices_ptr, level_ptrs, strides_b, strides_n, sizes, budgets,
    total, width, BY_INDEX: tl.constexpr, RANK_BLOCK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """Move ROWS selected tokens of a sample to their place: by index as they stand, else by rank in their segment."""
    programs = tl.cdiv(total, ROWS)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    candidate = (tl.program_id(0) % programs) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    mask = candidate < total
    position = tl.load(chosen_ptr + sample * total + candidate, mask=mask, other=0)
    level, index = _locate(position, sizes)
    place = candidate
    if not BY_INDEX:
        keys_ptr = chosen_keys_ptr + sample * total
        key = tl.load(keys_ptr + candidate, mask=mask, other=0)
        first = tl.zeros((ROWS,), tl.int32)  # [first, last) is the candidate's segment
        last = first + budgets[0]
        for s in tl.static_range(1, len(budgets)):
            end = last
            first = tl.where(candidate >= end, end, first)
            last = tl.where(candidate >= end, end + budgets[s], last)
        place = first
        for start in range(tl.min(first), tl.max(tl.where(mask, last, 0)), RANK_BLOCK):
            other = start + tl.arange(0, RANK_BLOCK)[None, :]
            other_key = tl.load(keys_ptr + other, mask=other < total, other=0)
            ahead = (other_key > key[:, None]) | ((other_key == key[:, None]) & (other < candidate[:, None]))
            ahead = ahead & (other >= first[:, None]) & (other < last[:, None])
            place += tl.sum(ahead.to(tl.int32), axis=1)
    row = sample * total + place
    tl.store(indices_ptr + 2 * row, level.to(tl.int64), mask=mask)
    tl.store(indices_ptr + 2 * row + 1, index.to(tl.int64), mask=mask)
    _copy_rows(
        tokens_ptr, level_ptrs, strides_b, strides_n, sizes, sample, level, index, row, mask, width,
        ROWS, BLOCK, VECTOR,
    )  # fmt: skip


@triton.jit
def _gather_levels_kernel(
    out_ptr, indices_ptr, level_ptrs, strides_b, strides_n, sizes, total, width,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    programs = tl.cdiv(total, ROWS)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    place = (tl.program_id(0) % programs) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    mask = place < total
    row = sample * total + place
    level = tl.load(indices_ptr + 2 * row, mask=mask, other=-1)
    index = tl.load(indices_ptr + 2 * row + 1, mask=mask, other=-1)
    _copy_rows(
        out_ptr, level_ptrs, strides_b, strides_n, sizes, sample, level, index, row, mask, width,
        ROWS, BLOCK, VECTOR,
    )  # fmt: skip


def select_config(size: int) -> dict:
    """Keys to a tile: sizes at which the histogram's code spills under no Triton from 3.6 to 3.9."""
    block = 256 if size <= 256 else 512 if size <= 512 else 2048
    return {"BLOCK": block, "num_warps": 8 if block == 256 else 16}


def gather_config(levels: Sequence[Tensor]) -> dict:
    """One row to a program, 16 bytes to a thread where the strides allow."""
    vector = 16 // levels[0].element_size()
    for x in levels:
        vector = math.gcd(vector, x.stride(0), x.stride(1), x.data_ptr() // x.element_size())
    block = min(128 * vector, max(32 * vector, triton.next_power_of_2(levels[0].shape[2])))
    return {"ROWS": 1, "BLOCK": block, "VECTOR": vector, "num_warps": max(1, block // (32 * vector))}


def select_topk_levels(
    levels: Sequence[Tensor], scores: Sequence[Tensor], saliency: str, budgets: Sequence[int], by_index: bool
) -> tuple[Tensor, Tensor]:
    batch, _, width = levels[0].shape
    device = levels[0].device
    sizes = tuple(level.shape[1] for level in levels)
    total = sum(budgets)
    tokens = torch.empty(batch, total, width, dtype=levels[0].dtype, device=device)
    indices = torch.empty(batch, total, 2, dtype=torch.int64, device=device)
    if not batch * total:
        return tokens, indices
    keys = torch.empty(batch, sum(sizes), dtype=torch.int32, device=device)
    chosen, chosen_keys = torch.empty(2, batch, total, dtype=torch.int32, device=device)
    score_levels(scores or levels, saliency, 1, keys)
    segments = sizes if len(budgets) == len(sizes) else (sum(sizes),)
    _select_kernel[(batch * len(segments),)](
        keys, chosen, chosen_keys, segments, tuple(budgets), sum(sizes), total, **select_config(max(segments)), **LAUNCH
    )
    config = gather_config(levels)
    rank_block = min(1024, max(32, triton.next_power_of_2(max(budgets))))
    _gather_selected_kernel[(batch * triton.cdiv(total, config["ROWS"]),)](
        chosen, chosen_keys, tokens, indices, tuple(levels), tuple(x.stride(0) for x in levels),
        tuple(x.stride(1) for x in levels), sizes, tuple(budgets), total, width,
        BY_INDEX=by_index, RANK_BLOCK=rank_block, **config, **LAUNCH,
    )  # fmt: skip
    return tokens, indices


def gather_levels(levels: Sequence[Tensor], indices: Tensor) -> Tensor:
    batch, total = indices.shape[:2]
    width = levels[0].shape[2]
    out = torch.empty(batch, total, width, dtype=levels[0].dtype, device=indices.device)
    if not out.numel():
        return out
    indices = indices.contiguous()
    config = gather_config(levels)
    _gather_levels_kernel[(batch * triton.cdiv(total, config["ROWS"]),)](
        out, indices, tuple(levels), tuple(x.stride(0) if x.shape[0] > 1 else 0 for x in levels),
        tuple(x.stride(1) for x in levels), tuple(x.shape[1] for x in levels), total, width, **config, **LAUNCH,
    )  # fmt: skip
    return out
