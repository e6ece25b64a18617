"""Variance over groups of tokens, and scores of regions for each of their tokens."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import Grid
from .arithmetic import cdiv, highest_bit, packed_grid, segment_of, widen
from .launch import launch, target_arch
from .rows import expand, load_rows, row_reduce, store_rows
from .scoring import moments
from .tiles import broadcast_tiles, region_tiles, row_tiles


@triton.jit
def _moments_kernel(
    x_ptr, out_ptr, stride_b, stride_n, tokens, plane, ROW: tl.constexpr,
):  # fmt: skip
    """out[:, b, n] = (mean, rest, squares) of token n; the three planes are `plane` elements apart."""
    programs = tl.cdiv(tokens, ROW.TILES // ROW.BLOCKS)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    token = (tl.program_id(0) % programs) * (ROW.TILES // ROW.BLOCKS) + tl.arange(0, ROW.TILES) // ROW.BLOCKS  # [TILES]
    mask = token < tokens
    x_ptr += tl.multiple_of(sample * stride_b, ROW.VECTOR)
    spread = tl.broadcast_to((token.to(tl.int64) * stride_n)[:, None], (ROW.TILES, ROW.WIDTH // ROW.VECTOR))
    first = widen(tl.load(x_ptr + spread, mask=mask[:, None], other=0))
    chunks = load_rows(x_ptr, stride_n, token, mask, ROW)
    mean, rest, squares = moments(chunks, first, ROW)
    ptrs = out_ptr + (sample * tokens + token)[:, None]
    second = tl.zeros((), tl.int64) + plane
    store_rows(ptrs, mean, mask, ROW)
    store_rows(ptrs + second, rest, mask, ROW)
    store_rows(ptrs + 2 * second, squares, mask, ROW)


@triton.jit
def _extent(region, size, regions):
    """(first, number) of the rows or columns of a region, at least one."""
    wide = region.to(tl.int64)
    first = (wide * size // regions).to(tl.int32)
    return first, tl.maximum(((wide + 1) * size // regions).to(tl.int32) - first, 1)


@triton.jit
def _members(start, top, left, across, count, length, width, LANES: tl.constexpr):
    """(token index, whether there is one) of the LANES tokens of each region from number `start` on: [TILES, LANES]."""
    local = start + tl.arange(0, LANES)[None, :]
    index = (top[:, None] + local // across[:, None]) * width + left[:, None] + local % across[:, None]
    live = (local < count[:, None]) & (index < length[:, None])
    return tl.where(live, index, 0), live


@triton.jit
def _token_sum(lanes, ROW: tl.constexpr):
    return row_reduce((lanes,), "sum", ROW) + 0.0


@triton.jit
def _region_variance_kernel(
    statistics_ptr, lengths_ptr, cu_ptr, sides_ptr, out_ptr, plane, tokens, items, features, height, width, rows,
    columns, HAS_LENGTHS: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    """A program combines the token statistics of TILES regions, numbered over all samples."""
    TILES: tl.constexpr = ROW.TILES
    LANES: tl.constexpr = ROW.WIDTH
    VECTOR: tl.constexpr = ROW.VECTOR
    item = tl.program_id(0) * TILES + tl.arange(0, TILES)  # [TILES]
    mask = item < items
    sample = tl.where(mask, item // (rows * columns), 0).to(tl.int64)
    begin = sample * tokens
    stride = width
    if cu_ptr is not None:
        origin, height, width = packed_grid(cu_ptr, sides_ptr, sample, tokens)
        mask = mask & (height * width > 0)
        begin = tl.where(mask, origin, 0).to(tl.int64)
        stride = width[:, None]
    top, down = _extent((item % (rows * columns)) // columns, height, rows)
    left, across = _extent(item % columns, width, columns)
    count = tl.where(mask, down * across, 0)
    length = tl.zeros((TILES,), tl.int64) + tokens
    if HAS_LENGTHS:
        length = tl.load(lengths_ptr + sample, mask=mask, other=0).to(tl.int64)
    most = tl.max(count)
    mean_ptr = statistics_ptr + begin[:, None]
    rest_ptr = mean_ptr + (tl.zeros((), tl.int64) + plane)
    squares_ptr = rest_ptr + (tl.zeros((), tl.int64) + plane)

    first = tl.where(mask, top * width + left, 0)
    spread = tl.broadcast_to(first[:, None], (TILES, LANES // VECTOR))
    first_mean = expand(tl.load(mean_ptr + spread), ROW)
    first_rest = expand(tl.load(rest_ptr + spread), ROW)
    sizes = tl.zeros((TILES, LANES), tl.int32)
    differs = tl.zeros((TILES, LANES), tl.int32)
    means = tl.zeros((TILES, LANES), tl.float32)
    squares = tl.zeros((TILES, LANES), tl.float32)
    for start in range(0, most, LANES):
        index, live = _members(start, top, left, across, count, length, stride, LANES)
        mean = tl.load(mean_ptr + index, mask=live, other=0)
        rest = tl.load(rest_ptr + index, mask=live, other=0)
        sizes += live.to(tl.int32)
        same = (mean == first_mean) & (rest == first_rest)
        differs = differs | tl.where(live, tl.where(same, 0, 1), 0)
        means = means + mean
        squares = squares + tl.load(squares_ptr + index, mask=live, other=0)
    size = row_reduce((sizes,), "sum", ROW)
    count_of = size.to(tl.float32)
    same = row_reduce((differs,), "or", ROW) == 0
    center = tl.div_rn(_token_sum(means, ROW), count_of)
    center = expand(center, ROW)

    deviations = tl.zeros((TILES, LANES), tl.float32)
    for start in range(0, most, LANES):
        index, live = _members(start, top, left, across, count, length, stride, LANES)
        mean = tl.load(mean_ptr + index, mask=live, other=0)
        rest = tl.load(rest_ptr + index, mask=live, other=0)
        deviations = deviations + tl.where(live, (mean - center) + rest, 0.0)
    shift = tl.div_rn(_token_sum(deviations, ROW), count_of)
    shift = expand(shift, ROW)

    between = tl.zeros((TILES, LANES), tl.float32)
    for start in range(0, most, LANES):
        index, live = _members(start, top, left, across, count, length, stride, LANES)
        mean = tl.load(mean_ptr + index, mask=live, other=0)
        rest = tl.load(rest_ptr + index, mask=live, other=0)
        deviation = tl.where(live, ((mean - center) + rest) - shift, 0.0)
        between = between + deviation * deviation
    total = tl.where(same, 0.0, _token_sum(between, ROW))
    wide = tl.zeros((), tl.int64) + features
    total = _token_sum(squares, ROW) + total * wide.to(tl.float32)
    freedom = size.to(tl.int64) * wide - 1
    variance = tl.where(freedom > 0, tl.div_rn(total, freedom.to(tl.float32)), float("nan"))
    store_rows(out_ptr + item[:, None], variance, item < items, ROW)


def region_variance(features: Tensor, lengths: Optional[Tensor], grid: Grid) -> Tensor:
    batch, tokens, count = features.shape
    parts = batch if grid.sides is None else grid.sides.shape[0]
    out = torch.empty(parts, grid.rows * grid.columns, dtype=torch.float32, device=features.device)
    if not parts or not tokens:
        return out.fill_(torch.nan)
    statistics = torch.empty(3, batch, tokens, dtype=torch.float32, device=features.device)
    tiles = row_tiles([features])
    launch(
        _moments_kernel, batch * cdiv(tokens, tiles["ROW"].TILES // tiles["ROW"].BLOCKS),
        features, statistics, features.stride(0), features.stride(1), tokens, batch * tokens,
        **tiles,
    )  # fmt: skip
    tiles = region_tiles(target_arch())
    launch(
        _region_variance_kernel, cdiv(out.numel(), tiles["ROW"].TILES),
        statistics, statistics if lengths is None else lengths, grid.cu_seqlens, grid.sides, out, batch * tokens,
        tokens, out.numel(), count, *grid[:4], HAS_LENGTHS=lengths is not None, **tiles,
    )  # fmt: skip
    return out


@triton.jit
def _broadcast_regions_kernel(
    scores_ptr, cu_ptr, sides_ptr, out_ptr, stride_b, stride_r, tokens, height, width, rows, columns, segments, top_bit,
    BLOCK: tl.constexpr,
):  # fmt: skip
    programs = tl.cdiv(tokens, BLOCK)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    token = ((tl.program_id(0) % programs) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    mask = token < tokens
    place = token
    part = sample
    if cu_ptr is not None:
        segment = segment_of(cu_ptr, token, segments, top_bit)
        inside = mask & (segment >= 0) & (segment < segments)
        part = tl.where(inside, segment, 0).to(tl.int64)
        start, height, width = packed_grid(cu_ptr, sides_ptr, part, tokens)
        place = token - start
        inside = inside & (place < height.to(tl.int64) * width)
        height = tl.maximum(height, 1)
        width = tl.maximum(width, 1)
    row = ((place // width + 1) * rows - 1) // height
    column = ((place % width + 1) * columns - 1) // width
    if cu_ptr is not None:
        region = tl.where(inside, row * columns + column, 0)
        x = tl.load(scores_ptr + part * stride_b + region * stride_r, mask=inside, other=0)
    else:
        region = tl.where(mask, row * columns + column, 0)
        x = tl.load(scores_ptr + part * stride_b + region * stride_r, mask=mask)
    tl.store(out_ptr + sample * tokens + token, x, mask=mask)


def broadcast_regions(scores: Tensor, grid: Grid) -> Tensor:
    height, width, rows, columns, cu_seqlens, sides, tokens = grid
    if cu_seqlens is None:
        tokens = height * width
    batch, parts = (scores.shape[0], 0) if cu_seqlens is None else (1, scores.shape[0])
    out = torch.empty(batch, tokens, dtype=scores.dtype, device=scores.device)
    if cu_seqlens is not None and not parts:
        return out.zero_()
    if out.numel():
        tiles = broadcast_tiles(tokens)
        launch(
            _broadcast_regions_kernel, batch * cdiv(tokens, tiles["BLOCK"]),
            scores, cu_seqlens, sides, out, scores.stride(0), scores.stride(1), tokens, height, width, rows, columns,
            parts, highest_bit(parts), **tiles,
        )  # fmt: skip
    return out
