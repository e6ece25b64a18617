"""Keys less the mean of their segment, and log-sum-exps of logits less those of the mean."""

from typing import Optional

import torch
from torch import Tensor

from .arguments import Groups
from .arithmetic import widen
from .merging import fold_groups
from .rows import row_sum
from .segments import segment_of, segment_rows, segments


def center_keys(
    key: Tensor, mask: Optional[Tensor], cu_seqlens: Optional[Tensor], max_seqlen: int
) -> tuple[Tensor, Tensor]:
    """(`[B, H, N, D]` less the mean of its sample or segment; the means `[B, H, S, D]`), float32.

    The mean is that of the first `max_seqlen` keys of a segment, with ascending offsets, that are in the `mask`
    `[B, N]` and have no NaN and no infinity: added up from +0 in order in chunks of 32 keys, then the chunk sums in
    order, and divided by how many they are; 0 where there are none. Keys of no segment stay as they are.
    """
    batch, heads, size, width = key.shape
    rows = widen(key.contiguous()).view(batch * heads, size, width)
    counts = (rows.abs() < torch.inf).all(2)
    if mask is not None:
        counts = counts & mask.repeat_interleave(heads, 0)
    start, length = torch.zeros(1, dtype=torch.int64, device=key.device), torch.full((1,), size, device=key.device)
    if cu_seqlens is not None:
        start, length = segments(cu_seqlens, size, max_seqlen)
    segment, row = segment_rows(start, length)
    members = torch.where(counts, torch.arange(size, device=key.device), -1)[:, row]
    offsets = torch.cat((start.new_zeros(1), length.cumsum(0))).expand(batch * heads, -1)
    none = torch.full((batch * heads, len(start)), -1, dtype=torch.int64, device=key.device)
    sums, _ = fold_groups(rows, None, Groups(none, members, offsets), "sum")
    many = torch.zeros_like(none).scatter_reduce_(
        1, segment.expand(batch * heads, -1), (members >= 0).to(torch.int64), "sum"
    )
    means = torch.where(many[..., None] > 0, sums / many.clamp(min=1).to(torch.float32)[..., None], 0.0)
    table = torch.cat((means, means.new_zeros(batch * heads, 1, width)), 1)
    centered = rows - table[:, _owners(cu_seqlens, size, key.device)]
    return centered.view(key.shape), means.view(batch, heads, len(start), width)


def center_logits(
    log_sum_exp: Tensor, query: Tensor, means: Tensor, cu_seqlens: Optional[Tensor], scale: float
) -> Tensor:
    """`[B, H, Nq]` less the logit of the mean key `[B, Hkv, S, D]` of its segment: Σ (q · scale) · mean."""
    batch, heads, size, width = query.shape
    owner = _owners(cu_seqlens, size, query.device)
    factor = torch.full((), scale, dtype=torch.float32, device=query.device)
    out = torch.empty_like(log_sum_exp)
    for sample in range(batch):
        for head in range(heads):
            mean = means[sample, head // (heads // means.shape[1])]
            table = torch.cat((mean, mean.new_zeros(1, width)))
            products = widen(query[sample, head].contiguous()) * factor * table[owner]
            out[sample, head] = log_sum_exp[sample, head] - row_sum(products)
    return out


def _owners(cu_seqlens: Optional[Tensor], size: int, device: torch.device) -> Tensor:
    """The segment of each row, the number of segments where there is none; or the one sample."""
    if cu_seqlens is None:
        return torch.zeros(size, dtype=torch.int64, device=device)
    return segment_of(cu_seqlens, size)
