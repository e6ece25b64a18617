"""Which queries count and how much: what attention makes of its caller's choice."""

from typing import Optional

import torch
from torch import Tensor

from .arguments import Chosen, Queries, Segments
from .segments import segment_rows, segments

# The last key that a query sees where attention is not causal.
ALL = (1 << 31) - 1
INFINITY = 0x7F800000  # as bits
# Weights from here on, negative ones and NaN make scores NaN.
MAX_WEIGHT = 2.0**126


def chosen_queries(
    query: Tensor, keys: int, chosen: Chosen, queries: Queries, of: Segments, causal: bool
) -> tuple[Tensor, Queries, Segments, Optional[Tensor]]:
    """(rows of `query` `[B, H, Nq, D]`, what is known of them, their segments, what scores are scaled back by `[S]`).

    There are so many `keys`.
    """
    batch, count, unscale = query.shape[0], query.shape[2], None
    starts, counts = _extents(of.cu_seqlens_q, batch, count, of.max_seqlen_q, query.device)
    key_counts = _extents(of.cu_seqlens_k, batch, keys, of.max_seqlen_k, query.device)[1]
    if chosen.indices is not None:
        place, last = chosen_places(chosen, counts, key_counts, causal)
        parts, longest = place.shape
        of = of._replace(max_seqlen_q=longest)
        if of.cu_seqlens_q is not None:
            place, last = (starts[:, None] + place).view(1, -1), last.view(1, -1)
            of = of._replace(cu_seqlens_q=torch.arange(parts + 1, device=query.device) * longest)
        place = torch.where(last < 0, 0, place)
        query = torch.stack([x[:, rows] for x, rows in zip(query, place, strict=True)])
        queries = queries._replace(positions=last)
        if queries.log_sum_exp is not None:
            rows = [x[:, rows] for x, rows in zip(queries.log_sum_exp, place, strict=True)]
            queries = queries._replace(log_sum_exp=torch.stack(rows))
    if chosen.mask is not None:
        last = torch.arange(keys - count, keys, device=query.device)
        queries = queries._replace(positions=torch.where(chosen.mask, last if causal else ALL, -1))
    if chosen.weights is not None:
        weights, unscale = scaled_weights(chosen.weights, starts, counts)
        queries = queries._replace(weights=weights)
    return query, queries, of, unscale


def _extents(
    cu_seqlens: Optional[Tensor], batch: int, size: int, longest: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(start, count) of each segment, or of each sample if they are laid one after another, int64 `[S]`."""
    if cu_seqlens is not None:
        return segments(cu_seqlens, size, longest)
    start = torch.arange(batch, device=device) * size
    return start, torch.full_like(start, size)


def chosen_places(chosen: Chosen, counts: Tensor, key_counts: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """(place of each chosen query in its segment, the last key that it sees: negative for an unused slot), `[S, M]`."""
    index = chosen.indices.to(torch.int64)  # type: ignore[union-attr]
    if chosen.from_end:
        index = torch.where(index < 0, index + counts[:, None], index)
    used = (index >= 0) & (index < counts[:, None])
    last = index + (key_counts - counts)[:, None] if causal else torch.full_like(index, ALL)
    return torch.where(used, index, 0), torch.where(used, last, -1)


def scaled_weights(weights: Tensor, starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """(weights below 1 by a power of two of each segment, its inverse `[S]`: NaN where there is what is no weight)."""
    segment, row = segment_rows(starts, counts)
    given = weights.flatten()[row]
    valid = (given >= 0) & (given < MAX_WEIGHT)
    given = torch.where(valid, given.abs(), 0.0)
    bits = torch.where(valid, given, torch.inf).view(torch.int32)
    top = torch.zeros(len(starts), dtype=torch.int32, device=weights.device)
    top.scatter_reduce_(0, segment, bits, "amax")
    exponent = (top >> 23).clamp(max=252)
    unscale = torch.where(top < INFINITY, ((exponent + 1) << 23).view(torch.float32), torch.nan)
    scaled = torch.zeros(weights.numel(), dtype=torch.float32, device=weights.device)
    scaled[row] = given * ((253 - exponent) << 23).view(torch.float32)[segment]
    return scaled.view(weights.shape), unscale


def seen_counts(
    position: Tensor, first: Optional[Tensor], last: Optional[Tensor], weights: Optional[Tensor], keys: int
) -> Tensor:
    """How many queries see each of the keys, or the sum of their weights in units of 2⁻³⁰: int64 `[keys]`."""
    amount = torch.ones_like(position) if weights is None else (weights * 2.0**30 + 0.5).to(torch.int64)
    amount = torch.where(position >= 0, amount.to(torch.int64), 0)
    begin = torch.zeros_like(position) if first is None else first
    end = torch.full_like(position, keys) if last is None else (last + 1).clamp(0, keys)
    change = torch.zeros(2, keys + 1, dtype=torch.int64, device=position.device)
    for row, at in zip(change, (begin, end), strict=True):
        row.scatter_reduce_(0, at.to(torch.int64), amount, "sum")
    return (change[0] - change[1]).cumsum(0)[:keys]
