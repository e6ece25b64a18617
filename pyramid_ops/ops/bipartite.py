"""Which of the even tokens merge into which of the odd ones."""

from typing import Optional

import torch
from torch import Tensor

from .._op import Op
from ..reference import bipartite as reference
from ..reference.arguments import Halves


def _match_halves_fake(
    metric: Tensor, cu_seqlens: Optional[Tensor], halves: Halves, limbs: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, size = metric.shape[:2]
    most = (halves.r, (size + 1) // 2 - halves.r, size - halves.r) if cu_seqlens is None else (size, size, size)
    segments = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    sources, destinations, unmerged, owners = (metric.new_empty(batch, n, dtype=torch.int64) for n in (most[0], *most))
    similarities = metric.new_empty(batch, most[0], dtype=torch.float32)
    rows = metric.new_empty(batch, size, dtype=torch.int64)
    counts, offsets = (metric.new_empty(n, dtype=torch.int32) for n in (segments, segments + 1))
    return sources, destinations, unmerged, similarities, rows, owners, counts, offsets


def _place_pairs_fake(
    partner: Tensor, similarity: Tensor, a: Tensor, b: Tensor, r: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (batch, count), size = partner.shape, a.shape[0] + b.shape[0]
    sources, destinations, unmerged, rows = (partner.new_empty(batch, n) for n in (r, r, count - r, size))
    return sources, destinations, unmerged, similarity.new_empty(batch, r), rows


place_pairs_op = Op(reference.place_pairs, _place_pairs_fake)
match_halves_op = Op(reference.match_halves, _match_halves_fake)
trace_rows_op = Op(
    reference.trace_rows,
    lambda rows, sources, num_rows, in_order: (torch.empty_like(rows), rows.new_empty(rows.shape[0], num_rows)),
)
