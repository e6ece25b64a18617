"""The nearest keys of each query."""

from typing import Optional

import torch
from torch import Tensor

from .arguments import Allowed, Nearest, Segments
from .arithmetic import ordered_key, widen
from .blocks import CACHE_ELEMENTS, PRODUCT_BYTES, work_rows
from .dots import LOW_BITS, grid_products, grid_rows
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
    buffers = work_rows(keys if len(keys) > len(queries) else queries, 2, CACHE_ELEMENTS)
    (key_rows,), (key_norms,) = grid_rows(keys[None], limbs, LOW_BITS, 1, buffers)
    usable = key_norms.abs() < torch.inf
    if allowed.key_mask is not None:
        usable &= allowed.key_mask[b, k]
    usable, key_squares = None if bool(usable.all()) else usable, _squares(key_rows) if wanted.euclidean else None
    ranks = None if allowed.rank is None else ordered_key(widen(allowed.rank))[b]
    home = homes(run, queries.device)[0]
    own = torch.arange(len(queries), device=queries.device) - (home.query_stop - home.queries) + home.key_start
    column = torch.arange(len(keys), device=keys.device)
    step = max(1, PRODUCT_BYTES // (8 * len(keys)))
    for first in range(0, len(queries), step):
        (rows,), (norms,) = grid_rows(queries[None, first : first + step], limbs, LOW_BITS, 1, buffers)
        block = slice(first, first + len(rows))
        products = _rounded(grid_products(rows, key_rows))
        if key_squares is not None:
            scores = _squared_distances(products, norms, key_norms, _squares(rows), key_squares).view(torch.int32)
        else:
            scores = products
        scores = scores.to(torch.int64)
        if wanted.inverted:
            scores = ~scores
        start = home.key_start[block, None]
        pairs = scores.bitwise_left_shift_(32).add_((start + LAST) - column)
        good = norms.abs() < torch.inf
        if segment is not None:
            good &= segment[q][block] == home.number[block]
        if not bool(good.all()):
            pairs[~good] = NONE
        if usable is not None:
            pairs[:, ~usable] = NONE
        if len(run.key_counts) > 1:
            pairs = torch.where((column >= start) & (column < home.key_stop[block, None]), pairs, NONE)
        if wanted.exclude_self:
            pairs = torch.where(column == own[block, None], NONE, pairs)
        if ranks is not None:
            mine, other = ranks[q][block, None], ranks[k]
            denser = (other > mine) | ((other == mine) & (column < own[block, None]))
            pairs = torch.where(denser, pairs, NONE)
        count = min(wanted.k, len(keys))
        # In blocks of this size, none of which has two equal pairs.
        best = pairs.topk(count).values
        out[block, :count] = torch.where(good[:, None], best, out[block, :count])


def _rounded(products: Tensor) -> Tensor:
    """Integers, halves up; those of one limb are."""
    return products.add_(0.5).floor_() if products.dtype == torch.float64 else products


def _squares(rows: Tensor) -> Tensor:
    """Products of grid rows with themselves, in units of 2⁻³⁰, halves up; exact in float64."""
    return _rounded((rows * rows).sum(-1, dtype=torch.float64))


def _squared_distances(products: Tensor, a: Tensor, b: Tensor, a_squares: Tensor, b_squares: Tensor) -> Tensor:
    """(|a| − |b|)² + |a| |b| |u − v|² of rows with these norms and unit rows u and v: float32 `[M, N]`, never −0.

    |u − v|² = u·u + v·v − 2 u·v is an integer in units of 2⁻³⁰, rounded once. Where it is 0, so is the product.
    """
    chord = ((a_squares[:, None] + b_squares) - 2.0 * products).clamp_(min=0.0).to(torch.float32)
    apart = (a[:, None] * b) * (chord * 2.0**-30)
    gap = a[:, None] - b
    return gap * gap + torch.where(chord > 0, apart, 0.0)
