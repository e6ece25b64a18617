"""Rows moved by indices: of levels, and of many tensors by one index set."""

from collections.abc import Sequence
from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import bounds, cdiv
from .launch import launch
from .tiles import gather_tiles, locate_tiles, token_tiles


@triton.jit
def copy_rows(
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
    copy_rows(
        out_ptr, level_ptrs, strides_b, strides_n, sizes, sample, level, index, row, mask, width,
        ROWS, BLOCK, VECTOR,
    )  # fmt: skip


def gather_levels(levels: Sequence[Tensor], indices: Tensor) -> Tensor:
    batch, total = indices.shape[:2]
    width = levels[0].shape[2]
    out = torch.empty(batch, total, width, dtype=levels[0].dtype, device=indices.device)
    if not out.numel():
        return out
    indices = indices.contiguous()
    tiles = gather_tiles(levels)
    launch(
        _gather_levels_kernel, batch * cdiv(total, tiles["ROWS"]),
        out, indices, tuple(levels), tuple(x.stride(0) if x.shape[0] > 1 else 0 for x in levels),
        tuple(x.stride(1) for x in levels), tuple(x.shape[1] for x in levels), total, width, **tiles,
    )  # fmt: skip
    return out


@triton.jit
def packed_start(counts_ptr, first, size, capacity):
    """(sum of the first counts, sum of all), each count clamped to [0, capacity]."""
    start = tl.zeros((), tl.int32)
    total = tl.zeros((), tl.int32)
    for i in range(0, size, 256):
        index = i + tl.arange(0, 256)
        count = tl.load(counts_ptr + index, mask=index < size, other=0)
        count = tl.minimum(tl.maximum(count, 0), capacity)
        start += tl.sum(tl.where(index < first, count, 0))
        total += tl.sum(count)
    return start, total


@triton.jit
def packed_row(place, candidate, used, start, total, segment, capacity):
    """Rows of a segment's slots: the used ones packed at `start`, the others past the `total`, all rows covered."""
    unused = total + (segment * capacity - start) + (candidate - used)
    return tl.where(candidate < used, start + place, unused).to(tl.int64)


@triton.jit(do_not_specialize=["segments", "capacity", "size"])
def _locate_rows_kernel(
    indices_ptr, counts_ptr, cu_ptr, source_ptr, positions_ptr, offsets_ptr, segments, capacity, size,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """source[row] = token of the packed row, −1 where there is none; a slot of a segment goes to one row."""
    programs = tl.cdiv(capacity, BLOCK)
    segment = tl.program_id(0) // programs
    slot = (tl.program_id(0) % programs) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    if counts_ptr is not None:
        start, total = packed_start(counts_ptr, segment, segments, capacity)
        used = tl.minimum(tl.maximum(tl.load(counts_ptr + segment), 0), capacity)
    else:
        start = segment * capacity
        total = segments * capacity
        used = tl.zeros((), tl.int32) + capacity
    if tl.program_id(0) % programs == 0:
        tl.store(offsets_ptr + segment, start)
        tl.store(offsets_ptr + segments, total)
    first = 0
    length = size
    if cu_ptr is not None:
        first, length = bounds(cu_ptr, segment, size)
    index = tl.load(indices_ptr + segment.to(tl.int64) * capacity + slot, mask=slot < used, other=-1)
    inside = (index >= 0) & (index < length)
    row = segment.to(tl.int64) * capacity + slot  # dense samples stay at their slots
    if cu_ptr is not None:
        row = packed_row(slot, slot, used, start, total, segment, capacity)
    tl.store(source_ptr + row, tl.where(inside, first + index, -1).to(tl.int32), mask=slot < capacity)
    tl.store(positions_ptr + row, tl.where(slot < used, slot, 0).to(tl.int64), mask=slot < capacity)


@triton.jit(do_not_specialize=["outers", "rows", "size"])
def _move_rows_kernel(
    x_ptr, out_ptr, source_ptr, stride_b, stride_o, stride_n, outers, rows, size, width,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """out[outer, row] = x[outer, source[row]], of each sample of dense ones; zeros where the source is −1."""
    programs = tl.cdiv(rows, ROWS)
    plane = (tl.program_id(0) // programs).to(tl.int64)
    outer = plane
    if stride_b is not None:
        sample = plane // outers
        outer = plane % outers
        x_ptr += tl.multiple_of(sample * stride_b, VECTOR)
        source_ptr += sample * rows
    row = (tl.program_id(0) % programs) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    mask = row < rows
    source = tl.load(source_ptr + row, mask=mask, other=-1)
    copy_rows(
        out_ptr, (x_ptr,), (stride_o,), (stride_n,), (size,), outer, tl.zeros_like(source), source,
        plane * rows + row, mask, width, ROWS, BLOCK, VECTOR,
    )  # fmt: skip


def compact(
    tensors: Sequence[Tensor], indices: Tensor, counts: Optional[Tensor], cu_seqlens: Optional[Tensor]
) -> tuple[list[Tensor], Tensor, Tensor]:
    segments, capacity = indices.shape
    device, size, total = indices.device, tensors[0].shape[-2], segments * capacity
    dense = cu_seqlens is None
    rows = capacity if dense else total
    moved = [torch.empty(*x.shape[:-2], rows, x.shape[-1], dtype=x.dtype, device=device) for x in tensors]
    positions = torch.empty(total, dtype=torch.int64, device=device)
    offsets = torch.zeros(segments + 1, dtype=torch.int32, device=device)
    if not total:
        return moved, offsets, positions
    source = torch.empty(total, dtype=torch.int32, device=device)
    tiles = locate_tiles(capacity)
    launch(
        _locate_rows_kernel, segments * cdiv(capacity, tiles["BLOCK"]),
        indices, counts, cu_seqlens, source, positions, offsets, segments, capacity, size,
        **tiles,
    )  # fmt: skip
    for x, out in zip(tensors, moved, strict=True):
        if out.numel():
            tiles = token_tiles([x], x.shape[-1])
            launch(
                _move_rows_kernel, out.numel() // (rows * x.shape[-1]) * cdiv(rows, tiles["ROWS"]),
                x, out, source, x.stride(0) if dense else None, x.stride(-3), x.stride(-2), x.shape[-3], rows, size,
                x.shape[-1], **tiles,
            )  # fmt: skip
    return moved, offsets, positions
