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
from .units import masked_units, unit_rows


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
    longest_q, longest_k, splits, mask_stride, HALVES: tl.constexpr, DISTILL: tl.constexpr, PACKED: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """best[query] = max of (similarity, inverted index) over one split of the keys; exact, so any split will do.

    With HALVES queries are the even and keys the odd rows of a sample or segment; with DISTILL the first odd one is a
    key only where there is no other.
    """
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
        if HALVES:
            query_count = (query_count + 1) // 2
        query_count = tl.minimum(query_count, longest_q)
        start, key_count = bounds(cu_seqlens_k_ptr, sample, keys)
        key_start = tl.zeros((), tl.int64) + start
        if HALVES:
            key_count = key_count // 2
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
            key = column
            query = row
            if HALVES:
                key = 2 * column + 1
                query = 2 * row
            score = exact_dots(
                queries_ptr, query_start + query, row_mask, keys_ptr, key_start + key, column_mask, DOT
            )  # fmt: skip
            usable = _usable(key_norms_ptr + key_start, mask_ptr, key, column_mask, float("inf"))
            if DISTILL:
                usable = usable & ((column > 0) | (key_count == 1))
            if tl.min(usable.to(tl.int32), axis=0) == 0:
                # Read again in the layout of the products, a load for each column of a thread; with NaN past the end
                # the compiler does not make both reads one, which would take that layout for every tile.
                usable = _usable(key_norms_ptr + key_start, mask_ptr, key, column_mask, float("nan"))
                if DISTILL:
                    usable = usable & ((column > 0) | (key_count == 1))
                # A similarity is at least −1.1; −2 and the least integer stand for no key.
                score = tl.where(usable[None, :], score, -(1 << 31) if LIMBS == 2 else -2.0)
            top = tl.max(score, axis=1)
            at = tl.min(tl.where(score == top[:, None], column[None, :], 0x7FFFFFFF), axis=1)
            if LIMBS == 1:
                top = (top * 1073741824.0).to(tl.int32)
            best = tl.maximum(best, (top.to(tl.int64) << 32) | (0xFFFFFFFF - at.to(tl.int64)))
        query = row
        if HALVES:
            query = 2 * row
        tl.atomic_max(best_ptr + query_start + query, best, mask=row_mask, sem="relaxed")


@triton.jit
def unpacked(best_ptr, norms_ptr, query, mask):
    """(index of the best key, −1 for none, and its similarity) of queries."""
    best = tl.load(best_ptr + query, mask=mask, other=0)
    score = (best >> 32).to(tl.int32)
    norm = tl.load(norms_ptr + query, mask=mask, other=0.0)
    found = (score > -(1 << 31)) & (norm < float("inf"))
    index = tl.where(found, 0xFFFFFFFF - (best & 0xFFFFFFFF), -1)
    return index, tl.where(found, score.to(tl.float32) * (1.0 / 1073741824.0), float("-inf"))


@triton.jit
def _unpack_kernel(best_ptr, query_norms_ptr, indices_ptr, similarity_ptr, count, BLOCK: tl.constexpr):
    query = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = query < count
    index, similarity = unpacked(best_ptr, query_norms_ptr, query, mask)
    tl.store(indices_ptr + query, index, mask=mask)
    tl.store(similarity_ptr + query, similarity, mask=mask)


def _matched(
    units: tuple[Tensor, Tensor, Tensor],
    key_mask: Optional[Tensor],
    best: Tensor,
    segments: Segments,
    parts: int,
    limbs: int,
    halves: bool = False,
    distill: bool = False,
) -> None:
    """Put the best key of each query into `best`, of unit rows of queries and of keys, and the norms of the latter."""
    cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k = segments
    query_units, key_units, key_norms = units
    tiles = match_tiles(key_units.shape[3], limbs, target_arch())
    programs = parts * cdiv(max_seqlen_q, tiles["DOT"].BLOCK_M)
    if programs and max_seqlen_k:
        splits = match_splits(programs, cdiv(max_seqlen_k, tiles["DOT"].BLOCK_N))
        mask = None if key_mask is None else key_mask.contiguous().view(torch.uint8)
        count, keys = query_units.shape[1], key_units.shape[1]
        launch(
            _best_match_kernel, programs * splits,
            query_units, key_units, key_norms, mask, cu_seqlens_q, cu_seqlens_k, best, count, keys, max_seqlen_q,
            max_seqlen_k, splits, keys, HALVES=halves, DISTILL=distill, PACKED=cu_seqlens_q is not None, **tiles,
        )  # fmt: skip


def match_evens(
    metric: Tensor, cu_seqlens: Optional[Tensor], longest: int, parts: int, distill: bool, limbs: int
) -> tuple[Tensor, Tensor]:
    """(the best odd token of each even one as (similarity, inverted number), norms), both `[B, N]`."""
    best = torch.empty(metric.shape[:2], dtype=torch.int64, device=metric.device)
    units, norms = masked_units(metric, None, limbs, LOW_BITS, best)
    of = Segments(cu_seqlens, cu_seqlens, (longest + 1) // 2, longest // 2)
    _matched((units, units, norms), None, best, of, parts, limbs, True, distill)
    return best, norms


def best_match(
    queries: Tensor,
    keys: Tensor,
    key_mask: Optional[Tensor],
    segments: Segments,
    limbs: int,
) -> tuple[Tensor, Tensor]:
    batch, count = queries.shape[:2]
    indices = torch.empty(batch, count, dtype=torch.int64, device=queries.device)
    similarity = torch.empty(batch, count, dtype=torch.float32, device=queries.device)
    if not indices.numel():
        return indices, similarity
    best = torch.empty(batch, count, dtype=torch.int64, device=queries.device)
    query_units, query_norms = masked_units(queries, None, limbs, LOW_BITS, best)
    key_units, key_norms = unit_rows(keys, limbs, LOW_BITS)
    parts = batch if segments.cu_seqlens_q is None else segments.cu_seqlens_q.shape[0] - 1
    _matched((query_units, key_units, key_norms), key_mask, best, segments, parts, limbs)
    tiles = flat_tiles()
    launch(
        _unpack_kernel, cdiv(best.numel(), tiles["BLOCK"]),
        best, query_norms, indices, similarity, best.numel(), **tiles,
    )  # fmt: skip
    return indices, similarity
