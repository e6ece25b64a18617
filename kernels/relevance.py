"""Dot products of tokens with text, reduced without the matrix."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import below_one, cdiv
from .dots import LOW_BITS, exact_dots
from .launch import launch
from .logits import factor_of
from .tiles import relevance_tiles
from .units import unit_rows


@triton.jit(do_not_specialize=["tokens", "words", "scale"])
def _relevance_kernel(
    tokens_ptr, norms_ptr, text_ptr, text_norms_ptr, out_ptr, tokens, words, scale, MEAN: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Greatest or mean dot product of BLOCK_M tokens with all text rows."""
    BLOCK_M: tl.constexpr = DOT.BLOCK_M
    BLOCK_N: tl.constexpr = DOT.BLOCK_N
    tiles = tl.cdiv(tokens, BLOCK_M)
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    token = (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = token < tokens
    factor, finite = factor_of(norms_ptr, sample * tokens + token, mask, scale)
    if MEAN:
        largest = tl.zeros((BLOCK_N,), tl.int32)
        counts = tl.zeros((BLOCK_N,), tl.int32)
        for n in range(0, words, BLOCK_N):
            word = n + tl.arange(0, BLOCK_N)
            factor_k, usable = factor_of(text_norms_ptr, sample * words + word, word < words, 1.0)
            largest = tl.maximum(largest, factor_k.to(tl.int32, bitcast=True))
            counts += usable.to(tl.int32)
        down, up = below_one(tl.max(largest, axis=0))
        total = tl.zeros((BLOCK_M,), tl.int64)
    else:
        best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    for n in range(0, words, BLOCK_N):
        word = n + tl.arange(0, BLOCK_N)
        word_mask = word < words
        factor_k, usable = factor_of(text_norms_ptr, sample * words + word, word_mask, 1.0)
        scores = exact_dots(
            tokens_ptr, sample * tokens + token, mask, text_ptr, sample * words + word, word_mask, DOT
        )  # fmt: skip
        x = scores
        if DOT.LIMBS == 2:
            x = scores.to(tl.float32) * (1.0 / 1073741824.0)
        if MEAN:
            x = x * (factor_k * down)[None, :]
            # Rows of no use have a factor of 0. Not `tl.floor`, which flushes subnormals.
            x = x * 1073741824.0 + 0.5
            fixed = x.to(tl.int32)
            fixed -= (fixed.to(tl.float32) > x).to(tl.int32)
            total += tl.sum(fixed.to(tl.int64), axis=1)
        else:
            x = x * factor[:, None]
            x = x * factor_k[None, :]
            best = tl.maximum(best, tl.max(tl.where(usable[None, :], x, float("-inf")), axis=1))
    if MEAN:
        count = tl.zeros((BLOCK_M,), tl.float32) + tl.sum(counts, axis=0)
        mean = tl.div_rn(total.to(tl.float32) * (1.0 / 1073741824.0), tl.where(count > 0, count, 1.0))
        best = mean * factor * up
    # A zero is +0.
    tl.store(out_ptr + sample * tokens + token, tl.where(finite, best + 0.0, float("nan")), mask=mask)


def text_relevance(tokens: Tensor, text: Tensor, reduction: str, scale: float, limbs: int) -> Tensor:
    batch, count, features = tokens.shape
    out = torch.empty(batch, count, dtype=torch.float32, device=tokens.device)
    if not out.numel():
        return out
    units, norms = unit_rows(tokens, limbs, LOW_BITS)
    text_units, text_norms = unit_rows(text, limbs, LOW_BITS)
    tiles = relevance_tiles(features, limbs, count, reduction == "mean")
    launch(
        _relevance_kernel, batch * cdiv(count, tiles["DOT"].BLOCK_M),
        units, norms, text_units, text_norms, out, count, text.shape[1], scale, MEAN=reduction == "mean", **tiles,
    )  # fmt: skip
    return out
