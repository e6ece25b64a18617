"""Top-k over the levels of a pyramid, and the gather that follows it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .arithmetic import ordered_key, widen
from .gathering import gather_levels
from .scoring import level_norms, level_variances


def select_topk_levels(
    levels: Sequence[Tensor], scores: Sequence[Tensor], saliency: str, budgets: Sequence[int], by_index: bool
) -> tuple[Tensor, Tensor]:
    """(tokens `[B, K, D]`, indices `[B, K, 2]`).

    One budget for each level, or a single budget for the union of all levels. Order: key descending, then level,
    then index; or (`by_index`) level, then index.
    """
    if saliency == "variance":
        scores = level_variances(levels, 1)
    elif saliency == "norm":
        scores = level_norms(levels)
    # Widened first: autocast would refuse to join some of the two-byte dtypes.
    keys = ordered_key(torch.cat([widen(score) for score in scores], 1))
    sizes = [level.shape[1] for level in levels]
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    if len(budgets) == 1:
        chosen = _topk(keys, budgets[0], by_index)
    else:
        parts = zip(keys.split(sizes, 1), budgets, starts, strict=True)
        chosen = torch.cat([_topk(key, budget, by_index) + start for key, budget, start in parts], 1)
    level_of = torch.zeros_like(chosen)
    for start in starts[1:]:
        level_of += chosen >= start
    first = torch.tensor(starts, dtype=torch.int64, device=chosen.device)
    indices = torch.stack((level_of, chosen - first[level_of]), 2)
    return gather_levels(levels, indices), indices


def _topk(keys: Tensor, k: int, by_index: bool) -> Tensor:
    """Indices `[B, k]` of the k largest keys `[B, N]`; among equal keys the lower index first."""
    last = keys.shape[1] - 1
    # No two of these integers are equal, so topk has one answer on every device.
    unique = (keys.to(torch.int64) << 32) + (last - torch.arange(last + 1, device=keys.device))
    chosen = last - (unique.topk(k, 1).values & 0xFFFFFFFF)
    return chosen.sort(1).values if by_index else chosen
