"""Means, sums and maxima of groups of tokens."""

from typing import Optional

import torch
from torch import Tensor

from .arguments import Groups
from .arithmetic import narrow, ordered_key, widen
from .blocks import CACHE_ELEMENTS
from .segments import segments

# Members of a group that one partial sum holds.
CHUNK = 32


def fold_groups(x: Tensor, weights: Optional[Tensor], groups: Groups, mode: str) -> tuple[Tensor, Tensor]:
    """(`[B, M, D]` in the dtype of `x`, total weight float32 `[B, M]`) of M groups of rows of `x` `[B, N, D]`.

    Sums start at +0: members are added in order in chunks of 32, then the first row and the chunk sums in order. A
    group of one row only is that row; an empty group, and a mean of weight 0, is 0. "amax" is the greatest in the order
    of keys, the earliest of equals.
    """
    count = x.shape[1]
    first, members, offsets = groups
    first, members = (torch.where((index >= 0) & (index < count), index, -1) for index in (first, members))
    totals = torch.zeros(first.shape, dtype=torch.float32, device=x.device)
    if not count:
        return x.new_zeros(*first.shape, x.shape[2]), totals
    out = x.new_empty(*first.shape, x.shape[2])
    for b in range(x.shape[0]):
        weight = None if weights is None else weights[b]
        begin, sizes = segments(offsets[b], members.shape[1], members.shape[1])
        totals[b] = _total_weights(weight, first[b], members[b], begin, sizes, count)
        has_first = first[b] >= 0
        folded, empty = has_first | (sizes > 0), ~has_first & (sizes == 0)
        if mode == "mean":
            lone = sizes + has_first == 1
            some_row = members[b, begin.clamp(max=members.shape[1] - 1)] if members.shape[1] else first[b]
            some_row = torch.where(has_first, first[b], some_row).clamp(min=0)
            torch.index_select(x[b], 0, some_row, out=out[b])
            empty = totals[b] == 0
            folded = ~lone & ~empty
        out[b, empty.nonzero()[:, 0]] = 0
        some = folded.nonzero()[:, 0]
        fold = _Fold(first[b, some], members[b], begin[some], sizes[some])
        step = max(64, CACHE_ELEMENTS // (2 * max(1, len(some))))
        for column in range(0, x.shape[2] if len(some) else 0, step):
            columns = slice(column, column + step)
            result = fold.of(x[b, :, columns], None if mode == "amax" else weight, "amax" if mode == "amax" else "sum")
            if mode == "mean":
                result /= totals[b, some, None]
            out[b, :, columns].index_copy_(0, some, narrow(result, x.dtype))
    return out, totals


def _total_weights(
    weights: Optional[Tensor], first: Tensor, members: Tensor, begin: Tensor, sizes: Tensor, count: int
) -> Tensor:
    if weights is not None or len(members) >= 1 << 24:
        ones = torch.ones(count, 1, dtype=torch.float32, device=first.device)
        fold = _Fold(first, members, begin, sizes)
        return fold.of(ones if weights is None else weights[:, None], None, "sum")[:, 0]
    # Sums of ones that float32 holds exactly.
    before = torch.zeros(len(members) + 1, dtype=torch.int64, device=first.device)
    before[1:] = (members >= 0).cumsum(0)
    return (before[begin + sizes] - before[begin] + (first >= 0)).to(torch.float32)


class _Fold:
    """Groups of one sample, and the order in which their rows are folded; a negative row is none."""

    def __init__(self, first: Tensor, members: Tensor, begin: Tensor, sizes: Tensor):
        self.has_first, self.first = first >= 0, first.clamp(min=0)
        self.inside, self.members = members >= 0, members.clamp(min=0)
        # One entry for each chunk, longest chunks first; groups with most chunks first.
        self.chunks = (sizes + (CHUNK - 1)) // CHUNK
        group = torch.arange(len(first), device=first.device).repeat_interleave(self.chunks)
        ordinal = torch.arange(len(group), device=first.device) - (self.chunks.cumsum(0) - self.chunks)[group]
        begin = begin[group] + CHUNK * ordinal
        length = (sizes[group] - CHUNK * ordinal).clamp(max=CHUNK)
        self.order = length.argsort(descending=True, stable=True)
        self.begin = begin[self.order]
        # How many chunks have a member 0, 1, ….
        self.many = (len(length) - length.bincount().cumsum(0))[:-1].tolist()

    def of(self, values: Tensor, weights: Optional[Tensor], mode: str) -> Tensor:
        """`[M, D]` float32: rows of `values` `[N, D]`, weighted, added up or compared in the written order."""
        start = 0.0 if mode == "sum" else -torch.inf

        def term(token: Tensor, inside: Tensor) -> Tensor:
            rows = widen(values.index_select(0, token))
            rows = rows if weights is None else rows * weights[token, None]
            return rows if bool(inside.all()) else torch.where(inside[:, None], rows, start)

        shape = (len(self.begin), values.shape[1])
        sums = torch.full(shape, start, dtype=torch.float32, device=values.device)
        for i, many in enumerate(self.many):
            at = self.begin[:many] + i
            _combine(sums[:many], term(self.members[at], self.inside[at]), mode)
        result = term(self.first, self.has_first)
        if mode == "sum":
            result += 0.0
        in_order = torch.empty_like(self.order)
        in_order[self.order] = torch.arange(len(self.order), device=values.device)
        next_chunk = self.chunks.cumsum(0) - self.chunks
        groups = (self.chunks > 0).nonzero()[:, 0]
        ordinal = 0
        while len(groups):
            chunk = in_order[next_chunk[groups] + ordinal]
            result[groups] = _combine(result[groups], sums[chunk], mode)
            ordinal += 1
            groups = groups[self.chunks[groups] > ordinal]
        return result


def _combine(a: Tensor, b: Tensor, mode: str) -> Tensor:
    """`a` becomes their sum, or the greater of them."""
    return a.add_(b) if mode == "sum" else a.copy_(torch.where(ordered_key(b) > ordered_key(a), b, a))
