"""Importance of tokens from attention: probabilities in fixed point, so that their sums have no order."""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from .arguments import Queries, Reduction, Segments, Softmax, Span
from .arithmetic import EXP2_DEGREE, exp2, fixed, sqrt
from .blocks import HEAD_FEATURES, LOGITS, Work
from .logits import MASKED, ONE, Rows, head_rows, logits, row_sums
from .segments import Home, homes, segment_runs

LOG2_E = 1.4426950408889634


class Attention(NamedTuple):
    """Attention of all heads within one sample or run of segments.

    Queries with a negative `position` are left out; the others see the keys from `first` to `last`, where given.
    """

    queries: list[Rows]
    keys: list[Rows]
    position: Tensor
    first: Optional[Tensor]
    last: Optional[Tensor]
    weight: Tensor
    log_sum_exp: Optional[Tensor]
    columns: slice
    softmax: Softmax

    def exponentials(self, head: int, part: slice, work: Work, keep: bool = False) -> tuple[Tensor, Tensor]:
        """(2^(logit + 30) of some queries to the keys of `columns`, but for a factor; what makes them attention).

        `[R, N]`, in a buffer of `work` if not to `keep`, and `[R]`: 0 for a query that sees no key.
        """
        q, k = self.queries[head].take(part), self.keys[head * len(self.keys) // len(self.queries)]
        *floats, double = work.take(len(q.factor), len(k.factor))
        first, last = (None if x is None else x[part] for x in (self.first, self.last))
        t = logits(q, k, first, last, self.softmax.cap, floats[0], double)
        shifted, power = floats[1], None if keep else floats[2]
        if self.log_sum_exp is None:
            top = t.amax(1)
            usable = q.usable & (top > MASKED)
            t -= top[:, None]
            e = exp2(t.clamp_(min=-32.0), EXP2_DEGREE[self.softmax.limbs], 30, shifted, power)
            total = row_sums(double.copy_(torch.add(e, 0.5, out=shifted).floor_())).to(torch.float32)
            share = torch.full_like(total, ONE) / total
        else:
            log_sum_exp = self.log_sum_exp[head, part] * LOG2_E
            usable = q.usable & (log_sum_exp.abs() < torch.inf)
            # Where it is below all logits, masked ones are still far below it.
            t -= torch.where(usable, log_sum_exp, 0.0).clamp_(min=MASKED * 0.5)[:, None]
            e = exp2(t.clamp_(min=-32.0, max=0.0), EXP2_DEGREE[self.softmax.limbs], 30, shifted, power)
            share = torch.full_like(log_sum_exp, 1.0)
        return e[:, self.columns], torch.where(usable, share, 0.0)

    def probabilities(self, head: int, part: slice, work: Work, weighted: bool) -> Tensor:
        """Attention `[R, N]` of some queries, times their weights, to the keys of `columns`: integers, times 2⁻³⁰.

        0 for a query that sees no key. In a buffer of `work` if `weighted`.
        """
        e, share = self.exponentials(head, part, work, keep=not weighted)
        weight = torch.where(self.position[part] >= 0, self.weight[part] if weighted else 1.0, 0.0)
        e *= (share * weight)[:, None]
        e += 0.5
        return e.floor_()


def attention_importance(
    query: Tensor,
    key: Tensor,
    queries: Queries,
    segments: Segments,
    span: Span,
    softmax: Softmax,
    reduction: Reduction,
) -> Tensor:
    """Attention that each key receives, float32 `[B, Nk]`: from `query` `[B, H, Nq, D]` and `key` `[B, Hkv, Nk, D]`.

    The mean over queries divides by `queries.counts`, else by how many see the key. Keys outside of the span get 0.
    """
    heads, features = query.shape[1], query.shape[3]
    key_heads, keys = key.shape[1:3]
    shared = heads // key_heads
    out = torch.zeros(query.shape[0], keys, dtype=torch.float32, device=query.device)
    heads_first = reduction.heads_first and not reduction.commutes
    positions, weights, log_sum_exp, counts = queries
    for run in segment_runs(query.shape[0], query.shape[2], keys, segments):
        b, qs, ks = run[:3]
        count, length = qs.stop - qs.start, ks.stop - ks.start
        columns = slice(min(span.start, length), min(span.stop, length))
        if not count or columns.start >= columns.stop:
            continue
        first = last = of_query = of_key = None
        if len(run.key_counts) > 1:
            of_query, of_key = homes(run, query.device)
            columns = slice(0, length)
        position = _positions(count, length, of_query, query.device)
        if positions is not None:
            position = positions[b, qs]
        elif not softmax.causal:
            position = torch.zeros_like(position)
        if of_query is not None:
            first, last = of_query.key_start, of_query.key_stop - 1
        if softmax.causal:
            seen = position if first is None else first + position
            last = seen if last is None else torch.where(seen < last, seen, last)
        step = max(1, LOGITS // max(length, heads))
        blocks = [slice(start, start + step) for start in range(0, count, step)]
        size = columns.stop - columns.start
        totals = torch.zeros(1 if heads_first else heads, size, dtype=torch.int64, device=query.device)
        work = Work(min(step, count) * length, query.device)
        together = key_heads if heads_first else max(1, HEAD_FEATURES // (length * features))
        for head in range(0, key_heads, together):
            part_of = slice(head * shared, (head + together) * shared)
            attention = Attention(
                head_rows(query[b, part_of, qs], softmax.scale, softmax.limbs),
                head_rows(key[b, head : head + together, ks], 1.0, softmax.limbs),
                position,
                first,
                last,
                torch.ones(count, dtype=torch.float32, device=query.device) if weights is None else weights[b, qs],
                None if log_sum_exp is None else log_sum_exp[b, part_of, qs],
                columns,
                softmax,
            )
            if heads_first:
                for part in blocks:
                    each_head = [attention.probabilities(h, part, work, False) for h in range(heads)]
                    reduced = _reduce_heads(each_head, reduction.heads)
                    if weights is not None:
                        reduced = fixed(reduced.to(torch.float32) * attention.weight[part, None])
                    accumulate(totals[0], reduced, reduction.queries, work)
            else:
                for h, total in enumerate(totals[part_of]):
                    for part in blocks:
                        accumulate(total, attention.probabilities(h, part, work, True), reduction.queries, work)
        divisor = None
        if reduction.queries == "mean":
            seen = _counts(count, length, softmax.causal, of_key, out.device) if counts is None else counts[b, ks]
            divisor = seen[columns].to(torch.float32)
            if weights is not None:
                divisor = divisor * 2.0**-30
        scores = _finish(totals, divisor, heads, reduction, heads_first)
        if of_key is not None:
            place = torch.arange(length, device=out.device) - of_key.key_start
            scores = torch.where((place >= span.start) & (place < span.stop), scores, 0.0)
        out[b, ks][columns] = scores
    return out


def _positions(queries: int, keys: int, home: Optional[Home], device: torch.device) -> Tensor:
    """The last key of its segment that each query sees where attention is causal: both end together."""
    if home is None:
        return torch.arange(keys - queries, keys, device=device)
    return torch.arange(queries, device=device) - home.query_stop + (home.key_stop - home.key_start)


def _counts(queries: int, keys: int, causal: bool, home: Optional[Home], device: torch.device) -> Tensor:
    """How many of all queries see each key."""
    seen = torch.full((keys,), queries, dtype=torch.int64, device=device) if home is None else home.queries
    if not causal:
        return seen
    after = (keys if home is None else home.key_stop) - torch.arange(keys, device=device)
    return torch.where(after < seen, after, seen)


def _reduce_heads(p: list[Tensor], reduction: str) -> Tensor:
    """Integers `[R, N]` as float64: the sum, the greatest, or the root mean square of heads."""
    if reduction == "rms":
        squares = torch.zeros_like(p[0])
        for x in p:
            x = x * 2.0**-30
            squares = squares + x * x
        return fixed(sqrt(squares / torch.full_like(squares, len(p))) * ONE)
    total = p[0].double()
    for x in p[1:]:
        total = torch.where(x > total, x, total) if reduction == "max" else total + x
    return total


def accumulate(total: Tensor, p: Tensor, reduction: str, work: Work) -> None:
    if reduction == "max":
        top = p.amax(0).to(torch.int64)
        total.copy_(torch.where(top > total, top, total))
    else:  # of integers, at most LOGITS times 2³⁰: below 2⁵³, exact in any order
        total += work.double(*p.shape).copy_(p).sum(0, dtype=torch.float64).to(torch.int64)


def _finish(totals: Tensor, divisor: Optional[Tensor], heads: int, reduction: Reduction, heads_first: bool) -> Tensor:
    """Float32 scores from integers of one or of all heads `[H, N]`."""
    if reduction.commutes:
        # Of int64: exact in any order.
        totals = totals.amax(0)[None] if reduction.heads == "max" else totals.sum(0)[None]
    scores = totals.to(torch.float32) * 2.0**-30
    if divisor is not None:
        scores = torch.where(divisor > 0, scores / divisor, 0.0)
    if heads_first or reduction.commutes:
        return scores[0] / torch.full_like(scores[0], heads) if reduction.heads == "mean" else scores[0]
    return over_heads(scores, reduction.heads)


def over_heads(scores: Tensor, reduction: str) -> Tensor:
    """Float32 scores `[N]` from those of each head `[H, N]`, none negative."""
    if reduction == "max":
        return scores.amax(0)
    score = torch.zeros_like(scores[0])
    for x in scores:
        score = score + (x * x if reduction == "rms" else x)
    if reduction != "sum":
        score = score / torch.full_like(score, len(scores))
    return sqrt(score) if reduction == "rms" else score
