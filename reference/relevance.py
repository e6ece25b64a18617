"""Similarities of tokens and text, reduced without the matrix."""

from typing import Optional

import torch
from torch import Tensor

from .arguments import ALL_QUERIES, Keys, Masks, Queries, Reduction, Segments, Similarity, Softmax, Span
from .arithmetic import below_one, fixed
from .attention import attention_importance
from .blocks import LOGITS
from .logits import LARGEST, ONE, Rows, exact_cosines, head_rows, row_sums
from .segments import segments

LOG2_E = 1.4426950408889634


def text_relevance(
    tokens: Tensor, text: Tensor, masks: Masks, of: Segments, similarity: Similarity, reduction: str
) -> Tensor:
    """Similarities of each token with the text tokens that count, reduced: float32 `[B, N]`; for "softmax" `[B, T]`.

    From `tokens` `[B, N, D]` and `text` `[B, T, D]`: cosine · (norm · scale) · norm of the text row. Tokens that do not
    count get −inf for "max", else 0.
    """
    if reduction == "softmax":
        return _softmax_mean(tokens, text, masks, of, similarity)
    out = torch.full(tokens.shape[:2], _of_nothing(reduction), dtype=torch.float32, device=tokens.device)
    step = max(1, LOGITS // max(1, text.shape[1], tokens.shape[2]))
    for b, token_part, text_part in _parts(tokens, text, of):
        words = _rows(text[b : b + 1, text_part], 1.0, similarity)
        usable = words.usable if masks.text is None else words.usable & masks.text[b, text_part]
        words = Rows(*[x[usable] for x in words])
        for start in range(token_part.start, token_part.stop, step):
            part = slice(start, min(start + step, token_part.stop))
            rows = _rows(tokens[b : b + 1, part], similarity.scale, similarity)
            scores = torch.where(rows.usable, _reduced(rows, words, similarity, reduction), torch.nan)
            if masks.tokens is not None:
                scores = torch.where(masks.tokens[b, part], scores, _of_nothing(reduction))
            out[b, part] = scores
    return out


def _of_nothing(reduction: str) -> float:
    return -torch.inf if reduction == "max" else 0.0


def _parts(tokens: Tensor, text: Tensor, of: Segments) -> list[tuple[int, slice, slice]]:
    """(sample, its tokens, its text), or those of each segment of the one sample."""
    if of.cu_seqlens_q is None or of.cu_seqlens_k is None:
        return [(b, slice(0, tokens.shape[1]), slice(0, text.shape[1])) for b in range(len(tokens))]
    bounds = (
        segments(of.cu_seqlens_q, tokens.shape[1], of.max_seqlen_q),
        segments(of.cu_seqlens_k, text.shape[1], of.max_seqlen_k),
    )
    slices = [map(slice, starts.tolist(), (starts + lengths).tolist()) for starts, lengths in bounds]
    return [(0, *pair) for pair in zip(*slices, strict=True)]


def _rows(x: Tensor, scale: float, similarity: Similarity) -> Rows:
    """Rows of `x` `[1, N, D]`; the norms are 1 where similarity is a cosine."""
    (rows,) = head_rows(x, scale, similarity.limbs)
    if similarity.cosine:
        factor = torch.full_like(rows.factor, min(scale, LARGEST))
        rows = rows._replace(factor=torch.where(rows.usable, factor, 0.0))
    return rows


def _reduced(rows: Rows, words: Rows, similarity: Similarity, reduction: str) -> Tensor:
    """The greatest, the mean, the unbiased variance, or how many are above the threshold: float32 `[N]`."""
    count = len(words.factor)
    if not count:
        nothing = torch.nan if reduction == "var" else _of_nothing(reduction)
        return torch.full_like(rows.factor, nothing)
    cosines = exact_cosines(rows, words)
    cosines *= 2.0**-30
    if reduction in ("max", "count"):
        cosines *= rows.factor[:, None]
        cosines *= words.factor
        if reduction == "max":
            return cosines.amax(1) + 0.0
        threshold = torch.full_like(rows.factor, similarity.threshold)
        return (cosines > threshold[:, None]).to(torch.int64).sum(1).to(torch.float32)
    scale, unscale = below_one(words.factor.amax())
    cosines *= words.factor * scale
    if reduction == "mean":
        total = row_sums(fixed(cosines * ONE)).to(torch.float32)
        mean = total * 2.0**-30 / torch.full_like(total, count)
        return mean * rows.factor * unscale + 0.0
    if count == 1:
        return torch.full_like(rows.factor, torch.nan)
    squares = _squared_deviations(fixed(cosines * (ONE * 0.5))) / torch.full_like(rows.factor, count - 1)
    factor = rows.factor * unscale
    return squares * 2.0**-58 * factor * factor


def _squared_deviations(x: Tensor) -> Tensor:
    """Σ(x − mean)² of integers of about ±2²⁹ in float64 `[N, T]`, the mean rounded: exact, then float32 `[N]`.

    A deviation is 2¹⁵ · high + low: the sums of products of these parts are integers, and what exceeds 15 bits of one
    carries to the next.
    """
    count = x.shape[1]
    mean = (2 * row_sums(x) + count + (count << 32)) // (2 * count) - (1 << 31)
    deviations = x.to(torch.int64) - mean[:, None]
    high = (deviations + (1 << 14)) >> 15
    low = deviations - (high << 15)
    last = (low * low).sum(1)
    middle = 2 * (high * low).sum(1) + (last >> 15)
    first = (high * high).sum(1) + (middle >> 15)
    rest = ((middle & 0x7FFF) << 15) + (last & 0x7FFF)
    return first.to(torch.float32) * 2.0**30 + rest.to(torch.float32)


def _softmax_mean(tokens: Tensor, text: Tensor, masks: Masks, of: Segments, similarity: Similarity) -> Tensor:
    """The mean over the tokens that count of their softmax over the text."""
    positions: Optional[Tensor] = None
    if masks.tokens is not None:
        positions = torch.where(masks.tokens, 0, -1).to(torch.int32)
    return attention_importance(
        tokens[:, None],
        text[:, None],
        Queries(positions=positions),
        of,
        Span(0, of.max_seqlen_k),
        Softmax(False, similarity.scale * LOG2_E, 0.0, similarity.limbs),
        Reduction("sum", "mean", True),
        ALL_QUERIES,
        Keys(mask=masks.text),
    )
