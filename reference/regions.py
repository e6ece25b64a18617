"""Scores of regions: variance over groups of tokens, entropy over patches of pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .numerics import CACHE_ELEMENTS, LANES, each_block, next_power_of_2, tree_sum, widen
from .scoring import moments

# 2 / ((2i + 1) · ln 2), of log2((1 + s) / (1 − s)) = Σ LOG2[i] · s^(2i + 1).
LOG2 = (
    2.8853900817779268,
    0.9617966939259756,
    0.5770780163555854,
    0.4121985831111324,
    0.3205988979753252,
    0.262308189252539,
)


def region_variance(
    features: Tensor, lengths: Sequence[Tensor], height: int, width: int, rows: int, columns: int
) -> Tensor:
    """Unbiased variance over all features of the tokens of each region: `[B, rows · columns]`.

    From the mean m + r and the squares q of each token: (Σq + D · Σ(m + r − mean of m + r)²) / (tokens · D − 1). A sum
    over tokens: lane j of 256 adds the tokens j, j + 256, … of the region in order from +0, then a tree over the lanes.
    """
    batch, tokens, count = features.shape
    of_tokens = features.new_empty(3, batch, tokens, dtype=torch.float32)
    statistics = moments(features)

    def store(rows: Tensor, *outs: Tensor) -> None:
        for out, statistic in zip(outs, statistics(rows), strict=True):
            out.copy_(statistic)

    each_block(store, 2 * CACHE_ELEMENTS, features, *of_tokens.unbind(0))

    index, live = _members(height, width, rows, columns, features.device)
    live = live[None]
    if lengths:
        live = live & (index < lengths[0][:, None, None])
    mean, rest, squares = torch.where(live, of_tokens[:, :, index], 0.0).unbind(0)  # [B, regions, most tokens]
    size = live.to(torch.int64).sum(-1)
    width_of = torch.full((), count, dtype=torch.float32, device=features.device)

    same = (((mean == mean[..., :1]) & (rest == rest[..., :1])) | ~live).all(-1)
    center = _token_sum(mean) / widen(size)
    deviations = torch.where(live, (mean - center[..., None]) + rest, 0.0)
    center = _token_sum(deviations) / widen(size)
    deviations = torch.where(live, deviations - center[..., None], 0.0)
    between = torch.where(same, 0.0, _token_sum(deviations * deviations))
    total = _token_sum(squares) + between * width_of
    freedom = size * count - 1
    return torch.where(freedom > 0, total / widen(freedom), torch.nan).expand(batch, rows * columns).contiguous()


def _members(height: int, width: int, rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(token index, whether there is one) `[regions, most tokens]`, the tokens of a region in ascending order."""
    region = torch.arange(rows * columns, device=device)[:, None]
    row, column = region // columns, region % columns
    top, left = row * height // rows, column * width // columns
    down, across = (row + 1) * height // rows - top, (column + 1) * width // columns - left
    local = torch.arange(-(-height // rows) * -(-width // columns), device=device)
    live = local < down * across
    return torch.where(live, (top + local // across) * width + left + local % across, 0), live


def _token_sum(x: Tensor) -> Tensor:
    lanes = x.new_zeros(*x.shape[:-1], LANES)
    for start in range(0, x.shape[-1], LANES):
        chunk = x[..., start : start + LANES]
        lanes[..., : chunk.shape[-1]] += chunk
    return tree_sum(lanes)


def broadcast_regions(scores: Tensor, height: int, width: int, rows: int, columns: int) -> Tensor:
    """`[B, rows · columns]` → `[B, height · width]`: each token gets the entry of its region."""
    row = ((torch.arange(height, device=scores.device) + 1) * rows - 1) // height
    column = ((torch.arange(width, device=scores.device) + 1) * columns - 1) // width
    return scores.unflatten(1, (rows, columns))[:, row][:, :, column].flatten(1)


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
