"""Variance of channels over tokens."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import bounds, cdiv, highest_bit, widen
from .launch import launch
from .tiles import channel_tiles

# Tokens of a chunk and lanes that they are added in, lanes that chunks are added in.
CHUNK = tl.constexpr(64)
TOKEN_LANES = tl.constexpr(8)
CHUNK_LANES = tl.constexpr(16)


@triton.jit
def _zeros(LANES: tl.constexpr, BLOCK: tl.constexpr):
    lanes = ()
    for _ in tl.static_range(LANES):
        lanes = lanes + (tl.zeros((BLOCK,), tl.float32),)
    return lanes


@triton.jit
def _tree(lanes):
    """Adjacent lanes are added in pairs, adjacent sums in pairs, and so on; a zero sum is +0."""
    for _ in tl.static_range(len(lanes).bit_length() - 1):
        pairs = ()
        for lane in tl.static_range(0, len(lanes), 2):
            pairs = pairs + (lanes[lane] + lanes[lane + 1],)
        lanes = pairs
    return lanes[0] + 0.0


@triton.jit
def _chunk_of(cu_ptr, slot, tokens, segments, top_bit):
    """(first token, tokens) of the chunk of a slot; those of segment s have slots from start // CHUNK + s on."""
    segment = tl.zeros((), tl.int32) - 1
    base = tl.zeros((), tl.int32)
    bit = tl.zeros((), tl.int32) + top_bit
    while bit > 0:
        candidate = segment + bit
        start = tl.load(cu_ptr + candidate, mask=candidate <= segments, other=0)
        begin = tl.minimum(tl.maximum(start, 0), tokens) // CHUNK + candidate
        found = (candidate <= segments) & (begin <= slot)
        segment = tl.where(found, candidate, segment)
        base = tl.where(found, begin, base)
        bit = bit >> 1
    inside = (segment >= 0) & (segment < segments)
    start, length = bounds(cu_ptr, tl.where(inside, segment, 0), tokens)
    first = (slot - base) * CHUNK
    return start + first, tl.where(inside, tl.minimum(length - first, CHUNK), 0)


@triton.jit
def _part(x_ptr, stride_n, start, count, mask, LANES: tl.constexpr):
    """Rows `start` to start + LANES − 1 as float32, and which of their features there are."""
    rows = ()
    live = ()
    for lane in tl.static_range(LANES):
        token = start + lane
        keep = mask & (token < count)
        rows = rows + (widen(tl.load(x_ptr + token.to(tl.int64) * stride_n, mask=keep, other=0)),)
        live = live + (keep,)
    return rows, live


