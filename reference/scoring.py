"""A score per token from its own features."""

from collections.abc import Callable

import torch
from torch import Tensor

from .numerics import CACHE_ELEMENTS, lane_count, map_rows, row_sum, scaled_norm, widen


def token_variance(features: Tensor, correction: int) -> Tensor:
    """Σ((x − mean) − rest)² / (D − correction), see :func:`moments`."""
    count = features.shape[2]
    scores = features.new_empty(features.shape[:2], dtype=torch.float32)
    if count <= correction:
        return scores.fill_(torch.nan)
    size = torch.full((), count - correction, dtype=torch.float32, device=features.device)
    statistics = moments(features)
    map_rows(lambda rows: (statistics(rows)[2] / size,), features, scores, elements=2 * CACHE_ELEMENTS)
    return scores


def moments(features: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """A function of blocks of rows of `features` (of at most 2 · CACHE_ELEMENTS elements, or one row).

    It gives the mean, rest = Σ(x − mean) / D, which is what rounding took from the mean, and Σ((x − mean) − rest)²;
    where all features are one finite number, that number, 0 and 0.
    """
    count = features.shape[2]
    size = torch.full((), count, dtype=torch.float32, device=features.device)

    # Allocated once: fresh pages cost more than the arithmetic on them.
    most = min(features.shape[0] * features.shape[1], max(1, 2 * CACHE_ELEMENTS // count))
    all_lanes = features.new_empty(most, lane_count(count), dtype=torch.float32)
    all_deviations = features.new_empty(most, count, dtype=torch.float32)

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
        return (
            torch.where(constant, widen(rows[:, 0]) + 0.0, mean),
            torch.where(constant, 0.0, rest),
            torch.where(constant, 0.0, squares),
        )

    return statistics


def _constant(rows: Tensor) -> Tensor:
    """Which rows hold one finite value only."""
    first = rows[:, 0]
    candidates = (first == rows[:, -1]) & (first == rows[:, rows.shape[1] // 2]) & (first.abs() < torch.inf)
    found = candidates.nonzero()[:, 0]
    if len(found):
        candidates[found] = (rows[found] == first[found, None]).all(-1)
    return candidates


def token_norm(features: Tensor) -> Tensor:
    """√Σx², the row first scaled by a power of two so that squares neither overflow nor vanish."""

    def norm(rows: Tensor) -> tuple[Tensor]:
        _, length, unscale = scaled_norm(widen(rows))
        return (length * unscale,)

    scores = features.new_empty(features.shape[:2], dtype=torch.float32)
    map_rows(norm, features, scores)
    return scores
