"""Importance of tokens from attention: probabilities in fixed point, so that their sums have no order."""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from .numerics import EXP2_DEGREE, LOW_BITS, exp2, grid_products, grid_rows, segment_slices, sqrt

# Logits of a block: a few such buffers stay in cache.
BLOCK = 1 << 18
# Features of keys that are unit rows at a time, or those of one head.
ROWS = 1 << 20
# Integers that float64 adds up at a time.
SUMMED = 1 << 22
# A probability of 1; the largest slope and norm that count, so that logits are finite; the logit of no key.
ONE = 2.0**30
LARGEST = 2.0**60
MASKED = -(2.0**121)
LOG2_E = 1.4426950408889634
# Blocks of a walk that are kept from step to step.
KEPT = 64


class _Rows(NamedTuple):
    """Grid rows of one head, and the factor that each brings to its logits; 0 where a row is of no use."""

    units: Tensor
    factor: Tensor
    usable: Tensor

    def take(self, part: slice) -> "_Rows":
        return _Rows(*[x[part] for x in self])


def _rows(x: Tensor, scale: float, limbs: int) -> list[_Rows]:
    """Rows of each head of `x` `[H, N, D]`."""
    units, norms = grid_rows(x, limbs, LOW_BITS)
    usable = norms < torch.inf
    factor = norms * scale
    factor = torch.where(usable, torch.where(factor < LARGEST, factor, LARGEST), 0.0)
    return [_Rows(*head) for head in zip(units, factor, usable, strict=True)]


class _Work:
    """Buffers of a block of logits, made once: fresh pages cost more than the arithmetic on them."""

    def __init__(self, elements: int, device: torch.device):
        self.floats = torch.empty(3, elements, dtype=torch.float32, device=device)
        self.doubles = torch.empty(elements, dtype=torch.float64, device=device)

    def take(self, rows: int, columns: int) -> tuple[Tensor, ...]:
        return *self.floats[:, : rows * columns].view(3, rows, columns), self.double(rows, columns)

    def double(self, rows: int, columns: int) -> Tensor:
        return self.doubles[: rows * columns].view(rows, columns)


def _cosines(a: _Rows, b: _Rows, out: Optional[Tensor] = None, double: Optional[Tensor] = None) -> Tensor:
    """Exact dot products of unit rows in units of 2⁻³⁰, halves up: float32 `[M, N]`."""
    if a.units.dtype == torch.float32:
        return grid_products(a.units, b.units, out)
    products = grid_products(a.units, b.units, double).add_(0.5).floor_()
    return products.to(torch.float32) if out is None else out.copy_(products)


def _logits(q: _Rows, k: _Rows, position: Optional[Tensor], cap: float, out: Tensor, double: Tensor) -> Tensor:
    """Logits to base 2 `[R, N]`, MASKED for keys that are of no use or past the `position` of the query."""
    products = _cosines(q, k, out, double)
    products *= (q.factor * 2.0**-30)[:, None]
    products *= k.factor
    if cap:
        inside = torch.where(products < 60.0, torch.where(products > -60.0, products, -60.0), 60.0)
        power = exp2(inside, 5, 0) + 1.0
        products = (1.0 - torch.full_like(power, 2.0) / power) * cap
    if position is not None:
        visible = torch.arange(len(k.units), device=position.device) <= position[:, None]
        products = torch.where(visible, products, MASKED)
    if not bool(k.usable.all()):
        products[:, (~k.usable).nonzero()[:, 0]] = MASKED
    return products