@triton.jit(do_not_specialize=["tokens", "segments", "top_bit"])
def _channel_moments_kernel(
    x_ptr, cu_ptr, out_ptr, stride_b, stride_n, tokens, segments, features, plane, top_bit, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[:, slot] = (mean, rest, squares) of each channel of a chunk; the three planes are `plane` elements apart."""
    strips = tl.cdiv(features, BLOCK)
    feature = tl.program_id(0) % strips * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    mask = feature < features
    slot = tl.program_id(0) // strips
    if cu_ptr is None:
        chunks = tl.cdiv(tokens, CHUNK)
        x_ptr += (slot // chunks).to(tl.int64) * stride_b
        first = slot % chunks * CHUNK
        count = tl.minimum(tokens - first, CHUNK)
    else:
        first, count = _chunk_of(cu_ptr, slot, tokens, segments, top_bit)
    if count > 0:
        row_ptr = x_ptr + first.to(tl.int64) * stride_n + feature
        size = tl.zeros((BLOCK,), tl.float32) + count.to(tl.float32)
        pivot = widen(tl.load(row_ptr, mask=mask, other=0))
        differs = tl.zeros((BLOCK,), tl.int32)
        total = _zeros(TOKEN_LANES, BLOCK)
        for start in range(0, count, TOKEN_LANES):
            rows, live = _part(row_ptr, stride_n, start, count, mask, TOKEN_LANES)
            sums = ()
            for lane in tl.static_range(TOKEN_LANES):
                sums = sums + (total[lane] + rows[lane],)
                differs = differs | tl.where(live[lane] & ~(rows[lane] == pivot), 1, 0)
            total = sums
        mean = tl.div_rn(_tree(total), size)
        total = _zeros(TOKEN_LANES, BLOCK)
        for start in range(0, count, TOKEN_LANES):
            rows, live = _part(row_ptr, stride_n, start, count, mask, TOKEN_LANES)
            sums = ()
            for lane in tl.static_range(TOKEN_LANES):
                sums = sums + (total[lane] + tl.where(live[lane], rows[lane] - mean, 0.0),)
            total = sums
        rest = tl.div_rn(_tree(total), size)
        total = _zeros(TOKEN_LANES, BLOCK)
        for start in range(0, count, TOKEN_LANES):
            rows, live = _part(row_ptr, stride_n, start, count, mask, TOKEN_LANES)
            sums = ()
            for lane in tl.static_range(TOKEN_LANES):
                deviation = tl.where(live[lane], (rows[lane] - mean) - rest, 0.0)
                sums = sums + (total[lane] + deviation * deviation,)
            total = sums
        constant = (differs == 0) & ((pivot.to(tl.int32, bitcast=True) & 0x7FFFFFFF) < 0x7F800000)
        ptr = out_ptr + slot.to(tl.int64) * features + feature
        second = tl.zeros((), tl.int64) + plane
        tl.store(ptr, tl.where(constant, pivot + 0.0, mean), mask=mask)
        tl.store(ptr + second, tl.where(constant, 0.0, rest), mask=mask)
        tl.store(ptr + 2 * second, tl.where(constant, 0.0, _tree(total)), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def _channel_variance_kernel(statistics_ptr, cu_ptr, out_ptr, tokens, features, plane, BLOCK: tl.constexpr):
    """A program combines the chunks of BLOCK channels of one sample or segment."""
    strips = tl.cdiv(features, BLOCK)
    feature = tl.program_id(0) % strips * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    mask = feature < features
    sample = tl.program_id(0) // strips
    if cu_ptr is None:
        length = tl.zeros((), tl.int32) + tokens
        slot = sample * tl.cdiv(tokens, CHUNK)
    else:
        start, length = bounds(cu_ptr, sample, tokens)
        slot = start // CHUNK + sample
    chunks = tl.cdiv(length, CHUNK)
    mean_ptr = statistics_ptr + slot.to(tl.int64) * features + feature
    rest_ptr = mean_ptr + (tl.zeros((), tl.int64) + plane)
    squares_ptr = rest_ptr + (tl.zeros((), tl.int64) + plane)
    size = tl.zeros((BLOCK,), tl.float32) + length.to(tl.float32)
    first_mean = tl.load(mean_ptr, mask=mask & (chunks > 0), other=0)
    first_rest = tl.load(rest_ptr, mask=mask & (chunks > 0), other=0)
    differs = tl.zeros((BLOCK,), tl.int32)

    total = _zeros(CHUNK_LANES, BLOCK)
    squares = _zeros(CHUNK_LANES, BLOCK)
    for start in range(0, chunks, CHUNK_LANES):
        means, live = _part(mean_ptr, features, start, chunks, mask, CHUNK_LANES)
        more, _ = _part(squares_ptr, features, start, chunks, mask, CHUNK_LANES)
        sums = ()
        sums_of_squares = ()
        for lane in tl.static_range(CHUNK_LANES):
            weight = tl.minimum(length - (start + lane) * CHUNK, CHUNK).to(tl.float32)
            sums = sums + (total[lane] + tl.where(live[lane], means[lane] * weight, 0.0),)
            sums_of_squares = sums_of_squares + (squares[lane] + more[lane],)
        total = sums
        squares = sums_of_squares
    center = tl.div_rn(_tree(total), size)
    within = _tree(squares)

    total = _zeros(CHUNK_LANES, BLOCK)
    for start in range(0, chunks, CHUNK_LANES):
        means, live = _part(mean_ptr, features, start, chunks, mask, CHUNK_LANES)
        rests, _ = _part(rest_ptr, features, start, chunks, mask, CHUNK_LANES)
        sums = ()
        for lane in tl.static_range(CHUNK_LANES):
            weight = tl.minimum(length - (start + lane) * CHUNK, CHUNK).to(tl.float32)
            deviation = (means[lane] - center) + rests[lane]
            sums = sums + (total[lane] + tl.where(live[lane], deviation * weight, 0.0),)
            same = (means[lane] == first_mean) & (rests[lane] == first_rest)
            differs = differs | tl.where(live[lane] & ~same, 1, 0)
        total = sums
    shift = tl.div_rn(_tree(total), size)

    total = _zeros(CHUNK_LANES, BLOCK)
    for start in range(0, chunks, CHUNK_LANES):
        means, live = _part(mean_ptr, features, start, chunks, mask, CHUNK_LANES)
        rests, _ = _part(rest_ptr, features, start, chunks, mask, CHUNK_LANES)
        sums = ()
        for lane in tl.static_range(CHUNK_LANES):
            weight = tl.minimum(length - (start + lane) * CHUNK, CHUNK).to(tl.float32)
            deviation = ((means[lane] - center) + rests[lane]) - shift
            sums = sums + (total[lane] + tl.where(live[lane], deviation * deviation * weight, 0.0),)
        total = sums
    variance = within + tl.where(differs == 0, 0.0, _tree(total))
    freedom = tl.zeros((BLOCK,), tl.float32) + (length - 1).to(tl.float32)
    variance = tl.where(length > 1, tl.div_rn(variance, freedom), float("nan"))
    tl.store(out_ptr + sample.to(tl.int64) * features + feature, variance, mask=mask)


def channel_variance(features: Tensor, cu_seqlens: Optional[Tensor]) -> Tensor:
    batch, tokens, count = features.shape
    segments = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    out = torch.empty(segments, count, dtype=torch.float32, device=features.device)
    if not segments:
        return out
    # Ascending segments share no slot.
    slots = batch * cdiv(tokens, CHUNK.value) if cu_seqlens is None else tokens // CHUNK.value + segments
    statistics = torch.empty(3, slots, count, dtype=torch.float32, device=features.device)
    first, second = channel_tiles(features)
    if tokens:
        launch(
            _channel_moments_kernel, slots * cdiv(count, first["BLOCK"]),
            features, cu_seqlens, statistics, features.stride(0), features.stride(1), tokens, segments, count,
            slots * count, highest_bit(segments), **first,
        )  # fmt: skip
    launch(
        _channel_variance_kernel, segments * cdiv(count, second["BLOCK"]),
        statistics, cu_seqlens, out, tokens, count, slots * count, **second,
    )  # fmt: skip
    return out
