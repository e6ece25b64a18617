"""Scores and tokens pooled over windows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import Grid, Windows
from .arithmetic import NO_KEY, cdiv, highest_bit, narrow, ordered_key, packed_grid, segment_of, widen
from .launch import launch
from .tiles import flat_tiles, fold_tiles, pool_tiles


@triton.jit
def _pool(
    scores_ptr, stride_n, top, left, height, width, mask, down, across,
    REDUCTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK windows of at most down · across scores that begin at (top, left) of a grid."""
    total = tl.zeros((BLOCK,), tl.float32)
    best = tl.full((BLOCK,), NO_KEY, tl.int32)
    for i in range(down):
        for j in range(across):
            inside = mask & (top + i < height) & (left + j < width)
            token = ((top + i) * width + left + j).to(tl.int64)
            x = widen(tl.load(scores_ptr + token * stride_n, mask=inside, other=0))
            if REDUCTION == "max":
                key = ordered_key(x)
                better = inside & (key > best)
                total = tl.where(better, x, total)
                best = tl.where(better, key, best)
            else:
                total = tl.where(inside, total + x, total)
    if REDUCTION == "mean":
        heights = tl.minimum(height - top, down)
        widths = tl.minimum(width - left, across)
        total = tl.div_rn(total, (heights * widths).to(tl.float32))
    return total


