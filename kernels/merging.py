"""The most similar token on tensor cores without the similarity matrix, and means of groups of tokens."""

import math
from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .numerics import (
    LOW_BITS,
    bounds,
    cdiv,
    exact_dots,
    launch,
    narrow,
    next_power_of_2,
    ordered_key,
    target_arch,
    unit_rows,
    widen,
)

# Members of a group that one partial sum holds.
CHUNK = 32


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
    longest_q, longest_k, splits, mask_stride, PACKED: tl.constexpr, D: tl.constexpr, LIMBS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """best[query] = max of (similarity, inverted index) over one split of the keys; exact, so any split will do."""
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
                queries_ptr, query_start + row, row_mask, keys_ptr, key_start + column, column_mask,
                D, LIMBS, BLOCK_M, BLOCK_N, BLOCK_K,
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


def match_config(features: int, limbs: int, arch: int | str) -> dict:
    """Tiles of the similarity: the largest whose accumulators stay in registers."""
    # Rows of few features leave the loop so short that wider tiles spill.
    m, n, k, warps, stages = 128 if features > 16 else 64, 128 if features % 16 == 0 else 64, 64, 8, 3
    # Four warps take a quarter to a third fewer instructions and leave an SM two programs, where they do not spill.
    if features % 16 == 0 and (arch in (80, 90, 100) if features <= 64 else arch == 90 and features % 64 == 0):
        warps = 4
    if limbs == 2:
        m, n, k, warps, stages = (128, 32, 64, 8, 2) if arch == 100 else (64, 32, 64, 4, 2)
        if arch == 90 and features % 16 == 0:
            m, n, k, warps, stages = 128, 64, 64 if features <= 64 else 32, 8, 2
    k = min(k, max(16, next_power_of_2(features)))
    # The assembler stops at 128 or 168 registers here, and spills, unless it is told otherwise.
    registers = {"maxnreg": 255} if limbs == 2 and arch == 100 and features > 64 else {}
    return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "num_warps": warps, "num_stages": stages, **registers}


