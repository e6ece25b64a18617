"""Segments of packed rows."""

from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import Segments
from .blocks import TOGETHER


def segments(cu_seqlens: Tensor, size: int, max_seqlen: int) -> tuple[Tensor, Tensor]:
    """(starts, lengths) int64 `[S]` of segments inside `[0, size]`, none negative or longer than `max_seqlen`."""
    bounds = cu_seqlens.to(torch.int64).clamp(0, size)
    return bounds[:-1], (bounds[1:] - bounds[:-1]).clamp(0, max_seqlen)


def segment_rows(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(segment, row) of each row that segments hold, one segment after another."""
    segment = torch.arange(len(starts), device=starts.device).repeat_interleave(lengths)
    shift = starts - lengths.cumsum(0) + lengths
    return segment, torch.arange(len(segment), device=starts.device) + shift[segment]


def packed_grids(cu_seqlens: Tensor, grids: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """(starts, heights, widths) int64 `[S]`: of a grid that is too large for its segment, the rows that there are."""
    starts, lengths = segments(cu_seqlens, size, size)
    heights, widths = grids.to(torch.int64).unbind(1)
    widths = torch.where(widths < lengths, widths, lengths).clamp(min=0)
    most = lengths // widths.clamp(min=1)
    return starts, torch.where(heights < most, heights, most).clamp(min=0), widths


class Run(NamedTuple):
    """A sample, or packed segments from `first` on: the queries, the keys, and how many of them each segment has."""

    sample: int
    queries: slice
    keys: slice
    query_counts: list[int]
    key_counts: list[int]
    first: int


class Home(NamedTuple):
    """The segment of each row of a run: how many queries it has and where they end, where its keys begin and end.

    And its number.
    """

    queries: Tensor
    query_stop: Tensor
    key_start: Tensor
    key_stop: Tensor
    number: Tensor


def homes(run: Run, device: torch.device) -> tuple[Home, Home]:
    """Those of the queries and of the keys, int64."""
    queries = torch.tensor(run.query_counts, device=device)
    keys = torch.tensor(run.key_counts, device=device)
    key_stops = keys.cumsum(0)
    number = torch.arange(run.first, run.first + len(keys), device=device)
    table = queries, queries.cumsum(0), key_stops - keys, key_stops, number
    of_queries, of_keys = ([x.repeat_interleave(rows) for x in table] for rows in (queries, keys))
    return Home(*of_queries), Home(*of_keys)


def segment_runs(batch: int, queries: int, keys: int, of: Segments) -> list[Run]:
    """Every sample, or the segments of the one packed sample, short neighbours together."""
    if of.cu_seqlens_q is None or of.cu_seqlens_k is None:
        return [Run(b, slice(0, queries), slice(0, keys), [queries], [keys], b) for b in range(batch)]
    bounds = (segments(of.cu_seqlens_q, queries, of.max_seqlen_q), segments(of.cu_seqlens_k, keys, of.max_seqlen_k))
    slices = [map(slice, starts.tolist(), (starts + lengths).tolist()) for starts, lengths in bounds]
    runs: list[Run] = []
    for number, (q, k) in enumerate(zip(*slices, strict=True)):
        counts = [q.stop - q.start], [k.stop - k.start]
        if runs and runs[-1].queries.stop == q.start and runs[-1].keys.stop == k.start:
            before = runs[-1]
            joined = slice(before.queries.start, q.stop), slice(before.keys.start, k.stop)
            if (joined[0].stop - joined[0].start) * (joined[1].stop - joined[1].start) <= TOGETHER:
                before.query_counts.extend(counts[0])
                before.key_counts.extend(counts[1])
                runs[-1] = Run(0, *joined, before.query_counts, before.key_counts, before.first)
                continue
        runs.append(Run(0, q, k, *counts, number))
    return runs


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
