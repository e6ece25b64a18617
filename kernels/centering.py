"""Keys less the mean of their segment, and log-sum-exps of logits less those of the mean."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import bounds, cdiv, highest_bit, segment_of, widen
from .launch import launch
from .merging import CHUNK
from .rows import load_rows, row_sum, store_rows
from .tiles import center_tiles, row_tiles


@triton.jit
def _segment_of_slot(cu_ptr, slot, segments, size, top_bit, CHUNK: tl.constexpr):
    """The segment of a slot, −1 for none: those of segment s begin at `cu[s] // CHUNK + s`, which no two share."""
    segment = tl.full(slot.shape, -1, tl.int32)
    bit = tl.zeros((), tl.int32) + top_bit
    while bit > 0:
        candidate = segment + bit
        begin = tl.load(cu_ptr + candidate, mask=candidate < segments, other=0)
        begin = tl.minimum(tl.maximum(begin, 0), size)
        before = (candidate < segments) & (begin // CHUNK + candidate <= slot)
        segment = tl.where(before, candidate, segment)
        bit = bit >> 1
    return segment


@triton.jit(do_not_specialize=["heads", "size", "longest", "segments", "slots", "top_bit"])
def _key_chunks_kernel(
    x_ptr, mask_ptr, cu_ptr, sums_ptr, counts_ptr, stride_b, stride_h, stride_n, heads, size, longest, segments, slots,
    top_bit, D: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums of the finite keys of ROWS chunks, BLOCK features of each, and how many they are."""
    COLUMNS: tl.constexpr = (D + BLOCK - 1) // BLOCK
    programs = tl.cdiv(slots, ROWS)
    column = (tl.program_id(0) % COLUMNS) * BLOCK + tl.arange(0, BLOCK)[None, :]
    head = (tl.program_id(0) // COLUMNS // programs).to(tl.int64)
    slot = (tl.program_id(0) // COLUMNS % programs) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    x_ptr += head // heads * stride_b + head % heads * stride_h
    begin = slot * CHUNK
    end = tl.zeros((ROWS,), tl.int32) + size
    if cu_ptr is not None:
        segment = _segment_of_slot(cu_ptr, slot, segments, size, top_bit, CHUNK)
        start, length = bounds(cu_ptr, tl.maximum(segment, 0), size)
        begin = start + (slot - start // CHUNK - segment) * CHUNK
        end = start + tl.where(segment < 0, 0, tl.minimum(length, longest))
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    count = tl.zeros((ROWS,), tl.int32)
    for i in range(CHUNK):
        row = begin + i
        inside = row < end
        row_ptr = x_ptr + row.to(tl.int64)[:, None] * stride_n
        x = widen(tl.load(row_ptr + column, mask=inside[:, None] & (column < D), other=0))
        odd = tl.max(((x - x) != 0.0).to(tl.int32), axis=1)
        for step in range(1, COLUMNS):
            other = (column + step * BLOCK) % (COLUMNS * BLOCK)
            y = widen(tl.load(row_ptr + other, mask=inside[:, None] & (other < D), other=0))
            odd = tl.maximum(odd, tl.max(((y - y) != 0.0).to(tl.int32), axis=1))
        counted = inside & (odd == 0)
        if mask_ptr is not None:
            counted = counted & (tl.load(mask_ptr + head // heads * size + row, mask=inside, other=0) != 0)
        total += tl.where(counted[:, None], x, 0.0)
        count += counted.to(tl.int32)
    at = head * slots + slot
    tl.store(sums_ptr + at[:, None] * D + column, total, mask=(slot < slots)[:, None] & (column < D))
    tl.store(counts_ptr + at, count, mask=slot < slots)


@triton.jit(do_not_specialize=["size", "longest", "segments", "slots", "means"])
def _key_means_kernel(
    sums_ptr, counts_ptr, cu_ptr, means_ptr, size, longest, segments, slots, means, D: tl.constexpr,
    CHUNK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS of so many means, BLOCK features of each: the chunks of a segment in order."""
    COLUMNS: tl.constexpr = (D + BLOCK - 1) // BLOCK
    column = (tl.program_id(0) % COLUMNS) * BLOCK + tl.arange(0, BLOCK)[None, :]
    at = (tl.program_id(0) // COLUMNS).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    live = at < means
    slot = at // segments * slots
    length = tl.zeros((ROWS,), tl.int32) + size
    if cu_ptr is not None:
        segment = (at % segments).to(tl.int32)
        start, length = bounds(cu_ptr, segment, size)
        slot += start // CHUNK + segment
        length = tl.minimum(length, longest)
    length = tl.where(live, length, 0)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    count = tl.zeros((ROWS,), tl.int32)
    for first in range(0, tl.max(length, axis=0), CHUNK):
        inside = first < length
        total += tl.load(sums_ptr + slot[:, None] * D + column, mask=inside[:, None] & (column < D), other=0.0)
        count += tl.load(counts_ptr + slot, mask=inside, other=0)
        slot += 1
    divisor = tl.zeros((ROWS, BLOCK), tl.float32) + tl.maximum(count, 1).to(tl.float32)[:, None]
    mean = tl.where(count[:, None] > 0, tl.div_rn(total, divisor), 0.0)
    tl.store(means_ptr + at[:, None] * D + column, mean, mask=live[:, None] & (column < D))


@triton.jit(do_not_specialize=["heads", "size", "segments", "top_bit"])
def _subtract_means_kernel(
    x_ptr, means_ptr, cu_ptr, out_ptr, stride_b, stride_h, stride_n, heads, size, segments, top_bit, D: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    COLUMNS: tl.constexpr = (D + BLOCK - 1) // BLOCK
    programs = tl.cdiv(size, ROWS)
    column = (tl.program_id(0) % COLUMNS) * BLOCK + tl.arange(0, BLOCK)[None, :]
    head = (tl.program_id(0) // COLUMNS // programs).to(tl.int64)
    row = (tl.program_id(0) // COLUMNS % programs) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    segment = tl.zeros((ROWS,), tl.int32)
    if cu_ptr is not None:
        segment = segment_of(cu_ptr, row, segments, top_bit)
    inside = ((segment >= 0) & (segment < segments))[:, None]
    live = (row < size)[:, None] & (column < D)
    x_ptr += head // heads * stride_b + head % heads * stride_h
    x = widen(tl.load(x_ptr + row.to(tl.int64)[:, None] * stride_n + column, mask=live, other=0))
    mean = tl.load(means_ptr + (head * segments + segment)[:, None] * D + column, mask=live & inside, other=0.0)
    tl.store(out_ptr + (head * size + row)[:, None] * D + column, x - mean, mask=live)


def center_keys(
    key: Tensor, mask: Optional[Tensor], cu_seqlens: Optional[Tensor], max_seqlen: int
) -> tuple[Tensor, Tensor]:
    batch, heads, size, width = key.shape
    segments = 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    centered = torch.empty(key.shape, dtype=torch.float32, device=key.device)
    means = torch.empty(batch, heads, segments, width, dtype=torch.float32, device=key.device)
    slots = size // CHUNK + segments
    sums = torch.empty(batch, heads, slots, width, dtype=torch.float32, device=key.device)
    counts = torch.empty(batch, heads, slots, dtype=torch.int32, device=key.device)
    few, many = center_tiles(width)
    strides, top_bit, sizes = key.stride()[:3], highest_bit(segments), (size, max_seqlen, segments, slots)
    columns = cdiv(width, few["BLOCK"])
    if means.numel():
        mask = None if mask is None else mask.contiguous().view(torch.uint8)
        launch(
            _key_chunks_kernel, batch * heads * cdiv(slots, few["ROWS"]) * columns,
            key, mask, cu_seqlens, sums, counts, *strides, heads, *sizes, top_bit, D=width, CHUNK=CHUNK, **few,
        )  # fmt: skip
        number = batch * heads * segments
        launch(
            _key_means_kernel, cdiv(number, few["ROWS"]) * columns,
            sums, counts, cu_seqlens, means, *sizes, number, D=width, CHUNK=CHUNK, **few,
        )  # fmt: skip
    if centered.numel():
        launch(
            _subtract_means_kernel, batch * heads * cdiv(size, many["ROWS"]) * columns,
            key, means, cu_seqlens, centered, *strides, heads, size, segments, top_bit, D=width, **many,
        )  # fmt: skip
    return centered, means


@triton.jit(do_not_specialize=["heads", "group", "size", "segments", "top_bit"])
def _center_logits_kernel(
    lse_ptr, x_ptr, means_ptr, cu_ptr, out_ptr, stride_b, stride_h, stride_n, heads, group, size, segments, top_bit,
    scale, ROW: tl.constexpr,
):  # fmt: skip
    programs = tl.cdiv(size, ROW.TILES // ROW.BLOCKS)
    head = (tl.program_id(0) // programs).to(tl.int64)
    token = (tl.program_id(0) % programs) * (ROW.TILES // ROW.BLOCKS) + tl.arange(0, ROW.TILES) // ROW.BLOCKS  # [TILES]
    mask = token < size
    segment = tl.zeros((ROW.TILES,), tl.int32)
    if cu_ptr is not None:
        segment = segment_of(cu_ptr, token, segments, top_bit)
    inside = mask & (segment >= 0) & (segment < segments)
    x_ptr += tl.multiple_of(head // heads * stride_b + head % heads * stride_h, ROW.VECTOR)
    queries = load_rows(x_ptr, stride_n, token, mask, ROW)
    mean = load_rows(means_ptr, ROW.D, head // group * segments + segment, inside, ROW)
    products = ()
    for c in tl.static_range(ROW.CHUNKS):
        products = products + (queries[c] * scale * mean[c],)
    logit = row_sum(products, ROW)
    lse = tl.load(lse_ptr + head * size + token, mask=mask, other=0.0)
    store_rows(out_ptr + (head * size + token)[:, None], lse[:, None] - logit, mask, ROW)


def center_logits(
    log_sum_exp: Tensor, query: Tensor, means: Tensor, cu_seqlens: Optional[Tensor], scale: float
) -> Tensor:
    batch, heads, size, _ = query.shape
    out = torch.empty(log_sum_exp.shape, dtype=torch.float32, device=query.device)
    segments = means.shape[2]
    if out.numel():
        means = means.contiguous()
        tiles = row_tiles([query, means])
        launch(
            _center_logits_kernel, batch * heads * cdiv(size, tiles["ROW"].TILES // tiles["ROW"].BLOCKS),
            log_sum_exp.contiguous(), query, means, cu_seqlens, out, *query.stride()[:3], heads,
            heads // means.shape[1], size, segments, highest_bit(segments), scale, **tiles,
        )  # fmt: skip
    return out
