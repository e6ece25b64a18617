"""Importance of tokens from attention without the attention matrix: probabilities in fixed point, integer sums."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .numerics import (
    LOW_BITS,
    bounds,
    cdiv,
    exact_dots,
    exp2,
    expand,
    fixed_point,
    key_value,
    launch,
    load_rows,
    load_units,
    low_dots,
    next_power_of_2,
    ordered_key,
    row_tiles,
    scaled_norm,
    target_arch,
    to_limbs,
    unit_rows,
)

# The ptxas of Tritons before 3.9, and of 3.9 for long rows, spills some words in place of taking more than 168
# registers, unless it is told.
_OLD = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)
# The most query rows of a key head whose logits are kept: a float each for every key, mostly fewer bytes than the key.
FEW = 16
# The largest slope and norm that count, so that logits are finite; the logit of no key.
_LARGEST = tl.constexpr(2.0**60)
_MASKED = tl.constexpr(-(2.0**121))


@triton.jit
def _segment(cu_seqlens_ptr, segment, size, longest, PACKED: tl.constexpr):
    """(first row in the sample's heads, rows) of a segment, or of a sample."""
    start = tl.zeros((), tl.int64)
    count = longest
    if PACKED:
        first, count = bounds(cu_seqlens_ptr, segment, size)
        start += first
        count = tl.minimum(count, longest)
    return start, count


@triton.jit
def _factor(norms_ptr, row, mask, scale):
    """(factor a row brings to its logits, whether it is usable): a norm that is not finite is of no use."""
    return _of_norm(tl.load(norms_ptr + row, mask=mask, other=float("inf")), scale)


@triton.jit
def _of_norm(norm, scale):
    usable = norm < float("inf")
    factor = norm * scale
    return tl.where(usable, tl.where(factor < _LARGEST, factor, _LARGEST), 0.0), usable


@triton.jit
def _kept(first_head, index, count, longest):
    """Rows of kept logits [H, longest, keys] for rows `index` of consecutive heads."""
    count = tl.maximum(count, 1)
    return (first_head + index // count) * longest + index % count


@triton.jit
def _query_rows(
    norms_ptr, positions_ptr, first_head, sample, start, index, count, length, queries, rows, scale,
    CAUSAL: tl.constexpr,
):  # fmt: skip
    """Rows `index` of consecutive heads: (row in the tensor, mask, factor, last key in sight)."""
    mask = index < rows
    query = index % tl.maximum(count, 1)
    row = (first_head + index // tl.maximum(count, 1)) * queries + start + query
    factor, usable = _factor(norms_ptr, row, mask, scale)
    position = length - count + query
    if positions_ptr is not None:
        position = tl.load(positions_ptr + sample * queries + start + query, mask=mask, other=-1)
        usable = usable & (position >= 0)
    if CAUSAL == 0:
        position = tl.zeros_like(position) + 0x7FFFFFFF
    return row, mask, factor, tl.where(usable, position, -1)


@triton.jit
def _logits(scores, factor_q, factor_k, seen, cap, LIMBS: tl.constexpr, CAPPED: tl.constexpr):
    """Logits to base 2 from dot products of unit rows."""
    unit: tl.constexpr = 1.0 if LIMBS == 1 else 2.0**-30
    x = scores.to(tl.float32) * (factor_q * unit)
    x = x * factor_k
    if CAPPED:
        inside = tl.where(x < 60.0, tl.where(x > -60.0, x, -60.0), 60.0)
        power = exp2(inside, 5, 0) + 1.0
        x = (1.0 - tl.div_rn(tl.zeros_like(power) + 2.0, power)) * cap
    return tl.where(seen, x, _MASKED)


@triton.jit(
    do_not_specialize=["queries", "keys", "longest_q", "longest_k", "splits", "kv_heads", "group", "scale", "cap"]
)
def _logits_kernel(
    q_ptr, q_norms_ptr, k_ptr, positions_ptr, cu_seqlens_q_ptr, cu_seqlens_k_ptr, tops_ptr, logits_ptr, stride_b,
    stride_h, stride_n, queries, keys, longest_q, longest_k, splits, kv_heads, group, scale, cap, CAUSAL: tl.constexpr,
    CAPPED: tl.constexpr, PACKED: tl.constexpr, D: tl.constexpr, LIMBS: tl.constexpr, LOW_BITS: tl.constexpr,
    ROWS: tl.constexpr, TILES: tl.constexpr, PARTS: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """Logits of at most ROWS query rows to one split of the keys, and the greatest. Keys are read once, as they are."""
    split = tl.program_id(0) % splits
    head = tl.program_id(0) // splits % kv_heads
    segment = (tl.program_id(0) // splits // kv_heads).to(tl.int64)
    sample = segment
    if PACKED:
        sample = segment - segment
    start_q, count = _segment(cu_seqlens_q_ptr, segment, queries, longest_q, PACKED)
    start_k, length = _segment(cu_seqlens_k_ptr, segment, keys, longest_k, PACKED)
    share = tl.cdiv(tl.cdiv(length, TILES), splits) * TILES
    end = tl.minimum((split + 1) * share, length)
    if (split * share < end) & (count > 0):
        first_head = (sample * kv_heads + head) * group
        index = tl.arange(0, ROWS)
        row, mask, factor, position = _query_rows(
            q_norms_ptr, positions_ptr, first_head, sample, start_q, index, count, length, queries, count * group,
            scale, CAUSAL,
        )  # fmt: skip
        kept_ptr = logits_ptr + _kept(first_head, index, count, longest_q) * keys + start_k
        k_ptr += tl.multiple_of(sample * stride_b + head * stride_h, VECTOR)
        units = ()
        for c in tl.static_range(CHUNKS):
            for limb in tl.static_range(LIMBS):
                units = units + (load_units(q_ptr, row, mask, c * WIDTH, D, LIMBS, limb, WIDTH),)
        best = tl.full((ROWS,), _MASKED, tl.float32)
        for n in range(split * share, end, TILES):
            column = n + tl.arange(0, TILES)
            column_mask = column < end
            chunks = load_rows(k_ptr, stride_n, start_k + column, column_mask, D, TILES, 1, CHUNKS, WIDTH, VECTOR)
            scale_k, length_k, unscale = scaled_norm(chunks, PARTS, CHUNKS, TILES, 1, WIDTH, VECTOR)
            # Rows of NaN and infinities are not seen, whatever comes out.
            inverse = tl.where(length_k > 0, tl.div_rn(tl.zeros_like(length_k) + 2048.0, length_k), 0.0)
            multiplier = expand(scale_k, TILES, WIDTH, VECTOR)
            inverse = expand(inverse, TILES, WIDTH, VECTOR)
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
            factor_k, usable = _of_norm(length_k * unscale, 1.0)
            # Every element of a row is the same.
            factor_k = tl.max(tl.where(usable, factor_k, -1.0), axis=1)
            seen = (factor_k >= 0)[None, :] & (column[None, :] <= position[:, None])
            x = _logits(scores, factor[:, None], factor_k[None, :], seen, cap, LIMBS, CAPPED)
            tl.store(kept_ptr[:, None] + column[None, :], x, mask=mask[:, None] & column_mask[None, :])
            if tops_ptr is not None:
                best = tl.maximum(best, tl.max(tl.where(column_mask[None, :], x, _MASKED), axis=1))
        if tops_ptr is not None:
            tl.atomic_max(tops_ptr + row, ordered_key(best), mask=mask, sem="relaxed")


@triton.jit(
    do_not_specialize=["queries", "keys", "longest_q", "longest_k", "splits", "kv_heads", "group", "scale", "cap"]
)
def _row_kernel(
    q_ptr, q_norms_ptr, k_ptr, k_norms_ptr, logits_ptr, positions_ptr, cu_seqlens_q_ptr, cu_seqlens_k_ptr, tops_ptr,
    sums_ptr, queries, keys, longest_q, longest_k, splits, kv_heads, group, scale, cap, SUM: tl.constexpr,
    CAUSAL: tl.constexpr, CAPPED: tl.constexpr, PACKED: tl.constexpr, D: tl.constexpr, LIMBS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Greatest logit of each query row, or the sum of 2^(logit − greatest), over one split of the keys.

    The query heads that share a key head are one long row of queries.
    """
    tiles = tl.cdiv(longest_q * group, BLOCK_M)
    tile = tl.program_id(0) % tiles
    split = tl.program_id(0) // tiles % splits
    head = tl.program_id(0) // tiles // splits % kv_heads
    segment = (tl.program_id(0) // tiles // splits // kv_heads).to(tl.int64)
    sample = segment
    if PACKED:
        sample = segment - segment
    start_q, count = _segment(cu_seqlens_q_ptr, segment, queries, longest_q, PACKED)
    start_k, length = _segment(cu_seqlens_k_ptr, segment, keys, longest_k, PACKED)
    key_rows = (sample * kv_heads + head) * keys + start_k
    index = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row, mask, factor, position = _query_rows(
        q_norms_ptr, positions_ptr, (sample * kv_heads + head) * group, sample, start_q, index, count, length, queries,
        count * group, scale, CAUSAL,
    )  # fmt: skip
    share = tl.cdiv(tl.cdiv(length, BLOCK_N), splits) * BLOCK_N
    end = tl.minimum((split + 1) * share, length)
    if CAUSAL:
        end = tl.minimum(end, tl.max(tl.where(mask, position, -1), axis=0) + 1)
        sees = tl.min(tl.where(mask, position, 0x7FFFFFFE), axis=0) + 1  # so many keys all rows do
    if split * share < end:
        if logits_ptr is not None:
            kept = _kept((sample * kv_heads + head) * group, index, count, longest_q) * keys + start_k
        if SUM:
            top = key_value(tl.load(tops_ptr + row, mask=mask, other=0))
            total = tl.zeros((BLOCK_M,), tl.int64)
        else:
            best = tl.full((BLOCK_M,), _MASKED, tl.float32)
        for n in range(split * share, end, BLOCK_N):
            column = n + tl.arange(0, BLOCK_N)
            column_mask = column < end
            if logits_ptr is not None:
                x = tl.load(
                    logits_ptr + kept[:, None] + column[None, :], mask=mask[:, None] & column_mask[None, :],
                    other=_MASKED,
                )  # fmt: skip
            else:
                factor_k, usable = _factor(k_norms_ptr, key_rows + column, column_mask, 1.0)
                scores = exact_dots(
                    q_ptr, row, mask, k_ptr, key_rows + column, column_mask, D, LIMBS, BLOCK_M, BLOCK_N, BLOCK_K
                )
                x = _logits(scores, factor[:, None], factor_k[None, :], usable[None, :], cap, LIMBS, CAPPED)
                if CAUSAL:
                    if n + BLOCK_N > sees:
                        x = tl.where(column[None, :] <= position[:, None], x, _MASKED)
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


@triton.jit(do_not_specialize=["rows", "queries", "heads", "scale"])
def _share_kernel(
    q_norms_ptr, positions_ptr, weights_ptr, lse_ptr, tops_ptr, sums_ptr, factors_ptr, shares_ptr, rows, queries, heads,
    scale, BLOCK: tl.constexpr,
):  # fmt: skip
    """Factors, greatest logits (in place) and weight / Σ 2^(logit − greatest) of queries.

    Of an unused query the greatest is above all logits, so that 2^x is finite, and the last is 0.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = row < rows
    query = row // (queries * heads) * queries + row % queries
    factor, used = _factor(q_norms_ptr, row, mask, scale)
    if positions_ptr is not None:
        used = used & (tl.load(positions_ptr + query, mask=mask, other=-1) >= 0)
    if lse_ptr is not None:
        top = tl.load(lse_ptr + row, mask=mask, other=float("inf")) * 1.4426950408889634
        used = used & (tl.abs(top) < float("inf"))
        share = tl.full((BLOCK,), 1.0, tl.float32)
    else:
        top = key_value(tl.load(tops_ptr + row, mask=mask, other=-(1 << 31)))
        total = tl.load(sums_ptr + row, mask=mask, other=0).to(tl.float32)
        used = used & (top > _MASKED)
        share = tl.div_rn(tl.full((BLOCK,), 1073741824.0, tl.float32), total)
    if weights_ptr is not None:
        share = share * tl.load(weights_ptr + query, mask=mask, other=0.0)
    tl.store(factors_ptr + row, factor, mask=mask)
    tl.store(tops_ptr + row, tl.where(used, top, -_MASKED).to(tl.int32, bitcast=True), mask=mask)
    tl.store(shares_ptr + row, tl.where(used, share, 0.0), mask=mask)


@triton.jit
def _probabilities(
    k_ptr, k_norms_ptr, logits_ptr, key_row, key, key_mask, q_ptr, factors_ptr, tops_ptr, shares_ptr, row, kept, mask,
    position, crosses, cap, CAUSAL: tl.constexpr, CAPPED: tl.constexpr, CLAMP: tl.constexpr, D: tl.constexpr,
    LIMBS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Attention that the keys [BLOCK_M] get from the queries [BLOCK_N] of a head: int32 in units of 2⁻³⁰.

    Whether it `crosses` tells that some of these queries may not see some of these keys.
    """
    top = tl.load(tops_ptr + row, mask=mask, other=0).to(tl.float32, bitcast=True)
    share = tl.load(shares_ptr + row, mask=mask, other=0.0)
    if logits_ptr is not None:
        x = tl.load(logits_ptr + kept[None, :] + key[:, None], mask=key_mask[:, None] & mask[None, :], other=_MASKED)
    else:
        factor_k, usable = _factor(k_norms_ptr, key_row, key_mask, 1.0)
        factor = tl.load(factors_ptr + row, mask=mask, other=0.0)
        scores = exact_dots(k_ptr, key_row, key_mask, q_ptr, row, mask, D, LIMBS, BLOCK_M, BLOCK_N, BLOCK_K)
        x = _logits(scores, factor[None, :], factor_k[:, None], usable[:, None], cap, LIMBS, CAPPED)
        if CAUSAL:
            if crosses:
                x = tl.where(key[:, None] <= position[None, :], x, _MASKED)
    x = tl.maximum(x - top[None, :], -32.0)
    if CLAMP:
        x = tl.minimum(x, 0.0)
    return (exp2(x, 3 if LIMBS == 1 else 5, 30) * share[None, :] + 0.5).to(tl.int32)


@triton.jit(
    do_not_specialize=[
        "queries", "keys", "longest_q", "longest_k", "splits", "heads", "kv_heads", "cap", "key_start",
        "key_stop", "out_heads",
    ]
)  # fmt: skip
def _column_kernel(
    q_ptr, k_ptr, k_norms_ptr, logits_ptr, factors_ptr, tops_ptr, shares_ptr, positions_ptr, weights_ptr,
    cu_seqlens_q_ptr, cu_seqlens_k_ptr, totals_ptr, queries, keys, longest_q, longest_k, key_start, key_stop, splits,
    heads, kv_heads, out_heads, cap, JOINED: tl.constexpr, HEADS: tl.constexpr, REDUCTION: tl.constexpr,
    CAUSAL: tl.constexpr, CAPPED: tl.constexpr, CLAMP: tl.constexpr, PACKED: tl.constexpr, D: tl.constexpr,
    LIMBS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Attention received by BLOCK_M keys from one split of the queries: its sum, or the greatest.

    A program takes one head, or JOINED heads one after another, which share a key head where logits are not kept, or
    with HEADS ("sum", "max", "rms") all heads at a time, reduced before queries are.
    """
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
    start_q, count = _segment(cu_seqlens_q_ptr, segment, queries, longest_q, PACKED)
    start_k, length = _segment(cu_seqlens_k_ptr, segment, keys, longest_k, PACKED)
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
    if (first < length) & (begin < end):
        total = tl.zeros((BLOCK_M,), tl.int64)
        for i in range(begin, end, BLOCK_N):
            index = i + tl.arange(0, BLOCK_N)
            mask = index < rows
            place = index
            row = index
            if JOINED > 1:
                place = index % count
                if PACKED:
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
                    first_head * queries + start_q + row, _kept(first_head, index, count, longest_q) * keys + start_k,
                    mask, position, crosses, cap, CAUSAL, CAPPED, CLAMP, D, LIMBS, BLOCK_M, BLOCK_N, BLOCK_K,
                ).to(tl.int64)  # fmt: skip
            else:
                p = tl.zeros((BLOCK_M, BLOCK_N), tl.float32 if HEADS == "rms" else tl.int64)
                for h in range(0, heads):
                    key_row = (sample * kv_heads + h // group) * keys + start_k + key
                    x = _probabilities(
                        k_ptr, k_norms_ptr, logits_ptr, key_row, key, key_mask, q_ptr, factors_ptr, tops_ptr,
                        shares_ptr, (sample * heads + h) * queries + start_q + row,
                        ((sample * heads + h) * longest_q + place) * keys + start_k, mask, position, crosses, cap,
                        CAUSAL, CAPPED, CLAMP, D, LIMBS, BLOCK_M, BLOCK_N, BLOCK_K,
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


@triton.jit(
    do_not_specialize=["queries", "keys", "longest_q", "longest_k", "heads", "key_start", "key_stop", "out_heads"]
)
def _finish_kernel(
    totals_ptr, unscales_ptr, counts_ptr, cu_seqlens_q_ptr, cu_seqlens_k_ptr, out_ptr, queries, keys, longest_q,
    longest_k, key_start, key_stop, heads, out_heads, HEADS: tl.constexpr, MEAN: tl.constexpr, DIVIDE: tl.constexpr,
    WEIGHTED: tl.constexpr, CAUSAL: tl.constexpr, PACKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Scores from the integers of one or of all heads."""
    tiles = tl.cdiv(tl.minimum(key_stop, longest_k) - key_start, BLOCK)
    segment = (tl.program_id(0) // tiles).to(tl.int64)
    sample = segment
    if PACKED:
        sample = segment - segment
    _, count = _segment(cu_seqlens_q_ptr, segment, queries, longest_q, PACKED)
    start, length = _segment(cu_seqlens_k_ptr, segment, keys, longest_k, PACKED)
    key = key_start + (tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)
    mask = (key < length) & (key < key_stop)
    divisor = tl.zeros((BLOCK,), tl.int64) + count
    if counts_ptr is not None:
        divisor = tl.load(counts_ptr + sample * keys + start + key, mask=mask, other=0)
    elif CAUSAL:
        divisor = tl.minimum(divisor, length - key)
    divisor = divisor.to(tl.float32)
    if WEIGHTED:
        divisor = divisor * (1.0 / 1073741824.0)
    score = tl.zeros((BLOCK,), tl.float32)
    for h in range(0, out_heads):
        total = tl.load(totals_ptr + (sample * out_heads + h) * keys + start + key, mask=mask, other=0)
        x = total.to(tl.float32) * (1.0 / 1073741824.0)
        if unscales_ptr is not None:
            x = x * tl.load(unscales_ptr + sample * out_heads + h)
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
    tl.store(out_ptr + sample * keys + start + key, score, mask=mask)


def attention_config(features: int, limbs: int, rows: int, by_tile: bool) -> tuple[dict, dict]:
    """Tiles of queries by keys for the rows, and of keys by queries for the columns, whose logits stay in registers."""
    few = rows <= FEW
    wide = 64 if limbs == 1 else 32
    block = min(max(16, next_power_of_2(features)), wide)
    # A sixth fewer instructions; elsewhere tiles of this width spill with some head dimension or option.
    many = 128 if limbs == 1 and target_arch() == 90 else wide
    row = {"BLOCK_M": 16, "BLOCK_N": 2 * wide if limbs == 1 else wide} if few else {"BLOCK_M": 64, "BLOCK_N": many}
    # Where heads are reduced first, a second tile of sums is alive.
    column = {"BLOCK_M": 64, "BLOCK_N": 16 if few else wide // 2 if by_tile else many}
    launch = {"BLOCK_K": block, "num_warps": 4, "num_stages": 2, **_registers(features > 128)}
    return {**row, **launch}, {**column, **launch}


def _registers(long_rows: bool) -> dict:
    return {"maxnreg": 255} if (_OLD or long_rows) and isinstance(target_arch(), int) else {}


def kept_config(rows: int, joined: int) -> tuple[dict, dict]:
    """The same tiles where logits are read, of so many rows of a key head and of a column: 4 logits a thread."""
    row, column = (min(FEW, next_power_of_2(count)) for count in (rows, joined))
    launch = {"BLOCK_K": 16, "num_warps": 4, "num_stages": 2}
    return (
        {"BLOCK_M": row, "BLOCK_N": 512 // row, **launch},
        {"BLOCK_M": 512 // column, "BLOCK_N": column, **launch},
    )


def logits_tiles(key: Tensor, limbs: int) -> Optional[dict]:
    """Arguments of `_logits_kernel` for keys `[B, H, N, D]`; None where rows are too short or too long for it."""
    features = key.shape[3]
    if not 8 < features <= 256 // limbs or features * key.element_size() > 512:
        return None
    # Products of two limbs are exact over 64 features at a time.
    load_bytes = 16 if limbs == 1 or features <= 64 else 2 * key.element_size()
    tiles = row_tiles([key], 4 if features <= 128 else 8, load_bytes)
    del tiles["BLOCKS"]
    # Fewer than 32 keys would be repeated over the warps of a product.
    return {**tiles, **_registers(False), "TILES": max(32, 4096 // limbs // (tiles["PARTS"] * tiles["WIDTH"]))}


def attention_splits(programs: int, length: int, tile: int) -> int:
    """Parts of a loop over `length`, for some 500 programs of at least two tiles, or four where those are narrow."""
    return max(1, min(cdiv(512, max(1, programs)), length // max(2 * tile, min(4 * tile, 256))))


def _prepare(
    query: Tensor,
    key: Tensor,
    positions: Optional[Tensor],
    weights: Optional[Tensor],
    log_sum_exp: Optional[Tensor],
    cu_seqlens_q: Optional[Tensor],
    cu_seqlens_k: Optional[Tensor],
    segments: int,
    sizes: tuple[int, int, int, int],
    scale: float,
    cap: float,
    row: dict,
    common: dict,
    tiles: Optional[dict] = None,
) -> tuple[tuple[Optional[Tensor], ...], Tensor]:
    """(units of q, units and norms of k, logits, factors and greatest logits; shares): what columns are computed from.

    Given `tiles`, logits are kept and nothing else of the keys.
    """
    heads, kv_heads = query.shape[1], key.shape[1]
    queries, keys, max_seqlen_q, max_seqlen_k = sizes
    group = heads // kv_heads
    q_units, q_norms = unit_rows(query, common["LIMBS"], LOW_BITS)
    tops = torch.full(query.shape[:3], -(1 << 31), dtype=torch.int32, device=query.device)
    sums = logits = k_units = k_norms = None
    if tiles is not None:
        logits = torch.empty(query.shape[0], heads, max_seqlen_q, keys, dtype=torch.float32, device=query.device)
        splits = attention_splits(segments * kv_heads, max_seqlen_k, tiles["TILES"])
        launch(
            _logits_kernel, segments * kv_heads * splits,
            q_units, q_norms, key, positions, cu_seqlens_q, cu_seqlens_k, tops if log_sum_exp is None else None, logits,
            *key.stride()[:3], *sizes, splits, kv_heads, group, scale, cap, LOW_BITS=LOW_BITS, ROWS=FEW, **tiles,
            **common,
        )  # fmt: skip
    else:
        k_units, k_norms = unit_rows(key, common["LIMBS"], LOW_BITS)
    if log_sum_exp is None:
        sums = torch.zeros(query.shape[:3], dtype=torch.int64, device=query.device)
        programs = segments * kv_heads * cdiv(max_seqlen_q * group, row["BLOCK_M"])
        splits = attention_splits(programs, max_seqlen_k, row["BLOCK_N"])
        for is_sum in (False, True) if logits is None else (True,):
            launch(
                _row_kernel, programs * splits,
                q_units, q_norms, k_units, k_norms, logits, positions, cu_seqlens_q, cu_seqlens_k, tops, sums, *sizes,
                splits, kv_heads, group, scale, cap, SUM=is_sum, **row, **common,
            )  # fmt: skip
    factors = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
    shares = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
    launch(
        _share_kernel, cdiv(shares.numel(), 1024),
        q_norms, positions, weights, log_sum_exp, tops, sums, factors, shares, shares.numel(), queries, heads, scale,
        BLOCK=1024,
    )  # fmt: skip
    return (q_units, k_units, k_norms, logits, factors, tops), shares


def attention_importance(
    query: Tensor,
    key: Tensor,
    positions: Optional[Tensor],
    weights: Optional[Tensor],
    log_sum_exp: Optional[Tensor],
    counts: Optional[Tensor],
    cu_seqlens_q: Optional[Tensor],
    cu_seqlens_k: Optional[Tensor],
    max_seqlen_q: int,
    max_seqlen_k: int,
    key_start: int,
    key_stop: int,
    causal: bool,
    scale: float,
    cap: float,
    limbs: int,
    head_reduction: str,
    query_reduction: str,
    heads_first: bool,
) -> Tensor:
    batch, heads, queries, features = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    device = query.device
    packed = cu_seqlens_q is not None
    segments = len(cu_seqlens_q) - 1 if cu_seqlens_q is not None else batch
    span = min(key_stop, max_seqlen_k) - key_start
    made = torch.zeros if packed or span < keys or not heads * max_seqlen_q else torch.empty
    out = made(batch, keys, dtype=torch.float32, device=device)
    if span <= 0 or not segments * heads * max_seqlen_q:
        return out
    group = heads // kv_heads
    same = head_reduction != "rms" and (head_reduction == "max") == (query_reduction == "max")
    by_tile = heads_first and not same
    # Heads that share a key head are one row of queries, but where many queries see the later keys only.
    joined = group if same and (not causal or max_seqlen_q <= 64) else 1
    out_heads = 1 if same or by_tile else heads
    positions, weights, log_sum_exp, counts = (
        None if x is None else x.contiguous() for x in (positions, weights, log_sum_exp, counts)
    )
    row, column = attention_config(features, limbs, max_seqlen_q * group, by_tile)
    tiles = logits_tiles(key, limbs) if max_seqlen_q * group <= FEW else None
    if tiles is not None:
        joined = heads if same else 1
        row, column = kept_config(max_seqlen_q * group, max_seqlen_q * joined)
    common = {"CAUSAL": causal, "CAPPED": cap != 0, "PACKED": packed, "D": features, "LIMBS": limbs}
    sizes = (queries, keys, max_seqlen_q, max_seqlen_k)
    operands, shares = _prepare(
        query, key, positions, None if by_tile else weights, log_sum_exp, cu_seqlens_q, cu_seqlens_k, segments, sizes,
        scale, cap, row, common, tiles,
    )  # fmt: skip
    totals = torch.zeros(batch, out_heads, keys, dtype=torch.int64, device=device)
    programs = segments * (1 if by_tile else heads // joined) * cdiv(span, column["BLOCK_M"])
    splits = attention_splits(programs, max_seqlen_q * joined, column["BLOCK_N"])
    launch(
        _column_kernel, programs * splits,
        *operands, shares, positions, weights if by_tile else None, cu_seqlens_q, cu_seqlens_k, totals, *sizes,
        key_start, key_stop, splits, heads, kv_heads, out_heads, cap, JOINED=joined,
        HEADS=head_reduction if by_tile else "", REDUCTION="max" if query_reduction == "max" else "sum",
        CLAMP=log_sum_exp is not None, **column, **common,
    )  # fmt: skip
    launch(
        _finish_kernel, segments * cdiv(span, 256),
        totals, None, counts, cu_seqlens_q, cu_seqlens_k, out, *sizes, key_start, key_stop, heads, out_heads,
        HEADS="sum" if by_tile else head_reduction, MEAN=query_reduction == "mean",
        DIVIDE=head_reduction == "mean" or (head_reduction == "rms" and not by_tile), WEIGHTED=weights is not None,
        CAUSAL=causal, PACKED=packed, BLOCK=256,
    )  # fmt: skip
    return out


@triton.jit
def _below_one(largest):
    """Powers of two (s, 1/s) that bring numbers below 1, from the bits of the largest, which is at most 2⁶⁰."""
    exponent = largest >> 23
    return ((253 - exponent) << 23).to(tl.float32, bitcast=True), ((exponent + 1) << 23).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["tokens", "words", "scale"])
def _relevance_kernel(
    tokens_ptr, norms_ptr, text_ptr, text_norms_ptr, out_ptr, tokens, words, scale, MEAN: tl.constexpr,
    D: tl.constexpr, LIMBS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Greatest or mean dot product of BLOCK_M tokens with all text rows."""
    tiles = tl.cdiv(tokens, BLOCK_M)
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    token = (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = token < tokens
    factor, finite = _factor(norms_ptr, sample * tokens + token, mask, scale)
    if MEAN:
        largest = tl.zeros((BLOCK_N,), tl.int32)
        counts = tl.zeros((BLOCK_N,), tl.int32)
        for n in range(0, words, BLOCK_N):
            word = n + tl.arange(0, BLOCK_N)
            factor_k, usable = _factor(text_norms_ptr, sample * words + word, word < words, 1.0)
            largest = tl.maximum(largest, factor_k.to(tl.int32, bitcast=True))
            counts += usable.to(tl.int32)
        down, up = _below_one(tl.max(largest, axis=0))
        total = tl.zeros((BLOCK_M,), tl.int64)
    else:
        best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    for n in range(0, words, BLOCK_N):
        word = n + tl.arange(0, BLOCK_N)
        word_mask = word < words
        factor_k, usable = _factor(text_norms_ptr, sample * words + word, word_mask, 1.0)
        scores = exact_dots(
            tokens_ptr, sample * tokens + token, mask, text_ptr, sample * words + word, word_mask, D, LIMBS, BLOCK_M,
            BLOCK_N, BLOCK_K,
        )  # fmt: skip
        x = scores
        if LIMBS == 2:
            x = scores.to(tl.float32) * (1.0 / 1073741824.0)
        if MEAN:
            x = x * (factor_k * down)[None, :]
            # Rows of no use have a factor of 0. Not `tl.floor`, which flushes subnormals.
            x = x * 1073741824.0 + 0.5
            fixed = x.to(tl.int32)
            fixed -= (fixed.to(tl.float32) > x).to(tl.int32)
            total += tl.sum(fixed.to(tl.int64), axis=1)
        else:
            x = x * factor[:, None]
            x = x * factor_k[None, :]
            best = tl.maximum(best, tl.max(tl.where(usable[None, :], x, float("-inf")), axis=1))
    if MEAN:
        count = tl.zeros((BLOCK_M,), tl.float32) + tl.sum(counts, axis=0)
        mean = tl.div_rn(total.to(tl.float32) * (1.0 / 1073741824.0), tl.where(count > 0, count, 1.0))
        best = mean * factor * up
    # A zero is +0.
    tl.store(out_ptr + sample * tokens + token, tl.where(finite, best + 0.0, float("nan")), mask=mask)


def text_relevance(tokens: Tensor, text: Tensor, reduction: str, scale: float, limbs: int) -> Tensor:
    batch, count, features = tokens.shape
    out = torch.empty(batch, count, dtype=torch.float32, device=tokens.device)
    if not out.numel():
        return out
    units, norms = unit_rows(tokens, limbs, LOW_BITS)
    text_units, text_norms = unit_rows(text, limbs, LOW_BITS)
    # The mean holds wider numbers. Longer rows need more registers in the row and column kernels only.
    _, config = attention_config(min(features, 128), limbs, count, by_tile=reduction == "mean")
    launch(
        _relevance_kernel, batch * cdiv(count, config["BLOCK_M"]),
        units, norms, text_units, text_norms, out, count, text.shape[1], scale, MEAN=reduction == "mean", D=features,
        LIMBS=limbs, **config,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["tokens", "step"])
def _step_kernel(totals_ptr, unscales_ptr, shares_ptr, weighted_ptr, tokens, step, BLOCK: tl.constexpr):
    """Before a step, of one head: shares times p, brought below 1 by a power of two, and the totals back to 0."""
    head = tl.program_id(0).to(tl.int64)
    unscales_ptr += step * tl.num_programs(0) + head
    unscale = tl.load(unscales_ptr)
    largest = tl.zeros((BLOCK,), tl.int64)
    for n in range(0, tokens, BLOCK):
        token = n + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.load(totals_ptr + head * tokens + token, mask=token < tokens, other=0))
    largest = tl.max(largest, axis=0).to(tl.float32) * (1.0 / 1073741824.0) * unscale
    down, up = _below_one(largest.to(tl.int32, bitcast=True))
    tl.store(unscales_ptr + tl.num_programs(0), up)
    for n in range(0, tokens, BLOCK):
        token = n + tl.arange(0, BLOCK)
        at = head * tokens + token
        mask = token < tokens
        total = tl.load(totals_ptr + at, mask=mask, other=0)
        p = total.to(tl.float32) * (1.0 / 1073741824.0) * unscale
        share = tl.load(shares_ptr + at, mask=mask, other=0.0)
        tl.store(weighted_ptr + at, share * (p * down), mask=mask)
        tl.store(totals_ptr + at, tl.zeros_like(total), mask=mask)


def attention_walk(query: Tensor, key: Tensor, steps: int, scale: float, limbs: int, head_reduction: str) -> Tensor:
    batch, heads, tokens, features = query.shape
    kv_heads = key.shape[1]
    out = torch.empty(batch, tokens, dtype=torch.float32, device=query.device)
    if not out.numel():
        return out
    row, column = attention_config(features, limbs, tokens * (heads // kv_heads), False)
    common = {"CAUSAL": False, "CAPPED": False, "PACKED": False, "D": features, "LIMBS": limbs}
    sizes = (tokens, tokens, tokens, tokens)
    # p is total · 2⁻³⁰ · unscale.
    totals = torch.full((batch, heads, tokens), 1 << 30, dtype=torch.int64, device=query.device)
    unscales = torch.full((steps + 1, batch, heads), 1 / tokens, dtype=torch.float32, device=query.device)
    if steps:
        operands, shares = _prepare(
            query, key, None, None, None, None, None, batch, sizes, scale, 0.0, row, common
        )  # fmt: skip
        weighted = torch.empty_like(shares)
        programs = batch * heads * cdiv(tokens, column["BLOCK_M"])
        splits = attention_splits(programs, tokens, column["BLOCK_N"])
    for step in range(steps):
        launch(_step_kernel, batch * heads, totals, unscales, shares, weighted, tokens, step, BLOCK=1024)
        launch(
            _column_kernel, programs * splits,
            *operands, weighted, None, None, None, None, totals, *sizes, 0, tokens, splits, heads, kv_heads, heads,
            0.0, JOINED=1, HEADS="", REDUCTION="sum", CLAMP=False, **column, **common,
        )  # fmt: skip
    launch(
        _finish_kernel, batch * cdiv(tokens, 256),
        totals, unscales[steps], None, None, None, out, *sizes, 0, tokens, heads, heads, HEADS=head_reduction,
        MEAN=False, DIVIDE=head_reduction in ("mean", "rms"), WEIGHTED=False, CAUSAL=False, PACKED=False, BLOCK=256,
    )  # fmt: skip
    return out
