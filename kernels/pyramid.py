"""Blur and downsampling in one pass: a program walks down the image with filtered rows in registers."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import Filter
from .arithmetic import cdiv, narrow, widen
from .launch import launch
from .tiles import blur_tiles, warp_lanes


@triton.jit
def _source(position, size, PADDING: tl.constexpr):
    """The pixel that stands at `position`, which may lie outside [0, size)."""
    if PADDING == "reflect":
        period = tl.maximum(2 * size - 2, 1)
        position = tl.where(position < 0, -position, position) % period
        return tl.where(position < size, position, period - position)
    return tl.minimum(tl.maximum(position, 0), size - 1)


@triton.jit
def _load_columns(row_ptr, position, begin, width, end, PADDING: tl.constexpr, BLOCK: tl.constexpr):
    """Pixels at `position`, all in [begin, begin + 2 · BLOCK); with "zeros" +0 outside [0, end)."""
    if PADDING == "zeros":
        # Both columns of a pair are in the image or neither, if the width is even: loads keep their width.
        x = widen(tl.load(row_ptr + position, mask=(position >= 0) & (position < end), other=0))
    elif (begin >= 0) & (begin + 2 * BLOCK <= width):
        x = widen(tl.load(row_ptr + position))
    else:
        x = widen(tl.load(row_ptr + _source(position, width, PADDING)))
    return x


@triton.jit
def _columns(x, THREADS: tl.constexpr, COUNT: tl.constexpr):
    """The COUNT columns of a tile of THREADS · COUNT elements."""
    parts = (tl.reshape(x, (THREADS, COUNT)),)
    for level in tl.static_range(COUNT.bit_length() - 1):
        low = ()
        high = ()
        for k in tl.static_range(len(parts)):
            even, odd = tl.split(tl.reshape(parts[k], (THREADS, COUNT >> (level + 1), 2)))
            low = low + (even,)
            high = high + (odd,)
        parts = low + high
    columns = ()
    for k in tl.static_range(COUNT):
        columns = columns + (tl.reshape(parts[k], (THREADS,)),)
    return columns


@triton.jit
def _row_of(columns, THREADS: tl.constexpr, COUNT: tl.constexpr):
    """The tile [THREADS · COUNT] of so many columns."""
    parts = ()
    for k in tl.static_range(COUNT):
        parts = parts + (tl.reshape(columns[k], (THREADS, 1)),)
    for level in tl.static_range(COUNT.bit_length() - 1):
        joined = ()
        for k in tl.static_range(COUNT >> (level + 1)):
            pair = tl.join(parts[k], parts[k + (COUNT >> (level + 1))])
            joined = joined + (tl.reshape(pair, (THREADS, 2 << level)),)
        parts = joined
    return tl.reshape(parts[0], (THREADS * COUNT,))


@triton.jit
def _filter_row(
    image_ptr, stride, row, first, height, width, taps, OFFSET: tl.constexpr, PADDING: tl.constexpr,
    BLOCK: tl.constexpr, OUTPUTS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Σ_j taps[j] · image[row, 2x + OFFSET + j] for the BLOCK columns x from `first` on, OUTPUTS to a thread."""
    inside = (row >= 0) & (row < height)
    source_row = row
    # No branch for "reflect": with one, the code of eleven taps spills.
    if (PADDING == "reflect") | (inside == 0):
        source_row = _source(row, height, PADDING)
    row_ptr = image_ptr + tl.multiple_of(source_row.to(tl.int64) * stride, VECTOR)
    end = tl.multiple_of(tl.where(inside, width, 0), VECTOR)
    THREADS: tl.constexpr = BLOCK // OUTPUTS
    FIRST: tl.constexpr = OFFSET // 2
    LAST: tl.constexpr = (OFFSET + len(taps) - 1) // 2
    # A thread loads its own columns at once, and each pair beside them alone.
    terms = ()
    for pair in tl.static_range(FIRST, OUTPUTS + LAST):
        begin = 2 * (first + pair)
        if pair < 0 or pair >= OUTPUTS:
            start = begin + 2 * OUTPUTS * tl.arange(0, THREADS)
            position = start[:, None] + tl.arange(0, 2)[None, :]
            x = _load_columns(row_ptr, position, begin, width, end, PADDING, BLOCK)
            terms = terms + _columns(x, THREADS, 2)
        elif pair == 0:
            x = _load_columns(row_ptr, begin + tl.arange(0, 2 * BLOCK), begin, width, end, PADDING, BLOCK)
            terms = terms + _columns(x, THREADS, 2 * OUTPUTS)
    totals = ()
    for output in tl.static_range(OUTPUTS):
        total = terms[2 * output + OFFSET % 2] * taps[0]
        for j in tl.static_range(1, len(taps)):
            total = total + terms[2 * output + OFFSET % 2 + j] * taps[j]
        totals = totals + (total,)
    return _row_of(totals, THREADS, OUTPUTS)


