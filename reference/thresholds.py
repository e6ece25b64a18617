"""A threshold of the scores of each segment."""

from collections.abc import Iterator
from typing import Optional

import torch
from torch import Tensor

from .arguments import Rule
from .arithmetic import next_power_of_2, ordered_key, widen
from .rows import token_sum
from .segments import segments

# The ordered key of NaN, and the largest.
NAN_KEY = 0x7FFFFFFF


def segment_threshold(
    scores: Tensor, candidates: Optional[Tensor], cu_seqlens: Optional[Tensor], max_seqlen: int, rule: Rule
) -> Tensor:
    """A threshold for each sample of `[B, N]`, or with `cu_seqlens` of each segment of `[1, T]`: float32 `[S]`.

    Of the scores that are `candidates`, in the same shape. NaN without any, and where one of them is NaN.
    """
    count = len(scores) if cu_seqlens is None else len(cu_seqlens) - 1
    out = torch.full((count,), torch.nan, dtype=torch.float32, device=scores.device)
    for members, x, live in _groups(scores, candidates, cu_seqlens, max_seqlen):
        number = live.to(torch.int64).sum(-1)
        if rule.name == "mean":
            out[members] = token_sum(torch.where(live, x, 0.0)) / widen(number)
            continue
        keys = torch.where(live, ordered_key(x), NAN_KEY)
        unordered = (live & (keys == NAN_KEY)).to(torch.int64).sum(-1) > 0
        keys = keys.sort(-1).values
        if rule.name == "quantile":
            threshold = _quantile(keys, number, rule.numerator, rule.denominator)
        else:
            first, third = (_quantile(keys, number, numerator, 4) for numerator in (1, 3))
            threshold = third + (third - first) * rule.factor
        out[members] = torch.where(unordered | (number == 0), torch.nan, threshold)
    return out


def _groups(
    scores: Tensor, candidates: Optional[Tensor], cu_seqlens: Optional[Tensor], max_seqlen: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(segments, their scores `[S, N]`, which of those count) of segments of like length; empty ones are left out."""
    if cu_seqlens is None:
        live = torch.ones(scores.shape, dtype=torch.bool, device=scores.device) if candidates is None else candidates
        if scores.numel():
            yield torch.arange(len(scores), device=scores.device), widen(scores), live
        return
    starts, lengths = segments(cu_seqlens, scores.shape[1], max_seqlen)
    sizes = [next_power_of_2(length) if length else 0 for length in lengths.tolist()]
    for size in sorted({size for size in sizes if size}):
        members = torch.tensor([s for s in range(len(sizes)) if sizes[s] == size], device=scores.device)
        index = torch.arange(size, device=scores.device)
        live = index < lengths[members][:, None]
        index = torch.where(live, starts[members][:, None] + index, 0)
        yield members, widen(scores[0, index]), live if candidates is None else live & candidates[0, index]


def _quantile(keys: Tensor, number: Tensor, numerator: int, denominator: int) -> Tensor:
    """At place (number − 1) · numerator / denominator of the first `number` of ascending keys `[S, N]`, interpolated.

    Between a and b: a + (b − a) · t below t = 1/2, else b − (b − a) · (1 − t); a · (1 − t) + b · t where b − a is not
    finite. a where the place is whole or b equals a.
    """
    place = (number - 1).clamp(0) * numerator
    lower, rest = place // denominator, place % denominator
    row = torch.arange(len(keys), device=keys.device)
    low_key, high_key = keys[row, lower], keys[row, (lower + 1).clamp(0, keys.shape[1] - 1)]
    low, high = ((key ^ ((key >> 31) & 0x7FFFFFFF)).view(torch.float32) for key in (low_key, high_key))
    t = widen(rest) / torch.full_like(low, denominator)
    span = high - low
    between = torch.where(t < 0.5, low + span * t, high - span * (1.0 - t))
    between = torch.where(span.abs() < torch.inf, between, low * (1.0 - t) + high * t)
    return torch.where((rest == 0) | (low_key == high_key), low, between)
