"""Top-k of packed segments, and over the levels of packed samples."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import Amount, Slots
from .arithmetic import next_power_of_2, ordered_key, widen
from .scoring import level_norms, level_variances
from .segments import segments


def amounts(amount: Amount, segments: int, device: torch.device) -> Tensor:
    """int64 `[segments]`: one from the device for each segment, or the numbers over and over."""
    if amount.tensor is not None:
        return amount.tensor.flatten().to(torch.int64)
    repeated = [amount.numbers[s % len(amount.numbers)] for s in range(segments)]
    return torch.tensor(repeated, dtype=torch.int64, device=device)


def segment_topk(keys: Tensor, starts: Tensor, lengths: Tensor, wanted: Tensor, by_index: bool) -> Tensor:
    """Indices `[S, max(wanted)]` of the `wanted` (at most `lengths`) largest keys in each segment; −1 past them."""
    most = max(wanted.tolist(), default=0)
    chosen = torch.full((len(wanted), most), -1, dtype=torch.int64, device=keys.device)
    # Segments of like length go together: one topk for each power of two, at most half of it padding.
    sizes = [next_power_of_2(n) if k else 0 for n, k in zip(lengths.tolist(), wanted.tolist(), strict=True)]
    for size in sorted({size for size in sizes if size}):
        members = torch.tensor([s for s in range(len(sizes)) if sizes[s] == size], device=keys.device)
        unique = _padded(keys, starts[members], lengths[members], size).to(torch.int64)
        # No two of these integers are equal, so topk has one answer on every device.
        last = unique.shape[1] - 1
        index = torch.arange(last + 1, device=keys.device)
        unique <<= 32
        unique += last - index
        best = unique.topk(min(most, last + 1), 1).values
        best &= 0xFFFFFFFF
        best = last - best
        used = index[: best.shape[1]] < wanted[members][:, None]
        if by_index:
            best = torch.where(used, best, size).sort(1).values
        chosen[members, : best.shape[1]] = torch.where(used, best, -1)
    return chosen


def _padded(keys: Tensor, starts: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Segments of keys as `[S, size]`, below every key past their end; a single one as it stands, `[1, length]`."""
    if len(starts) == 1:
        return keys[starts.tolist()[0] :][None, : lengths.tolist()[0]]
    keys = torch.cat((torch.full((1,), -1 << 31, dtype=torch.int32, device=keys.device), keys))
    index = torch.arange(size, device=keys.device)
    return keys[torch.where(index < lengths[:, None], starts[:, None] + 1 + index, 0)]


def segmented_topk(
    scores: Tensor,
    cu_seqlens: Tensor,
    k: Amount,
    slots: Slots,
    by_index: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(values `[S, capacity]`, indices in the segment `[S, capacity]`, counts `[S]`); −inf and −1 in unused slots."""
    capacity = slots.capacity
    starts, lengths = segments(cu_seqlens, len(scores), slots.max_seqlen)
    wanted = amounts(k, len(starts), scores.device).clamp(0, capacity)
    wanted = torch.where(wanted < lengths, wanted, lengths)
    chosen = segment_topk(ordered_key(widen(scores)), starts, lengths, wanted, by_index)
    values = torch.full((len(starts), capacity), -torch.inf, dtype=scores.dtype, device=scores.device)
    indices = torch.full((len(starts), capacity), -1, dtype=torch.int64, device=scores.device)
    indices[:, : chosen.shape[1]] = chosen
    used = chosen >= 0
    values[:, : chosen.shape[1]] = torch.where(used, scores[torch.where(used, starts[:, None] + chosen, 0)], -torch.inf)
    return values, indices, wanted.to(torch.int32)


def select_topk_levels_packed(
    levels: Sequence[Tensor],
    cu_seqlens: Sequence[Tensor],
    scores: Sequence[Tensor],
    saliency: str,
    budgets: Amount,
    slots: Slots,
    by_index: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(tokens `[B · capacity, D]`, indices and rows `[B · capacity, 2]`, cu_seqlens `[B + 1]`, counts `[B, L]`).

    Samples follow each other without gaps, as do the levels of a sample. Of a sample that wants more than `capacity`
    tokens the coarser levels get what the finer ones leave.
    """
    if saliency == "variance":
        scores = [score[0] for score in level_variances([level[None] for level in levels], 1)]
    elif saliency == "norm":
        scores = [score[0] for score in level_norms([level[None] for level in levels])]
    batch, device = len(cu_seqlens[0]) - 1, levels[0].device
    capacity = slots.capacity
    wanted = amounts(budgets, batch * len(levels), device).view(batch, len(levels)).clamp(0, capacity)
    left = torch.full((batch,), capacity, dtype=torch.int64, device=device)
    parts = []
    for k, (level, bounds) in enumerate(zip(levels, cu_seqlens, strict=True)):
        starts, lengths = segments(bounds, len(level), slots.max_seqlen)
        count = torch.where(wanted[:, k] < lengths, wanted[:, k], lengths)
        count = torch.where(count < left, count, left)
        left -= count
        chosen = segment_topk(ordered_key(widen(scores[k])), starts, lengths, count, by_index)
        parts.append((starts, count, chosen))
    counts = torch.stack([count for _, count, _ in parts], 1)
    ends = counts.flatten().cumsum(0).view(batch, len(levels))
    tokens = levels[0].new_zeros(batch * capacity, levels[0].shape[1])
    indices = torch.full((batch * capacity, 2), -1, dtype=torch.int64, device=device)
    rows = torch.full_like(indices, -1)
    for k, (starts, count, chosen) in enumerate(parts):
        sample, slot = (chosen >= 0).nonzero().unbind(1)
        row = (ends[:, k] - count)[sample] + slot
        index = chosen[sample, slot]
        source = starts[sample] + index
        tokens[row] = levels[k][source]
        indices[row] = torch.stack((torch.full_like(index, k), index), 1)
        rows[row] = torch.stack((torch.full_like(index, k), source), 1)
    offsets = torch.cat((ends.new_zeros(1), ends[:, -1])).to(torch.int32)
    return tokens, indices, rows, offsets, counts.to(torch.int32)