@triton.jit
def _blur_downsample_kernel(
    x_ptr, out_ptr, taps, channels, height, width, stride_b, stride_c, stride_h, out_height, out_width,
    OFFSET: tl.constexpr, PADDING: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, OUTPUTS: tl.constexpr,
    VECTOR: tl.constexpr, OUT_VECTOR: tl.constexpr,
):  # fmt: skip
    """ROWS rows of BLOCK outputs; VECTOR divides strides and width of images, OUT_VECTOR the width of the output."""
    TAPS: tl.constexpr = len(taps)
    KEPT: tl.constexpr = TAPS - 2 if TAPS > 2 else 0  # filtered rows that the next output row needs too
    WARM_UP: tl.constexpr = (KEPT + 1) // 2  # steps that only fill the window
    across = tl.cdiv(out_width, BLOCK)
    down = tl.cdiv(out_height, ROWS)
    first = (tl.program_id(0) % across) * BLOCK
    strip = tl.program_id(0) // across
    y = (strip % down) * ROWS
    plane = (strip // down).to(tl.int64)
    image_ptr = x_ptr + tl.multiple_of((plane // channels) * stride_b + (plane % channels) * stride_c, VECTOR)
    columns = first + tl.arange(0, BLOCK)
    out_ptr += tl.multiple_of(plane * out_height * out_width, OUT_VECTOR)
    limit = tl.multiple_of(out_width + tl.zeros((), tl.int32), OUT_VECTOR)

    window = ()
    for _ in tl.static_range(KEPT):
        window = window + (tl.zeros((BLOCK,), tl.float32),)
    for step in range(WARM_UP + min(ROWS, out_height - y)):
        line = y + step - WARM_UP
        for i in tl.static_range(KEPT, TAPS):
            row = 2 * line + OFFSET + i
            window = window + (
                _filter_row(
                    image_ptr, stride_h, row, first, height, width, taps, OFFSET, PADDING, BLOCK, OUTPUTS, VECTOR
                ),
            )
        if step >= WARM_UP:
            total = window[0] * taps[0]
            for i in tl.static_range(1, TAPS):
                total = total + window[i] * taps[i]
            out = out_ptr + tl.multiple_of(line.to(tl.int64) * out_width, OUT_VECTOR) + columns
            tl.store(out, narrow(total, out_ptr.dtype.element_ty), mask=columns < limit)
        window = window[TAPS - KEPT :]


def blur_downsample(images: Tensor, blur: Filter, height: int, width: int) -> Tensor:
    batch, channels = images.shape[:2]
    taps, offset, padding = blur
    out = torch.empty(batch, channels, height, width, dtype=images.dtype, device=images.device)
    tiles = blur_tiles(batch * channels, height, width, images.element_size(), len(taps))
    programs = batch * channels * cdiv(height, tiles["ROWS"]) * cdiv(width, tiles["BLOCK"])
    outputs = max(1, tiles["BLOCK"] // (warp_lanes() * tiles["num_warps"]))
    if programs:
        launch(
            _blur_downsample_kernel, programs,
            images, out, tuple(taps), channels, *images.shape[2:], *images.stride()[:3], height, width,
            OFFSET=offset, PADDING=padding, OUTPUTS=outputs,
            VECTOR=math.gcd(2 * outputs, *images.stride()[:3], images.shape[3]), OUT_VECTOR=math.gcd(outputs, width),
            **tiles,
        )  # fmt: skip
    return out
