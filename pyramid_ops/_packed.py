"""Segments of packed rows."""

from torch import Tensor


def ascending(cu_seqlens: Tensor) -> Tensor:
    """Offsets of which one below an earlier one counts as that one: segments that no two share a row."""
    return cu_seqlens.cummax(0).values
