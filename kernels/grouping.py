"""Tokens by the row that they become part of."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import bounds, cdiv, highest_bit, segment_of
from .launch import launch
from .tiles import flat_tiles, scan_tiles


@triton.jit(do_not_specialize=["count", "size", "segments", "top_bit"])
def _join_tokens_kernel(
    tokens_ptr, partners_ptr, cu_ptr, rows_ptr, count, size, segments, top_bit, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The rows of ROWS tokens of a sample: the last that is theirs, or their partner's."""
    programs = tl.cdiv(size, ROWS)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    token = (tl.program_id(0) % programs) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    partner = tl.full((ROWS,), -1, tl.int64)
    if partners_ptr is not None:
        partner = tl.load(partners_ptr + sample * size + token, mask=token < size, other=-1)
        if cu_ptr is not None:
            segment = segment_of(cu_ptr, token, segments, top_bit)
            inside = (segment >= 0) & (segment < segments) & (partner >= 0)
            start = tl.load(cu_ptr + segment, mask=inside, other=0)
            partner = tl.where(inside & (partner < size), start + partner, -1)
        partner = tl.where((partner >= 0) & (partner < size), partner, -1)
    own = tl.full((ROWS,), -1, tl.int32)
    other = tl.full((ROWS,), -1, tl.int32)
    for i in range(0, count, BLOCK):
        row = i + tl.arange(0, BLOCK)
        owner = tl.load(tokens_ptr + sample * count + row, mask=row < count, other=-2)
        own = tl.maximum(own, tl.max(tl.where(owner[None, :] == token[:, None], row[None, :], -1), axis=1))
        if partners_ptr is not None:
            other = tl.maximum(other, tl.max(tl.where(owner[None, :] == partner[:, None], row[None, :], -1), axis=1))
    if partners_ptr is not None:
        own = tl.where(own < 0, tl.where(partner < 0, -1, other), own)
    tl.store(rows_ptr + sample * size + token, own.to(tl.int64), mask=token < size)


def join_tokens(tokens: Tensor, partners: Optional[Tensor], cu_seqlens: Optional[Tensor], size: int) -> Tensor:
    batch, count = tokens.shape
    rows = torch.empty(batch, size, dtype=torch.int64, device=tokens.device)
    if rows.numel():
        tiles = scan_tiles()
        segments = 0 if cu_seqlens is None else cu_seqlens.shape[0] - 1
        launch(
            _join_tokens_kernel, batch * cdiv(size, tiles["ROWS"]),
            tokens.contiguous(), partners, cu_seqlens, rows, count, size, segments, highest_bit(segments), **tiles,
        )  # fmt: skip
    return rows


@triton.jit(do_not_specialize=["size", "segments", "clusters", "top_bit"])
def _cluster_rows_kernel(
    assignment_ptr, cu_ptr, cu_clusters_ptr, rows_ptr, size, segments, clusters, top_bit, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    segment = segment_of(cu_ptr, token, segments, top_bit)
    inside = (segment >= 0) & (segment < segments)
    start, count = bounds(cu_clusters_ptr, tl.where(inside, segment, 0), clusters)
    cluster = tl.load(assignment_ptr + token, mask=token < size, other=-1)
    found = inside & (cluster >= 0) & (cluster < count)
    tl.store(rows_ptr + token, tl.where(found, start + cluster, -1), mask=token < size)


def cluster_rows(assignment: Tensor, cu_seqlens: Tensor, cu_clusters: Tensor, clusters: int) -> Tensor:
    rows = torch.empty(assignment.shape, dtype=torch.int64, device=assignment.device)
    size, segments = len(assignment), cu_seqlens.shape[0] - 1
    if not segments:
        return rows.fill_(-1)
    if size:
        tiles = flat_tiles()
        launch(
            _cluster_rows_kernel, cdiv(size, tiles["BLOCK"]),
            assignment.contiguous(), cu_seqlens, cu_clusters, rows, size, segments, clusters, highest_bit(segments),
            **tiles,
        )  # fmt: skip
    return rows


@triton.jit
def _member_row(rows_ptr, owners_ptr, token, size, groups):
    """The row that a token is a member of, `groups` for none; past the last token more than that."""
    row = tl.load(rows_ptr + token, mask=token < size, other=-1)
    inside = (row >= 0) & (row < groups)
    if owners_ptr is not None:
        inside = inside & (tl.load(owners_ptr + row, mask=inside, other=-1) != token)
    return tl.where(token < size, tl.where(inside, row, groups), groups + 1).to(tl.int32)


@triton.jit(do_not_specialize=["size", "groups"])
def _group_tokens_kernel(
    rows_ptr, owners_ptr, members_ptr, bounds_ptr, size, groups, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The places of ROWS tokens of a sample among its members, and where ROWS of its rows begin, by counting."""
    programs = tl.cdiv(tl.maximum(size, groups + 1), ROWS)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    token = (tl.program_id(0) % programs) * ROWS + tl.arange(0, ROWS)  # [ROWS]: tokens, and rows
    rows_ptr += sample * size
    if owners_ptr is not None:
        owners_ptr += sample * groups
    row = _member_row(rows_ptr, owners_ptr, token, size, groups)
    place = tl.zeros((ROWS,), tl.int32)
    begin = tl.zeros((ROWS,), tl.int32)
    for i in range(0, size, BLOCK):
        other = i + tl.arange(0, BLOCK)
        other_row = _member_row(rows_ptr, owners_ptr, other, size, groups)[None, :]
        before = (other_row < row[:, None]) | ((other_row == row[:, None]) & (other[None, :] < token[:, None]))
        place += tl.sum(before.to(tl.int32), axis=1)
        begin += tl.sum((other_row < token[:, None]).to(tl.int32), axis=1)
    tl.store(members_ptr + sample * size + place, tl.where(row < groups, token, -1).to(tl.int64), mask=token < size)
    tl.store(bounds_ptr + sample * (groups + 1) + token, begin.to(tl.int64), mask=token <= groups)


def group_tokens(rows: Tensor, owners: Optional[Tensor], groups: int) -> tuple[Tensor, Tensor]:
    batch, size = rows.shape
    members = torch.empty(batch, size, dtype=torch.int64, device=rows.device)
    bounds = torch.empty(batch, groups + 1, dtype=torch.int64, device=rows.device)
    if batch:
        tiles = scan_tiles()
        owners = None if owners is None else owners.contiguous()
        launch(
            _group_tokens_kernel, batch * cdiv(max(size, groups + 1), tiles["ROWS"]),
            rows.contiguous(), owners, members, bounds, size, groups, **tiles,
        )  # fmt: skip
    return members, bounds
