"""Top-k over the levels of a pyramid, and the gather that follows it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .numerics import ordered_key, widen
from .scoring import token_norm, token_variance


def select_topk_levels(
    levels: Sequence[Tensor], scores: Sequence[Tensor], saliency: str, budgets: Sequence[int], by_index: bool
) -> tuple[Tensor, Tensor]:
    """(tokens `[B, K, D]`, indices `[B, K, 2]`).

    One budget for each level, or a single budget for the union of all levels. Order: key descending, then level,
    then index; or (`by_index`) level, then index.
    """
    if saliency == "variance":
        scores = [token_variance(level, 1) for level in levels]
    elif saliency == "norm":
        scores = [token_norm(level) for level in levels]
    keys = [ordered_key(widen(score)) for score in scores]
    sizes = [level.shape[1] for level in levels]
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    if len(budgets) == 1:
        chosen = _topk(torch.cat(keys, 1), budgets[0], by_index)
    else:
        parts = zip(keys, budgets, starts, strict=True)
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


def gather_levels(levels: Sequence[Tensor], indices: Tensor) -> Tensor:
    """Rows `levels[l][b, n]` for each (l, n) of `indices` `[B, K, 2]`; zeros where the pair is out of range."""
    batch, count = indices.shape[:2]
    out = levels[0].new_zeros(batch, count, *levels[0].shape[2:])
    sample = torch.arange(batch, device=indices.device)[:, None].expand(batch, count)
    for k, level in enumerate(levels):
        here = (indices[..., 0] == k) & (indices[..., 1] >= 0) & (indices[..., 1] < level.shape[1])
        b = sample[here]
        out[here] = level[b if level.shape[0] > 1 else torch.zeros_like(b), indices[..., 1][here]]
    return out
