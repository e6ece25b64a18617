"""The nearest keys of each query."""

from typing import Optional

import torch
from torch import Tensor

from .arguments import Allowed, Nearest, Segments
from .arithmetic import ordered_key, widen
from .blocks import CACHE_ELEMENTS, PRODUCT_BYTES, work_rows
from .dots import LOW_BITS, grid_products, grid_rows, own_dots, rounded
from .matching import LAST, NONE
from .segments import Run, homes, segment_of, segment_runs


def nearest(
    queries: Tensor, keys: Tensor, allowed: Allowed, segments: Segments, wanted: Nearest, limbs: int
) -> tuple[Tensor, Tensor]:
    """(indices of the k nearest keys `[B, Nq, k]`, similarities or squared distances); −1 and ∓inf where there is none.

    Similarities are dot products of unit rows in multiples of 2⁻³⁰, and in this order, ties to the lower index. Rows
    with a norm that is not finite have no neighbours and are none. Indices count from the start of the segment; a query
    is of one segment, which a search finds.
    """
    batch, count = queries.shape[:2]
    best = torch.full((batch, count, wanted.k), NONE, dtype=torch.int64, device=queries.device)
    segment = None if segments.cu_seqlens_q is None else segment_of(segments.cu_seqlens_q, count)
    for run in segment_runs(batch, count, keys.shape[1], segments):
        if run.queries.start < run.queries.stop and run.keys.start < run.keys.stop:
            _search(queries, keys, allowed, run, segment, wanted, limbs, best[run.sample, run.queries])
    found, score = best > NONE, (best >> 32).to(torch.int32)
    if wanted.inverted:
        score = ~score
    values = score.view(torch.float32) if wanted.euclidean else score.to(torch.float32) * 2.0**-30
    nothing = torch.inf if wanted.inverted else -torch.inf
    return torch.where(found, LAST - (best & LAST), -1), torch.where(found, values, nothing)


def _search(
    all_queries: Tensor,
    all_keys: Tensor,
    allowed: Allowed,
    run: Run,
    segment: Optional[Tensor],
    wanted: Nearest,
    limbs: int,
    out: Tensor,
) -> None:
    """Put (score, inverted index) of the k best keys of the queries of a run into `out`, the best first."""
    b, q, k = run[:3]
    queries, keys = all_queries[b, q], all_keys[b, k]
    work = work_rows(keys if len(keys) > len(queries) else queries, 2, CACHE_ELEMENTS)
    (key_rows,), (key_norms,) = grid_rows(keys[None], limbs, LOW_BITS, 1, work)
    key_squares = own_dots(key_rows) if wanted.euclidean else key_norms
    unusable = ~(key_norms.abs() < torch.inf)
    if allowed.key_mask is not None:
        unusable |= ~allowed.key_mask[b, k]
    unusable = unusable.nonzero()[:, 0]
    ranks = None if allowed.rank is None else ordered_key(widen(allowed.rank))[b]
    home = homes(run, queries.device)[0]
    own = torch.arange(len(queries), device=queries.device) - (home.query_stop - home.queries) + home.key_start
    column = torch.arange(len(keys), device=keys.device)
    worst = (1 << 31) - 1 if wanted.inverted else -1 << 31
    step = min(len(queries), max(1, PRODUCT_BYTES // (16 * len(keys))))
    buffer = key_rows.new_empty(step, len(keys))
    floats = torch.empty(2, step, len(keys), dtype=torch.float32, device=keys.device)
    for first in range(0, len(queries), step):
        (rows,), (norms,) = grid_rows(queries[None, first : first + step], limbs, LOW_BITS, 1, work)
        block = slice(first, first + len(rows))
        scores = rounded(grid_products(rows, key_rows, buffer[: len(rows)]))
        if wanted.euclidean:
            squares = (own_dots(rows), key_squares)
            scores = _squared_distances(scores, norms, key_norms, squares, floats[:, : len(rows)]).view(torch.int32)
        else:
            scores = scores.to(torch.int32)
        scores[:, unusable] = worst
        start = home.key_start[block]
        if len(run.key_counts) > 1:
            inside = (column >= start[:, None]) & (column < home.key_stop[block, None])
            scores = torch.where(inside, scores, worst)
        if wanted.exclude_self:
            there = (own[block] < len(keys)).nonzero()[:, 0]
            scores[there, own[block][there]] = worst
        if ranks is not None:
            mine, other = ranks[q][block, None], ranks[k]
            higher = (other > mine) | ((other == mine) & (column < own[block, None]))
            scores = torch.where(higher, scores, worst)
        best = _best(scores, start, min(wanted.k, len(keys)), wanted.inverted)
        good = norms.abs() < torch.inf
        part = out[block, : best.shape[1]]
        if segment is not None:
            good &= segment[q][block] == home.number[block]
        part[:] = torch.where(good[:, None], best, part)


def _best(scores: Tensor, start: Tensor, count: int, inverted: bool) -> Tensor:
    """(score, inverted index from `start` on) of the best of each row of int32 scores, best first; `NONE` past them.

    `topk` of scores alone says how good the last one is; whatever is as good competes by its index.
    """
    if not count:
        return start.new_empty(len(scores), 0)
    last = scores.topk(count, 1, not inverted).values[:, -1:]
    if inverted:
        row, column = (scores <= last.clamp(max=(1 << 31) - 2)).nonzero().unbind(1)
    else:
        row, column = (scores >= last.clamp(min=1 - (1 << 31))).nonzero().unbind(1)
    score = scores[row, column].to(torch.int64)
    pair = ((~score if inverted else score) << 32) + (LAST - (column - start[row]))
    many = row.bincount(minlength=len(scores))
    place = torch.arange(len(row), device=row.device) - (many.cumsum(0) - many)[row]
    pairs = torch.full((len(scores), max(count, *many.tolist())), NONE, dtype=torch.int64, device=row.device)
    pairs[row, place] = pair
    return pairs.topk(count, 1).values


def _squared_distances(
    products: Tensor, a: Tensor, b: Tensor, squares: tuple[Tensor, Tensor], floats: Tensor
) -> Tensor:
    """(|a| − |b|)² + |a| |b| |u − v|² of rows with these norms and unit rows u and v: float32 `[M, N]`, never −0.

    |u − v|² = u·u + v·v − 2 u·v is an integer in units of 2⁻³⁰, rounded once. Where it is 0, so is the product.
    """
    distance, apart = floats
    apart.copy_(products.mul_(-2.0).add_(squares[0][:, None]).add_(squares[1]).clamp_(min=0.0)).mul_(2.0**-30)
    torch.mul(a[:, None], b, out=distance)
    if not bool(a.amax() * b.amax() < torch.inf):
        distance = torch.where(apart > 0, distance, 0.0)
    apart *= distance
    torch.sub(a[:, None], b, out=distance)
    distance *= distance
    return distance.add_(apart)
