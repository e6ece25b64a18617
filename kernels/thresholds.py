"""A threshold of the scores of each segment, in one launch."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import Rule
from .arithmetic import key_value, widen
from .launch import launch
from .logits import segment_rows
from .radix import load_words, select_threshold
from .rows import row_reduce
from .tiles import threshold_tiles

# The ordered key of NaN, and the largest.
NAN_KEY = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _mean(scores_ptr, candidates_ptr, length, CHUNKS: tl.constexpr, ROW: tl.constexpr):
    """See the reference; CHUNKS chunks of lanes are loaded at a time."""
    LANES: tl.constexpr = ROW.WIDTH
    total = tl.zeros((1, LANES), tl.float32)
    number = tl.zeros((1, LANES), tl.int32)
    for start in range(0, length, CHUNKS * LANES):
        chunks = ()
        for c in tl.static_range(CHUNKS):
            index = start + c * LANES + tl.arange(0, LANES)[None, :]
            live = index < length
            if candidates_ptr is not None:
                live = live & (tl.load(candidates_ptr + index, mask=live, other=0) != 0)
            number += live.to(tl.int32)
            chunks = chunks + (widen(tl.load(scores_ptr + index, mask=live, other=0)),)
        for c in tl.static_range(CHUNKS):
            total = total + chunks[c]
    total = row_reduce((total,), "sum", ROW) + 0.0
    mean = tl.div_rn(total, row_reduce((number,), "sum", ROW).to(tl.float32))
    # All elements are the same.
    return tl.max(mean.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


@triton.jit
def _quantile(scores_ptr, candidates_ptr, length, number, numerator, denominator, BLOCK: tl.constexpr):
    """See the reference."""
    place = (tl.zeros((), tl.int64) + tl.maximum(number - 1, 0)) * numerator
    lower = place // denominator
    rest = place - lower * denominator
    word, ties = select_threshold(scores_ptr, length, number - lower.to(tl.int32), BLOCK, candidates_ptr)
    low_key = word.to(tl.int32, bitcast=True) ^ 0x7FFFFFFF
    # The next key is equal if more than one such is among the best, else the least above it.
    nearest = tl.full((BLOCK,), NAN_KEY, tl.int32)
    for start in range(0, length, BLOCK):
        index = start + tl.arange(0, BLOCK)
        key = load_words(scores_ptr, index, index < length, candidates_ptr).to(tl.int32, bitcast=True) ^ 0x7FFFFFFF
        nearest = tl.minimum(nearest, tl.where((index < length) & (key > low_key), key, NAN_KEY))
    high_key = tl.where(ties > 1, low_key, tl.min(nearest))
    low = key_value(low_key)
    high = key_value(high_key)
    t = tl.div_rn(rest.to(tl.float32), (tl.zeros((), tl.int32) + denominator).to(tl.float32))
    span = high - low
    between = tl.where(t < 0.5, low + span * t, high - span * (1.0 - t))
    between = tl.where(tl.abs(span) < float("inf"), between, low * (1.0 - t) + high * t)
    return tl.where((rest == 0) | (low_key == high_key), low, between)


@triton.jit(
    do_not_specialize=["stride", "candidates_stride", "size", "max_seqlen", "numerator", "denominator", "factor"]
)
def _segment_threshold_kernel(
    scores_ptr, candidates_ptr, cu_ptr, out_ptr, stride, candidates_stride, size, max_seqlen, numerator, denominator,
    factor, RULE: tl.constexpr, PACKED: tl.constexpr, CHUNKS: tl.constexpr, ROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program for each segment, or sample."""
    segment = tl.program_id(0).to(tl.int64)
    start, length = segment_rows(cu_ptr, None, segment, size, max_seqlen, PACKED)
    scores_ptr += segment * stride + start
    if candidates_ptr is not None:
        candidates_ptr += segment * candidates_stride + start
    if RULE == "mean":
        threshold = _mean(scores_ptr, candidates_ptr, length, CHUNKS, ROW)
    else:
        counts = tl.zeros((BLOCK,), tl.int32)
        unordered = tl.zeros((BLOCK,), tl.int32)
        for i in range(0, length, BLOCK):
            index = i + tl.arange(0, BLOCK)
            word = load_words(scores_ptr, index, index < length, candidates_ptr)
            live = (index < length) & (word != 0xFFFFFFFF)
            counts += live.to(tl.int32)
            unordered = unordered | (live & (word == 0)).to(tl.int32)
        number = tl.sum(counts)
        if RULE == "quantile":
            threshold = _quantile(scores_ptr, candidates_ptr, length, number, numerator, denominator, BLOCK)
        else:
            first = _quantile(scores_ptr, candidates_ptr, length, number, 1, 4, BLOCK)
            threshold = _quantile(scores_ptr, candidates_ptr, length, number, 3, 4, BLOCK)
            threshold = threshold + (threshold - first) * factor
        threshold = tl.where((number == 0) | (tl.max(unordered) > 0), float("nan"), threshold)
    tl.store(out_ptr + segment, threshold)


def segment_threshold(
    scores: Tensor, candidates: Optional[Tensor], cu_seqlens: Optional[Tensor], max_seqlen: int, rule: Rule
) -> Tensor:
    segments = scores.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    out = torch.empty(segments, dtype=torch.float32, device=scores.device)
    if segments:
        scores = scores if scores.stride(1) == 1 else scores.contiguous()
        candidates = None if candidates is None else candidates.contiguous().view(torch.uint8)
        packed = cu_seqlens is not None
        strides = [0 if packed or x is None else x.stride(0) for x in (scores, candidates)]
        launch(
            _segment_threshold_kernel, segments,
            scores, candidates, cu_seqlens, out, *strides, scores.shape[1], max_seqlen, rule.numerator,
            rule.denominator, rule.factor, RULE=rule.name, PACKED=packed, **threshold_tiles(rule.name, max_seqlen),
        )  # fmt: skip
    return out