def match_splits(programs: int, tiles: int) -> int:
    """Parts of the keys, for some 500 programs of at least four key tiles."""
    return max(1, min(cdiv(512, programs), tiles // 4))


def best_match(
    queries: Tensor,
    keys: Tensor,
    key_mask: Optional[Tensor],
    cu_seqlens_q: Optional[Tensor],
    cu_seqlens_k: Optional[Tensor],
    max_seqlen_q: int,
    max_seqlen_k: int,
    limbs: int,
) -> tuple[Tensor, Tensor]:
    batch, count, features = queries.shape
    indices = torch.empty(batch, count, dtype=torch.int64, device=queries.device)
    similarity = torch.empty(batch, count, dtype=torch.float32, device=queries.device)
    if not indices.numel():
        return indices, similarity
    query_units, query_norms = unit_rows(queries, limbs, LOW_BITS)
    key_units, key_norms = unit_rows(keys, limbs, LOW_BITS)
    best = torch.full((batch, count), -(1 << 63), dtype=torch.int64, device=queries.device)
    segments = batch if cu_seqlens_q is None else len(cu_seqlens_q) - 1
    config = match_config(features, limbs, target_arch())
    programs = segments * cdiv(max_seqlen_q, config["BLOCK_M"])
    if programs and max_seqlen_k:
        splits = match_splits(programs, cdiv(max_seqlen_k, config["BLOCK_N"]))
        mask = None if key_mask is None else key_mask.contiguous().view(torch.uint8)
        launch(
            _best_match_kernel, programs * splits,
            query_units, key_units, key_norms, mask, cu_seqlens_q, cu_seqlens_k, best, count, keys.shape[1],
            max_seqlen_q, max_seqlen_k, splits, keys.shape[1], PACKED=cu_seqlens_q is not None, D=features,
            LIMBS=limbs, **config,
        )  # fmt: skip
    launch(_unpack_kernel, cdiv(best.numel(), 1024), best, query_norms, indices, similarity, best.numel(), BLOCK=1024)
    return indices, similarity


@triton.jit
def _combine(a, b, MODE: tl.constexpr):
    if MODE == "amax":
        return tl.where(ordered_key(b) > ordered_key(a), b, a)
    return a + b


@triton.jit
def _term(x_ptr, weights_ptr, token, stride, count, column, mask, MODE: tl.constexpr):
    """(weighted row, weight) of a token; what leaves a fold as it is where there is no such token."""
    inside = (token >= 0) & (token < count)
    token = tl.where(inside, token, 0)
    weight = tl.where(inside, 1.0, 0.0)
    if weights_ptr is not None:
        weight = tl.where(inside, tl.load(weights_ptr + token), 0.0)
    value = widen(tl.load(x_ptr + token * stride + column, mask=mask, other=0))
    if MODE == "amax":
        value = tl.where(inside, value, float("-inf"))
    else:
        if weights_ptr is not None:
            value = value * weight
        value = tl.where(inside, value, 0.0)
    return value, weight


@triton.jit
def _start(MODE: tl.constexpr, BLOCK: tl.constexpr):
    return tl.full((BLOCK,), float("-inf") if MODE == "amax" else 0.0, tl.float32)


@triton.jit(do_not_specialize=["count", "members", "groups"])
def _chunk_kernel(
    x_ptr, weights_ptr, members_ptr, group_ptr, offsets_ptr, sums_ptr, weight_sums_ptr, stride_b, stride_n,
    weight_stride, count, members, groups, width, MODE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The chunks of long groups that begin in one window of members: at most a group's first one and a later one."""
    columns = tl.cdiv(width, BLOCK)
    windows = tl.cdiv(members, CHUNK)
    column = (tl.program_id(0) % columns) * BLOCK + tl.arange(0, BLOCK)
    window = tl.program_id(0) // columns
    sample = (window // windows).to(tl.int64)
    x_ptr += sample * stride_b
    if weights_ptr is not None:
        weights_ptr += sample * weight_stride
    members_ptr += sample * members
    offsets_ptr += sample * (groups + 1)
    position = (window % windows) * CHUNK + tl.arange(0, CHUNK)
    group = tl.load(group_ptr + sample * members + position, mask=position < members, other=-1)
    inside = (group >= 0) & (group < groups)
    begin, size = bounds(offsets_ptr, tl.where(inside, group, 0), members)
    begin = begin.to(tl.int32)
    end = begin + size.to(tl.int32)
    starts = inside & (end - begin > CHUNK) & (position >= begin) & (position < end) & ((position - begin) % CHUNK == 0)
    for slot in range(2):
        here = starts & ((position == begin).to(tl.int32) == slot)
        p = tl.min(tl.where(here, position, members))
        stop = tl.minimum(p + CHUNK, tl.max(tl.where(here, end, 0)))
        if p < stop:
            total = _start(MODE, BLOCK)
            weight_total = 0.0
            for i in range(p, stop):
                token = tl.load(members_ptr + i)
                value, weight = _term(x_ptr, weights_ptr, token, stride_n, count, column, column < width, MODE)
                total = _combine(total, value, MODE)
                weight_total += weight
            at = window.to(tl.int64) * 2 + slot
            tl.store(sums_ptr + at * width + column, total, mask=column < width)
            tl.store(weight_sums_ptr + at, weight_total)


@triton.jit(do_not_specialize=["count", "members", "groups"])
def _merge_kernel(
    x_ptr, weights_ptr, first_ptr, members_ptr, offsets_ptr, sums_ptr, weight_sums_ptr, out_ptr, totals_ptr, stride_b,
    stride_n, weight_stride, count, members, groups, width, MODE: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One group, BLOCK features: its first row, then its chunks in order."""
    columns = tl.cdiv(width, BLOCK)
    column = (tl.program_id(0) % columns) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    row = (tl.program_id(0) // columns).to(tl.int64)
    sample = row // groups
    x_ptr += sample * stride_b
    if weights_ptr is not None:
        weights_ptr += sample * weight_stride
    members_ptr += sample * members
    begin, size = bounds(offsets_ptr + sample * (groups + 1), row % groups, members)
    begin = begin.to(tl.int32)
    end = begin + size.to(tl.int32)
    first = tl.load(first_ptr + row)
    has_first = (first >= 0) & (first < count)
    lone = False
    token = first
    if has_first == 0:
        token = tl.load(members_ptr + begin, mask=end > begin, other=-1)
    value, weight = _term(x_ptr, weights_ptr, token, stride_n, count, column, mask, MODE)
    if MODE == "mean":
        lone = (has_first.to(tl.int32) + end - begin == 1) & (token >= 0) & (token < count) & (weight != 0.0)
    if lone:
        tl.store(out_ptr + row * width + column, tl.load(x_ptr + token * stride_n + column, mask=mask), mask=mask)
        tl.store(totals_ptr + row, weight)
    else:
        value, weight = _term(x_ptr, weights_ptr, first, stride_n, count, column, mask, MODE)
        total = _combine(_start(MODE, BLOCK), value, MODE)
        weight_total = 0.0 + weight
        if end - begin > CHUNK:
            windows = tl.cdiv(members, CHUNK)
            for p in range(begin, end, CHUNK):
                at = (sample * windows + p // CHUNK) * 2 + (p == begin).to(tl.int32)
                value = tl.load(sums_ptr + at * width + column, mask=mask, other=0.0)
                total = _combine(total, value, MODE)
                weight_total += tl.load(weight_sums_ptr + at)
        else:
            chunk = _start(MODE, BLOCK)
            weight_chunk = 0.0
            for i in range(begin, end):
                token = tl.load(members_ptr + i)
                value, weight = _term(x_ptr, weights_ptr, token, stride_n, count, column, mask, MODE)
                chunk = _combine(chunk, value, MODE)
                weight_chunk += weight
            total = _combine(total, chunk, MODE)
            weight_total += weight_chunk
        if MODE == "mean":
            divisor = tl.zeros((BLOCK,), tl.float32) + weight_total
            total = tl.where(divisor == 0.0, 0.0, tl.div_rn(total, divisor))
        if MODE == "amax":
            total = tl.where(has_first | (end > begin), total, 0.0)
        tl.store(out_ptr + row * width + column, narrow(total, out_ptr.dtype.element_ty), mask=mask)
        tl.store(totals_ptr + row, weight_total)


def merge_config(x: Tensor) -> dict:
    """One group to a program, 16 bytes to a thread where the strides allow."""
    vector = math.gcd(16 // x.element_size(), x.stride(0), x.stride(1), x.data_ptr() // x.element_size(), x.shape[2])
    block = min(128 * vector, max(32 * vector, next_power_of_2(x.shape[2])))
    return {"BLOCK": block, "num_warps": max(1, block // (32 * vector))}


def merge_tokens(
    x: Tensor, weights: Optional[Tensor], first: Tensor, members: Tensor, offsets: Tensor, mode: str
) -> tuple[Tensor, Tensor]:
    batch, count, width = x.shape
    groups, many = first.shape[1], members.shape[1]
    first, members, offsets = first.contiguous(), members.contiguous(), offsets.contiguous()
    weights = None if weights is None else weights.contiguous()
    if not count:
        totals = torch.zeros(batch, groups, dtype=torch.float32, device=x.device)
        return torch.zeros(batch, groups, width, dtype=x.dtype, device=x.device), totals
    out = torch.empty(batch, groups, width, dtype=x.dtype, device=x.device)
    totals = torch.empty(batch, groups, dtype=torch.float32, device=x.device)
    if not totals.numel():
        return out, totals
    config = merge_config(x)
    columns = max(1, cdiv(width, config["BLOCK"]))
    windows = cdiv(many, CHUNK) if many > CHUNK else 0
    sums = torch.empty(batch, windows, 2, width, dtype=torch.float32, device=x.device)
    weight_sums = torch.empty(batch, windows, 2, dtype=torch.float32, device=x.device)
    strides = (x.stride(0), x.stride(1), 0 if weights is None else weights.stride(0))
    sizes = (count, many, groups, width)
    constants = {"MODE": mode, "CHUNK": CHUNK, **config}
    if windows:
        position = torch.arange(many, device=x.device).expand(batch, many).contiguous()
        group_of = torch.searchsorted(offsets[:, 1:].contiguous(), position, right=True)
        launch(
            _chunk_kernel, batch * windows * columns,
            x, weights, members, group_of, offsets, sums, weight_sums, *strides, *sizes, **constants,
        )  # fmt: skip
    launch(
        _merge_kernel, batch * groups * columns,
        x, weights, first, members, offsets, sums, weight_sums, out, totals, *strides, *sizes, **constants,
    )  # fmt: skip
    return out, totals
