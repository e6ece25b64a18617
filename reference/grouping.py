"""Tokens by the row that they become part of."""

from typing import Optional

import torch
from torch import Tensor

from .segments import segment_of, segments


def join_tokens(tokens: Tensor, partners: Optional[Tensor], cu_seqlens: Optional[Tensor], size: int) -> Tensor:
    """int64 `[B, size]`: the row of each token if row m is that of token `tokens[b, m]`; −1 for none.

    A token without a row of its own has that of its partner `[B, size]`, which is counted from the start of the segment
    where there are `cu_seqlens`, ascending. Of several rows of one token it has the last.
    """
    batch, count = tokens.shape
    rows = torch.full((batch, size + 1), -1, dtype=torch.int64, device=tokens.device)
    inside = (tokens >= 0) & (tokens < size)
    place = torch.arange(count, device=tokens.device).expand(batch, count)
    rows.scatter_reduce_(1, torch.where(inside, tokens, size), place, "amax")
    rows[:, size] = -1
    if partners is not None:
        found = partners >= 0
        if cu_seqlens is not None:
            segment = segment_of(cu_seqlens, size)
            found = found & (segment < len(cu_seqlens) - 1)
            partners = partners + torch.cat((cu_seqlens, cu_seqlens.new_zeros(1)))[segment]
        partner = torch.where(found & (partners < size), partners, size)
        sample = torch.arange(batch, device=tokens.device)[:, None].expand(batch, size)
        own = rows[:, :size]
        rows[:, :size] = torch.where(own < 0, rows[sample, partner], own)
    return rows[:, :size].contiguous()


def cluster_rows(assignment: Tensor, cu_seqlens: Tensor, cu_clusters: Tensor, clusters: int) -> Tensor:
    """int64 `[T]`: the row of each packed token whose cluster is counted within its segment; −1 for none.

    The clusters of segment s have the rows `cu_clusters[s] : cu_clusters[s + 1]` of so many.
    """
    segment = segment_of(cu_seqlens, len(assignment))
    none = cu_clusters.new_zeros(1, dtype=torch.int64)
    start, count = (torch.cat((part, none))[segment] for part in segments(cu_clusters, clusters, clusters))
    return torch.where((assignment >= 0) & (assignment < count), start + assignment, -1)


def group_tokens(rows: Tensor, owners: Optional[Tensor], groups: int) -> tuple[Tensor, Tensor]:
    """(tokens by row, then ascending `[B, N]`, where each row's begin `[B, groups + 1]`) of the `rows` `[B, N]`.

    The owner of a row `[B, groups]` is left out. −1 past the last.
    """
    batch, size = rows.shape
    token = torch.arange(size, device=rows.device).expand(batch, size)
    row = torch.where((rows >= 0) & (rows < groups), rows, groups)
    if owners is not None and groups:
        sample = torch.arange(batch, device=rows.device)[:, None].expand(batch, size)
        row = torch.where(owners[sample, row.clamp(max=groups - 1)] == token, groups, row)
    keys = ((row << 32) | token).sort(1).values
    many = torch.stack([part.bincount(minlength=groups + 1) for part in row]) if batch else row.new_zeros(0, groups + 1)
    bounds = torch.cat((many.new_zeros(batch, 1), many[:, :groups].cumsum(1)), 1)
    return torch.where(keys >> 32 < groups, keys & 0xFFFFFFFF, -1), bounds
