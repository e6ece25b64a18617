"""A score per token from its own features."""

import torch
from torch import Tensor

from .numerics import CACHE_ELEMENTS, lane_count, lane_sums, map_rows, scaled_norm, tree_sum, widen


def token_variance(features: Tensor, correction: int) -> Tensor:
    """Σ((x − mean) − rest)² / (D − correction), where rest = Σ(x − mean) / D is what rounding took from the mean."""
    count = features.shape[2]
    scores = features.new_empty(features.shape[:2], dtype=torch.float32)
    if count <= correction:
        return scores.fill_(torch.nan)
    size = torch.full((), count, dtype=torch.float32, device=features.device)

    # Allocated once: fresh pages cost more than the arithmetic on them.
    most = min(features.shape[0] * features.shape[1], max(1, 8 * CACHE_ELEMENTS // count))
    all_lanes = features.new_empty(most, lane_count(count), dtype=torch.float32)
    all_deviations = features.new_empty(most, count, dtype=torch.float32)

    def variance(rows: Tensor) -> tuple[Tensor]:
        lanes, deviations = all_lanes[: len(rows)], all_deviations[: len(rows)]
        step = max(1, CACHE_ELEMENTS // count)
        blocks = [slice(start, start + step) for start in range(0, len(rows), step)]
        for block in blocks:
            lane_sums(widen(rows[block]), lanes[block])
        mean = tree_sum(lanes) / size
        for block in blocks:
            torch.sub(widen(rows[block]), mean[block, None], out=deviations[block])
            lane_sums(deviations[block], lanes[block])
        rest = tree_sum(lanes) / size
        for block in blocks:
            deviation = deviations[block]
            deviation -= rest[block, None]
            deviation *= deviation
            lane_sums(deviation, lanes[block])
        result = tree_sum(lanes) / (size - correction)
        return (torch.where(_constant(rows), 0.0, result),)

    map_rows(variance, features, scores, elements=8 * CACHE_ELEMENTS)
    return scores


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
