"""Which queries count and how much: what `attention_importance` makes of its arguments on the device."""

from typing import Any, Optional

import torch
from torch import Tensor

from .. import _checks as check
from .._packed import Extents
from ..reference.arguments import Groups
from .merging import assign_mean, fold_groups_op

INT32_MAX = (1 << 31) - 1
INFINITY = 0x7F800000  # as bits
# Weights from here on, negative ones and NaN make scores NaN.
MAX_WEIGHT = 2.0**126


def query_positions(op: str, indices: Any, segments: int, packed: bool, device: torch.device) -> Tensor:
    """int64 `[S, M]` on the device; of a list the negative numbers stay, less one: they count from the end."""
    if isinstance(indices, Tensor):
        check.tensor(op, "query_indices", indices, "M", "S M" if packed else "B M", dtypes=(torch.int32, torch.int64))
        if indices.device != device or (indices.dim() == 2 and indices.shape[0] != segments):
            raise ValueError(
                f"{op}: query_indices: expected [M] or [{segments}, M] on {device}, got {check.describe(indices)}"
            )
        index = indices.to(torch.int64)
        return torch.where(index < 0, INT32_MAX, index).expand(segments, -1)
    # Slices of a range, since a copy from the host would wait for the device.
    low = min(indices)
    numbers = torch.arange(low, max(indices) + 1, device=device)
    return torch.cat([numbers[index - low : index - low + 1] for index in indices]).expand(segments, -1)


def index_list(op: str, indices: Any, longest: int) -> list[int]:
    values = [
        check.integer(op, f"query_indices[{k}]", index, -longest)
        for k, index in enumerate(check.sequence(op, "query_indices", indices))
    ]
    for k, value in enumerate(values):
        if value >= longest:
            raise ValueError(f"{op}: query_indices[{k}]: expected less than {longest}, got {value}")
    if not values:
        raise ValueError(f"{op}: query_indices: expected at least one index, got {indices!r}")
    return values


def consecutive(indices: list[int], longest: int, causal: bool) -> Optional[slice]:
    """The slice of consecutive queries that see what they would see alone: nothing has to be gathered."""
    first, last = indices[0], indices[-1]
    if indices != list(range(first, last + 1)) or (first < 0 <= last):
        return None
    if causal and last != (-1 if last < 0 else longest - 1):
        return None
    start = first + longest if first < 0 else first
    return slice(start, start + len(indices))


def chosen_queries(at: Extents, index: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """(place of each chosen query in its segment, the last key that it sees: −1 for an unused slot), `[S, M]`."""
    index = torch.where(index < 0, index + at.count_q[:, None], index)
    used = (index >= 0) & (index < at.count_q[:, None])
    last = index + (at.count_k - at.count_q)[:, None] if causal else torch.full_like(index, INT32_MAX)
    return torch.where(used, index, 0), torch.where(used, last, -1).clamp(min=-1)


def scaled_weights(at: Extents, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(weights below 1 by a power of two of each segment, its inverse `[S]`: NaN where there is what is no weight)."""
    segment, place = at.of(keys=False, size=weights.numel())
    inside = (place >= 0) & (place < at.count_q[segment])
    valid = (weights >= 0) & (weights < MAX_WEIGHT)
    weights = torch.where(valid, weights.abs(), 0.0)
    bits = torch.where(inside, torch.where(valid, weights, torch.inf).flatten().view(torch.int32), 0)
    none = torch.zeros(at.start_q.shape, dtype=torch.int32, device=weights.device)
    top = none.scatter_reduce(0, segment, bits, "amax")
    exponent = (top >> 23).clamp(max=252)
    unscale = torch.where(top < INFINITY, ((exponent + 1) << 23).view(torch.float32), torch.nan)
    return weights * ((253 - exponent) << 23).view(torch.float32)[segment].view_as(weights), unscale


def query_counts(at: Extents, segment: Tensor, last: Tensor, weights: Optional[Tensor], keys: int) -> Tensor:
    """How many queries see each of the keys, or the sum of their weights in units of 2⁻³⁰: int64.

    `segment` and `last`, the last key that it sees, of each query.
    """
    ones = torch.ones_like(last) if weights is None else (weights.flatten() * 2.0**30 + 0.5).to(torch.int64)
    last = last.minimum(at.count_k[segment] - 1)
    place = torch.where(last >= 0, at.start_k[segment] + last, keys)
    seen = torch.zeros(keys + 1, dtype=torch.int64, device=last.device).scatter_add(0, place, ones)
    seen[keys] = 0
    after = seen.flip(0).cumsum(0).flip(0)
    of_key, _ = at.of(keys=True, size=keys)
    return after[:-1] - after[(at.start_k + at.count_k)[of_key]]


def centered(k: Tensor, segment: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """(keys less the mean of their segment `[B, Hkv, Nk, D]`; the means `[B, Hkv, S, D]`), float32.

    The mean is that of the rows without NaN and infinities.
    """
    rows = k.reshape(-1, *k.shape[2:]).to(torch.float32)
    finite = (rows.abs() < torch.inf).all(2)
    means = assign_mean(rows, torch.where(finite, segment, -1), segments).tokens.view(*k.shape[:2], segments, -1)
    return rows.view(k.shape) - means[:, :, segment], means


def mean_logits(q: Tensor, means: Tensor, segment: Tensor, scale: float) -> Tensor:
    """Dot products `[B, H, Nq]` of queries, times `scale`, and the mean key of their segment, in a written order."""
    of_head = torch.arange(q.shape[1], device=q.device) // (q.shape[1] // means.shape[1])
    products = q.to(torch.float32) * scale * means[:, of_head][:, :, segment]
    features = torch.arange(q.shape[3], device=q.device)[None]
    none = torch.full((1, 1), -1, dtype=torch.int64, device=q.device)
    bounds = torch.arange(2, device=q.device)[None] * q.shape[3]
    rows = products.reshape(-1, q.shape[3]).T[None]
    # By the op, since a compiler would fuse a product and a sum here.
    return fold_groups_op(rows.contiguous(), None, Groups(none, features, bounds), "sum")[0].view(q.shape[:3])
