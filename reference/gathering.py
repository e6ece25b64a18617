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
    tensors: Sequence[Tensor], indices: Tensor, counts: Optional[Tensor], cu_seqlens: Optional[Tensor]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """(tensors `[outer, S · capacity, inner]`, cu_seqlens `[S + 1]`, positions `[S · capacity]`).

    The first `counts` of the indices `[S, capacity]` of each segment name rows of the segment in `tensors`
    `[outer, T, inner]`. Segments follow each other without gaps; zeros past the last, and for an index outside its
    segment.

    Without `cu_seqlens` each sample of dense `tensors` `[S, outer, N, inner]` is a segment, and its rows stay at their
    slots: `[S, outer, capacity, inner]`, zeros in the others.
    """
    size = tensors[0].shape[-2]
    slots, capacity = indices.shape
    used = torch.full((slots,), capacity, dtype=torch.int64, device=indices.device)
    if counts is not None:
        used = counts.to(torch.int64).clamp(0, capacity)
    offsets = torch.cat((used.new_zeros(1), used.cumsum(0))).to(torch.int32)
    place = torch.arange(capacity, device=indices.device)
    live = place < used[:, None]
    if cu_seqlens is None:
        sources = torch.where(live & (indices >= 0) & (indices < size), indices, -1)
        moved = []
        for x in tensors:
            out = x.new_empty(slots, x.shape[1], capacity, x.shape[3])
            for b in range(slots):
                pick(x[b], 1, sources[b], 0, out[b])
            moved.append(out)
        return moved, offsets, torch.where(live, place, 0).flatten()
    starts, lengths = segments(cu_seqlens, size, size)
    # In the order of segments, then slots: the order of the packed rows.
    segment, slot = live.nonzero().unbind(1)
    positions = used.new_zeros(slots * capacity)
    positions[: len(slot)] = slot
    index = indices[segment, slot]
    inside = (index >= 0) & (index < lengths[segment])
    source = torch.full((slots * capacity,), -1, dtype=torch.int64, device=indices.device)
    source[: len(slot)] = torch.where(inside, starts[segment] + index, -1)
    moved = [pick(x, 1, source, 0, x.new_empty(x.shape[0], len(source), x.shape[2])) for x in tensors]
    return moved, offsets, positions


def pick(x: Tensor, dim: int, source: Tensor, fill: float, out: Tensor) -> Tensor:
    """`out` becomes slices `source` of `x` `[outer, N, inner]` in a dimension, filled where there is none."""
    if not x.shape[dim]:
        return out.fill_(fill)
    inside = (source >= 0) & (source < x.shape[dim])
    torch.index_select(x, dim, torch.where(inside, source, 0), out=out)
    missing = (~inside).nonzero()[:, 0]
    if len(missing):
        (out if dim == 1 else out.mT)[:, missing] = fill
    return out
