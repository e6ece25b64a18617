"""Importance of tokens from attention: probabilities in fixed point, so that their sums have no order."""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from .arguments import ALL_KEYS, ALL_QUERIES, Chosen, Keys, Queries, Reduction, Segments, Softmax, Span
from .arithmetic import EXP2_DEGREE, exp2, fixed, sqrt
from .blocks import CACHE_ELEMENTS, HEAD_FEATURES, LOGITS, Work, work_rows
from .dots import grid_buffer
from .logits import MASKED, ONE, Rows, head_rows, logits, row_sums
from .queries import chosen_queries, seen_counts
from .segments import Home, Run, homes, segment_runs

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
    chosen: Chosen = ALL_QUERIES,
    keys: Keys = ALL_KEYS,
) -> Tensor:
    """Attention that each key receives, float32 `[B, Nk]`: from `query` `[B, H, Nq, D]` and `key` `[B, Hkv, Nk, D]`.

    The mean over queries divides by `queries.counts`, else by how many of those that count see the key, or the sum of
    their weights. Keys that are not wanted get 0.
    """
    query, queries, segments, unscale = chosen_queries(query, key.shape[2], chosen, queries, segments, softmax.causal)
    if unscale is not None and reduction.queries == "mean":
        unscale = torch.where(unscale > 0, 1.0, unscale)
    heads, features = query.shape[1], query.shape[3]
    key_heads, size = key.shape[1:3]
    shared = heads // key_heads
    out = torch.zeros(query.shape[0], size, dtype=torch.float32, device=query.device)
    heads_first = reduction.heads_first and not reduction.commutes
    for run in segment_runs(query.shape[0], query.shape[2], size, segments):
        b, ks = run.sample, run.keys
        length = ks.stop - ks.start
        columns = slice(min(span.start, length), min(span.stop, length))
        of_query = of_key = None
        if len(run.key_counts) > 1:
            of_query, of_key = homes(run, query.device)
            columns = slice(0, length)
        each = _each_query(run, queries, of_query, softmax.causal, query.device)
        count = len(each.rows)
        if not count or columns.start >= columns.stop:
            continue
        step = max(1, LOGITS // max(length, heads))
        blocks = [slice(start, start + step) for start in range(0, count, step)]
        totals = torch.zeros(
            1 if heads_first else heads, columns.stop - columns.start, dtype=torch.int64, device=query.device
        )
        work = Work(min(step, count) * length, query.device)
        together = key_heads if heads_first else min(key_heads, max(1, HEAD_FEATURES // (length * features)))
        key_work = work_rows(key[b, :together, ks], 2, CACHE_ELEMENTS)
        key_units = grid_buffer((together, length, features), softmax.limbs, key.device)
        for head in range(0, key_heads, together):
            part_of = slice(head * shared, (head + together) * shared)
            some_keys, mask = key[b, head : head + together, ks], _part(keys.mask, b, ks)
            lse = queries.log_sum_exp
            attention = Attention(
                head_rows(each.of(query[b, part_of]), softmax.scale, softmax.limbs),
                head_rows(some_keys, 1.0, softmax.limbs, mask, key_work, key_units[: len(some_keys)]),
                each.position,
                each.first,
                each.last,
                torch.ones(count, dtype=torch.float32, device=query.device) if each.weight is None else each.weight,
                None if lse is None else each.of(lse[b, part_of]),
                columns,
                softmax,
            )
            some = totals if heads_first else totals[part_of]
            _add_queries(some, attention, blocks, reduction, heads_first, each.weight is not None, work)
        divisor = None
        if reduction.queries == "mean":
            seen = _part(queries.counts, b, ks)
            seen = seen_counts(each.position, each.first, each.last, each.weight, length) if seen is None else seen
            divisor = seen[columns].to(torch.float32)
            if each.weight is not None:
                divisor = divisor * 2.0**-30
        scores = _finish(totals, divisor, heads, reduction, heads_first)
        number = run.first if of_key is None else of_key.number
        if unscale is not None:
            scores = scores * unscale[number]
        place = torch.arange(length, device=out.device)[columns] - (0 if of_key is None else of_key.key_start)
        wanted = (place >= span.start) & (place < span.stop)
        if keys.ranges is not None:
            start, stop = keys.ranges[number].unbind(-1)
            wanted &= (place >= start) & (place < stop)
        out[b, ks][columns] = torch.where(wanted, scores, 0.0)
    return out


def _add_queries(
    totals: Tensor,
    attention: Attention,
    blocks: list[slice],
    reduction: Reduction,
    heads_first: bool,
    weighted: bool,
    work: Work,
) -> None:
    """Add blocks of queries to `totals` `[H, N]` of each head, or of all of them, reduced, if `heads_first`."""
    if not heads_first:
        for head, total in enumerate(totals):
            for part in blocks:
                accumulate(total, attention.probabilities(head, part, work, True), reduction.queries, work)
        return
    for part in blocks:
        each_head = [attention.probabilities(head, part, work, False) for head in range(len(attention.queries))]
        reduced = _reduce_heads(each_head, reduction.heads)
        if weighted:
            reduced = fixed(reduced.to(torch.float32) * attention.weight[part, None])
        accumulate(totals[0], reduced, reduction.queries, work)


class _Queries(NamedTuple):
    """The queries of a run that count: which rows they are, the keys that each sees as in `Attention`, its weight."""

    rows: Tensor
    position: Tensor
    first: Optional[Tensor]
    last: Optional[Tensor]
    weight: Optional[Tensor]

    def of(self, x: Tensor) -> Tensor:
        """Their rows of `x` `[H, Nq, …]`."""
        start = int(self.rows[0])
        whole = int(self.rows[len(self.rows) - 1]) - start == len(self.rows) - 1
        return x[:, start : start + len(self.rows)] if whole else x[:, self.rows]


def _each_query(run: Run, queries: Queries, home: Optional[Home], causal: bool, device: torch.device) -> _Queries:
    b, qs, ks = run[:3]
    count = qs.stop - qs.start
    rows = torch.arange(qs.start, qs.stop, device=device)
    position, weight = _part(queries.positions, b, qs), _part(queries.weights, b, qs)
    if position is None:
        position = torch.zeros_like(rows) if not causal else _positions(count, ks.stop - ks.start, home, device)
    first, stop = (None, None) if home is None else (home.key_start, home.key_stop)
    if queries.positions is not None:
        # Those that are left out cost nothing.
        used = (position >= 0).nonzero()[:, 0]
        rows, position = rows[used], position[used]
        first, stop, weight = (None if x is None else x[used] for x in (first, stop, weight))
    last = None if stop is None else stop - 1
    if causal:
        seen = position if first is None else first + position
        last = seen if last is None else torch.where(seen < last, seen, last)
    return _Queries(rows, position, first, last, weight)


def _part(x: Optional[Tensor], sample: int, part: slice) -> Optional[Tensor]:
    return None if x is None else x[sample, part]


def _positions(queries: int, keys: int, home: Optional[Home], device: torch.device) -> Tensor:
    """The last key of its segment that each query sees where attention is causal: both end together."""
    if home is None:
        return torch.arange(keys - queries, keys, device=device)
    return torch.arange(queries, device=device) - home.query_stop + (home.key_stop - home.key_start)


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
        total = torch.maximum(total, x) if reduction == "max" else total + x
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
