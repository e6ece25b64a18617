"""Scores of regions: one read of the features into token statistics, then a program for a few regions; histograms."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .numerics import (
    cdiv,
    expand,
    launch,
    load_rows,
    next_power_of_2,
    row_reduce,
    row_tiles,
    store_rows,
    target_arch,
    widen,
)
from .scoring import moments


@triton.jit
def _moments_kernel(
    x_ptr, out_ptr, stride_b, stride_n, tokens, plane,
    D: tl.constexpr, TILES: tl.constexpr, BLOCKS: tl.constexpr, PARTS: tl.constexpr, CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """out[:, b, n] = (mean, rest, squares) of token n; the three planes are `plane` elements apart."""
    programs = tl.cdiv(tokens, TILES // BLOCKS)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    token = (tl.program_id(0) % programs) * (TILES // BLOCKS) + tl.arange(0, TILES) // BLOCKS  # [TILES]
    mask = token < tokens
    x_ptr += tl.multiple_of(sample * stride_b, VECTOR)
    spread = tl.broadcast_to((token.to(tl.int64) * stride_n)[:, None], (TILES, WIDTH // VECTOR))
    first = widen(tl.load(x_ptr + spread, mask=mask[:, None], other=0))
    chunks = load_rows(x_ptr, stride_n, token, mask, D, TILES, BLOCKS, CHUNKS, WIDTH, VECTOR)
    mean, rest, squares = moments(chunks, first, D, PARTS, CHUNKS, TILES, BLOCKS, WIDTH, VECTOR)
    ptrs = out_ptr + (sample * tokens + token)[:, None]
    second = tl.zeros((), tl.int64) + plane
    store_rows(ptrs, mean, mask, TILES, BLOCKS, WIDTH, VECTOR)
    store_rows(ptrs + second, rest, mask, TILES, BLOCKS, WIDTH, VECTOR)
    store_rows(ptrs + 2 * second, squares, mask, TILES, BLOCKS, WIDTH, VECTOR)


@triton.jit
def _extent(region, size, regions):
    """(first, number) of the rows or columns of a region."""
    wide = region.to(tl.int64)
    first = (wide * size // regions).to(tl.int32)
    return first, ((wide + 1) * size // regions).to(tl.int32) - first


@triton.jit
def _members(start, top, left, across, count, length, width, LANES: tl.constexpr):
    """(token index, whether there is one) of the LANES tokens of each region from number `start` on: [TILES, LANES]."""
    local = start + tl.arange(0, LANES)[None, :]
    index = (top[:, None] + local // across[:, None]) * width + left[:, None] + local % across[:, None]
    live = (local < count[:, None]) & (index < length[:, None])
    return tl.where(live, index, 0), live


@triton.jit
def _token_sum(lanes, TILES: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr):
    return row_reduce((lanes,), "sum", TILES, 1, LANES, VECTOR) + 0.0


@triton.jit
def _region_variance_kernel(
    statistics_ptr, lengths_ptr, out_ptr, plane, tokens, items, features, height, width, rows, columns,
    HAS_LENGTHS: tl.constexpr, TILES: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """A program combines the token statistics of TILES regions, numbered over all samples."""
    item = tl.program_id(0) * TILES + tl.arange(0, TILES)  # [TILES]
    mask = item < items
    sample = tl.where(mask, item // (rows * columns), 0).to(tl.int64)
    top, down = _extent((item % (rows * columns)) // columns, height, rows)
    left, across = _extent(item % columns, width, columns)
    count = tl.where(mask, down * across, 0)
    length = tl.zeros((TILES,), tl.int64) + tokens
    if HAS_LENGTHS:
        length = tl.load(lengths_ptr + sample, mask=mask, other=0).to(tl.int64)
    most = tl.max(count)
    mean_ptr = statistics_ptr + (sample * tokens)[:, None]
    rest_ptr = mean_ptr + (tl.zeros((), tl.int64) + plane)
    squares_ptr = rest_ptr + (tl.zeros((), tl.int64) + plane)

    first = tl.where(mask, top * width + left, 0)
    spread = tl.broadcast_to(first[:, None], (TILES, LANES // VECTOR))
    first_mean = expand(tl.load(mean_ptr + spread), TILES, LANES, VECTOR)
    first_rest = expand(tl.load(rest_ptr + spread), TILES, LANES, VECTOR)
    sizes = tl.zeros((TILES, LANES), tl.int32)
    differs = tl.zeros((TILES, LANES), tl.int32)
    means = tl.zeros((TILES, LANES), tl.float32)
    squares = tl.zeros((TILES, LANES), tl.float32)
    for start in range(0, most, LANES):
        index, live = _members(start, top, left, across, count, length, width, LANES)
        mean = tl.load(mean_ptr + index, mask=live, other=0)
        rest = tl.load(rest_ptr + index, mask=live, other=0)
        sizes += live.to(tl.int32)
        same = (mean == first_mean) & (rest == first_rest)
        differs = differs | tl.where(live, tl.where(same, 0, 1), 0)
        means = means + mean
        squares = squares + tl.load(squares_ptr + index, mask=live, other=0)
    size = row_reduce((sizes,), "sum", TILES, 1, LANES, VECTOR)
    count_of = size.to(tl.float32)
    same = row_reduce((differs,), "or", TILES, 1, LANES, VECTOR) == 0
    center = tl.div_rn(_token_sum(means, TILES, LANES, VECTOR), count_of)
    center = expand(center, TILES, LANES, VECTOR)

    deviations = tl.zeros((TILES, LANES), tl.float32)
    for start in range(0, most, LANES):
        index, live = _members(start, top, left, across, count, length, width, LANES)
        mean = tl.load(mean_ptr + index, mask=live, other=0)
        rest = tl.load(rest_ptr + index, mask=live, other=0)
        deviations = deviations + tl.where(live, (mean - center) + rest, 0.0)
    shift = tl.div_rn(_token_sum(deviations, TILES, LANES, VECTOR), count_of)
    shift = expand(shift, TILES, LANES, VECTOR)

    between = tl.zeros((TILES, LANES), tl.float32)
    for start in range(0, most, LANES):
        index, live = _members(start, top, left, across, count, length, width, LANES)
        mean = tl.load(mean_ptr + index, mask=live, other=0)
        rest = tl.load(rest_ptr + index, mask=live, other=0)
        deviation = tl.where(live, ((mean - center) + rest) - shift, 0.0)
        between = between + deviation * deviation
    total = tl.where(same, 0.0, _token_sum(between, TILES, LANES, VECTOR))
    wide = tl.zeros((), tl.int64) + features
    total = _token_sum(squares, TILES, LANES, VECTOR) + total * wide.to(tl.float32)
    freedom = size.to(tl.int64) * wide - 1
    variance = tl.where(freedom > 0, tl.div_rn(total, freedom.to(tl.float32)), float("nan"))
    store_rows(out_ptr + item[:, None], variance, mask, TILES, 1, LANES, VECTOR)


def combine_config(arch: int | str) -> dict:
    """A region to a warp; for sm_100 no more than one to a program, since some version of Triton spills there."""
    warps = 1 if arch == 100 else 4
    return {"TILES": warps, "num_warps": warps}


def region_variance(
    features: Tensor, lengths: Sequence[Tensor], height: int, width: int, rows: int, columns: int
) -> Tensor:
    batch, tokens, count = features.shape
    out = torch.empty(batch, rows * columns, dtype=torch.float32, device=features.device)
    if not batch:
        return out
    statistics = torch.empty(3, batch, tokens, dtype=torch.float32, device=features.device)
    tiles = row_tiles([features])
    launch(
        _moments_kernel, batch * cdiv(tokens, tiles["TILES"] // tiles["BLOCKS"]),
        features, statistics, features.stride(0), features.stride(1), tokens, batch * tokens,
        D=count, **tiles,
    )  # fmt: skip
    config = combine_config(target_arch())
    launch(
        _region_variance_kernel, cdiv(out.numel(), config["TILES"]),
        statistics, lengths[0] if lengths else statistics, out, batch * tokens, tokens, out.numel(), count,
        height, width, rows, columns, HAS_LENGTHS=bool(lengths), LANES=256, VECTOR=8, **config,
    )  # fmt: skip
    return out


@triton.jit
def _broadcast_regions_kernel(
    scores_ptr, out_ptr, stride_b, stride_r, tokens, height, width, rows, columns, BLOCK: tl.constexpr
):  # fmt: skip
    programs = tl.cdiv(tokens, BLOCK)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    token = ((tl.program_id(0) % programs) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    mask = token < tokens
    row = ((token // width + 1) * rows - 1) // height
    column = ((token % width + 1) * columns - 1) // width
    region = tl.where(mask, row * columns + column, 0)
    x = tl.load(scores_ptr + sample * stride_b + region * stride_r, mask=mask)
    tl.store(out_ptr + sample * tokens + token, x, mask=mask)


def broadcast_config(tokens: int) -> dict:
    return {"BLOCK": min(1024, max(32, next_power_of_2(tokens))), "num_warps": 4}


def broadcast_regions(scores: Tensor, height: int, width: int, rows: int, columns: int) -> Tensor:
    batch, tokens = scores.shape[0], height * width
    out = torch.empty(batch, tokens, dtype=scores.dtype, device=scores.device)
    if out.numel():
        config = broadcast_config(tokens)
        launch(
            _broadcast_regions_kernel, batch * cdiv(tokens, config["BLOCK"]),
            scores, out, scores.stride(0), scores.stride(1), tokens, height, width, rows, columns, **config,
        )  # fmt: skip
    return out


@triton.jit
def _bin_terms(counts, total):
    """c · log2(total / c), see the reference."""
    whole = tl.zeros_like(counts).to(tl.float32) + total
    count = tl.where(counts > 0, counts.to(tl.float32), whole)
    exponent = (whole.to(tl.int32, bitcast=True) >> 23) - (count.to(tl.int32, bitcast=True) >> 23)
    scaled = count * ((127 + exponent) << 23).to(tl.float32, bitcast=True)
    exponent += (whole > scaled * 1.5).to(tl.int32)
    exponent -= (scaled > whole * 1.5).to(tl.int32)
    scaled = count * ((127 + exponent) << 23).to(tl.float32, bitcast=True)
    s = tl.div_rn(whole - scaled, whole + scaled)
    z = s * s
    series = z * 0.262308189252539 + 0.3205988979753252
    series = series * z + 0.4121985831111324
    series = series * z + 0.5770780163555854
    series = series * z + 0.9617966939259756
    series = series * z + 2.8853900817779268
    return count * (exponent.to(tl.float32) + s * series)


@triton.jit
def _patch_entropy_kernel(
    x_ptr, out_ptr, stride_b, stride_c, stride_h, channels, down, across,
    PATCH: tl.constexpr, BINS: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program counts the pixel values of one patch; WORDS is a power of two of at least BINS and 32."""
    patch = tl.program_id(0) % (down * across)
    sample = (tl.program_id(0) // (down * across)).to(tl.int64)
    top = (patch // across).to(tl.int64) * PATCH
    left = (patch % across) * PATCH
    x_ptr += sample * stride_b + top * stride_h + left
    total = (tl.zeros((), tl.int32) + channels) * (PATCH * PATCH)
    counts = tl.zeros((WORDS,), tl.int32)
    unordered = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, total, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        mask = pixel < total
        channel = pixel // (PATCH * PATCH)
        row = pixel % (PATCH * PATCH) // PATCH
        offset = channel.to(tl.int64) * stride_c + row.to(tl.int64) * stride_h + pixel % PATCH
        x = tl.load(x_ptr + offset, mask=mask, other=0)
        if x.dtype == tl.uint8:
            word = (x.to(tl.int32) * BINS) >> 8
        else:
            y = widen(x) * BINS
            inside = tl.where(y >= 1.0, y, 0.0)
            word = tl.where(inside < BINS, inside, BINS - 1.0).to(tl.int32)
            unordered = unordered | tl.where(y == y, 0, 1)
        counts += tl.histogram(word, WORDS, mask=mask)
    VECTOR: tl.constexpr = WORDS // 32
    terms = tl.reshape(_bin_terms(counts, total), (1, WORDS))
    entropy = row_reduce((terms,), "sum", 1, 1, WORDS, VECTOR) + 0.0
    entropy = tl.div_rn(entropy, tl.zeros_like(entropy) + total)
    entropy = tl.where(tl.max(unordered) > 0, float("nan"), entropy)
    one = tl.arange(0, 1)
    store_rows(out_ptr + tl.program_id(0) + one[:, None], entropy, one == 0, 1, 1, WORDS, VECTOR)


def entropy_config(values: int) -> dict:
    """Values to a tile: sizes at which the histogram's code spills under none of Triton 3.6.0, 3.7.1 and 3.9.0."""
    block = min(1024, max(256, next_power_of_2(values)))
    return {"BLOCK": block, "num_warps": 4}


def patch_entropy(images: Tensor, patch_size: int, bins: int) -> Tensor:
    batch, channels, height, width = images.shape
    down, across = height // patch_size, width // patch_size
    out = torch.empty(batch, down * across, dtype=torch.float32, device=images.device)
    if out.numel():
        launch(
            _patch_entropy_kernel, out.numel(),
            images, out, *images.stride()[:3], channels, down, across, PATCH=patch_size, BINS=bins,
            WORDS=max(32, next_power_of_2(bins)), **entropy_config(channels * patch_size * patch_size),
        )  # fmt: skip
    return out
