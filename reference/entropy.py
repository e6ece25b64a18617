"""Entropy of the pixels of patches."""

import torch
from torch import Tensor

from .arithmetic import next_power_of_2, widen
from .blocks import CACHE_ELEMENTS
from .rows import tree_sum

# 2 / ((2i + 1) · ln 2), of log2((1 + s) / (1 − s)) = Σ LOG2[i] · s^(2i + 1).
LOG2 = (
    2.8853900817779268,
    0.9617966939259756,
    0.5770780163555854,
    0.4121985831111324,
    0.3205988979753252,
    0.262308189252539,
)


def patch_entropy(images: Tensor, patch_size: int, bins: int) -> Tensor:
    """Σ (c/n) · log2(n/c) over the bins of each patch, c the pixel values of n in a bin; NaN where a value is NaN."""
    batch, channels, height, width = images.shape
    down, across = height // patch_size, width // patch_size
    count = channels * patch_size * patch_size
    out = images.new_empty(batch, down, across, dtype=torch.float32)
    word_dtype = torch.int32 if across * (bins + 1) < 1 << 31 else torch.int64
    column = torch.arange(width, dtype=word_dtype, device=images.device) // patch_size * (bins + 1)
    step = max(1, CACHE_ELEMENTS // max(1, across * max(bins, count)))
    table = _bin_terms(torch.arange(count + 1, device=images.device), count) if count < across * bins else None
    for sample in range(batch):
        for first in range(0, down, step):
            rows = min(step, down - first)
            strip = images[sample, :, first * patch_size : (first + rows) * patch_size]
            row = torch.arange(rows * patch_size, dtype=word_dtype, device=images.device) // patch_size
            words = _bin(strip, bins) + (row[:, None] * (across * (bins + 1)) + column)
            counts = words.flatten().bincount(minlength=rows * across * (bins + 1)).view(rows, across, bins + 1)
            terms = counts.new_zeros(rows, across, next_power_of_2(bins), dtype=torch.float32)
            terms[..., :bins] = _bin_terms(counts[..., :bins], count) if table is None else table[counts[..., :bins]]
            size = torch.full((), count, dtype=torch.float32, device=images.device)
            entropy = tree_sum(terms) / size
            out[sample, first : first + rows] = torch.where(counts[..., bins] > 0, torch.nan, entropy)
    return out.flatten(1)


def _bin(x: Tensor, bins: int) -> Tensor:
    """⌊x · bins⌋ within 0 … bins − 1, x · bins rounded to float32, uint8 as x / 256; NaN falls into bin `bins`."""
    if x.dtype == torch.uint8:
        return (x.to(torch.int32) * bins) >> 8
    y = widen(x) * bins
    inside = torch.where(y >= 1.0, y, 0.0)
    inside = torch.where(inside < bins, inside, bins - 1.0)
    return torch.where(y == y, inside, bins).to(torch.int32)


def _bin_terms(counts: Tensor, total: int) -> Tensor:
    """c · log2(total / c) for integers 0 ≤ c ≤ total ≤ 2^24, accurate also where c is close to the total.

    c is scaled by a power of two 2^k into [2/3, 3/2] of the total: log2 = k + 2 atanh((total − c2^k) / (total + c2^k)).
    """
    whole = torch.full((), total, dtype=torch.float32, device=counts.device)
    count = torch.where(counts > 0, widen(counts), whole)
    exponent = (whole.view(torch.int32) >> 23) - (count.view(torch.int32) >> 23)
    scaled = count * ((127 + exponent) << 23).view(torch.float32)
    exponent += (whole > scaled * 1.5).to(torch.int32)
    exponent -= (scaled > whole * 1.5).to(torch.int32)
    scaled = count * ((127 + exponent) << 23).view(torch.float32)
    s = (whole - scaled) / (whole + scaled)
    z = s * s
    series = z * LOG2[-1] + LOG2[-2]
    for coefficient in LOG2[-3::-1]:
        series = series * z + coefficient
    return count * (widen(exponent) + s * series)
