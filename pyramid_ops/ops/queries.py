"""Which queries count, and keys less their mean: what `attention_importance` makes of its arguments."""

from typing import Any, Optional

import torch
from torch import Tensor

from .. import _checks as check
from ..reference.arguments import Groups
from .merging import assign_mean, fold_groups_op


def query_positions(op: str, indices: Any, segments: int, packed: bool, device: torch.device) -> Tensor:
    """Integers `[S, M]` on the device, within each sample or segment; those of a list may be negative."""
    if isinstance(indices, Tensor):
        check.tensor(op, "query_indices", indices, "M", "S M" if packed else "B M", dtypes=(torch.int32, torch.int64))
        if indices.device != device or (indices.dim() == 2 and indices.shape[0] != segments):
            raise ValueError(
                f"{op}: query_indices: expected [M] or [{segments}, M] on {device}, got {check.describe(indices)}"
            )
        return indices.expand(segments, -1)
    # Slices of a range, since a copy from the host would wait for the device.
    low, high = min(indices), max(indices)
    numbers = torch.arange(low, high + 1, device=device)
    if indices != list(range(low, high + 1)):
        numbers = torch.cat([numbers[index - low : index - low + 1] for index in indices])
    return numbers.expand(segments, -1)


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
