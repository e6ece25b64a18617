"""The nearest keys of each query."""

from typing import Optional

import torch
from torch import Tensor

from .arguments import Allowed, Nearest, Segments
from .arithmetic import ordered_key, widen
from .blocks import CACHE_ELEMENTS, PRODUCT_BYTES, work_rows
from .dots import LOW_BITS, gram, grid_rows, own_dots, products
from .matching import LAST, NONE
from .segments import Run, homes, segment_of, segment_runs

# Similarities of a sample with itself that exist at a time, in 32 MB, for half of the products. Else blocks of them do.
SIMILARITIES = 1 << 23


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
    itself = all_keys is all_queries and q == k
    dots = gram(key_rows) if itself and len(keys) ** 2 <= SIMILARITIES else None
    key_squares = own_dots(key_rows) if wanted.euclidean else None
    unusable = ~(key_norms.abs() < torch.inf)
    if allowed.key_mask is not None:
        unusable |= ~allowed.key_mask[b, k]
    unusable = unusable.nonzero()[:, 0]
    ranks = None if allowed.rank is None else ordered_key(widen(allowed.rank))[b]
    home = homes(run, queries.device)[0]
    own = torch.arange(len(queries), device=queries.device) - (home.query_stop - home.queries) + home.key_start
    column = torch.arange(len(keys), device=keys.device)
    step = min(len(queries), max(1, PRODUCT_BYTES // (16 * len(keys))))
    all_pairs = torch.empty(step, len(keys), dtype=torch.int64, device=keys.device)
    buffers = key_rows.new_empty(step, len(keys)), key_norms.new_empty(2, step, len(keys))
    for first in range(0, len(queries), step):
        block = slice(first, min(first + step, len(queries)))
        if itself:
            rows, norms = key_rows[block], key_norms[block]
        else:
            (rows,), (norms,) = grid_rows(queries[None, block], limbs, LOW_BITS, 1, work)
        scores = products(rows, key_rows, buffers[0][: len(rows)]) if dots is None else dots[block]
        if key_squares is not None:
            squares = key_squares[block] if itself else own_dots(rows), key_squares
            scores = _squared_distances(scores, (norms, key_norms), squares, buffers).view(torch.int32)
        several, start = len(run.key_counts) > 1, home.key_start[block, None]
        place = column - start if several else column
        pairs = all_pairs[: len(rows)].copy_(scores).bitwise_left_shift_(32)
        pairs ^= ~place if wanted.inverted else LAST - place
        if len(unusable):
            pairs[:, unusable] = NONE
        if several:
            pairs = torch.where((column >= start) & (column < home.key_stop[block, None]), pairs, NONE)
        if wanted.exclude_self:
            there = (own[block] < len(keys)).nonzero()[:, 0]
            pairs[there, own[block][there]] = NONE
        if ranks is not None:
            mine, other = ranks[q][block, None], ranks[k]
            higher = (other > mine) | ((other == mine) & (column < own[block, None]))
            pairs = torch.where(higher, pairs, NONE)
        best = pairs.topk(min(wanted.k, len(keys)), 1).values
        good = norms.abs() < torch.inf
        part = out[block, : best.shape[1]]
        if segment is not None:
            good &= segment[q][block] == home.number[block]
        part[:] = torch.where(good[:, None], best, part)


def _squared_distances(
    products: Tensor, norms: tuple[Tensor, Tensor], squares: tuple[Tensor, Tensor], buffers: tuple[Tensor, Tensor]
) -> Tensor:
    """(|a| − |b|)² + |a| |b| |u − v|² of rows with these norms and unit rows u and v: float32 `[M, N]`, never −0.

    |u − v|² = u·u + v·v − 2 u·v is an integer in units of 2⁻³⁰, rounded once. Where it is 0, so is the product.
    """
    (a, b), (u, v), count = norms, squares, len(products)
    half, (distance, apart) = buffers[0][:count], buffers[1][:, :count]
    half.copy_(products).sub_((u * 0.5)[:, None]).sub_(v * 0.5)
    apart.copy_(half).mul_(-(2.0**-29)).clamp_(min=0.0)
    torch.mul(a[:, None], b, out=distance)
    if not bool(a.amax() * b.amax() < torch.inf):
        distance = torch.where(apart > 0, distance, 0.0)
    apart *= distance
    torch.sub(a[:, None], b, out=distance)
    distance *= distance
    return distance.add_(apart)
