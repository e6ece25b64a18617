"""The most similar token, and means of groups of tokens."""

from typing import Optional

import torch
from torch import Tensor

from .numerics import (
    CACHE_ELEMENTS,
    LOW_BITS,
    grid_products,
    grid_rows,
    narrow,
    ordered_key,
    segment_slices,
    segments,
    widen,
    work_rows,
)

# Members of a group that one partial sum holds.
CHUNK = 32
# Keys that are searched at a time.
PART = 64
# Bytes of products that exist at a time, and at most half as many of query rows.
BUFFER = 1 << 22


def best_match(
    queries: Tensor,
    keys: Tensor,
    key_mask: Optional[Tensor],
    cu_seqlens_q: Optional[Tensor],
    cu_seqlens_k: Optional[Tensor],
    max_seqlen_q: int,
    max_seqlen_k: int,
    limbs: int,
) -> tuple[Tensor, Tensor]:
    """(index of the most similar key `[B, Nq]`, its similarity `[B, Nq]`); (−1, −inf) where no key can be matched.

    The similarity is the dot product of unit rows in multiples of 2⁻³⁰, a tie goes to the lower index. Rows with a
    norm that is not finite match nothing. With `cu_seqlens` one sample holds segments; indices count from the start of
    the segment.
    """
    batch, count = queries.shape[:2]
    indices = torch.full((batch, count), -1, dtype=torch.int64, device=queries.device)
    similarity = torch.full((batch, count), -torch.inf, dtype=torch.float32, device=queries.device)
    lengths = (count, keys.shape[1])
    parts = segment_slices(batch, *lengths, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    for b, q, k in parts:
        if q.start < q.stop and k.start < k.stop:
            mask = None if key_mask is None else key_mask[b, k]
            _search(queries[b, q], keys[b, k], mask, limbs, indices[b, q], similarity[b, q])
    return indices, similarity


def _search(
    queries: Tensor, keys: Tensor, key_mask: Optional[Tensor], limbs: int, indices: Tensor, similarity: Tensor
) -> None:
    longest = keys if len(keys) > len(queries) else queries
    buffers = work_rows(longest, 2, CACHE_ELEMENTS)
    (key_rows,), (norms,) = grid_rows(keys[None], limbs, LOW_BITS, PART, buffers)
    unusable = ~(norms.abs() < torch.inf)
    if key_mask is not None:
        unusable[: len(keys)] |= ~key_mask
    unusable = unusable.nonzero()[:, 0]
    size = key_rows.element_size()
    step = max(1, BUFFER // (size * len(key_rows)))
    buffer = key_rows.new_empty(min(step, len(queries)), len(key_rows))
    block = max(1, BUFFER // (2 * size * keys.shape[1]))
    for first in range(0, len(queries), block):
        (query_rows,), (norms,) = grid_rows(queries[None, first : first + block], limbs, LOW_BITS, 1, buffers)
        for row in range(0, len(query_rows), step):
            part = query_rows[row : row + step]
            products = grid_products(part, key_rows, buffer[: len(part)])
            if len(unusable):
                products[:, unusable] = -(2.0**31)
            best, index = _first_largest(products)
            found = (best > -(2.0**31)) & (norms[row : row + step].abs() < torch.inf)
            rows = slice(first + row, first + row + len(part))
            indices[rows] = torch.where(found, index, -1)
            similarity[rows] = torch.where(found, best.to(torch.float32) * 2.0**-30, -torch.inf)


def _first_largest(products: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row, halves rounded up to an integer, and the first index that rounds to the same."""
    parts = products.unflatten(1, (-1, PART))
    tops = parts.amax(-1)
    best = least = tops.amax(-1) + 0.0  # a zero is +0
    if products.dtype == torch.float64:
        best = (best + 0.5).floor_()
        least = best - 0.5
    part = _first(tops >= least[:, None])
    first = part * PART
    first += _first(parts[torch.arange(len(part), device=part.device), part] >= least[:, None])
    return best, first


def _first(mask: Tensor) -> Tensor:
    return mask.view(torch.uint8).argmax(-1)


def merge_tokens(
    x: Tensor, weights: Optional[Tensor], first: Tensor, members: Tensor, offsets: Tensor, mode: str
) -> tuple[Tensor, Tensor]:
    """(`[B, M, D]` in the dtype of `x`, total weight float32 `[B, M]`) of M groups of rows of `x` `[B, N, D]`.

    Group g is row `first[b, g]` (none where negative), then the rows `members[b, offsets[b, g] : offsets[b, g + 1]]`.
    Sums start at +0: members are added in order in chunks of 32, then the first row and the chunk sums in order. A
    group of one row only is that row; an empty group, and a mean of weight 0, is 0. "amax" is the greatest in the order
    of keys, the earliest of equals.
    """
    count = x.shape[1]
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
        groups = _Groups(first[b, some], members[b], begin[some], sizes[some])
        step = max(64, CACHE_ELEMENTS // (4 * max(1, len(some))))
        for column in range(0, x.shape[2] if len(some) else 0, step):
            columns = slice(column, column + step)
            result = groups.fold(
                x[b, :, columns], None if mode == "amax" else weight, "amax" if mode == "amax" else "sum"
            )
            if mode == "mean":
                result /= totals[b, some, None]
            out[b, :, columns].index_copy_(0, some, narrow(result, x.dtype))
    return out, totals


def _total_weights(
    weights: Optional[Tensor], first: Tensor, members: Tensor, begin: Tensor, sizes: Tensor, count: int
) -> Tensor:
    if weights is not None or len(members) >= 1 << 24:
        ones = torch.ones(count, 1, dtype=torch.float32, device=first.device)
        groups = _Groups(first, members, begin, sizes)
        return groups.fold(ones if weights is None else weights[:, None], None, "sum")[:, 0]
    # Sums of ones that float32 holds exactly.
    before = torch.zeros(len(members) + 1, dtype=torch.int64, device=first.device)
    before[1:] = (members >= 0).cumsum(0)
    return (before[begin + sizes] - before[begin] + (first >= 0)).to(torch.float32)


class _Groups:
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
        self.begin, self.length = begin[self.order], length[self.order]

    def fold(self, values: Tensor, weights: Optional[Tensor], mode: str) -> Tensor:
        """`[M, D]` float32: rows of `values` `[N, D]`, weighted, added up or compared in the written order."""
        start = 0.0 if mode == "sum" else -torch.inf

        def term(token: Tensor, inside: Tensor) -> Tensor:
            rows = widen(values.index_select(0, token))
            rows = rows if weights is None else rows * weights[token, None]
            return rows if bool(inside.all()) else torch.where(inside[:, None], rows, start)

        shape = (len(self.begin), values.shape[1])
        sums = torch.full(shape, start, dtype=torch.float32, device=values.device)
        for i in range(int(self.length[0]) if len(self.length) else 0):
            many = int((self.length > i).sum())
            at = self.begin[:many] + i
            sums[:many] = _combine(sums[:many], term(self.members[at], self.inside[at]), mode)
        result = term(self.first, self.has_first)
        result = _combine(torch.full_like(result, start), result, mode)
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
    return a + b if mode == "sum" else torch.where(ordered_key(b) > ordered_key(a), b, a)
