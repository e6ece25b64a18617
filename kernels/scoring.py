"""A score per token from its own features: one read of the features, rows kept in registers."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .numerics import (
    LAUNCH,
    expand,
    features,
    load_rows,
    ordered_key,
    row_reduce,
    row_sum,
    row_tiles,
    scaled_norm,
    store_rows,
    widen,
)


@triton.jit
def _minus(
    chunks, x, D: tl.constexpr, TILES: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """chunks − x where there are features, +0 elsewhere."""
    out = ()
    for c in tl.static_range(CHUNKS):
        difference = chunks[c] - x
        if (BLOCKS > 1 or (c + 1) * WIDTH > D) and D != BLOCKS * CHUNKS * WIDTH:
            difference = tl.where(features(c, TILES, BLOCKS, CHUNKS, WIDTH) < D, difference, 0.0)
        out = out + (difference,)
    return out


@triton.jit
def moments(
    chunks, first, D: tl.constexpr, PARTS: tl.constexpr, CHUNKS: tl.constexpr, TILES: tl.constexpr,
    BLOCKS: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """(mean, rest, Σ((x − mean) − rest)²), spread, of rows held in registers; `first` is their first feature, spread.

    rest = Σ(x − mean) / D; where all features are one finite number: that number, 0 and 0.
    """
    bits = first.to(tl.int32, bitcast=True)
    pivot = expand(bits, TILES, WIDTH, VECTOR)
    differs = tl.zeros((TILES, WIDTH), tl.int32)
    for c in tl.static_range(CHUNKS):
        differing = chunks[c].to(tl.int32, bitcast=True) ^ pivot
        if (BLOCKS > 1 or (c + 1) * WIDTH > D) and D != BLOCKS * CHUNKS * WIDTH:
            differing = tl.where(features(c, TILES, BLOCKS, CHUNKS, WIDTH) < D, differing, 0)
        differs = differs | differing
    constant = row_reduce((differs,), "or", TILES, BLOCKS, WIDTH, VECTOR) == 0
    constant = constant & ((bits & 0x7FFFFFFF) < 0x7F800000)

    size = tl.full((TILES, WIDTH // VECTOR), D, tl.float32)
    mean = tl.div_rn(row_sum(chunks, PARTS, CHUNKS, TILES, BLOCKS, WIDTH, VECTOR), size)
    deviations = _minus(chunks, expand(mean, TILES, WIDTH, VECTOR), D, TILES, BLOCKS, CHUNKS, WIDTH)
    rest = tl.div_rn(row_sum(deviations, PARTS, CHUNKS, TILES, BLOCKS, WIDTH, VECTOR), size)
    deviations = _minus(deviations, expand(rest, TILES, WIDTH, VECTOR), D, TILES, BLOCKS, CHUNKS, WIDTH)
    squares = ()
    for c in tl.static_range(CHUNKS):
        squares = squares + (deviations[c] * deviations[c],)
    result = row_sum(squares, PARTS, CHUNKS, TILES, BLOCKS, WIDTH, VECTOR)
    return tl.where(constant, first + 0.0, mean), tl.where(constant, 0.0, rest), tl.where(constant, 0.0, result)


@triton.jit
def _score_kernel(
    level_ptrs, strides_b, strides_n, sizes, out_ptr, total,
    STATISTIC: tl.constexpr, AS_KEY: tl.constexpr, CORRECTION: tl.constexpr, D: tl.constexpr, TILES: tl.constexpr,
    BLOCKS: tl.constexpr, PARTS: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """out[b, start of the level + n] = score of level[b, n]; a program scores TILES // BLOCKS tokens of one level."""
    ROWS: tl.constexpr = TILES // BLOCKS
    LANES: tl.constexpr = WIDTH // VECTOR
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

    token = program * ROWS + tl.arange(0, TILES) // BLOCKS  # [TILES]
    mask = token < size
    x_ptr += tl.multiple_of(sample * stride_b, VECTOR)
    if STATISTIC == "norm":
        chunks = load_rows(x_ptr, stride_n, token, mask, D, TILES, BLOCKS, CHUNKS, WIDTH, VECTOR)
        _, length, unscale = scaled_norm(chunks, PARTS, CHUNKS, TILES, BLOCKS, WIDTH, VECTOR)
        score = length * unscale
    else:
        spread = tl.broadcast_to((token.to(tl.int64) * stride_n)[:, None], (TILES, LANES))
        score = widen(tl.load(x_ptr + spread, mask=mask[:, None], other=0))
        if STATISTIC == "variance" and D <= CORRECTION:
            score = tl.full((TILES, LANES), float("nan"), tl.float32)
        elif STATISTIC == "variance":
            chunks = load_rows(x_ptr, stride_n, token, mask, D, TILES, BLOCKS, CHUNKS, WIDTH, VECTOR)
            _, _, score = moments(chunks, score, D, PARTS, CHUNKS, TILES, BLOCKS, WIDTH, VECTOR)
            score = tl.div_rn(score, tl.full((TILES, LANES), D - CORRECTION, tl.float32))
    if AS_KEY:
        score = ordered_key(score)
    ptrs = out_ptr + (sample * total + out_start + token)[:, None]
    store_rows(ptrs, score, mask, TILES, BLOCKS, WIDTH, VECTOR)


def score_levels(levels: Sequence[Tensor], statistic: str, correction: int, out: Tensor) -> None:
    """Scores of all levels into `out` `[B, ΣN]`: float32, or ordered keys where `out` is int32.

    `statistic` "given" takes the levels as scores `[B, N]`.
    """
    levels = [level[:, :, None] if statistic == "given" else level for level in levels if level.shape[1]]
    if not levels or not out.shape[0]:
        return
    tiles = row_tiles(levels)
    rows = tiles["TILES"] // tiles["BLOCKS"]
    sizes = tuple(level.shape[1] for level in levels)
    programs = out.shape[0] * sum(triton.cdiv(size, rows) for size in sizes)
    _score_kernel[(programs,)](
        tuple(levels), tuple(x.stride(0) for x in levels), tuple(x.stride(1) for x in levels), sizes, out,
        out.shape[1], STATISTIC=statistic, AS_KEY=out.dtype == torch.int32, CORRECTION=correction,
        D=levels[0].shape[2], **tiles, **LAUNCH,
    )  # fmt: skip


def token_variance(features: Tensor, correction: int) -> Tensor:
    scores = torch.empty(features.shape[:2], dtype=torch.float32, device=features.device)
    score_levels([features], "variance", correction, scores)
    return scores


def token_norm(features: Tensor) -> Tensor:
    scores = torch.empty(features.shape[:2], dtype=torch.float32, device=features.device)
    score_levels([features], "norm", 0, scores)
    return scores
