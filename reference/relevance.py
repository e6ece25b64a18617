"""Dot products of tokens with text, reduced without the matrix."""

import torch
from torch import Tensor

from .arithmetic import below_one, fixed
from .blocks import LOGITS
from .logits import ONE, Rows, exact_cosines, head_rows, row_sums


def text_relevance(tokens: Tensor, text: Tensor, reduction: str, scale: float, limbs: int) -> Tensor:
    """Greatest or mean dot product of each token with the usable text rows, times `scale`: float32 `[B, N]`.

    From `tokens` `[B, N, D]` and `text` `[B, T, D]`: cosine · (norm · scale) · norm of the text row. For the mean,
    cosine · norm of the text row is an integer in units of 2⁻³⁰ of a power of two above the largest such norm.
    """
    batch, count, _ = tokens.shape
    out = torch.empty(batch, count, dtype=torch.float32, device=tokens.device)
    step = max(1, LOGITS // max(1, text.shape[1], tokens.shape[2]))
    for b in range(batch):
        (words,) = head_rows(text[b : b + 1], 1.0, limbs)
        words = Rows(*[x[words.usable] for x in words])
        for start in range(0, count, step):
            part = slice(start, start + step)
            (rows,) = head_rows(tokens[b : b + 1, part], scale, limbs)
            out[b, part] = torch.where(rows.usable, _relevance(rows, words, reduction), torch.nan)
    return out


def _relevance(rows: Rows, words: Rows, reduction: str) -> Tensor:
    if not len(words.factor):
        return torch.full_like(rows.factor, -torch.inf if reduction == "max" else 0.0)
    cosines = exact_cosines(rows, words)
    cosines *= 2.0**-30
    if reduction == "max":
        cosines *= rows.factor[:, None]
        cosines *= words.factor
        return cosines.amax(1) + 0.0
    scale, unscale = below_one(words.factor.amax())
    cosines *= words.factor * scale
    total = row_sums(fixed(cosines * ONE)).to(torch.float32)
    mean = total * 2.0**-30 / torch.full_like(total, len(words.factor))
    return mean * rows.factor * unscale + 0.0
