"""Rows of many tensors moved by one index set: one launch to locate the rows, one for each tensor."""

import math
from collections.abc import Sequence
from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .numerics import bounds, cdiv, launch, next_power_of_2
from .selection import copy_rows, packed_row, packed_start


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
    first, length = bounds(cu_ptr, segment, size)
    index = tl.load(indices_ptr + segment.to(tl.int64) * capacity + slot, mask=slot < used, other=-1)
    inside = (index >= 0) & (index < length)
    row = packed_row(slot, slot, used, start, total, segment, capacity)
    tl.store(source_ptr + row, tl.where(inside, first + index, -1).to(tl.int32), mask=slot < capacity)
    tl.store(positions_ptr + row, tl.where(slot < used, slot, 0).to(tl.int64), mask=slot < capacity)


@triton.jit(do_not_specialize=["rows", "size"])
def _move_rows_kernel(
    x_ptr, out_ptr, source_ptr, stride_o, stride_n, rows, size, width,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """out[outer, row] = x[outer, source[row]]; zeros where the source is −1."""
    programs = tl.cdiv(rows, ROWS)
    outer = (tl.program_id(0) // programs).to(tl.int64)
    row = (tl.program_id(0) % programs) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    mask = row < rows
    source = tl.load(source_ptr + row, mask=mask, other=-1)
    copy_rows(
        out_ptr, (x_ptr,), (stride_o,), (stride_n,), (size,), outer, tl.zeros_like(source), source,
        outer * rows + row, mask, width, ROWS, BLOCK, VECTOR,
    )  # fmt: skip


def move_config(x: Tensor) -> dict:
    """16 bytes to a thread where the strides allow; many rows to a program where they are short."""
    vector = 16 // x.element_size()
    vector = math.gcd(vector, x.stride(0), x.stride(1), x.shape[2], x.data_ptr() // x.element_size())
    block = min(128 * vector, next_power_of_2(x.shape[2]))
    rows = max(1, 128 * vector // block)
    return {"ROWS": rows, "BLOCK": block, "VECTOR": vector, "num_warps": 4}


def compact(
    tensors: Sequence[Tensor], indices: Tensor, counts: Optional[Tensor], cu_seqlens: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    segments, capacity = indices.shape
    device, size, rows = indices.device, tensors[0].shape[1], segments * capacity
    packed = [torch.empty(x.shape[0], rows, x.shape[2], dtype=x.dtype, device=device) for x in tensors]
    positions = torch.empty(rows, dtype=torch.int64, device=device)
    offsets = torch.zeros(segments + 1, dtype=torch.int32, device=device)
    if not rows:
        return packed, offsets, positions
    source = torch.empty(rows, dtype=torch.int32, device=device)
    block = min(1024, max(32, next_power_of_2(capacity)))
    launch(
        _locate_rows_kernel, segments * cdiv(capacity, block),
        indices, counts, cu_seqlens, source, positions, offsets, segments, capacity, size,
        BLOCK=block, num_warps=4,
    )  # fmt: skip
    for x, out in zip(tensors, packed, strict=True):
        if out.numel():
            config = move_config(x)
            launch(
                _move_rows_kernel, x.shape[0] * cdiv(rows, config["ROWS"]),
                x, out, source, x.stride(0), x.stride(1), rows, size, x.shape[2], **config,
            )  # fmt: skip
    return packed, offsets, positions
