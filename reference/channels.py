"""Variance of channels over tokens."""

from typing import Optional

import torch
from torch import Tensor

from .arithmetic import widen
from .blocks import CACHE_ELEMENTS
from .segments import segments

# Tokens of a chunk and lanes that they are added in, lanes that chunks are added in.
CHUNK, TOKEN_LANES, CHUNK_LANES = 64, 8, 16


def channel_variance(features: Tensor, cu_seqlens: Optional[Tensor]) -> Tensor:
    """Unbiased variance of each channel over the tokens of each sample, or packed segment: `[B, D]` or `[S, D]`.

    From the mean m + r and the squares q of each chunk of n tokens: (Σq + Σ n · (m + r − mean of m + r)²) over
    tokens − 1. Offsets ascend.
    """
    _, tokens, count = features.shape
    if cu_seqlens is None:
        parts = [*features.unbind(0)]
    else:
        starts, lengths = segments(cu_seqlens, tokens, tokens)
        bounds = zip(starts.tolist(), lengths.tolist(), strict=True)
        parts = [features[0, start : start + length] for start, length in bounds]
    out = features.new_empty(len(parts), count, dtype=torch.float32)
    for rows, variance in zip(parts, out, strict=True):
        variance.copy_(_variance(rows))
    return out


def _variance(rows: Tensor) -> Tensor:
    tokens, count = rows.shape
    if tokens < 2:
        return torch.full((count,), torch.nan, device=rows.device)
    whole = tokens // CHUNK * CHUNK
    step = CHUNK * max(1, CACHE_ELEMENTS // (CHUNK * count))
    chunks = [rows[first : min(first + step, whole)].unflatten(0, (-1, CHUNK)) for first in range(0, whole, step)]
    if whole < tokens:
        chunks.append(rows[None, whole:])
    statistics = [_moments(widen(x)) for x in chunks]
    mean, rest, squares = (torch.cat(x)[None] for x in zip(*statistics, strict=True))  # [1, chunks, D]
    sizes = torch.full((mean.shape[1], 1), CHUNK, dtype=torch.float32, device=rows.device)
    sizes[-1] = (tokens - 1) % CHUNK + 1
    size = torch.full((), tokens, dtype=torch.float32, device=rows.device)
    freedom = torch.full((), tokens - 1, dtype=torch.float32, device=rows.device)

    center = _total(mean * sizes, CHUNK_LANES) / size
    deviations = (mean - center) + rest
    deviations -= _total(deviations * sizes, CHUNK_LANES) / size
    between = _total(deviations * deviations * sizes, CHUNK_LANES)
    same = ((mean == mean[:, :1]) & (rest == rest[:, :1])).all(1)
    total = _total(squares, CHUNK_LANES) + torch.where(same, 0.0, between)
    return (total / freedom)[0]


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, rest = Σ(x − mean) / n, Σ((x − mean) − rest)²) `[C, D]` of each chunk and channel of `[C, n, D]`.

    Where all features are one finite number: that number, 0 and 0.
    """
    size = torch.full((), x.shape[1], dtype=torch.float32, device=x.device)
    mean = _total(x, TOKEN_LANES) / size
    deviations = x - mean[:, None]
    rest = _total(deviations, TOKEN_LANES) / size
    deviations -= rest[:, None]
    squares = _total(deviations.mul_(deviations), TOKEN_LANES)
    first = x[:, 0]
    constant = (x == first[:, None]).all(1) & (first.abs() < torch.inf)
    zero = torch.zeros_like(mean)
    return (
        torch.where(constant, first + 0.0, mean),
        torch.where(constant, zero, rest),
        torch.where(constant, zero, squares),
    )


def _total(x: Tensor, lanes: int) -> Tensor:
    """`[C, n, D]` → `[C, D]`: lane j adds rows j, j + lanes, … in order from +0, then one tree of adjacent pairs."""
    total = x.new_zeros(len(x), lanes, x.shape[2])
    for start in range(0, x.shape[1], lanes):
        part = x[:, start : start + lanes]
        total[:, : part.shape[1]] += part
    while total.shape[1] > 1:
        total = total[:, 0::2] + total[:, 1::2]
    return total[:, 0] + 0.0
