"""Rows of many tensors moved by one index set."""

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from .numerics import segments


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
