"""A random walk along attention, a pass over the logits for each step."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import Queries, Segments, Softmax, Span
from .arithmetic import below_one
from .attention import add_columns, finish
from .launch import launch
from .queries import problem_of
from .softmax import softmax_rows
from .tiles import attention_tiles, flat_tiles


@triton.jit(do_not_specialize=["tokens", "step"])
def _step_kernel(totals_ptr, unscales_ptr, shares_ptr, weighted_ptr, tokens, step, BLOCK: tl.constexpr):
    """Before a step, of one head: shares times p, brought below 1 by a power of two, and the totals back to 0."""
    head = tl.program_id(0).to(tl.int64)
    unscales_ptr += step * tl.num_programs(0) + head
    unscale = tl.load(unscales_ptr)
    largest = tl.zeros((BLOCK,), tl.int64)
    for n in range(0, tokens, BLOCK):
        token = n + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.load(totals_ptr + head * tokens + token, mask=token < tokens, other=0))
    largest = tl.max(largest, axis=0).to(tl.float32) * (1.0 / 1073741824.0) * unscale
    down, up = below_one(largest.to(tl.int32, bitcast=True))
    tl.store(unscales_ptr + tl.num_programs(0), up)
    for n in range(0, tokens, BLOCK):
        token = n + tl.arange(0, BLOCK)
        at = head * tokens + token
        mask = token < tokens
        total = tl.load(totals_ptr + at, mask=mask, other=0)
        p = total.to(tl.float32) * (1.0 / 1073741824.0) * unscale
        share = tl.load(shares_ptr + at, mask=mask, other=0.0)
        tl.store(weighted_ptr + at, share * (p * down), mask=mask)
        tl.store(totals_ptr + at, tl.zeros_like(total), mask=mask)


def attention_walk(query: Tensor, key: Tensor, softmax: Softmax, steps: int, head_reduction: str) -> Tensor:
    batch, heads, tokens, features = query.shape
    whole = Queries(), Segments(None, None, tokens, tokens), Span(0, tokens)
    problem = problem_of(query, key, *whole, softmax)
    out = torch.empty(batch, tokens, dtype=torch.float32, device=query.device)
    if not out.numel():
        return out
    # p is total · 2⁻³⁰ · unscale.
    totals = torch.full((batch, heads, tokens), 1 << 30, dtype=torch.int64, device=query.device)
    unscales = torch.full((steps + 1, batch, heads), 1 / tokens, dtype=torch.float32, device=query.device)
    if steps:
        rows, columns = attention_tiles(features, softmax.limbs, tokens * (heads // problem.kv_heads), False)
        operands = softmax_rows(query, key, problem, None, rows)
        shares, weighted = operands.shares, torch.empty_like(operands.shares)
    for step in range(steps):
        launch(_step_kernel, batch * heads, totals, unscales, shares, weighted, tokens, step, **flat_tiles())
        add_columns(totals, operands._replace(shares=weighted), problem, columns)
    finish(out, totals, unscales[steps], problem, head_reduction, head_reduction in ("mean", "rms"), False)
    return out
