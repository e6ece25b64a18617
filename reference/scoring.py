"""A score per token from its own features, and scores combined."""

from collections.abc import Callable, Sequence
from typing import Optional

import torch
from torch import Tensor

from .arithmetic import NO_KEY, ordered_key, widen
from .blocks import CACHE_ELEMENTS, each_block, work_rows
from .rows import lane_count, row_sum, scaled_norm
from .segments import segment_of


def token_variance(features: Tensor, correction: int) -> Tensor:
    """Σ((x − mean) − rest)² / (D − correction), see :func:`moments`."""
    return level_variances([features], correction)[0]


def level_variances(levels: Sequence[Tensor], correction: int) -> list[Tensor]:
    """Token variances of each level, with one set of buffers: fresh pages cost as much as small levels."""
    count = levels[0].shape[2]
    scores = [level.new_empty(level.shape[:2], dtype=torch.float32) for level in levels]
    if count <= correction:
        return [score.fill_(torch.nan) for score in scores]
    size = torch.full((), count - correction, dtype=torch.float32, device=levels[0].device)
    statistics = moments(max(levels, key=Tensor.numel))

    def variance(rows: Tensor, out: Tensor) -> None:
        torch.div(statistics(rows)[2], size, out=out)

    for level, score in zip(levels, scores, strict=True):
        each_block(variance, 2 * CACHE_ELEMENTS, level, score)
    return scores


def moments(features: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """A function of blocks of rows like those of `features` (of at most 2 · CACHE_ELEMENTS elements, or one row).

    It gives the mean, rest = Σ(x − mean) / D, which is what rounding took from the mean, and Σ((x − mean) − rest)²;
    where all features are one finite number, that number, 0 and 0.
    """
    count = features.shape[2]
    size = torch.full((), count, dtype=torch.float32, device=features.device)

    (all_deviations,) = work_rows(features, 1, 2 * CACHE_ELEMENTS)
    lane_rows = 0 if lane_count(count) == count else len(all_deviations)
    all_lanes = features.new_empty(lane_rows, lane_count(count), dtype=torch.float32)

    def statistics(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        lanes, deviations = all_lanes[: len(rows)], all_deviations[: len(rows)]
        x = rows if rows.dtype == torch.float32 else deviations.copy_(rows)
        mean = row_sum(x, lanes) / size
        torch.sub(x, mean[:, None], out=deviations)
        rest = row_sum(deviations, lanes) / size
        deviations -= rest[:, None]
        deviations *= deviations
        squares = row_sum(deviations, lanes)
        constant = _constant(rows)
        if len(constant):
            mean[constant], rest[constant], squares[constant] = widen(rows[constant, 0]) + 0.0, 0.0, 0.0
        return mean, rest, squares

    return statistics


def _constant(rows: Tensor) -> Tensor:
    """Indices of the rows that hold one finite value only."""
    found = (rows[:, 0] == rows[:, -1]).nonzero()[:, 0]
    if len(found):
        first = rows[found, 0]
        found = found[(first == rows[found, rows.shape[1] // 2]) & (first.abs() < torch.inf)]
        found = found[(rows[found] == rows[found, :1]).all(-1)]
    return found


def token_norm(features: Tensor, p: int) -> Tensor:
    """√Σx², the row first scaled by a power of two so that squares neither overflow nor vanish; Σ|x| for p = 1."""
    if p == 2:
        return level_norms([features])[0]
    scores = features.new_empty(features.shape[:2], dtype=torch.float32)
    (magnitudes,) = work_rows(features, 1, 2 * CACHE_ELEMENTS)

    def add(rows: Tensor, out: Tensor) -> None:
        x = magnitudes[: len(rows)].copy_(rows)
        out.copy_(row_sum(torch.abs(x, out=x)))

    each_block(add, 2 * CACHE_ELEMENTS, features, scores)
    return scores


def level_norms(levels: Sequence[Tensor]) -> list[Tensor]:
    """Token norms of each level, with one buffer."""
    (buffer,) = work_rows(max(levels, key=Tensor.numel), 1, 2 * CACHE_ELEMENTS)

    def norm(rows: Tensor, out: Tensor) -> None:
        work = buffer[: len(rows)]
        length, unscale = scaled_norm(rows, work, work)
        torch.mul(length, unscale, out=out)

    scores = [level.new_empty(level.shape[:2], dtype=torch.float32) for level in levels]
    for level, score in zip(levels, scores, strict=True):
        each_block(norm, 2 * CACHE_ELEMENTS, level, score)
    return scores


def combine_scores(
    scores: Sequence[Tensor], weights: Sequence[float], normalize: bool, cu_seqlens: Optional[Tensor]
) -> Tensor:
    """Σ w_k · s_k over scores `[B, N]`, in ascending k from +0; each s_k first mapped to [0, 1] where `normalize`.

    With `cu_seqlens` B is 1, and samples are the segments of N; a token of no segment gets +0.
    """
    segment, segments = None, 0
    if cu_seqlens is not None:
        segments = len(cu_seqlens) - 1
        segment = segment_of(cu_seqlens.to(torch.int64), scores[0].shape[1])
    total = scores[0].new_zeros(scores[0].shape, dtype=torch.float32)
    for x, weight in zip(scores, weights, strict=True):
        x = widen(x)
        if normalize:
            x = _min_max(x, segment, segments)
        total += x * weight
    return total if segment is None else torch.where(segment < segments, total, 0.0)


def _min_max(x: Tensor, segment: Optional[Tensor], segments: int) -> Tensor:
    """(x − low) / (high − low) with the least and largest finite score of a sample; 0 where those are equal.

    +inf gives 1, −inf 0, NaN stays. All is halved first where high − low overflows.
    """
    finite = (x.contiguous().view(torch.int32) & 0x7FFFFFFF) < 0x7F800000
    key = ordered_key(x)
    high = _largest(torch.where(finite, key, NO_KEY), segment, segments)
    low = ~_largest(torch.where(finite, ~key, NO_KEY), segment, segments)
    # Keys undo themselves; without a finite score these are NaN.
    high, low = ((key ^ ((key >> 31) & 0x7FFFFFFF)).view(torch.float32) for key in (high, low))
    scale = torch.where(high - low < torch.inf, torch.full_like(high, 1.0), 0.5)
    start = low * scale
    span = torch.where(high > low, high * scale - start, torch.inf)
    if segment is not None:
        scale, start, span = scale[:, segment], start[:, segment], span[:, segment]
    y = (x * scale - start) / span
    y = torch.where(finite, y, 0.0)
    y = torch.where(x == torch.inf, 1.0, y)
    return torch.where(x == x, y, x)


def _largest(keys: Tensor, segment: Optional[Tensor], segments: int) -> Tensor:
    """The largest key of each sample `[B, 1]`, or of each segment and of the tokens outside `[1, segments + 1]`."""
    if segment is None:
        return keys.amax(1)[:, None] if keys.shape[1] else keys
    largest = torch.full((segments + 1,), NO_KEY, dtype=torch.int32, device=keys.device)
    return largest.scatter_reduce_(0, segment, keys[0], "amax")[None]
