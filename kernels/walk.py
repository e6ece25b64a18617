"""A random walk along attention, a pass over the logits for each step."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import Queries, Segments, Softmax, Span
from .arithmetic import below_one, bounds, cdiv
from .attention import add_columns, finish
from .launch import launch, target_arch
from .logits import segment_rows
from .queries import problem_of
from .softmax import softmax_rows
from .tiles import attention_tiles, flat_tiles


@triton.jit(do_not_specialize=["tokens", "longest", "heads", "parts"])
def _start_kernel(cu_ptr, unscales_ptr, tokens, longest, heads, parts, BLOCK: tl.constexpr):
    """p of each head of each segment before the first step: one over its tokens."""
    part = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    _, count = bounds(cu_ptr, tl.where(part < parts, part // heads, 0), tokens)
    count = tl.minimum(tl.maximum(count, 1), longest).to(tl.float32)
    tl.store(unscales_ptr + part, tl.div_rn(tl.zeros_like(count) + 1.0, count), mask=part < parts)


@triton.jit(do_not_specialize=["tokens", "longest", "heads", "step"])
def _step_kernel(
    totals_ptr, unscales_ptr, shares_ptr, weighted_ptr, cu_ptr, tokens, longest, heads, step, BLOCK: tl.constexpr
):  # fmt: skip
    """Before a step, of one head: shares times p, brought below 1 by a power of two, and the totals back to 0."""
    part = tl.program_id(0).to(tl.int64)
    first = part * tokens
    count = tokens
    if cu_ptr is not None:
        start, count = segment_rows(cu_ptr, None, part // heads, tokens, longest, True)
        first = part % heads * tokens + start
    unscales_ptr += step * tl.num_programs(0) + part
    unscale = tl.load(unscales_ptr)
    largest = tl.zeros((BLOCK,), tl.int64)
    for n in range(0, count, BLOCK):
        token = n + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.load(totals_ptr + first + token, mask=token < count, other=0))
    largest = tl.max(largest, axis=0).to(tl.float32) * (1.0 / 1073741824.0) * unscale
    down, up = below_one(largest.to(tl.int32, bitcast=True))
    tl.store(unscales_ptr + tl.num_programs(0), up)
    for n in range(0, count, BLOCK):
        token = n + tl.arange(0, BLOCK)
        at = first + token
        mask = token < count
        total = tl.load(totals_ptr + at, mask=mask, other=0)
        p = total.to(tl.float32) * (1.0 / 1073741824.0) * unscale
        share = tl.load(shares_ptr + at, mask=mask, other=0.0)
        tl.store(weighted_ptr + at, share * (p * down), mask=mask)
        tl.store(totals_ptr + at, tl.zeros_like(total), mask=mask)


def attention_walk(
    query: Tensor,
    key: Tensor,
    softmax: Softmax,
    steps: int,
    head_reduction: str,
    cu_seqlens: Optional[Tensor],
    max_seqlen: int,
) -> Tensor:
    batch, heads, tokens, features = query.shape
    whole = Queries(), Segments(cu_seqlens, cu_seqlens, max_seqlen, max_seqlen), Span(0, max_seqlen)
    problem = problem_of(query, key, *whole, softmax)
    out = torch.empty(batch, tokens, dtype=torch.float32, device=query.device)
    if problem.packed:
        out.zero_()
    if not out.numel() or not problem.parts * max_seqlen:
        return out
    # p is total · 2⁻³⁰ · unscale.
    totals = torch.full((batch, heads, tokens), 1 << 30, dtype=torch.int64, device=query.device)
    parts = problem.parts * heads
    if cu_seqlens is None:
        unscales = torch.full((steps + 1, parts), 1 / tokens, dtype=torch.float32, device=query.device)
    else:
        unscales = torch.empty(steps + 1, parts, dtype=torch.float32, device=query.device)
        tiles = flat_tiles()
        launch(
            _start_kernel, cdiv(parts, tiles["BLOCK"]), cu_seqlens, unscales, tokens, max_seqlen, heads, parts, **tiles
        )  # fmt: skip
    if steps:
        rows, columns = attention_tiles(features, softmax.limbs, max_seqlen * (heads // problem.kv_heads), False)
        if problem.packed and target_arch() == 100:
            # The assembler stops at fewer registers here, and spills, unless it is told otherwise.
            rows = {**rows, "maxnreg": 255}
        operands = softmax_rows(query, key, problem, None, rows)
        shares, weighted = operands.shares, torch.empty_like(operands.shares)
    for step in range(steps):
        launch(
            _step_kernel, parts,
            totals, unscales, shares, weighted, cu_seqlens, tokens, max_seqlen, heads, step, **flat_tiles(),
        )  # fmt: skip
        add_columns(totals, operands._replace(shares=weighted), problem, columns)
    finish(out, totals, unscales[steps], problem, head_reduction, head_reduction in ("mean", "rms"), False)
    return out
