"""The softmax of attention rows: logits, their maxima and denominators, without the matrix."""

from typing import NamedTuple, Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import cdiv, exp2, key_value, ordered_key
from .dots import LOW_BITS, exact_dots, fixed_point, load_units, low_dots, to_limbs
from .launch import launch
from .logits import MASKED, factor_of, kept_rows, logits_of, norm_factor, query_rows, segment_rows
from .queries import Problem, unit_queries
from .rows import expand, load_rows, scaled_norm
from .tiles import FEW, attention_splits, flat_tiles
from .units import masked_units


@triton.jit(
    do_not_specialize=["queries", "keys", "longest_q", "longest_k", "splits", "kv_heads", "group", "scale", "cap"]
)
def _logits_kernel(
    q_ptr, q_norms_ptr, k_ptr, k_mask_ptr, positions_ptr, used_ptr, cu_seqlens_q_ptr, cu_seqlens_k_ptr, tops_ptr,
    logits_ptr, stride_b, stride_h, stride_n, queries, keys, longest_q, longest_k, splits, kv_heads, group, scale, cap,
    CAUSAL: tl.constexpr, CAPPED: tl.constexpr, PACKED: tl.constexpr, LIMBS: tl.constexpr, LOW_BITS: tl.constexpr,
    ROWS: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    """Logits of at most ROWS query rows to one split of the keys, and the greatest. Keys are read once, as they are."""
    D: tl.constexpr = ROW.D
    TILES: tl.constexpr = ROW.TILES
    CHUNKS: tl.constexpr = ROW.CHUNKS
    WIDTH: tl.constexpr = ROW.WIDTH
    split = tl.program_id(0) % splits
    head = tl.program_id(0) // splits % kv_heads
    segment = (tl.program_id(0) // splits // kv_heads).to(tl.int64)
    sample = segment
    if PACKED:
        sample = segment - segment
    start_q, count = segment_rows(cu_seqlens_q_ptr, used_ptr, segment, queries, longest_q, PACKED)
    start_k, length = segment_rows(cu_seqlens_k_ptr, None, segment, keys, longest_k, PACKED)
    share = tl.cdiv(tl.cdiv(length, TILES), splits) * TILES
    end = tl.minimum((split + 1) * share, length)
    if (split * share < end) & (count > 0):
        first_head = (sample * kv_heads + head) * group
        index = tl.arange(0, ROWS)
        row, mask, factor, position = query_rows(
            q_norms_ptr, positions_ptr, first_head, sample, start_q, index, count, length, queries, count * group,
            scale, CAUSAL,
        )  # fmt: skip
        kept_ptr = logits_ptr + kept_rows(first_head, index, count, longest_q) * keys + start_k
        k_ptr += tl.multiple_of(sample * stride_b + head * stride_h, ROW.VECTOR)
        units = ()
        for c in tl.static_range(CHUNKS):
            for limb in tl.static_range(LIMBS):
                units = units + (load_units(q_ptr, row, mask, c * WIDTH, D, LIMBS, limb, WIDTH),)
        best = tl.full((ROWS,), MASKED, tl.float32)
        for n in range(split * share, end, TILES):
            column = n + tl.arange(0, TILES)
            column_mask = column < end
            kept = column_mask
            if k_mask_ptr is not None:
                k_mask = tl.load(k_mask_ptr + sample * keys + start_k + column, mask=column_mask, other=0)
                kept = column_mask & (k_mask != 0)
            chunks = load_rows(k_ptr, stride_n, start_k + column, kept, ROW)
            scale_k, length_k, unscale = scaled_norm(chunks, ROW)
            # Rows of NaN and infinities are not seen, whatever comes out.
            inverse = tl.where(length_k > 0, tl.div_rn(tl.zeros_like(length_k) + 2048.0, length_k), 0.0)
            multiplier = expand(scale_k, ROW)
            inverse = expand(inverse, ROW)
            scores = tl.zeros((ROWS, TILES), tl.float32)
            if LIMBS == 2:
                cross = tl.zeros((ROWS, TILES), tl.int32)
                low = tl.zeros((ROWS, TILES), tl.int32)
            for c in tl.static_range(CHUNKS):
                k_high, k_low = to_limbs(chunks[c] * multiplier * inverse, LOW_BITS)
                if LIMBS == 1:
                    scores = tl.dot(units[c], tl.trans(k_high.to(tl.float16)), scores)
                else:
                    k_high = (k_high * (1.0 / 2048.0)).to(tl.float16)
                    scores = tl.dot(units[2 * c], tl.trans(k_high), scores)
                    cross_products, low_products = low_dots(
                        units[2 * c], units[2 * c + 1], k_high, k_low.to(tl.float16)
                    )  # fmt: skip
                    cross += cross_products
                    low += low_products
            if LIMBS == 1:
                scores = scores * (1.0 / 2048.0)
            else:
                scores = fixed_point(scores, cross, low)
            factor_k, usable = norm_factor(length_k * unscale, 1.0)
            # Every element of a row is the same.
            factor_k = tl.max(tl.where(usable, factor_k, -1.0), axis=1)
            seen = factor_k >= 0
            if k_mask_ptr is not None:
                seen = seen & kept
            seen = seen[None, :] & (column[None, :] <= position[:, None])
            x = logits_of(scores, factor[:, None], factor_k[None, :], seen, cap, LIMBS, CAPPED)
            tl.store(kept_ptr[:, None] + column[None, :], x, mask=mask[:, None] & column_mask[None, :])
            if tops_ptr is not None:
                best = tl.maximum(best, tl.max(tl.where(column_mask[None, :], x, MASKED), axis=1))
        if tops_ptr is not None:
            tl.atomic_max(tops_ptr + row, ordered_key(best), mask=mask, sem="relaxed")


@triton.jit(
    do_not_specialize=["queries", "keys", "longest_q", "longest_k", "splits", "kv_heads", "group", "scale", "cap"]
)
def _row_kernel(
    q_ptr, q_norms_ptr, k_ptr, k_norms_ptr, logits_ptr, positions_ptr, used_ptr, cu_seqlens_q_ptr, cu_seqlens_k_ptr,
    tops_ptr, sums_ptr, queries, keys, longest_q, longest_k, splits, kv_heads, group, scale, cap, SUM: tl.constexpr,
    CAUSAL: tl.constexpr, CAPPED: tl.constexpr, PACKED: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Greatest logit of each query row, or the sum of 2^(logit − greatest), over one split of the keys.

    The query heads that share a key head are one long row of queries.
    """
    BLOCK_M: tl.constexpr = DOT.BLOCK_M
    BLOCK_N: tl.constexpr = DOT.BLOCK_N
    LIMBS: tl.constexpr = DOT.LIMBS
    tiles = tl.cdiv(longest_q * group, BLOCK_M)
    tile = tl.program_id(0) % tiles
    split = tl.program_id(0) // tiles % splits
    head = tl.program_id(0) // tiles // splits % kv_heads
    segment = (tl.program_id(0) // tiles // splits // kv_heads).to(tl.int64)
    sample = segment
    if PACKED:
        sample = segment - segment
    start_q, count = segment_rows(cu_seqlens_q_ptr, used_ptr, segment, queries, longest_q, PACKED)
    start_k, length = segment_rows(cu_seqlens_k_ptr, None, segment, keys, longest_k, PACKED)
    key_rows = (sample * kv_heads + head) * keys + start_k
    index = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row, mask, factor, position = query_rows(
        q_norms_ptr, positions_ptr, (sample * kv_heads + head) * group, sample, start_q, index, count, length, queries,
        count * group, scale, CAUSAL,
    )  # fmt: skip
    share = tl.cdiv(tl.cdiv(length, BLOCK_N), splits) * BLOCK_N
    end = tl.minimum((split + 1) * share, length)
    if CAUSAL:
        end = tl.minimum(end, tl.max(tl.where(mask, position, -1), axis=0) + 1)
        sees = tl.min(tl.where(mask, position, 0x7FFFFFFE), axis=0) + 1  # so many keys all rows do
    if (split * share < end) & (tile * BLOCK_M < count * group):
        if logits_ptr is not None:
            kept = kept_rows((sample * kv_heads + head) * group, index, count, longest_q) * keys + start_k
        if SUM:
            top = key_value(tl.load(tops_ptr + row, mask=mask, other=0))
            total = tl.zeros((BLOCK_M,), tl.int64)
        else:
            best = tl.full((BLOCK_M,), MASKED, tl.float32)
        for n in range(split * share, end, BLOCK_N):
            column = n + tl.arange(0, BLOCK_N)
            column_mask = column < end
            if logits_ptr is not None:
                x = tl.load(
                    logits_ptr + kept[:, None] + column[None, :], mask=mask[:, None] & column_mask[None, :],
                    other=MASKED,
                )  # fmt: skip
            else:
                factor_k, usable = factor_of(k_norms_ptr, key_rows + column, column_mask, 1.0)
                scores = exact_dots(q_ptr, row, mask, k_ptr, key_rows + column, column_mask, DOT)
                x = logits_of(scores, factor[:, None], factor_k[None, :], usable[None, :], cap, LIMBS, CAPPED)
                if CAUSAL:
                    if n + BLOCK_N > sees:
                        x = tl.where(column[None, :] <= position[:, None], x, MASKED)
            if SUM:
                x = tl.maximum(x - top[:, None], -32.0)
                e = (exp2(x, 3 if LIMBS == 1 else 5, 30) + 0.5).to(tl.int32)
                total += tl.sum(e.to(tl.int64), axis=1)
            else:
                best = tl.maximum(best, tl.max(x, axis=1))
        if SUM:
            tl.atomic_add(sums_ptr + row, total, mask=mask, sem="relaxed")
        else:
            tl.atomic_max(tops_ptr + row, ordered_key(best), mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["rows", "queries", "heads", "cells", "columns", "scale"])
def _share_kernel(
    q_norms_ptr, positions_ptr, weights_ptr, lse_ptr, tops_ptr, sums_ptr, factors_ptr, shares_ptr, totals_ptr, out_ptr,
    rows, queries, heads, cells, columns, scale, BLOCK: tl.constexpr,
):  # fmt: skip
    """Factors, greatest logits (in place) and weight / Σ 2^(logit − greatest) of queries.

    Of an unused query the greatest is above all logits, so that 2^x is finite, and the last is 0. What columns are
    added up in, so many cells, begins at 0, and so many scores.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if totals_ptr is not None:
        tl.store(totals_ptr + row, tl.zeros((BLOCK,), tl.int64), mask=row < cells)
    if out_ptr is not None:
        tl.store(out_ptr + row, tl.zeros((BLOCK,), tl.float32), mask=row < columns)
    mask = row < rows
    query = row // (queries * heads) * queries + row % queries
    factor, used = factor_of(q_norms_ptr, row, mask, scale)
    if positions_ptr is not None:
        used = used & (tl.load(positions_ptr + query, mask=mask, other=-1) >= 0)
    if lse_ptr is not None:
        top = tl.load(lse_ptr + row, mask=mask, other=float("inf")) * 1.4426950408889634
        used = used & (tl.abs(top) < float("inf"))
        top = tl.maximum(top, MASKED * 0.5)  # below all logits, but so that a masked one is far below it
        share = tl.full((BLOCK,), 1.0, tl.float32)
    else:
        top = key_value(tl.load(tops_ptr + row, mask=mask, other=-(1 << 31)))
        total = tl.load(sums_ptr + row, mask=mask, other=0).to(tl.float32)
        used = used & (top > MASKED)
        share = tl.div_rn(tl.full((BLOCK,), 1073741824.0, tl.float32), total)
    if weights_ptr is not None:
        share = share * tl.load(weights_ptr + query, mask=mask, other=0.0)
    tl.store(factors_ptr + row, factor, mask=mask)
    tl.store(tops_ptr + row, tl.where(used, top, -MASKED).to(tl.int32, bitcast=True), mask=mask)
    tl.store(shares_ptr + row, tl.where(used, share, 0.0), mask=mask)


class Operands(NamedTuple):
    """What columns are computed from: unit rows, or logits that are kept; factors, tops and shares of queries."""

    q_units: Tensor
    k_units: Optional[Tensor]
    k_norms: Optional[Tensor]
    logits: Optional[Tensor]
    factors: Tensor
    tops: Tensor
    shares: Tensor


def softmax_rows(
    query: Tensor,
    key: Tensor,
    problem: Problem,
    weights: Optional[Tensor],
    tiles: dict,
    keep: Optional[dict] = None,
    totals: Optional[Tensor] = None,
    out: Optional[Tensor] = None,
) -> Operands:
    """Maxima and denominators of all query rows, times `weights`; with tiles to `keep` logits, no unit rows of keys.

    `totals` and `out` become 0.
    """
    positions, _, log_sum_exp, _ = problem.of_queries
    max_seqlen_q, max_seqlen_k = problem.segments[2:]
    _, scale, cap, limbs = problem.softmax
    group, programs = problem.heads // problem.kv_heads, problem.parts * problem.kv_heads
    numbers = (problem.kv_heads, group, scale, cap)
    q_units, q_norms, tops, sums = unit_queries(query, problem)
    logits = k_units = k_norms = None
    if keep is not None:
        shape = (query.shape[0], problem.heads, max_seqlen_q, problem.keys)
        logits = torch.empty(shape, dtype=torch.float32, device=query.device)
        splits = attention_splits(programs, max_seqlen_k, keep["ROW"].TILES)
        launch(
            _logits_kernel, programs * splits,
            q_units, q_norms, key, problem.of_keys.mask, positions, *problem.bounds,
            tops if log_sum_exp is None else None, logits, *key.stride()[:3], *problem.sizes, splits, *numbers,
            LIMBS=limbs, LOW_BITS=LOW_BITS, ROWS=FEW, **keep, **problem.options,
        )  # fmt: skip
    else:
        k_units, k_norms = masked_units(key, problem.of_keys.mask, limbs, LOW_BITS)
    if log_sum_exp is None:
        programs *= cdiv(max_seqlen_q * group, tiles["DOT"].BLOCK_M)
        splits = attention_splits(programs, max_seqlen_k, tiles["DOT"].BLOCK_N)
        for is_sum in (False, True) if logits is None else (True,):
            launch(
                _row_kernel, programs * splits,
                q_units, q_norms, k_units, k_norms, logits, positions, *problem.bounds, tops, sums, *problem.sizes,
                splits, *numbers, SUM=is_sum, **tiles, **problem.options,
            )  # fmt: skip
    factors = torch.empty(tops.shape, dtype=torch.float32, device=query.device)
    shares = torch.empty(tops.shape, dtype=torch.float32, device=query.device)
    flat = flat_tiles()
    cells, columns = (0 if x is None else x.numel() for x in (totals, out))
    launch(
        _share_kernel, cdiv(max(shares.numel(), cells), flat["BLOCK"]),
        q_norms, positions, weights, log_sum_exp, tops, sums, factors, shares, totals, out, shares.numel(),
        problem.queries, problem.heads, cells, columns, scale, **flat,
    )  # fmt: skip
    return Operands(q_units, k_units, k_norms, logits, factors, tops, shares)
