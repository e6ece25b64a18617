"""Level weights that follow the difficulty of a sample."""

from typing import Optional

import torch
from torch import Tensor

from .arguments import Difficulty
from .arithmetic import widen


def adaptive_weights(
    variance: Tensor,
    lengths: Optional[Tensor],
    length: int,
    difficulty: Difficulty,
) -> Tensor:
    """Row r of `rows` `[len(thresholds) + 1, L]` for each sample: r thresholds are not above its difficulty."""
    length_scale, variance_scale, thresholds, rows = difficulty
    count = torch.full(variance.shape, length, device=variance.device) if lengths is None else lengths
    count = torch.where(count > 0, count, 0)
    level = widen(count) * length_scale + variance * variance_scale
    row = torch.zeros_like(variance, dtype=torch.int64)
    for threshold in thresholds:
        row += ~(level < threshold)
    table = torch.tensor(rows, dtype=torch.float32, device=variance.device)
    return table.view(len(thresholds) + 1, -1)[row]
