"""Means, sums and maxima of groups of tokens."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import Groups
from .arithmetic import bounds, cdiv, highest_bit, narrow, ordered_key, segment_of, widen
from .launch import launch
from .tiles import fold_tiles

# Members of a group that one partial sum holds.
CHUNK = 32


@triton.jit
def _combine(a, b, MODE: tl.constexpr):
    if MODE == "amax":
        return tl.where(ordered_key(b) > ordered_key(a), b, a)
    return a + b


@triton.jit
def _term(x_ptr, weights_ptr, token, stride, count, column, mask, MODE: tl.constexpr):
    """(weighted row, weight) of a token; what leaves a fold as it is where there is no such token."""
    inside = (token >= 0) & (token < count)
    token = tl.where(inside, token, 0)
    weight = tl.where(inside, 1.0, 0.0)
    if weights_ptr is not None:
        weight = tl.where(inside, tl.load(weights_ptr + token), 0.0)
    value = widen(tl.load(x_ptr + token * stride + column, mask=mask, other=0))
    if MODE == "amax":
        value = tl.where(inside, value, float("-inf"))
    else:
        if weights_ptr is not None:
            value = value * weight
        value = tl.where(inside, value, 0.0)
    return value, weight


@triton.jit
def _start(MODE: tl.constexpr, BLOCK: tl.constexpr):
    return tl.full((BLOCK,), float("-inf") if MODE == "amax" else 0.0, tl.float32)


@triton.jit(do_not_specialize=["count", "members", "groups", "top_bit"])
def _fold_chunks_kernel(
    x_ptr, weights_ptr, members_ptr, offsets_ptr, sums_ptr, weight_sums_ptr, stride_b, stride_n,
    weight_stride, count, members, groups, width, top_bit, MODE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The chunks of long groups that begin in one window of members: at most a group's first one and a later one."""
    columns = tl.cdiv(width, BLOCK)
    windows = tl.cdiv(members, CHUNK)
    column = (tl.program_id(0) % columns) * BLOCK + tl.arange(0, BLOCK)
    window = tl.program_id(0) // columns
    sample = (window // windows).to(tl.int64)
    x_ptr += sample * stride_b
    if weights_ptr is not None:
        weights_ptr += sample * weight_stride
    members_ptr += sample * members
    offsets_ptr += sample * (groups + 1)
    here = (window % windows) * CHUNK
    for slot in range(2):
        # A chunk of a group that began before, or the first one of a group that begins here: it is there at the end.
        end_of_window = tl.minimum(here + CHUNK, members)
        group = segment_of(offsets_ptr, tl.where(slot == 0, here, end_of_window - 1), groups, top_bit)
        inside = (group >= 0) & (group < groups)
        begin, size = bounds(offsets_ptr, tl.where(inside, group, 0), members)
        begin = begin.to(tl.int32)
        end = begin + size.to(tl.int32)
        p = begin + tl.cdiv(tl.maximum(here - begin, 0), CHUNK) * CHUNK
        starts = inside & (end - begin > CHUNK) & ((p == begin).to(tl.int32) == slot) & (p < end_of_window)
        stop = tl.minimum(p + CHUNK, end)
        if starts & (p < stop):
            total = _start(MODE, BLOCK)
            weight_total = 0.0
            for i in range(p, stop):
                token = tl.load(members_ptr + i)
                value, weight = _term(x_ptr, weights_ptr, token, stride_n, count, column, column < width, MODE)
                total = _combine(total, value, MODE)
                weight_total += weight
            at = window.to(tl.int64) * 2 + slot
            tl.store(sums_ptr + at * width + column, total, mask=column < width)
            tl.store(weight_sums_ptr + at, weight_total)


@triton.jit(do_not_specialize=["count", "members", "groups"])
def _fold_groups_kernel(
    x_ptr, weights_ptr, first_ptr, members_ptr, offsets_ptr, sums_ptr, weight_sums_ptr, out_ptr, totals_ptr, stride_b,
    stride_n, weight_stride, count, members, groups, width, MODE: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One group, BLOCK features: its first row, then its chunks in order."""
    columns = tl.cdiv(width, BLOCK)
    column = (tl.program_id(0) % columns) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    row = (tl.program_id(0) // columns).to(tl.int64)
    sample = row // groups
    x_ptr += sample * stride_b
    if weights_ptr is not None:
        weights_ptr += sample * weight_stride
    members_ptr += sample * members
    begin, size = bounds(offsets_ptr + sample * (groups + 1), row % groups, members)
    begin = begin.to(tl.int32)
    end = begin + size.to(tl.int32)
    first = tl.load(first_ptr + row)
    has_first = (first >= 0) & (first < count)
    lone = False
    token = first
    if has_first == 0:
        token = tl.load(members_ptr + begin, mask=end > begin, other=-1)
    value, weight = _term(x_ptr, weights_ptr, token, stride_n, count, column, mask, MODE)
    if MODE == "mean":
        lone = (has_first.to(tl.int32) + end - begin == 1) & (token >= 0) & (token < count) & (weight != 0.0)
    if lone:
        tl.store(out_ptr + row * width + column, tl.load(x_ptr + token * stride_n + column, mask=mask), mask=mask)
        tl.store(totals_ptr + row, weight)
    else:
        value, weight = _term(x_ptr, weights_ptr, first, stride_n, count, column, mask, MODE)
        total = _combine(_start(MODE, BLOCK), value, MODE)
        weight_total = 0.0 + weight
        if end - begin > CHUNK:
            windows = tl.cdiv(members, CHUNK)
            for p in range(begin, end, CHUNK):
                at = (sample * windows + p // CHUNK) * 2 + (p == begin).to(tl.int32)
                value = tl.load(sums_ptr + at * width + column, mask=mask, other=0.0)
                total = _combine(total, value, MODE)
                weight_total += tl.load(weight_sums_ptr + at)
        else:
            chunk = _start(MODE, BLOCK)
            weight_chunk = 0.0
            for i in range(begin, end):
                token = tl.load(members_ptr + i)
                value, weight = _term(x_ptr, weights_ptr, token, stride_n, count, column, mask, MODE)
                chunk = _combine(chunk, value, MODE)
                weight_chunk += weight
            total = _combine(total, chunk, MODE)
            weight_total += weight_chunk
        if MODE == "mean":
            divisor = tl.zeros((BLOCK,), tl.float32) + weight_total
            total = tl.where(divisor == 0.0, 0.0, tl.div_rn(total, divisor))
        if MODE == "amax":
            total = tl.where(has_first | (end > begin), total, 0.0)
        tl.store(out_ptr + row * width + column, narrow(total, out_ptr.dtype.element_ty), mask=mask)
        tl.store(totals_ptr + row, weight_total)


def fold_groups(x: Tensor, weights: Optional[Tensor], groups: Groups, mode: str) -> tuple[Tensor, Tensor]:
    batch, count, width = x.shape
    first, members, offsets = (part.contiguous() for part in groups)
    number, many = first.shape[1], members.shape[1]
    weights = None if weights is None else weights.contiguous()
    if not count:
        totals = torch.zeros(batch, number, dtype=torch.float32, device=x.device)
        return torch.zeros(batch, number, width, dtype=x.dtype, device=x.device), totals
    out = torch.empty(batch, number, width, dtype=x.dtype, device=x.device)
    totals = torch.empty(batch, number, dtype=torch.float32, device=x.device)
    if not totals.numel():
        return out, totals
    windows = cdiv(many, CHUNK) if many > CHUNK else 0
    sums = torch.empty(batch, windows, 2, width, dtype=torch.float32, device=x.device)
    weight_sums = torch.empty(batch, windows, 2, dtype=torch.float32, device=x.device)
    strides = (x.stride(0), x.stride(1), 0 if weights is None else weights.stride(0))
    sizes, constants = (count, many, number, width), {"MODE": mode, "CHUNK": CHUNK}
    if windows:
        tiles = fold_tiles(x, True)
        launch(
            _fold_chunks_kernel, batch * windows * max(1, cdiv(width, tiles["BLOCK"])),
            x, weights, members, offsets, sums, weight_sums, *strides, *sizes, highest_bit(number), **constants,
            **tiles,
        )  # fmt: skip
    tiles = fold_tiles(x, False)
    launch(
        _fold_groups_kernel, batch * number * max(1, cdiv(width, tiles["BLOCK"])),
        x, weights, first, members, offsets, sums, weight_sums, out, totals, *strides, *sizes, **constants, **tiles,
    )  # fmt: skip
    return out, totals
