"""Segments of packed rows: where they start, how long they are, which one a row is of."""

from typing import NamedTuple, Optional

import torch
from torch import Tensor


class Extents(NamedTuple):
    """Where the queries and keys of each sample or segment are, if samples are laid one after another: int64 `[S]`."""

    start_q: Tensor
    count_q: Tensor
    start_k: Tensor
    count_k: Tensor

    def of(self, keys: bool, size: int) -> tuple[Tensor, Tensor]:
        """(segment, place in it) of each of `size` rows; a place outside of the segment for a row of none."""
        return places(self.start_k if keys else self.start_q, size)


def places(start: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(segment, place in it) of each of `size` rows; a place outside of the segment for a row of none."""
    row = torch.arange(size, device=start.device)
    segment = (torch.searchsorted(start, row, right=True) - 1).clamp(min=0)
    return segment, row - start[segment]


def ascending(cu_seqlens: Tensor) -> Tensor:
    """Offsets of which one below an earlier one counts as that one: segments that no two share a row."""
    return cu_seqlens.cummax(0).values


def extents(x: Tensor, dim: int, cu_seqlens: Optional[Tensor], longest: int) -> tuple[Tensor, Tensor]:
    """(start, count) of each segment, or of each sample, in the dimension `dim` of `x` `[B, …]`."""
    size = x.shape[dim]
    if cu_seqlens is None:
        start = torch.arange(x.shape[0], device=x.device) * size
        return start, torch.full_like(start, size)
    offsets = cu_seqlens.to(torch.int64).clamp(0, size)
    return offsets[:-1], (offsets[1:] - offsets[:-1]).clamp(0, longest)