@triton.jit(do_not_specialize=["height", "width", "down", "across"])
def _pool_scores_kernel(
    scores_ptr, out_ptr, stride_b, stride_n, height, width, down, across,
    REDUCTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program reduces BLOCK windows of a sample."""
    columns = tl.cdiv(width, across)
    windows = tl.cdiv(height, down) * columns
    programs = tl.cdiv(windows, BLOCK)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    window = tl.program_id(0) % programs * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    mask = window < windows
    top = window // columns * down
    left = window % columns * across
    scores_ptr += sample * stride_b
    total = _pool(scores_ptr, stride_n, top, left, height, width, mask, down, across, REDUCTION, BLOCK)
    tl.store(out_ptr + sample * windows + window, total, mask=mask)


def pool_scores(scores: Tensor, windows: Windows, reduction: str) -> Tensor:
    height, width, down, across = windows
    count = cdiv(height, down) * cdiv(width, across)
    out = torch.empty(scores.shape[0], count, dtype=torch.float32, device=scores.device)
    if out.numel():
        tiles = pool_tiles(count)
        launch(
            _pool_scores_kernel, scores.shape[0] * cdiv(count, tiles["BLOCK"]),
            scores, out, scores.stride(0), scores.stride(1), height, width, down, across,
            REDUCTION=reduction, **tiles,
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["tokens", "segments", "down", "across", "capacity"])
def _windows_kernel(
    cu_ptr, grids_ptr, offsets_ptr, windows_ptr, tokens, segments, down, across, capacity, BLOCK: tl.constexpr
):
    """One program: where the windows of each segment begin, and how many rows and columns of them there are."""
    total = tl.zeros((), tl.int64)
    tl.store(offsets_ptr, tl.zeros((), tl.int32))
    for start in range(0, segments, BLOCK):
        segment = start + tl.arange(0, BLOCK)
        mask = segment < segments
        _, height, width = packed_grid(cu_ptr, grids_ptr, tl.where(mask, segment, 0), tokens)
        rows = tl.cdiv(height, down)
        columns = tl.cdiv(width, across)
        tl.store(windows_ptr + 2 * segment, rows, mask=mask)
        tl.store(windows_ptr + 2 * segment + 1, columns, mask=mask)
        count = tl.where(mask, rows * columns, 0).to(tl.int64)
        end = tl.minimum(total + tl.cumsum(count, 0), capacity)
        tl.store(offsets_ptr + segment + 1, end.to(tl.int32), mask=mask)
        total += tl.sum(count)


@triton.jit(do_not_specialize=["tokens", "segments", "down", "across", "capacity", "top_bit"])
def _pool_scores_packed_kernel(
    scores_ptr, cu_ptr, grids_ptr, offsets_ptr, out_ptr, stride_n, tokens, segments, down, across, capacity, top_bit,
    REDUCTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program reduces BLOCK windows, of whatever segments."""
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    segment = segment_of(offsets_ptr, slot, segments, top_bit)
    mask = (slot < capacity) & (segment < segments)
    segment = tl.where(mask, segment, 0)
    start, height, width = packed_grid(cu_ptr, grids_ptr, segment, tokens)
    columns = tl.maximum(tl.cdiv(width, across), 1)
    window = slot - tl.load(offsets_ptr + segment)
    top = window // columns * down
    left = window % columns * across
    heights = tl.max(tl.where(mask, tl.minimum(height - top, down), 0))
    widths = tl.max(tl.where(mask, tl.minimum(width - left, across), 0))
    scores_ptr += start.to(tl.int64) * stride_n
    total = _pool(scores_ptr, stride_n, top, left, height, width, mask, heights, widths, REDUCTION, BLOCK)
    tl.store(out_ptr + slot, tl.where(mask, total, 0.0), mask=slot < capacity)


def pool_scores_packed(
    scores: Tensor, cu_seqlens: Tensor, grids: Tensor, down: int, across: int, capacity: int, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    segments, device = grids.shape[0], scores.device
    out = torch.empty(capacity, dtype=torch.float32, device=device)
    offsets = torch.empty(segments + 1, dtype=torch.int32, device=device)
    windows = torch.empty(segments, 2, dtype=torch.int32, device=device)
    if not segments:
        return out.zero_(), offsets.zero_(), windows
    sizes = scores.shape[0], segments, down, across, capacity
    launch(_windows_kernel, 1, cu_seqlens, grids, offsets, windows, *sizes, **flat_tiles())
    if capacity:
        tiles = pool_tiles(capacity)
        launch(
            _pool_scores_packed_kernel, cdiv(capacity, tiles["BLOCK"]),
            scores, cu_seqlens, grids, offsets, out, scores.stride(0), *sizes, highest_bit(segments),
            REDUCTION=reduction, **tiles,
        )  # fmt: skip
    return out, offsets, windows


@triton.jit
def _bin(number, size, bins):
    """(first, one past the last) of the rows or columns of a bin."""
    wide = number.to(tl.int64)
    return (wide * size // bins).to(tl.int32), (((wide + 1) * size + bins - 1) // bins).to(tl.int32)


@triton.jit(do_not_specialize=["height", "width", "rows", "columns"])
def _pool_tokens_kernel(
    x_ptr, out_ptr, stride_b, stride_n, height, width, rows, columns, features,
    MODE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program reduces BLOCK features of one bin."""
    strips = tl.cdiv(features, BLOCK)
    feature = tl.program_id(0) % strips * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    mask = feature < features
    item = tl.program_id(0) // strips
    sample = (item // (rows * columns)).to(tl.int64)
    top, bottom = _bin(item // columns % rows, height, rows)
    left, right = _bin(item % columns, width, columns)
    x_ptr += sample * stride_b + feature
    total = tl.zeros((BLOCK,), tl.float32)
    best = tl.full((BLOCK,), NO_KEY, tl.int32)
    for row in range(top, bottom):
        for column in range(left, right):
            token = (row * width + column).to(tl.int64)
            x = widen(tl.load(x_ptr + token * stride_n, mask=mask, other=0))
            if MODE == "amax":
                key = ordered_key(x)
                total = tl.where(key > best, x, total)
                best = tl.maximum(best, key)
            else:
                total = total + x
    if MODE == "mean":
        count = ((bottom - top) * (right - left)).to(tl.float32)
        total = tl.div_rn(total, tl.zeros((BLOCK,), tl.float32) + count)
    tl.store(out_ptr + item.to(tl.int64) * features + feature, narrow(total, out_ptr.dtype.element_ty), mask=mask)


def pool_tokens(tokens: Tensor, grid: Grid, mode: str) -> Tensor:
    batch, _, features = tokens.shape
    out = torch.empty(batch, grid.rows * grid.columns, features, dtype=tokens.dtype, device=tokens.device)
    if out.numel():
        tiles = fold_tiles(tokens, False)
        launch(
            _pool_tokens_kernel, batch * grid.rows * grid.columns * cdiv(features, tiles["BLOCK"]),
            tokens, out, tokens.stride(0), tokens.stride(1), *grid, features, MODE=mode, **tiles,
        )  # fmt: skip
    return out
