"""Which queries count: what `attention_importance` makes of its arguments."""

from typing import Any, Optional

import torch
from torch import Tensor

from .. import _checks as check


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
