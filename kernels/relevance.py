"""Similarities of tokens and text, reduced without the matrix."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import ALL_QUERIES, Keys, Masks, Queries, Reduction, Segments, Similarity, Softmax, Span
from .arithmetic import below_one, cdiv
from .attention import attention_importance
from .dots import LOW_BITS, exact_dots
from .launch import launch
from .logits import norm_factor, segment_rows
from .tiles import flat_tiles, relevance_tiles
from .units import masked_units, unit_rows

LOG2_E = 1.4426950408889634


@triton.jit
def _factor_of(norms_ptr, row, mask, scale, COSINE: tl.constexpr):
    """(factor that a row brings to its similarities, whether it is usable); the norm is 1 for a cosine."""
    norm = tl.load(norms_ptr + row, mask=mask, other=float("inf"))
    if COSINE:
        norm = tl.where(norm < float("inf"), 1.0, norm)
    return norm_factor(norm, scale)


@triton.jit
def _cosines(tokens_ptr, row, mask, text_ptr, word_row, word_mask, DOT: tl.constexpr):
    x = exact_dots(tokens_ptr, row, mask, text_ptr, word_row, word_mask, DOT)
    if DOT.LIMBS == 2:
        x = x.to(tl.float32) * (1.0 / 1073741824.0)
    return x


@triton.jit
def _integers(x):
    """The nearest integers, halves up. Not `tl.floor`, which flushes subnormals."""
    x = x + 0.5
    fixed = x.to(tl.int32)
    return fixed - (fixed.to(tl.float32) > x).to(tl.int32)


@triton.jit
def _squared_deviations(
    total, count, tokens_ptr, row, mask, text_ptr, text_norms_ptr, start, words, down, COSINE: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """See the reference."""
    BLOCK_M: tl.constexpr = DOT.BLOCK_M
    BLOCK_N: tl.constexpr = DOT.BLOCK_N
    some = tl.maximum(count, 1).to(tl.int64)
    mean = ((2 * total + some + (some << 32)) // (2 * some) - 2147483648).to(tl.int32)
    last = tl.zeros((BLOCK_M,), tl.int64)
    middle = tl.zeros((BLOCK_M,), tl.int64)
    first = tl.zeros((BLOCK_M,), tl.int64)
    for n in range(0, words, BLOCK_N):
        word = n + tl.arange(0, BLOCK_N)
        factor_k, usable = _factor_of(text_norms_ptr, start + word, word < words, 1.0, COSINE)
        x = _cosines(tokens_ptr, row, mask, text_ptr, start + word, word < words, DOT)
        deviations = _integers(x * (factor_k * down)[None, :] * 536870912.0) - mean[:, None]
        deviations = tl.where(usable[None, :], deviations, 0)
        high = (deviations + 16384) >> 15
        low = deviations - (high << 15)
        last += tl.sum((low * low).to(tl.int64), axis=1)
        middle += tl.sum((high * low).to(tl.int64), axis=1)
        first += tl.sum((high * high).to(tl.int64), axis=1)
    middle = 2 * middle + (last >> 15)
    first += middle >> 15
    rest = ((middle & 0x7FFF) << 15) + (last & 0x7FFF)
    return first.to(tl.float32) * 1073741824.0 + rest.to(tl.float32)


@triton.jit(do_not_specialize=["tokens", "words", "longest_q", "longest_k", "scale", "threshold"])
def _relevance_kernel(
    tokens_ptr, norms_ptr, text_ptr, text_norms_ptr, mask_ptr, cu_seqlens_q_ptr, cu_seqlens_k_ptr, out_ptr, tokens,
    words, longest_q, longest_k, scale, threshold, REDUCTION: tl.constexpr, COSINE: tl.constexpr, PACKED: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Similarities of BLOCK_M tokens with all text rows of their sample or segment, reduced."""
    BLOCK_M: tl.constexpr = DOT.BLOCK_M
    BLOCK_N: tl.constexpr = DOT.BLOCK_N
    WIDE: tl.constexpr = (REDUCTION == "mean") | (REDUCTION == "var")
    tiles = tl.cdiv(longest_q, BLOCK_M)
    segment = (tl.program_id(0) // tiles).to(tl.int64)
    start_q, count = segment_rows(cu_seqlens_q_ptr, None, segment, tokens, longest_q, PACKED)
    start, length = segment_rows(cu_seqlens_k_ptr, None, segment, words, longest_k, PACKED)
    if PACKED == 0:
        start_q += segment * tokens
        start += segment * words
    tile = tl.program_id(0) % tiles
    if PACKED:  # past the last token of a segment there is nothing to do
        length = tl.where(tile * BLOCK_M < count, length, 0)
    token = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = token < count
    row = start_q + token
    factor, finite = _factor_of(norms_ptr, row, mask, scale, COSINE)
    counts = tl.zeros((BLOCK_N,), tl.int32)
    if WIDE:
        largest = tl.zeros((BLOCK_N,), tl.int32)
        for n in range(0, length, BLOCK_N):
            word = n + tl.arange(0, BLOCK_N)
            factor_k, usable = _factor_of(text_norms_ptr, start + word, word < length, 1.0, COSINE)
            largest = tl.maximum(largest, factor_k.to(tl.int32, bitcast=True))
            counts += usable.to(tl.int32)
        down, up = below_one(tl.max(largest, axis=0))
        total = tl.zeros((BLOCK_M,), tl.int64)
    best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    above = tl.zeros((BLOCK_M,), tl.int32)
    for n in range(0, length, BLOCK_N):
        word = n + tl.arange(0, BLOCK_N)
        factor_k, usable = _factor_of(text_norms_ptr, start + word, word < length, 1.0, COSINE)
        x = _cosines(tokens_ptr, row, mask, text_ptr, start + word, word < length, DOT)
        if WIDE:
            x = x * (factor_k * down)[None, :]
            # Rows of no use have a factor of 0.
            total += tl.sum(_integers(x * (1073741824.0 if REDUCTION == "mean" else 536870912.0)).to(tl.int64), axis=1)
        else:
            x = x * factor[:, None]
            x = x * factor_k[None, :]
            if REDUCTION == "max":
                best = tl.maximum(best, tl.max(tl.where(usable[None, :], x, float("-inf")), axis=1))
            else:
                above += tl.sum((usable[None, :] & (x > threshold)).to(tl.int32), axis=1)
    if REDUCTION == "count":
        best = above.to(tl.float32)
    if WIDE:
        number = tl.sum(counts, axis=0)
    if REDUCTION == "mean":
        some = tl.zeros((BLOCK_M,), tl.float32) + number
        mean = tl.div_rn(total.to(tl.float32) * (1.0 / 1073741824.0), tl.where(some > 0, some, 1.0))
        best = mean * factor * up
    if REDUCTION == "var":
        squares = _squared_deviations(
            total, number, tokens_ptr, row, mask, text_ptr, text_norms_ptr, start, length, down, COSINE, DOT
        )  # fmt: skip
        freedom = tl.zeros((BLOCK_M,), tl.float32) + (number - 1)
        factor = factor * up
        variance = tl.div_rn(squares, tl.where(freedom > 0, freedom, 1.0)) * (2.0**-58) * factor * factor
        best = tl.where(freedom > 0, variance, float("nan"))
    # A zero is +0.
    best = tl.where(finite, best + 0.0, float("nan"))
    if mask_ptr is not None:
        counted = tl.load(mask_ptr + row, mask=mask, other=0) != 0
        best = tl.where(counted, best, float("-inf") if REDUCTION == "max" else 0.0)
    tl.store(out_ptr + row, best, mask=mask)


@triton.jit
def _positions_kernel(mask_ptr, positions_ptr, size, BLOCK: tl.constexpr):
    """0 where a mask is set, else −1."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    counted = tl.load(mask_ptr + row, mask=row < size, other=0) != 0
    tl.store(positions_ptr + row, tl.where(counted, 0, -1), mask=row < size)


def text_relevance(
    tokens: Tensor, text: Tensor, masks: Masks, of: Segments, similarity: Similarity, reduction: str
) -> Tensor:
    masks = Masks(*[None if x is None else x.contiguous().view(torch.uint8) for x in masks])
    if reduction == "softmax":
        return _softmax_mean(tokens, text, masks, of, similarity)
    batch, count, features = tokens.shape
    packed = of.cu_seqlens_q is not None
    parts = batch if of.cu_seqlens_q is None else of.cu_seqlens_q.shape[0] - 1
    out = torch.empty(batch, count, dtype=torch.float32, device=tokens.device)
    if packed:
        out.fill_(-torch.inf if reduction == "max" else 0.0)
    if not out.numel() or not parts * of.max_seqlen_q:
        return out
    cosine, scale, threshold, limbs = similarity
    units, norms = unit_rows(tokens, limbs, LOW_BITS)
    text_units, text_norms = masked_units(text, masks.text, limbs, LOW_BITS)
    tiles = relevance_tiles(features, limbs, of.max_seqlen_q, reduction in ("mean", "var"))
    launch(
        _relevance_kernel, parts * cdiv(of.max_seqlen_q, tiles["DOT"].BLOCK_M),
        units, norms, text_units, text_norms, masks.tokens, of.cu_seqlens_q, of.cu_seqlens_k, out, count, text.shape[1],
        of.max_seqlen_q, of.max_seqlen_k, scale, threshold, REDUCTION=reduction, COSINE=cosine, PACKED=packed, **tiles,
    )  # fmt: skip
    return out


def _softmax_mean(tokens: Tensor, text: Tensor, masks: Masks, of: Segments, similarity: Similarity) -> Tensor:
    positions: Optional[Tensor] = None
    if masks.tokens is not None:
        positions = torch.empty(masks.tokens.shape, dtype=torch.int32, device=tokens.device)
        tiles = flat_tiles()
        if positions.numel():
            programs = cdiv(positions.numel(), tiles["BLOCK"])
            launch(_positions_kernel, programs, masks.tokens, positions, positions.numel(), **tiles)
    return attention_importance(
        tokens[:, None],
        text[:, None],
        Queries(positions=positions),
        of,
        Span(0, of.max_seqlen_k),
        Softmax(False, similarity.scale * LOG2_E, 0.0, similarity.limbs),
        Reduction("sum", "mean", True),
        ALL_QUERIES,
        Keys(mask=None if masks.text is None else masks.text.view(torch.bool)),
    )
