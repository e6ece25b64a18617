"""Which tokens stay, and what belongs to them moved."""

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from .arguments import Amount, Choice, Placed, Slots
from .arithmetic import NO_KEY, ordered_key, widen
from .gathering import pick
from .ragged import amounts, segment_topk
from .segments import segment_rows

FORCED = (1 << 31) - 1


def keep_tokens(
    scores: Tensor, cu_seqlens: Optional[Tensor], choice: Choice, k: Amount, slots: Slots, by_index: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(tokens, counts int32 `[S]`, offsets int32 `[S + 1]`, bounds) of the forced tokens and the k best of the others.

    Tokens are int64 `[B, capacity]` of dense scores `[B, N]`, segments being samples; of packed ones `[1, T]` they are
    rows `[1, S · capacity]`, segment after segment without gaps, where `offsets` say; −1 in unused places. Forced ones
    go first, ascending, then by score; or all of them ascend (`by_index`). An offset below an earlier one counts as
    that one: the `bounds` `[S + 1]`.
    """
    capacity = slots.capacity
    bounds = ascending_bounds(scores.shape[0], scores.shape[1], cu_seqlens, scores.device)
    starts, lengths = bounds[:-1], (bounds[1:] - bounds[:-1]).clamp(max=slots.max_seqlen)
    keys, allowed, forced = _keys(scores.flatten(), choice, starts, lengths)
    many = _sums(forced, starts, lengths)
    wanted, most = amounts(k, len(starts), scores.device).clamp(min=0), _sums(allowed, starts, lengths)
    wanted = (torch.where(wanted < most, wanted, most) + many).clamp(max=capacity)
    chosen = segment_topk(keys, starts, lengths, wanted, by_index)
    tokens = torch.full((len(starts), capacity), -1, dtype=torch.int64, device=scores.device)
    tokens[:, : chosen.shape[1]] = chosen
    return placed(tokens, wanted, starts, bounds, cu_seqlens is not None)


def placed(
    chosen: Tensor, counts: Tensor, starts: Tensor, bounds: Tensor, packed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens chosen within segments `[S, capacity]` as `keep_tokens` gives them."""
    offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    tokens = chosen
    if packed:
        tokens = torch.full((1, chosen.numel()), -1, dtype=torch.int64, device=chosen.device)
        segment, slot = (chosen >= 0).nonzero().unbind(1)
        tokens[0, offsets[segment] + slot] = starts[segment] + chosen[segment, slot]
    return tokens, counts.to(torch.int32), offsets.to(torch.int32), bounds.to(torch.int32)


def ascending_bounds(batch: int, size: int, cu_seqlens: Optional[Tensor], device: torch.device) -> Tensor:
    """int64 `[S + 1]` of samples one after another, or of packed segments that no two share a token."""
    if cu_seqlens is None or len(cu_seqlens) == 1:
        return torch.arange(batch + 1 if cu_seqlens is None else 1, device=device) * size
    offsets = cu_seqlens.clamp(0, size).tolist()
    for s in range(1, len(offsets)):
        offsets[s] = max(offsets[s - 1 : s + 1])
    return torch.tensor(offsets, dtype=torch.int64, device=device)


def _keys(scores: Tensor, choice: Choice, starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(keys, whether a token may be chosen, whether it is forced): the higher the key the better."""
    value, key = widen(scores), ordered_key(widen(scores))
    key = (key if choice.largest else ~key).clamp(NO_KEY + 1, FORCED - 1)
    allowed = torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    forced = ~allowed if choice.forced is None else choice.forced.flatten()
    if choice.candidates is not None:
        allowed = choice.candidates.flatten()
    if choice.thresholds is not None or choice.threshold is not None:
        threshold = torch.full_like(value, choice.threshold or 0.0)
        if choice.thresholds is not None:
            segment, token = segment_rows(starts, lengths)
            threshold[token] = choice.thresholds[segment]
        allowed = allowed & ((value > threshold) if choice.largest else (value < threshold))
    allowed = allowed & ~forced
    return torch.where(forced, FORCED, torch.where(allowed, key, NO_KEY)), allowed, forced


def _sums(flags: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """How many are set in each segment."""
    before = torch.cat((starts.new_zeros(1), flags.cumsum(0)))
    return before[starts + lengths] - before[starts]


def move_tokens(
    tensors: Sequence[Tensor],
    tokens: Optional[Tensor],
    counts: Optional[Tensor],
    placed: Placed,
    fills: Sequence[float],
) -> list[Tensor]:
    """Rows `tokens` `[B, slots]` of `tensors` `[B or 1, outer, N, inner]`: `[B, outer, slots, inner]`.

    Without `tokens` they are the first rows. The first `counts` of them, or all, are moved to the first slots or to the
    last; the other slots, and those of tokens that do not exist, are the tensor's fill. With `columns` the inner
    dimension is one of tokens too.
    """
    slots, device = placed.slots, tensors[0].device
    samples = max(len(x) for x in (counts, tokens) if x is not None)
    slot = torch.arange(slots, device=device).expand(samples, slots)
    if counts is not None:
        used = counts.to(torch.int64).clamp(0, slots)[:, None]
        if placed.right:
            slot = slot - (slots - used)
        slot = torch.where((slot >= 0) & (slot < used), slot, -1)
    source = slot
    if tokens is not None:
        sample = torch.arange(samples, device=device)[:, None].expand(samples, slots)
        source = torch.where(slot < 0, -1, tokens[sample, slot.clamp(min=0)])
    moved = []
    for x, fill in zip(tensors, fills, strict=True):
        out = x.new_empty(samples, x.shape[1], slots, slots if placed.columns else x.shape[3])
        for b, at in enumerate(source):
            rows = x[b if len(x) > 1 else 0]
            if placed.columns:
                rows = pick(rows, 1, at, fill, x.new_empty(x.shape[1], slots, x.shape[3]))
            pick(rows, 2 if placed.columns else 1, at, fill, out[b])
        moved.append(out)
    return moved


def mark_tokens(tokens: Tensor, size: int) -> Tensor:
    """bool `[B, size]`: which tokens are among those of `[B, M]`."""
    marked = torch.zeros(len(tokens), size + 1, dtype=torch.bool, device=tokens.device)
    inside = (tokens >= 0) & (tokens < size)
    sample = torch.arange(len(tokens), device=tokens.device)[:, None].expand(tokens.shape)
    marked[sample, torch.where(inside, tokens, size)] = True
    return marked[:, :size].contiguous()
