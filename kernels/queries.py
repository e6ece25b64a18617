"""Which queries count and how much: what attention makes of its caller's choice, and the unit rows of those queries."""

from typing import NamedTuple, Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import ALL_KEYS, ALL_QUERIES, Chosen, Keys, Queries, Segments, Softmax, Span
from .arithmetic import cdiv
from .dots import LOW_BITS
from .launch import launch
from .logits import segment_rows
from .rows import store_rows
from .tiles import flat_tiles, row_tiles
from .units import store_units


@triton.jit(do_not_specialize=["queries", "longest"])
def _scale_weights_kernel(
    weights_ptr, cu_seqlens_ptr, scaled_ptr, unscales_ptr, queries, longest, PACKED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Weights of one segment below 1 by a power of two, and its inverse: NaN where there is what is no weight."""
    segment = tl.program_id(0).to(tl.int64)
    start, count = segment_rows(cu_seqlens_ptr, None, segment, queries, longest, PACKED)
    if PACKED == 0:
        start += segment * queries
    top = tl.zeros((BLOCK,), tl.int32)
    for n in range(0, count, BLOCK):
        query = n + tl.arange(0, BLOCK)
        weight = tl.load(weights_ptr + start + query, mask=query < count, other=0.0)
        valid = (weight >= 0) & (weight < 85070591730234615865843651857942052864.0)  # 2¹²⁶
        bits = weight.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        top = tl.maximum(top, tl.where(valid, bits, 0x7F800000))
    top = tl.max(top, axis=0)
    exponent = tl.minimum(top >> 23, 252)
    unscale = ((exponent + 1) << 23).to(tl.float32, bitcast=True)
    tl.store(unscales_ptr + segment, tl.where(top < 0x7F800000, unscale, float("nan")))
    scale = ((253 - exponent) << 23).to(tl.float32, bitcast=True)
    for n in range(0, count, BLOCK):
        query = n + tl.arange(0, BLOCK)
        weight = tl.load(weights_ptr + start + query, mask=query < count, other=0.0)
        valid = (weight >= 0) & (weight < 85070591730234615865843651857942052864.0)
        tl.store(scaled_ptr + start + query, tl.where(valid, tl.abs(weight), 0.0) * scale, mask=query < count)


@triton.jit(do_not_specialize=["queries"])
def _compact_kernel(mask_ptr, indices_ptr, used_ptr, queries, BLOCK: tl.constexpr):
    """Which queries of a sample its mask has, ascending, and how many they are."""
    sample = tl.program_id(0).to(tl.int64)
    count = tl.zeros((), tl.int32)
    for n in range(0, queries, BLOCK):
        query = n + tl.arange(0, BLOCK)
        used = (tl.load(mask_ptr + sample * queries + query, mask=query < queries, other=0) != 0).to(tl.int32)
        slot = count + tl.cumsum(used, 0) - used
        tl.store(indices_ptr + sample * queries + slot, query, mask=used != 0)
        count += tl.sum(used, axis=0)
    tl.store(used_ptr + sample, count)


@triton.jit(
    do_not_specialize=[
        "stride_s", "stride_m", "heads", "queries", "rows", "slots", "keys", "longest_q", "longest_k",
    ]
)  # fmt: skip
def _unit_queries_kernel(
    x_ptr, indices_ptr, used_ptr, lse_ptr, cu_seqlens_q_ptr, cu_seqlens_k_ptr, units_ptr, norms_ptr, positions_ptr,
    chosen_lse_ptr, tops_ptr, sums_ptr, stride_b, stride_h, stride_n, stride_s, stride_m, heads, queries, rows, slots,
    keys, longest_q, longest_k, FROM_END: tl.constexpr, CAUSAL: tl.constexpr, PACKED: tl.constexpr,
    LIMBS: tl.constexpr, LOW_BITS: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    """Unit rows and norms of queries, or of those at `indices` of each segment, and what is known of those.

    Greatest logits and sums begin here: there is a row of this kernel for each of them.
    """
    programs = tl.cdiv(rows, ROW.TILES // ROW.BLOCKS)
    head = (tl.program_id(0) // programs).to(tl.int64)
    sample = head // heads
    token = (tl.program_id(0) % programs) * (ROW.TILES // ROW.BLOCKS) + tl.arange(0, ROW.TILES) // ROW.BLOCKS  # [TILES]
    mask = token < rows
    row = head * rows + token
    spread = tl.zeros((ROW.TILES, ROW.WIDTH // ROW.VECTOR), tl.int32)
    if tops_ptr is not None:
        store_rows(tops_ptr + row[:, None], spread - 0x7FFFFFFF - 1, mask, ROW)
    if sums_ptr is not None:
        store_rows(sums_ptr + row[:, None], spread.to(tl.int64), mask, ROW)
    place = token
    used = None
    if indices_ptr is not None:
        segment = sample
        slot = token
        known = mask
        if PACKED:
            segment = tl.where(mask, token // slots, 0).to(tl.int64)
            slot = token % slots
        if used_ptr is not None:
            known = mask & (slot < tl.load(used_ptr + segment))
        start, count = segment_rows(cu_seqlens_q_ptr, None, segment, queries, longest_q, PACKED)
        _, length = segment_rows(cu_seqlens_k_ptr, None, segment, keys, longest_k, PACKED)
        index = tl.load(indices_ptr + segment * stride_s + slot * stride_m, mask=known, other=-1).to(tl.int64)
        if FROM_END:
            index = tl.where(known & (index < 0), index + count, index)
        used = known & (index >= 0) & (index < count)
        place = start + tl.where(used, index, 0)
        position = tl.zeros_like(index) + 0x7FFFFFFF
        if CAUSAL:
            position = index + length - count
        position = tl.where(used & (position >= 0), position, -1).to(tl.int32)
        first = mask & (token * 0 + head % heads == 0)
        store_rows(positions_ptr + (sample * rows + token)[:, None], position[:, None] + spread, first, ROW)
        if lse_ptr is not None:
            lse = tl.load(lse_ptr + head * queries + place, mask=used, other=0.0)
            store_rows(chosen_lse_ptr + row[:, None], lse[:, None] + spread.to(tl.float32), mask, ROW)
    x_ptr += tl.multiple_of(sample * stride_b + head % heads * stride_h, ROW.VECTOR)
    store_units(x_ptr, stride_n, place, row, mask, used, units_ptr, norms_ptr, LIMBS, LOW_BITS, ROW)


class Picked(NamedTuple):
    """Queries at `indices` `[S, M]` of all: their number in the tensor, their segments, what is known of them.

    Of each segment the first `used` indices count, where that is given.
    """

    indices: Tensor
    from_end: bool
    used: Optional[Tensor]
    queries: int
    segments: Segments
    log_sum_exp: Optional[Tensor]


class Problem(NamedTuple):
    """One call: how many samples or segments, heads, query and key rows there are, and the arguments of both rooms.

    Where queries are chosen, query rows, segments and what is known of queries are those of the chosen ones, which
    `unit_queries` writes. Scores are multiplied by `unscales` `[S]`.
    """

    parts: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    of_queries: Queries
    of_keys: Keys
    segments: Segments
    span: Span
    softmax: Softmax
    choice: Optional[Picked]
    unscales: Optional[Tensor]

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return self.queries, self.keys, self.segments.max_seqlen_q, self.segments.max_seqlen_k

    @property
    def columns(self) -> int:
        """How many columns are wanted of the longest segment."""
        return min(self.span.stop, self.segments.max_seqlen_k) - self.span.start

    @property
    def packed(self) -> bool:
        return self.segments.cu_seqlens_k is not None

    @property
    def bounds(self) -> tuple[Optional[Tensor], ...]:
        """What tells the rows of each segment: so many queries are used, offsets of queries, of keys."""
        used = None if self.choice is None else self.choice.used
        return used, self.segments.cu_seqlens_q, self.segments.cu_seqlens_k

    @property
    def options(self) -> dict:
        return {"CAUSAL": self.softmax.causal, "CAPPED": self.softmax.cap != 0, "PACKED": self.packed}


def problem_of(
    query: Tensor,
    key: Tensor,
    queries: Queries,
    segments: Segments,
    span: Span,
    softmax: Softmax,
    chosen: Chosen = ALL_QUERIES,
    keys: Keys = ALL_KEYS,
) -> Problem:
    parts = query.shape[0] if segments.cu_seqlens_k is None else segments.cu_seqlens_k.shape[0] - 1
    queries = Queries(*[None if x is None else x.contiguous() for x in queries])
    mask, ranges = (None if x is None else x.contiguous() for x in keys)
    keys = Keys(None if mask is None else mask.view(torch.uint8), ranges)
    heads, count = query.shape[1:3]
    unscales = choice = None
    if chosen.weights is not None:
        weights, unscales = scaled_weights(chosen.weights.contiguous(), segments)
        queries = queries._replace(weights=weights)
    indices, used = chosen.indices, None
    if chosen.mask is not None:
        indices, used = compacted(chosen.mask.contiguous().view(torch.uint8))
    if indices is not None:
        choice = Picked(indices, chosen.from_end, used, count, segments, queries.log_sum_exp)
        slots = indices.shape[1]
        batch, count = (1, parts * slots) if segments.cu_seqlens_q is not None else (parts, slots)
        segments = segments._replace(cu_seqlens_q=None, max_seqlen_q=slots)
        queries = queries._replace(positions=torch.empty(batch, count, dtype=torch.int32, device=query.device))
        if queries.log_sum_exp is not None:
            lse = torch.empty(batch, heads, count, dtype=torch.float32, device=query.device)
            queries = queries._replace(log_sum_exp=lse)
    sizes = parts, heads, key.shape[1], count, key.shape[2]
    return Problem(*sizes, queries, keys, segments, span, softmax, choice, unscales)


def unit_queries(query: Tensor, problem: Problem) -> tuple[Tensor, Tensor, Tensor, Optional[Tensor]]:
    """(unit rows of queries, their norms, where greatest logits begin, where denominators begin)."""
    batch, heads, rows, features = query.shape[0], problem.heads, problem.queries, query.shape[3]
    shape, device, limbs = (batch, heads, rows), query.device, problem.softmax.limbs
    units = torch.empty(*shape, limbs, features, dtype=torch.float16, device=device)
    norms = torch.empty(shape, dtype=torch.float32, device=device)
    tops = torch.empty(shape, dtype=torch.int32, device=device)
    given, sums = problem.of_queries.log_sum_exp, None
    if given is None:
        sums = torch.empty(shape, dtype=torch.int64, device=device)
    indices, from_end, used, queries, of, lse = problem.choice or (None, False, None, rows, problem.segments, None)
    tiles = row_tiles([query])
    launch(
        _unit_queries_kernel, batch * heads * cdiv(rows, tiles["ROW"].TILES // tiles["ROW"].BLOCKS),
        query, indices, used, lse, of.cu_seqlens_q, of.cu_seqlens_k, units, norms,
        None if indices is None else problem.of_queries.positions, None if lse is None else given,
        None if sums is None else tops, sums, *query.stride()[:3], *((0, 0) if indices is None else indices.stride()),
        heads, queries, rows, problem.segments.max_seqlen_q, problem.keys, of.max_seqlen_q, of.max_seqlen_k,
        FROM_END=from_end, CAUSAL=problem.softmax.causal, PACKED=problem.packed, LIMBS=limbs, LOW_BITS=LOW_BITS,
        **tiles,
    )  # fmt: skip
    return units, norms, tops, sums


def scaled_weights(weights: Tensor, of: Segments) -> tuple[Tensor, Tensor]:
    """(weights `[B, Nq]` below 1 by a power of two of each segment, its inverse `[S]`)."""
    parts = weights.shape[0] if of.cu_seqlens_q is None else of.cu_seqlens_q.shape[0] - 1
    scaled = torch.empty(weights.shape, dtype=torch.float32, device=weights.device)
    unscales = torch.empty(parts, dtype=torch.float32, device=weights.device)
    launch(
        _scale_weights_kernel, parts,
        weights, of.cu_seqlens_q, scaled, unscales, weights.shape[1], of.max_seqlen_q,
        PACKED=of.cu_seqlens_q is not None, **flat_tiles(),
    )  # fmt: skip
    return scaled, unscales


def compacted(mask: Tensor) -> tuple[Tensor, Tensor]:
    """(queries `[B, Nq]` that a mask has, ascending; how many they are, int32 `[B]`)."""
    indices = torch.empty(mask.shape, dtype=torch.int32, device=mask.device)
    used = torch.empty(mask.shape[0], dtype=torch.int32, device=mask.device)
    launch(_compact_kernel, mask.shape[0], mask, indices, used, mask.shape[1], **flat_tiles())
    return indices, used
