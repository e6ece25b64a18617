"""Segments of packed rows."""

from typing import Optional

from torch import Tensor

from . import _checks as check


def ascending(cu_seqlens: Tensor) -> Tensor:
    """Offsets of which one below an earlier one counts as that one: segments that no two share a row."""
    return cu_seqlens.cummax(0).values


def samples(
    op: str, x: Tensor, cu_seqlens: Optional[Tensor], max_seqlen: Optional[int]
) -> tuple[Tensor, Optional[Tensor], int, int]:
    """(rows `[B, N, D]`, checked offsets, number of samples or segments, longest) of features dense or packed."""
    check.tensor(op, "x", x, "B N D" if cu_seqlens is None else "T D")
    rows = check.feature_rows(op, "x", x)
    check.packed_size(op, "x", rows.shape[0] * rows.shape[1])
    parts = rows.shape[0]
    if cu_seqlens is not None:
        cu_seqlens = check.cu_seqlens(op, "cu_seqlens", cu_seqlens, rows)
        parts = cu_seqlens.shape[0] - 1
    elif max_seqlen is not None:
        raise ValueError(f"{op}: max_seqlen: expected only with cu_seqlens, got {max_seqlen}")
    return rows, cu_seqlens, parts, check.longest(op, "max_seqlen", max_seqlen, rows.shape[1])
