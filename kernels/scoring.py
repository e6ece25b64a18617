"""A score per token from its own features, and scores combined."""

from collections.abc import Sequence
from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import NO_KEY, cdiv, highest_bit, key_value, ordered_key, segment_of, widen
from .launch import launch
from .rows import expand, features, load_rows, row_reduce, row_sum, scaled_norm, store_rows
from .tiles import combine_tiles, row_tiles


@triton.jit
def _minus(chunks, x, ROW: tl.constexpr):
    """chunks − x where there are features, +0 elsewhere."""
    out = ()
    for c in tl.static_range(ROW.CHUNKS):
        difference = chunks[c] - x
        if (ROW.BLOCKS > 1 or (c + 1) * ROW.WIDTH > ROW.D) and ROW.D != ROW.BLOCKS * ROW.CHUNKS * ROW.WIDTH:
            difference = tl.where(features(c, ROW) < ROW.D, difference, 0.0)
        out = out + (difference,)
    return out


@triton.jit
def moments(chunks, first, ROW: tl.constexpr):
    """(mean, rest, Σ((x − mean) − rest)²), spread, of rows held in registers; `first` is their first feature, spread.

    rest = Σ(x − mean) / D; where all features are one finite number: that number, 0 and 0.
    """
    bits = first.to(tl.int32, bitcast=True)
    pivot = expand(bits, ROW)
    differs = tl.zeros((ROW.TILES, ROW.WIDTH), tl.int32)
    for c in tl.static_range(ROW.CHUNKS):
        differing = chunks[c].to(tl.int32, bitcast=True) ^ pivot
        if (ROW.BLOCKS > 1 or (c + 1) * ROW.WIDTH > ROW.D) and ROW.D != ROW.BLOCKS * ROW.CHUNKS * ROW.WIDTH:
            differing = tl.where(features(c, ROW) < ROW.D, differing, 0)
        differs = differs | differing
    constant = row_reduce((differs,), "or", ROW) == 0
    constant = constant & ((bits & 0x7FFFFFFF) < 0x7F800000)

    size = tl.full((ROW.TILES, ROW.WIDTH // ROW.VECTOR), ROW.D, tl.float32)
    mean = tl.div_rn(row_sum(chunks, ROW), size)
    deviations = _minus(chunks, expand(mean, ROW), ROW)
    rest = tl.div_rn(row_sum(deviations, ROW), size)
    deviations = _minus(deviations, expand(rest, ROW), ROW)
    squares = ()
    for c in tl.static_range(ROW.CHUNKS):
        squares = squares + (deviations[c] * deviations[c],)
    result = row_sum(squares, ROW)
    return tl.where(constant, first + 0.0, mean), tl.where(constant, 0.0, rest), tl.where(constant, 0.0, result)


@triton.jit
def _score_kernel(
    level_ptrs, strides_b, strides_n, sizes, out_ptr, total,
    STATISTIC: tl.constexpr, AS_KEY: tl.constexpr, CORRECTION: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    """out[b, start of the level + n] = score of level[b, n]; a program scores TILES // BLOCKS tokens of one level."""
    D: tl.constexpr = ROW.D
    TILES: tl.constexpr = ROW.TILES
    ROWS: tl.constexpr = ROW.TILES // ROW.BLOCKS
    LANES: tl.constexpr = ROW.WIDTH // ROW.VECTOR
    programs = tl.cdiv(sizes[0], ROWS)
    for level in tl.static_range(1, len(sizes)):
        programs += tl.cdiv(sizes[level], ROWS)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    pid = tl.program_id(0) % programs

    # Strides are widened, since a level of its own may have a stride past 2^31.
    x_ptr = level_ptrs[0]
    stride_b = tl.zeros((), tl.int64) + strides_b[0]
    stride_n = tl.zeros((), tl.int64) + strides_n[0]
    size = sizes[0]
    program = pid
    begin = tl.cdiv(sizes[0], ROWS)
    start = sizes[0]
    out_start = start - start
    for level in tl.static_range(1, len(sizes)):
        if pid >= begin:
            x_ptr = level_ptrs[level]
            stride_b = tl.zeros((), tl.int64) + strides_b[level]
            stride_n = tl.zeros((), tl.int64) + strides_n[level]
            size = sizes[level]
            program = pid - begin
            out_start = start
        begin += tl.cdiv(sizes[level], ROWS)
        start += sizes[level]

    token = program * ROWS + tl.arange(0, TILES) // ROW.BLOCKS  # [TILES]
    mask = token < size
    x_ptr += tl.multiple_of(sample * stride_b, ROW.VECTOR)
    if STATISTIC == "norm":
        chunks = load_rows(x_ptr, stride_n, token, mask, ROW)
        _, length, unscale = scaled_norm(chunks, ROW)
        score = length * unscale
    elif STATISTIC == "magnitude":
        chunks = load_rows(x_ptr, stride_n, token, mask, ROW)
        magnitudes = ()
        for c in tl.static_range(ROW.CHUNKS):
            bits = chunks[c].to(tl.int32, bitcast=True) & 0x7FFFFFFF
            magnitudes = magnitudes + (bits.to(tl.float32, bitcast=True),)
        score = row_sum(magnitudes, ROW)
    else:
        spread = tl.broadcast_to((token.to(tl.int64) * stride_n)[:, None], (TILES, LANES))
        score = widen(tl.load(x_ptr + spread, mask=mask[:, None], other=0))
        if STATISTIC == "variance" and D <= CORRECTION:
            score = tl.full((TILES, LANES), float("nan"), tl.float32)
        elif STATISTIC == "variance":
            chunks = load_rows(x_ptr, stride_n, token, mask, ROW)
            _, _, score = moments(chunks, score, ROW)
            score = tl.div_rn(score, tl.full((TILES, LANES), D - CORRECTION, tl.float32))
    if AS_KEY:
        score = ordered_key(score)
    ptrs = out_ptr + (sample * total + out_start + token)[:, None]
    store_rows(ptrs, score, mask, ROW)


def score_levels(levels: Sequence[Tensor], statistic: str, correction: int, out: Tensor) -> None:
    """Scores of all levels into `out` `[B, ΣN]`: float32, or ordered keys where `out` is int32.

    `statistic` "given" takes the levels as scores `[B, N]`.
    """
    levels = [level[:, :, None] if statistic == "given" else level for level in levels if level.shape[1]]
    if not levels or not out.shape[0]:
        return
    tiles = row_tiles(levels)
    rows = tiles["ROW"].TILES // tiles["ROW"].BLOCKS
    sizes = tuple(level.shape[1] for level in levels)
    strides_b, strides_n, _ = zip(*(x.stride() for x in levels), strict=True)
    programs = out.shape[0] * sum(cdiv(size, rows) for size in sizes)
    launch(
        _score_kernel, programs,
        tuple(levels), strides_b, strides_n, sizes, out, out.shape[1], STATISTIC=statistic,
        AS_KEY=out.dtype == torch.int32, CORRECTION=correction, **tiles,
    )  # fmt: skip


def token_variance(features: Tensor, correction: int) -> Tensor:
    scores = torch.empty(features.shape[:2], dtype=torch.float32, device=features.device)
    score_levels([features], "variance", correction, scores)
    return scores


def token_norm(features: Tensor, p: int) -> Tensor:
    scores = torch.empty(features.shape[:2], dtype=torch.float32, device=features.device)
    score_levels([features], "norm" if p == 2 else "magnitude", 0, scores)
    return scores


@triton.jit
def _tile(cu_ptr, tokens, segments, top_bit, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(sample, token, segment, whether there is a token in a segment) of a program: [ROWS, COLUMNS].

    A segment is a sample; with offsets, the last segment that does not begin after the token. What is past the last
    token is in its segment, which leaves rows of one segment as they are.
    """
    programs = tl.cdiv(tokens, ROWS * COLUMNS)
    sample = tl.program_id(0) // programs
    row = tl.program_id(0) % programs * ROWS + tl.arange(0, ROWS)
    token = row[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    segment = tl.zeros((ROWS, COLUMNS), tl.int32) + sample
    live = token < tokens
    if cu_ptr is not None:
        segment = segment_of(cu_ptr, tl.minimum(token, tokens - 1), segments, top_bit)
        live = live & (segment >= 0) & (segment < segments)
    return sample.to(tl.int64), token, segment, live


@triton.jit
def _is_finite(x):
    return (x.to(tl.int32, bitcast=True) & 0x7FFFFFFF) < 0x7F800000


@triton.jit(do_not_specialize=["segments", "top_bit"])
def _limits_kernel(
    score_ptrs, strides_b, strides_n, cu_ptr, limits_ptr, tokens, segments, top_bit,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """limits[segment, k] = largest key of the finite scores k of a segment, and largest complement of a key."""
    sample, token, segment, live = _tile(cu_ptr, tokens, segments, top_bit, ROWS, COLUMNS)
    # A row of one segment makes one update, any other one for each token.
    first = tl.min(segment, 1)
    whole = first == tl.max(segment, 1)
    alone = live & (tl.where(whole, 0, 1) == 1)[:, None]
    for k in tl.static_range(len(score_ptrs)):
        at = score_ptrs[k] + sample * strides_b[k] + token.to(tl.int64) * strides_n[k]
        x = widen(tl.load(at, mask=token < tokens, other=0))
        usable = live & _is_finite(x)
        key = ordered_key(x)
        for side in tl.static_range(2):
            value = tl.where(usable, key ^ -side, NO_KEY)
            largest = tl.max(value, 1)
            ptr = limits_ptr + 2 * k + side
            each = 2 * len(score_ptrs)
            tl.atomic_max(ptr + first.to(tl.int64) * each, largest, mask=whole & (largest > NO_KEY), sem="relaxed")
            if cu_ptr is not None:
                tl.atomic_max(ptr + segment.to(tl.int64) * each, value, mask=alone & usable, sem="relaxed")


@triton.jit(do_not_specialize=["segments", "top_bit"])
def _combine_scores_kernel(
    score_ptrs, strides_b, strides_n, weights, cu_ptr, limits_ptr, out_ptr, tokens, segments, top_bit,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    sample, token, segment, live = _tile(cu_ptr, tokens, segments, top_bit, ROWS, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in tl.static_range(len(score_ptrs)):
        at = score_ptrs[k] + sample * strides_b[k] + token.to(tl.int64) * strides_n[k]
        x = widen(tl.load(at, mask=token < tokens, other=0))
        if limits_ptr is not None:
            limit_ptr = limits_ptr + segment.to(tl.int64) * (2 * len(score_ptrs)) + 2 * k
            high = key_value(tl.load(limit_ptr, mask=live, other=0))
            low = key_value(tl.load(limit_ptr + 1, mask=live, other=0) ^ -1)
            scale = tl.where(high - low < float("inf"), 1.0, 0.5)
            start = low * scale
            span = tl.where(high > low, high * scale - start, float("inf"))
            y = tl.where(_is_finite(x), tl.div_rn(x * scale - start, span), 0.0)
            y = tl.where(x == float("inf"), 1.0, y)
            x = tl.where(x == x, y, x)
        total = total + x * weights[k]
    total = tl.where(live, total, 0.0)
    tl.store(out_ptr + sample * tokens + token, total, mask=token < tokens)


def combine_scores(
    scores: Sequence[Tensor], weights: Sequence[float], normalize: bool, cu_seqlens: Optional[Tensor]
) -> Tensor:
    batch, tokens = scores[0].shape
    device = scores[0].device
    out = torch.empty(batch, tokens, dtype=torch.float32, device=device)
    if not out.numel():
        return out
    segments = batch if cu_seqlens is None else len(cu_seqlens) - 1
    tiles = combine_tiles(tokens)
    programs = batch * cdiv(tokens, tiles["ROWS"] * tiles["COLUMNS"])
    tensors = tuple(scores), tuple(x.stride(0) for x in scores), tuple(x.stride(1) for x in scores)
    limits, top = None, highest_bit(segments)
    if normalize:
        limits = torch.full((segments, len(scores), 2), NO_KEY.value, dtype=torch.int32, device=device)
        launch(_limits_kernel, programs, *tensors, cu_seqlens, limits, tokens, segments, top, **tiles)
    launch(
        _combine_scores_kernel, programs,
        *tensors, tuple(weights), cu_seqlens, limits, out, tokens, segments, top, **tiles,
    )  # fmt: skip
    return out
