"""Importance of tokens from attention without the attention matrix: probabilities in fixed point, integer sums."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import ALL_KEYS, ALL_QUERIES, Chosen, Keys, Queries, Reduction, Segments, Softmax, Span
from .arithmetic import cdiv, exp2
from .dots import exact_dots
from .launch import launch
from .logits import MASKED, factor_of, kept_rows, logits_of, segment_rows
from .queries import Problem, problem_of
from .softmax import Operands, softmax_rows
from .tiles import FEW, attention_splits, attention_tiles, finish_tiles, kept_tiles, logits_tiles


@triton.jit
def _probabilities(
    k_ptr, k_norms_ptr, logits_ptr, key_row, key, key_mask, q_ptr, factors_ptr, tops_ptr, shares_ptr, row, kept, mask,
    position, crosses, cap, CAUSAL: tl.constexpr, CAPPED: tl.constexpr, CLAMP: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Attention that the keys [BLOCK_M] get from the queries [BLOCK_N] of a head: int32 in units of 2⁻³⁰.

    Whether it `crosses` tells that some of these queries may not see some of these keys.
    """
    top = tl.load(tops_ptr + row, mask=mask, other=0).to(tl.float32, bitcast=True)
    share = tl.load(shares_ptr + row, mask=mask, other=0.0)
    if logits_ptr is not None:
        x = tl.load(logits_ptr + kept[None, :] + key[:, None], mask=key_mask[:, None] & mask[None, :], other=MASKED)
    else:
        factor_k, usable = factor_of(k_norms_ptr, key_row, key_mask, 1.0)
        factor = tl.load(factors_ptr + row, mask=mask, other=0.0)
        scores = exact_dots(k_ptr, key_row, key_mask, q_ptr, row, mask, DOT)
        x = logits_of(scores, factor[None, :], factor_k[:, None], usable[:, None], cap, DOT.LIMBS, CAPPED)
        if CAUSAL:
            if crosses:
                x = tl.where(key[:, None] <= position[None, :], x, MASKED)
    x = tl.maximum(x - top[None, :], -32.0)
    if CLAMP:
        x = tl.minimum(x, 0.0)
    return (exp2(x, 3 if DOT.LIMBS == 1 else 5, 30) * share[None, :] + 0.5).to(tl.int32)


@triton.jit
def _range_of(ranges_ptr, segment):
    """(first wanted key, one past the last) of a segment."""
    return tl.load(ranges_ptr + 2 * segment), tl.load(ranges_ptr + 2 * segment + 1)


