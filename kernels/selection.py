"""Top-k over the levels of a pyramid in two or three launches: score, then rank and move, or select, then move.

Levels are never concatenated.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import cdiv
from .gathering import copy_rows
from .launch import launch
from .radix import ranks, ranks_of_all, select_threshold, take_best
from .scoring import score_levels
from .tiles import gather_tiles, rank_all_tiles, rank_tiles, rank_work, select_tiles


@triton.jit
def _select_kernel(
    keys_ptr, chosen_ptr, chosen_keys_ptr, sizes, budgets, total_size, total_budget, BLOCK: tl.constexpr
):  # fmt: skip
    """One program selects the budget of one segment.

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

    threshold, wanted = select_threshold(keys_ptr, size, budget, BLOCK)
    zero = tl.zeros((), tl.int32)
    take_best(keys_ptr, chosen_ptr, chosen_keys_ptr, 0, size, start, threshold, wanted, zero, zero, BLOCK)


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
def _move_selected(
    tokens_ptr, indices_ptr, level_ptrs, strides_b, strides_n, sizes, sample, position, row, mask, width,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Tokens at positions [ROWS] of the concatenation of levels, and where they are, to their rows."""
    level, index = _locate(position, sizes)
    tl.store(indices_ptr + 2 * row, level.to(tl.int64), mask=mask)
    tl.store(indices_ptr + 2 * row + 1, index.to(tl.int64), mask=mask)
    copy_rows(
        tokens_ptr, level_ptrs, strides_b, strides_n, sizes, sample, level, index, row, mask, width,
        ROWS, BLOCK, VECTOR,
    )  # fmt: skip


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
        end = tl.max(tl.where(mask, last, 0))
        place = first + ranks(keys_ptr, key, candidate, first, last, tl.min(first), end, RANK_BLOCK)
    _move_selected(
        tokens_ptr, indices_ptr, level_ptrs, strides_b, strides_n, sizes, sample, position, sample * total + place,
        mask, width, ROWS, BLOCK, VECTOR,
    )  # fmt: skip


@triton.jit
def _gather_best_kernel(
    keys_ptr, tokens_ptr, indices_ptr, level_ptrs, strides_b, strides_n, sizes, segments, budgets, total_size, total,
    width, ROWS: tl.constexpr, RANK_BLOCK: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Of ROWS tokens of a segment those among its best move to the place that their rank gives."""
    programs = tl.cdiv(segments[0], ROWS)
    for s in tl.static_range(1, len(segments)):
        programs += tl.cdiv(segments[s], ROWS)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    program = tl.program_id(0) % programs
    size = segments[0]
    budget = budgets[0]
    first = program - program  # of the segment: its first program, position and row
    start = first
    out_start = first
    begin = tl.cdiv(segments[0], ROWS)
    next_start = segments[0]
    next_out = budgets[0]
    for s in tl.static_range(1, len(segments)):
        if program >= begin:
            size = segments[s]
            budget = budgets[s]
            first = begin
            start = next_start
            out_start = next_out
        begin += tl.cdiv(segments[s], ROWS)
        next_start += segments[s]
        next_out += budgets[s]
    candidate = (program - first) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    rank = ranks_of_all(keys_ptr + sample * total_size + start, candidate, size, ROWS, RANK_BLOCK)
    mask = (candidate < size) & (rank < budget)
    if tl.max(mask.to(tl.int32)) > 0:
        _move_selected(
            tokens_ptr, indices_ptr, level_ptrs, strides_b, strides_n, sizes, sample, start + candidate,
            sample * total + out_start + rank, mask, width, ROWS, BLOCK, VECTOR,
        )  # fmt: skip


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
    score_levels(scores or levels, saliency, 1, keys)
    segments = sizes if len(budgets) == len(sizes) else (sum(sizes),)
    tiles = gather_tiles(levels)
    strides_b, strides_n, _ = zip(*(x.stride() for x in levels), strict=True)
    if not by_index and batch * sum(size * size for size in segments) <= rank_work():
        tiles = {**tiles, **rank_all_tiles(max(segments))}
        launch(
            _gather_best_kernel, batch * sum(cdiv(size, tiles["ROWS"]) for size in segments),
            keys, tokens, indices, tuple(levels), strides_b, strides_n, sizes, segments, tuple(budgets), sum(sizes),
            total, width, **tiles,
        )  # fmt: skip
        return tokens, indices
    chosen = torch.empty(batch, total, dtype=torch.int32, device=device)
    chosen_keys = torch.empty_like(chosen)
    launch(
        _select_kernel, batch * len(segments),
        keys, chosen, chosen_keys, segments, tuple(budgets), sum(sizes), total, **select_tiles(max(segments)),
    )  # fmt: skip
    launch(
        _gather_selected_kernel, batch * cdiv(total, tiles["ROWS"]),
        chosen, chosen_keys, tokens, indices, tuple(levels), strides_b, strides_n, sizes, tuple(budgets), total, width,
        BY_INDEX=by_index, **rank_tiles(max(budgets)), **tiles,
    )  # fmt: skip
    return tokens, indices
