"""Rows moved by indices: of levels, and of many tensors by one index set."""

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from .segments import segments


def gather_levels(levels: Sequence[Tensor], indices: Tensor) -> Tensor:
    """Rows `levels[l][b, n]` for each (l, n) of `indices` `[B, K, 2]`; zeros where the pair is out of range."""
    batch, count = indices.shape[:2]
    out = levels[0].new_empty(batch, count, *levels[0].shape[2:])
    number, row = indices.flatten(0, 1).unbind(1)
    sample = torch.arange(batch * count, device=indices.device) // max(1, count)
    empty = torch.ones_like(number, dtype=torch.bool)
    for k, level in enumerate(levels):
        size = level.shape[1]
        here = (number == k) & (row >= 0) & (row < size)
        empty &= ~here
        slots = here.nonzero()[:, 0]
        b, n = sample[slots] if level.shape[0] > 1 else torch.zeros_like(slots), row[slots]
        rows = level.flatten(0, 1).index_select(0, b * size + n) if level.is_contiguous() else level[b, n]
        out.flatten(0, 1).index_copy_(0, slots, rows)
    out.flatten(0, 1)[empty.nonzero()[:, 0]] = 0
    return out


def compact(
    tensors: Sequence[Tensor], indices: Tensor, counts: Optional[Tensor], cu_seqlens: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """(tensors `[outer, S · capacity, inner]`, cu_seqlens `[S + 1]`, positions `[S · capacity]`).

    The first `counts` of the indices `[S, capacity]` of each segment name rows of the segment in `tensors`
    `[outer, T, inner]`. Segments follow each other without gaps; zeros past the last, and for an index outside its
    segment.
    """
    size = tensors[0].shape[1]
    slots, capacity = indices.shape
    starts, lengths = segments(cu_seqlens, size, size)
    used = torch.full((slots,), capacity, dtype=torch.int64, device=indices.device)
    if counts is not None:
        used = counts.to(torch.int64).clamp(0, capacity)
    offsets = torch.cat((used.new_zeros(1), used.cumsum(0))).to(torch.int32)
    # In the order of segments, then slots: the order of the packed rows.
    segment, slot = (torch.arange(capacity, device=indices.device) < used[:, None]).nonzero().unbind(1)
    positions = used.new_zeros(slots * capacity)
    positions[: len(slot)] = slot
    index = indices[segment, slot]
    inside = (index >= 0) & (index < lengths[segment])
    source = torch.full((slots * capacity,), -1, dtype=torch.int64, device=indices.device)
    source[: len(slot)] = torch.where(inside, starts[segment] + index, -1)
    nothing = (source < 0).nonzero()[:, 0]
    source[nothing] = 0
    packed = []
    for x in tensors:
        if size:
            out = x.index_select(1, source)
            out[:, nothing] = 0
        else:
            out = x.new_zeros(x.shape[0], slots * capacity, x.shape[2])
        packed.append(out)
    return packed, offsets, positions