class _Segment(NamedTuple):
    """Attention of all heads within one sample or segment."""

    queries: list[_Rows]
    keys: list[_Rows]
    position: Tensor
    weight: Tensor
    log_sum_exp: Optional[Tensor]
    columns: slice
    causal: bool
    cap: float
    limbs: int

    def exponentials(self, head: int, part: slice, work: _Work, keep: bool = False) -> tuple[Tensor, Tensor]:
        """(2^(logit + 30) of some queries to the keys of `columns`, but for a factor; what makes them attention).

        `[R, N]`, in a buffer of `work` if not to `keep`, and `[R]`: 0 for a query that sees no key.
        """
        q, k = self.queries[head].take(part), self.keys[head * len(self.keys) // len(self.queries)]
        *floats, double = work.take(len(q.factor), len(k.factor))
        t = _logits(q, k, self.position[part] if self.causal else None, self.cap, floats[0], double)
        shifted, power = floats[1], None if keep else floats[2]
        if self.log_sum_exp is None:
            top = t.amax(1)
            usable = q.usable & (top > MASKED)
            t -= top[:, None]
            e = exp2(t.clamp_(min=-32.0), EXP2_DEGREE[self.limbs], 30, shifted, power)
            total = _row_sums(double.copy_(torch.add(e, 0.5, out=shifted).floor_())).to(torch.float32)
            share = torch.full_like(total, ONE) / total
        else:
            log_sum_exp = self.log_sum_exp[head, part] * LOG2_E
            usable = q.usable & (log_sum_exp.abs() < torch.inf)
            t -= torch.where(usable, log_sum_exp, 0.0)[:, None]
            e = exp2(t.clamp_(min=-32.0, max=0.0), EXP2_DEGREE[self.limbs], 30, shifted, power)
            share = torch.full_like(log_sum_exp, 1.0)
        return e[:, self.columns], torch.where(usable, share, 0.0)

    def attention(self, head: int, part: slice, work: _Work, weighted: bool) -> Tensor:
        """Attention `[R, N]` of some queries, times their weights, to the keys of `columns`: integers, times 2⁻³⁰.

        0 for a query that sees no key. In a buffer of `work` if `weighted`.
        """
        e, share = self.exponentials(head, part, work, keep=not weighted)
        weight = torch.where(self.position[part] >= 0, self.weight[part] if weighted else 1.0, 0.0)
        e *= (share * weight)[:, None]
        e += 0.5
        return e.floor_()


def _fixed(x: Tensor) -> Tensor:
    """Integers, as float64, nearest to the float32 numbers `x`, halves up."""
    return (x + 0.5).double().floor_()


def _row_sums(x: Tensor) -> Tensor:
    """int64 `[M]` from float64 integers `[M, N]` within ±2³¹: of parts that stay below 2⁵³, so exact in any order."""
    total = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for start in range(0, x.shape[1], SUMMED):
        total += x[:, start : start + SUMMED].sum(1, dtype=torch.float64).to(torch.int64)
    return total


def _below_one(largest: Tensor) -> tuple[Tensor, Tensor]:
    """Powers of two (s, 1/s) that bring numbers, of which the largest is at most 2⁶⁰, below 1."""
    exponent = largest.view(torch.int32) >> 23
    return ((253 - exponent) << 23).view(torch.float32), ((exponent + 1) << 23).view(torch.float32)


def attention_importance(
    query: Tensor,
    key: Tensor,
    positions: Optional[Tensor],
    weights: Optional[Tensor],
    log_sum_exp: Optional[Tensor],
    counts: Optional[Tensor],
    cu_seqlens_q: Optional[Tensor],
    cu_seqlens_k: Optional[Tensor],
    max_seqlen_q: int,
    max_seqlen_k: int,
    key_start: int,
    key_stop: int,
    causal: bool,
    scale: float,
    cap: float,
    limbs: int,
    head_reduction: str,
    query_reduction: str,
    heads_first: bool,
) -> Tensor:
    """Attention that each key receives, float32 `[B, Nk]`: from `query` `[B, H, Nq, D]` and `key` `[B, Hkv, Nk, D]`.

    `positions` int32 `[B, Nq]`: the last key that a query sees if `causal`, negative for a query that is left out.
    `weights` `[B, Nq]` within [0, 1], `log_sum_exp` `[B, H, Nq]` to base e, `counts` int64 `[B, Nk]`: what "mean" over
    queries divides by, with weights in units of 2⁻³⁰. Keys outside [key_start, key_stop) of a segment get 0.
    Logits to base 2 are cosine · (norm · scale) · norm; with a `cap` other than 0 they are cap · (1 − 2 / (2^x + 1)).
    """
    batch, heads, queries, features = query.shape
    key_heads, keys = key.shape[1:3]
    shared = heads // key_heads
    out = torch.zeros(batch, keys, dtype=torch.float32, device=query.device)
    by_tile = heads_first and (head_reduction == "rms" or (head_reduction == "max") != (query_reduction == "max"))
    parts = segment_slices(batch, queries, keys, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    for b, qs, ks in parts:
        count, length = qs.stop - qs.start, ks.stop - ks.start
        columns = slice(min(key_start, length), min(key_stop, length))
        if not count or columns.start >= columns.stop:
            continue
        position = torch.arange(length - count, length, device=query.device)
        if positions is not None:
            position = positions[b, qs]
        elif not causal:
            position = torch.zeros_like(position)
        step = max(1, BLOCK // max(length, heads))
        blocks = [slice(start, start + step) for start in range(0, count, step)]
        size = columns.stop - columns.start
        totals = torch.zeros(1 if by_tile else heads, size, dtype=torch.int64, device=query.device)
        work = _Work(min(step, count) * length, query.device)
        together = key_heads if by_tile else max(1, ROWS // (length * features))
        for first in range(0, key_heads, together):
            part_of = slice(first * shared, (first + together) * shared)
            segment = _Segment(
                _rows(query[b, part_of, qs], scale, limbs),
                _rows(key[b, first : first + together, ks], 1.0, limbs),
                position,
                torch.ones(count, dtype=torch.float32, device=query.device) if weights is None else weights[b, qs],
                None if log_sum_exp is None else log_sum_exp[b, part_of, qs],
                columns,
                causal,
                cap,
                limbs,
            )
            if by_tile:
                for part in blocks:
                    over_heads = [segment.attention(h, part, work, False) for h in range(heads)]
                    reduced = _reduce_heads(over_heads, head_reduction)
                    if weights is not None:
                        reduced = _fixed(reduced.to(torch.float32) * segment.weight[part, None])
                    _accumulate(totals[0], reduced, query_reduction, work)
            else:
                for h, total in enumerate(totals[part_of]):
                    for part in blocks:
                        _accumulate(total, segment.attention(h, part, work, True), query_reduction, work)
        divisor = None
        if query_reduction == "mean":
            seen = _counts(count, length, causal, out.device) if counts is None else counts[b, ks]
            divisor = seen[columns].to(torch.float32)
            if weights is not None:
                divisor = divisor * 2.0**-30
        out[b, ks][columns] = _finish(totals, divisor, heads, head_reduction, query_reduction, by_tile)
    return out


def _counts(queries: int, keys: int, causal: bool, device: torch.device) -> Tensor:
    """How many of all queries see each key."""
    seen = torch.full((keys,), queries, dtype=torch.int64, device=device)
    return (keys - torch.arange(keys, device=device)).clamp(max=queries) if causal else seen


def _reduce_heads(p: list[Tensor], reduction: str) -> Tensor:
    """Integers `[R, N]` as float64: the sum, the greatest, or the root mean square of heads."""
    if reduction == "rms":
        squares = torch.zeros_like(p[0])
        for x in p:
            x = x * 2.0**-30
            squares = squares + x * x
        return _fixed(sqrt(squares / torch.full_like(squares, len(p))) * ONE)
    total = p[0].double()
    for x in p[1:]:
        total = torch.where(x > total, x, total) if reduction == "max" else total + x
    return total


def _accumulate(total: Tensor, p: Tensor, reduction: str, work: _Work) -> None:
    if reduction == "max":
        top = p.amax(0).to(torch.int64)
        total.copy_(torch.where(top > total, top, total))
    else:  # of integers, at most BLOCK times 2³⁰: below 2⁵³, exact in any order
        total += work.double(*p.shape).copy_(p).sum(0, dtype=torch.float64).to(torch.int64)


def _finish(
    totals: Tensor, divisor: Optional[Tensor], heads: int, head_reduction: str, query_reduction: str, by_tile: bool
) -> Tensor:
    """Float32 scores from integers of one or of all heads `[H, N]`."""
    if head_reduction != "rms" and (head_reduction == "max") == (query_reduction == "max"):
        # Of int64: exact in any order.
        totals = totals.amax(0)[None] if head_reduction == "max" else totals.sum(0)[None]
        by_tile = True
    scores = totals.to(torch.float32) * 2.0**-30
    if divisor is not None:
        scores = torch.where(divisor > 0, scores / divisor, 0.0)
    if by_tile:
        return scores[0] / torch.full_like(scores[0], heads) if head_reduction == "mean" else scores[0]
    return _over_heads(scores, head_reduction)


def _over_heads(scores: Tensor, reduction: str) -> Tensor:
    """Float32 scores `[N]` from those of each head `[H, N]`, none negative."""
    if reduction == "max":
        return scores.amax(0)
    score = torch.zeros_like(scores[0])
    for x in scores:
        score = score + (x * x if reduction == "rms" else x)
    if reduction != "sum":
        score = score / torch.full_like(score, len(scores))
    return sqrt(score) if reduction == "rms" else score


def text_relevance(tokens: Tensor, text: Tensor, reduction: str, scale: float, limbs: int) -> Tensor:
    """Greatest or mean dot product of each token with the usable text rows, times `scale`: float32 `[B, N]`.

    From `tokens` `[B, N, D]` and `text` `[B, T, D]`: cosine · (norm · scale) · norm of the text row. For the mean,
    cosine · norm of the text row is an integer in units of 2⁻³⁰ of a power of two above the largest such norm.
    """
    batch, count, _ = tokens.shape
    out = torch.empty(batch, count, dtype=torch.float32, device=tokens.device)
    step = max(1, BLOCK // max(1, text.shape[1], tokens.shape[2]))
    for b in range(batch):
        (words,) = _rows(text[b : b + 1], 1.0, limbs)
        words = _Rows(*[x[words.usable] for x in words])
        for start in range(0, count, step):
            part = slice(start, start + step)
            (rows,) = _rows(tokens[b : b + 1, part], scale, limbs)
            out[b, part] = torch.where(rows.usable, _relevance(rows, words, reduction), torch.nan)
    return out


def _relevance(rows: _Rows, words: _Rows, reduction: str) -> Tensor:
    if not len(words.factor):
        return torch.full_like(rows.factor, -torch.inf if reduction == "max" else 0.0)
    cosines = _cosines(rows, words)
    cosines *= 2.0**-30
    if reduction == "max":
        cosines *= rows.factor[:, None]
        cosines *= words.factor
        return cosines.amax(1) + 0.0
    scale, unscale = _below_one(words.factor.amax())
    cosines *= words.factor * scale
    total = _row_sums(_fixed(cosines * ONE)).to(torch.float32)
    mean = total * 2.0**-30 / torch.full_like(total, len(words.factor))
    return mean * rows.factor * unscale + 0.0


def attention_walk(query: Tensor, key: Tensor, steps: int, scale: float, limbs: int, head_reduction: str) -> Tensor:
    """Where a random walk along attention is after so many steps, over heads: float32 `[B, N]`.

    From `query` `[B, H, N, D]` and `key` `[B, Hkv, N, D]`. A head's p is 1/N at first; each step adds up p · attention
    as integers in units of 2⁻³⁰ of a power of two above the largest p.
    """
    batch, heads, count, _ = query.shape
    out = torch.empty(batch, count, dtype=torch.float32, device=query.device)
    rows = max(1, BLOCK // max(1, count))
    blocks = [slice(start, start + rows) for start in range(0, count, rows)]
    work = _Work(min(rows, count) * count, query.device)
    for b in range(batch if count else 0):
        p = torch.full((heads, count), 1 / count, dtype=torch.float32, device=query.device)
        segment = _Segment(
            _rows(query[b], scale, limbs) if steps else [],
            _rows(key[b], 1.0, limbs) if steps else [],
            torch.zeros(count, dtype=torch.int64, device=query.device),
            p[0],
            None,
            slice(0, count),
            False,
            0.0,
            limbs,
        )
        for h in range(heads if steps else 0):
            kept = [segment.exponentials(h, part, work, keep=True) for part in blocks[:KEPT]]
            for _ in range(steps):
                down, up = _below_one(p[h].amax())
                weight = p[h] * down
                total = torch.zeros(count, dtype=torch.int64, device=query.device)
                for k, part in enumerate(blocks):
                    e, share = kept[k] if k < len(kept) else segment.exponentials(h, part, work)
                    x = torch.mul(e, (share * weight[part])[:, None], out=work.take(*e.shape)[1])
                    x += 0.5
                    _accumulate(total, x.floor_(), "sum", work)
                p[h] = total.to(torch.float32) * 2.0**-30 * up
        out[b] = _over_heads(p, head_reduction)
    return out
