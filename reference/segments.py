"""Segments of packed rows."""

import torch
from torch import Tensor

from .groups import Segments


def segments(cu_seqlens: Tensor, size: int, max_seqlen: int) -> tuple[Tensor, Tensor]:
    """(starts, lengths) int64 `[S]` of segments inside `[0, size]`, none negative or longer than `max_seqlen`."""
    bounds = cu_seqlens.to(torch.int64).clamp(0, size)
    return bounds[:-1], (bounds[1:] - bounds[:-1]).clamp(0, max_seqlen)


def segment_slices(
    batch: int,
    queries: int,
    keys: int,
    of: Segments,
) -> list[tuple[int, slice, slice]]:
    """(sample, its queries, its keys) of every sample, or of every segment of the one packed sample."""
    if of.cu_seqlens_q is None or of.cu_seqlens_k is None:
        return [(b, slice(0, queries), slice(0, keys)) for b in range(batch)]
    bounds = (segments(of.cu_seqlens_q, queries, of.max_seqlen_q), segments(of.cu_seqlens_k, keys, of.max_seqlen_k))
    slices = [map(slice, starts.tolist(), (starts + lengths).tolist()) for starts, lengths in bounds]
    return [(0, q, k) for q, k in zip(*slices, strict=True)]


def segment_of(cu_seqlens: Tensor, size: int) -> Tensor:
    """The segment that holds each of `size` tokens, `[size]`; the number of segments where there is none."""
    segments, device = len(cu_seqlens) - 1, cu_seqlens.device
    bounds = cu_seqlens.clamp(0, size)
    ends = torch.cat((bounds, torch.full((1,), size, device=device)))
    lengths = ends - torch.cat((bounds.new_zeros(1), bounds))
    if bool((lengths >= 0).all()):
        # The tokens before the first segment, those of each, and those past the last.
        number = torch.arange(-1, segments + 1, device=device)
        return torch.where(number < 0, segments, number).repeat_interleave(lengths)
    # Offsets that descend: a search for the last offset that is not above the token, bit by bit.
    token = torch.arange(size, device=device)
    found = torch.full((size,), -1, dtype=torch.int64, device=device)
    for bit in range((segments + 1).bit_length() - 1, -1, -1):
        candidate = found + (1 << bit)
        inside = candidate <= segments
        found = torch.where(inside & (cu_seqlens[torch.where(inside, candidate, 0)] <= token), candidate, found)
    return torch.where(found < 0, segments, found)
