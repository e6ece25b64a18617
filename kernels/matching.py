"""The most similar token on tensor cores, without the similarity matrix."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import Segments
from .arithmetic import bounds, cdiv
from .dots import LOW_BITS, exact_dots
from .launch import launch, target_arch
from .tiles import flat_tiles, match_splits, match_tiles
from .units import unit_rows


@triton.jit
def _usable(norms_ptr, mask_ptr, column, column_mask, OTHER: tl.constexpr):
    """Which keys can be matched: a norm past the last key is `OTHER`, infinite or NaN."""
    usable = tl.load(norms_ptr + column, mask=column_mask, other=OTHER) < float("inf")
    if mask_ptr is not None:
        usable = usable & (tl.load(mask_ptr + column, mask=column_mask, other=0) != 0)
    return usable


@triton.jit(do_not_specialize=["queries", "keys", "longest_q", "longest_k", "splits", "mask_stride"])
def _best_match_kernel(
    queries_ptr, keys_ptr, key_norms_ptr, key_mask_ptr, cu_seqlens_q_ptr, cu_seqlens_k_ptr, best_ptr, queries, keys,
    longest_q, longest_k, splits, mask_stride, PACKED: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """best[query] = max of (similarity, inverted index) over one split of the keys; exact, so any split will do."""
    BLOCK_M: tl.constexpr = DOT.BLOCK_M
    BLOCK_N: tl.constexpr = DOT.BLOCK_N
    LIMBS: tl.constexpr = DOT.LIMBS
    tiles = tl.cdiv(longest_q, BLOCK_M)
    tile = tl.program_id(0) % tiles
    split = tl.program_id(0) // tiles % splits
    sample = tl.program_id(0) // tiles // splits
    query_start = sample.to(tl.int64) * queries
    key_start = sample.to(tl.int64) * keys
    mask_ptr = key_mask_ptr
    query_count = longest_q
    key_count = longest_k
    if PACKED:
        start, query_count = bounds(cu_seqlens_q_ptr, sample, queries)
        query_start = tl.zeros((), tl.int64) + start
        query_count = tl.minimum(query_count, longest_q)
        start, key_count = bounds(cu_seqlens_k_ptr, sample, keys)
        key_start = tl.zeros((), tl.int64) + start
        key_count = tl.minimum(key_count, longest_k)
        if key_mask_ptr is not None:
            mask_ptr += key_start
    elif key_mask_ptr is not None:
        mask_ptr += sample.to(tl.int64) * mask_stride
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask = row < query_count
    share = tl.cdiv(tl.cdiv(key_count, BLOCK_N), splits) * BLOCK_N
    end = tl.minimum((split + 1) * share, key_count)
    if tile * BLOCK_M < query_count:
        best = tl.full((BLOCK_M,), -(1 << 63), tl.int64)
        for n in range(split * share, end, BLOCK_N):
            column = n + tl.arange(0, BLOCK_N)
            column_mask = column < end
            score = exact_dots(
                queries_ptr, query_start + row, row_mask, keys_ptr, key_start + column, column_mask, DOT
            )  # fmt: skip
            usable = _usable(key_norms_ptr + key_start, mask_ptr, column, column_mask, float("inf"))
            if tl.min(usable.to(tl.int32), axis=0) == 0:
                # Read again in the layout of the products, a load for each column of a thread; with NaN past the end
                # the compiler does not make both reads one, which would take that layout for every tile.
                usable = _usable(key_norms_ptr + key_start, mask_ptr, column, column_mask, float("nan"))
                # A similarity is at least −1.1; −2 and the least integer stand for no key.
                score = tl.where(usable[None, :], score, -(1 << 31) if LIMBS == 2 else -2.0)
            top = tl.max(score, axis=1)
            at = tl.min(tl.where(score == top[:, None], column[None, :], 0x7FFFFFFF), axis=1)
            if LIMBS == 1:
                top = (top * 1073741824.0).to(tl.int32)
            best = tl.maximum(best, (top.to(tl.int64) << 32) | (0xFFFFFFFF - at.to(tl.int64)))
        tl.atomic_max(best_ptr + query_start + row, best, mask=row_mask, sem="relaxed")


@triton.jit
def _unpack_kernel(best_ptr, query_norms_ptr, indices_ptr, similarity_ptr, count, BLOCK: tl.constexpr):
    query = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = query < count
    best = tl.load(best_ptr + query, mask=mask, other=0)
    score = (best >> 32).to(tl.int32)
    norm = tl.load(query_norms_ptr + query, mask=mask, other=0.0)
    found = (score > -(1 << 31)) & (norm < float("inf"))
    index = tl.where(found, 0xFFFFFFFF - (best & 0xFFFFFFFF), -1)
    similarity = tl.where(found, score.to(tl.float32) * (1.0 / 1073741824.0), float("-inf"))
    tl.store(indices_ptr + query, index, mask=mask)
    tl.store(similarity_ptr + query, similarity, mask=mask)


def best_match(
    queries: Tensor,
    keys: Tensor,
    key_mask: Optional[Tensor],
    segments: Segments,
    limbs: int,
) -> tuple[Tensor, Tensor]:
    cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k = segments
    batch, count, features = queries.shape
    indices = torch.empty(batch, count, dtype=torch.int64, device=queries.device)
    similarity = torch.empty(batch, count, dtype=torch.float32, device=queries.device)
    if not indices.numel():
        return indices, similarity
    query_units, query_norms = unit_rows(queries, limbs, LOW_BITS)
    key_units, key_norms = unit_rows(keys, limbs, LOW_BITS)
    best = torch.full((batch, count), -(1 << 63), dtype=torch.int64, device=queries.device)
    parts = batch if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
    tiles = match_tiles(features, limbs, target_arch())
    programs = parts * cdiv(max_seqlen_q, tiles["DOT"].BLOCK_M)
    if programs and max_seqlen_k:
        splits = match_splits(programs, cdiv(max_seqlen_k, tiles["DOT"].BLOCK_N))
        mask = None if key_mask is None else key_mask.contiguous().view(torch.uint8)
        launch(
            _best_match_kernel, programs * splits,
            query_units, key_units, key_norms, mask, cu_seqlens_q, cu_seqlens_k, best, count, keys.shape[1],
            max_seqlen_q, max_seqlen_k, splits, keys.shape[1], PACKED=cu_seqlens_q is not None, **tiles,
        )  # fmt: skip
    tiles = flat_tiles()
    launch(
        _unpack_kernel, cdiv(best.numel(), tiles["BLOCK"]),
        best, query_norms, indices, similarity, best.numel(), **tiles,
    )  # fmt: skip
    return indices, similarity