@triton.jit(
    do_not_specialize=[
        "queries", "keys", "longest_q", "longest_k", "splits", "heads", "kv_heads", "cap", "key_start",
        "key_stop", "out_heads",
    ]
)  # fmt: skip
def _column_kernel(
    q_ptr, k_ptr, k_norms_ptr, logits_ptr, factors_ptr, tops_ptr, shares_ptr, positions_ptr, weights_ptr, used_ptr,
    cu_seqlens_q_ptr, cu_seqlens_k_ptr, ranges_ptr, totals_ptr, queries, keys, longest_q, longest_k, key_start,
    key_stop, splits, heads, kv_heads, out_heads, cap, JOINED: tl.constexpr, HEADS: tl.constexpr,
    REDUCTION: tl.constexpr, CAUSAL: tl.constexpr, CAPPED: tl.constexpr, CLAMP: tl.constexpr, PACKED: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Attention received by BLOCK_M keys from one split of the queries: its sum, or the greatest.

    A program takes one head, or JOINED heads one after another, which share a key head where logits are not kept, or
    with HEADS ("sum", "max", "rms") all heads at a time, reduced before queries are.
    """
    BLOCK_M: tl.constexpr = DOT.BLOCK_M
    BLOCK_N: tl.constexpr = DOT.BLOCK_N
    units = heads // JOINED
    if HEADS != "":
        units = 1
    tiles = tl.cdiv(tl.minimum(key_stop, longest_k) - key_start, BLOCK_M)
    tile = tl.program_id(0) % tiles
    split = tl.program_id(0) // tiles % splits
    unit = tl.program_id(0) // tiles // splits % units
    segment = (tl.program_id(0) // tiles // splits // units).to(tl.int64)
    sample = segment
    if PACKED:
        sample = segment - segment
    start_q, count = segment_rows(cu_seqlens_q_ptr, used_ptr, segment, queries, longest_q, PACKED)
    start_k, length = segment_rows(cu_seqlens_k_ptr, None, segment, keys, longest_k, PACKED)
    group = heads // kv_heads
    rows = count * JOINED
    first = key_start + tile * BLOCK_M
    key = first + tl.arange(0, BLOCK_M)
    key_mask = (key < length) & (key < key_stop)
    share = tl.cdiv(tl.cdiv(rows, BLOCK_N), splits) * BLOCK_N
    begin = split * share
    end = tl.minimum(begin + share, rows)
    if CAUSAL and JOINED == 1 and positions_ptr is None:  # earlier queries see none of these keys
        begin = tl.maximum(begin, (first + count - length) // BLOCK_N * BLOCK_N)
    wanted = first < length
    if ranges_ptr is not None:
        start, stop = _range_of(ranges_ptr, segment)
        wanted = wanted & (first < stop) & (first + BLOCK_M > start)
    if wanted & (begin < end):
        total = tl.zeros((BLOCK_M,), tl.int64)
        for i in range(begin, end, BLOCK_N):
            index = i + tl.arange(0, BLOCK_N)
            mask = index < rows
            place = index
            row = index
            if JOINED > 1:
                place = index % count
                if PACKED or used_ptr is not None:
                    row = index // count * queries + place
            position = place
            crosses = True
            if CAUSAL:
                position = length - count + place
                if JOINED == 1 and positions_ptr is None:
                    crosses = first + BLOCK_M - 1 > length - count + i
                if positions_ptr is not None:
                    position = tl.load(positions_ptr + sample * queries + start_q + place, mask=mask, other=-1)
            if HEADS == "":
                key_row = (sample * kv_heads + unit * JOINED // group) * keys + start_k + key
                first_head = sample * heads + unit * JOINED
                p = _probabilities(
                    k_ptr, k_norms_ptr, logits_ptr, key_row, key, key_mask, q_ptr, factors_ptr, tops_ptr, shares_ptr,
                    first_head * queries + start_q + row,
                    kept_rows(first_head, index, count, longest_q) * keys + start_k, mask, position, crosses, cap,
                    CAUSAL, CAPPED, CLAMP, DOT,
                ).to(tl.int64)  # fmt: skip
            else:
                p = tl.zeros((BLOCK_M, BLOCK_N), tl.float32 if HEADS == "rms" else tl.int64)
                for h in range(0, heads):
                    key_row = (sample * kv_heads + h // group) * keys + start_k + key
                    x = _probabilities(
                        k_ptr, k_norms_ptr, logits_ptr, key_row, key, key_mask, q_ptr, factors_ptr, tops_ptr,
                        shares_ptr, (sample * heads + h) * queries + start_q + row,
                        ((sample * heads + h) * longest_q + place) * keys + start_k, mask, position, crosses, cap,
                        CAUSAL, CAPPED, CLAMP, DOT,
                    )  # fmt: skip
                    if HEADS == "rms":
                        y = x.to(tl.float32) * (1.0 / 1073741824.0)
                        p = p + y * y
                    elif HEADS == "max":
                        p = tl.maximum(p, x.to(tl.int64))
                    else:
                        p += x.to(tl.int64)
                if HEADS == "rms":
                    p = tl.div_rn(p, tl.zeros_like(p) + heads)
                    p = (tl.sqrt_rn(p) * 1073741824.0 + 0.5).to(tl.int64)
                if weights_ptr is not None:
                    weight = tl.load(weights_ptr + sample * queries + start_q + place, mask=mask, other=0.0)
                    p = (p.to(tl.float32) * weight[None, :] + 0.5).to(tl.int64)
            if REDUCTION == "max":
                total = tl.maximum(total, tl.max(p, axis=1))
            else:
                total += tl.sum(p, axis=1)
        at = totals_ptr + (sample * out_heads + tl.where(out_heads > 1, unit, 0)) * keys + start_k + key
        if REDUCTION == "max":
            tl.atomic_max(at, total, mask=key_mask, sem="relaxed")
        else:
            tl.atomic_add(at, total, mask=key_mask, sem="relaxed")


@triton.jit
def _seen_counts(
    positions_ptr, weights_ptr, start, count, length, key, CAUSAL: tl.constexpr, QUERIES: tl.constexpr
):  # fmt: skip
    """How many of a segment's queries see each key, or the sum of their weights in units of 2⁻³⁰: int64."""
    seen = tl.zeros_like(key).to(tl.int64)
    for n in range(0, count, QUERIES):
        query = n + tl.arange(0, QUERIES)
        mask = query < count
        position = length - count + query
        if positions_ptr is not None:
            position = tl.load(positions_ptr + start + query, mask=mask, other=-1)
            mask = mask & (position >= 0)
        amount = mask.to(tl.int64)
        if weights_ptr is not None:
            weight = tl.load(weights_ptr + start + query, mask=mask, other=0.0)
            amount = (weight * 1073741824.0 + 0.5).to(tl.int64)
        if CAUSAL:
            seen += tl.sum(tl.where(key[:, None] <= position[None, :], amount[None, :], 0), axis=1)
        else:
            seen += tl.sum(amount, axis=0)
    return seen


@triton.jit(
    do_not_specialize=["queries", "keys", "longest_q", "longest_k", "heads", "key_start", "key_stop", "out_heads"]
)
def _finish_kernel(
    totals_ptr, head_unscales_ptr, unscales_ptr, counts_ptr, positions_ptr, weights_ptr, used_ptr, cu_seqlens_q_ptr,
    cu_seqlens_k_ptr, ranges_ptr, out_ptr, queries, keys, longest_q, longest_k, key_start, key_stop, heads, out_heads,
    HEADS: tl.constexpr, MEAN: tl.constexpr, DIVIDE: tl.constexpr, CAUSAL: tl.constexpr, PACKED: tl.constexpr,
    BLOCK: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """Scores from the integers of one or of all heads."""
    tiles = tl.cdiv(tl.minimum(key_stop, longest_k) - key_start, BLOCK)
    segment = (tl.program_id(0) // tiles).to(tl.int64)
    sample = segment
    if PACKED:
        sample = segment - segment
    start_q, count = segment_rows(cu_seqlens_q_ptr, used_ptr, segment, queries, longest_q, PACKED)
    start, length = segment_rows(cu_seqlens_k_ptr, None, segment, keys, longest_k, PACKED)
    key = key_start + (tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)
    mask = (key < length) & (key < key_stop)
    if MEAN:
        if counts_ptr is not None:
            divisor = tl.load(counts_ptr + sample * keys + start + key, mask=mask, other=0)
        elif positions_ptr is not None or weights_ptr is not None:
            divisor = _seen_counts(
                positions_ptr, weights_ptr, sample * queries + start_q, count, length, key, CAUSAL, QUERIES
            )  # fmt: skip
        else:
            divisor = tl.zeros((BLOCK,), tl.int64) + count
            if CAUSAL:
                divisor = tl.minimum(divisor, length - key)
        divisor = divisor.to(tl.float32)
        if weights_ptr is not None:
            divisor = divisor * (1.0 / 1073741824.0)
    score = tl.zeros((BLOCK,), tl.float32)
    for h in range(0, out_heads):
        total = tl.load(totals_ptr + (sample * out_heads + h) * keys + start + key, mask=mask, other=0)
        x = total.to(tl.float32) * (1.0 / 1073741824.0)
        if head_unscales_ptr is not None:
            x = x * tl.load(head_unscales_ptr + segment * out_heads + h)
        if MEAN:
            x = tl.where(divisor > 0, tl.div_rn(x, divisor), 0.0)
        if HEADS == "max":
            score = tl.maximum(score, x)
        elif HEADS == "rms":
            score = score + x * x
        else:
            score = score + x
    if DIVIDE:
        score = tl.div_rn(score, tl.zeros_like(score) + heads)
    if HEADS == "rms":
        score = tl.sqrt_rn(score)
    if unscales_ptr is not None:
        unscale = tl.load(unscales_ptr + segment)
        if MEAN:
            unscale = tl.where(unscale > 0, 1.0, unscale)
        score = score * unscale
    if ranges_ptr is not None:
        begin, end = _range_of(ranges_ptr, segment)
        score = tl.where((key >= begin) & (key < end), score, 0.0)
    tl.store(out_ptr + sample * keys + start + key, score, mask=mask)


def add_columns(
    totals: Tensor,
    operands: Operands,
    problem: Problem,
    tiles: dict,
    joined: int = 1,
    by_tile: str = "",
    reduction: str = "sum",
) -> None:
    """Add to `totals` `[B, 1 or H, Nk]` what keys receive from heads alone, `joined`, or all reduced `by_tile`."""
    of_queries, segments = problem.of_queries, problem.segments
    programs = problem.parts * (1 if by_tile else problem.heads // joined) * cdiv(problem.columns, tiles["DOT"].BLOCK_M)
    splits = attention_splits(programs, segments.max_seqlen_q * joined, tiles["DOT"].BLOCK_N)
    q_units, k_units, k_norms, logits, factors, tops, shares = operands
    launch(
        _column_kernel, programs * splits,
        q_units, k_units, k_norms, logits, factors, tops, shares, of_queries.positions,
        of_queries.weights if by_tile else None, *problem.bounds, problem.of_keys.ranges, totals, *problem.sizes,
        *problem.span, splits, problem.heads, problem.kv_heads, totals.shape[1], problem.softmax.cap, JOINED=joined,
        HEADS=by_tile, REDUCTION=reduction, CLAMP=of_queries.log_sum_exp is not None, **tiles, **problem.options,
    )  # fmt: skip


def finish(
    out: Tensor,
    totals: Tensor,
    unscales: Optional[Tensor],
    problem: Problem,
    heads: str,
    divide: bool,
    mean: bool,
) -> None:
    """Scores from the integers of `heads` that are added up, compared or squared; `unscales` is one for each head."""
    positions, weights, _, counts = problem.of_queries
    tiles = finish_tiles(problem.softmax.causal)
    launch(
        _finish_kernel, problem.parts * cdiv(problem.columns, tiles["BLOCK"]),
        totals, unscales, problem.unscales, counts, positions, weights, *problem.bounds, problem.of_keys.ranges, out,
        *problem.sizes, *problem.span, problem.heads, totals.shape[1], HEADS=heads, MEAN=mean, DIVIDE=divide,
        CAUSAL=problem.softmax.causal, PACKED=problem.packed, **tiles,
    )  # fmt: skip


def attention_importance(
    query: Tensor,
    key: Tensor,
    queries: Queries,
    segments: Segments,
    span: Span,
    softmax: Softmax,
    reduction: Reduction,
    chosen: Chosen = ALL_QUERIES,
    keys: Keys = ALL_KEYS,
) -> Tensor:
    out = torch.empty(query.shape[0], key.shape[2], dtype=torch.float32, device=query.device)
    problem = problem_of(query, key, queries, segments, span, softmax, chosen, keys)
    heads, longest, features = problem.heads, problem.segments.max_seqlen_q, query.shape[3]
    if problem.columns <= 0 or not problem.parts * heads * longest:
        return out.zero_()
    group = heads // problem.kv_heads
    same = reduction.commutes
    by_tile = reduction.heads_first and not same
    # Heads that share a key head are one row of queries, but where many queries see the later keys only.
    joined = group if same and (not softmax.causal or longest <= 64) else 1
    rows, columns = attention_tiles(features, softmax.limbs, longest * group, by_tile)
    keep = logits_tiles(key, softmax.limbs) if longest * group <= FEW else None
    if keep is not None:
        joined = heads if same else 1
        rows, columns = kept_tiles(features, softmax.limbs, longest * group, longest * joined)
    over_heads = 1 if same or by_tile else heads
    totals = torch.empty(query.shape[0], over_heads, key.shape[2], dtype=torch.int64, device=query.device)
    partly = problem.packed or problem.columns < problem.keys
    operands = softmax_rows(
        query,
        key,
        problem,
        None if by_tile else problem.of_queries.weights,
        rows,
        keep,
        totals,
        out if partly else None,
    )
    over_queries = "max" if reduction.queries == "max" else "sum"
    add_columns(totals, operands, problem, columns, joined, reduction.heads if by_tile else "", over_queries)
    divide = reduction.heads == "mean" or (reduction.heads == "rms" and not by_tile)
    finish(out, totals, None, problem, "sum" if by_tile else reduction.heads, divide, reduction.queries == "mean")
    return out
