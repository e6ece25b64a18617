"""The most similar token."""

from typing import Optional

import torch
from torch import Tensor

from .arguments import Segments
from .blocks import CACHE_ELEMENTS, PRODUCT_BYTES, SEARCHED, work_rows
from .dots import LOW_BITS, grid_products, grid_rows
from .segments import Home, homes, segment_runs

# The greatest index, and what is below every pair of a similarity and an index.
LAST, NONE = (1 << 32) - 1, -1 << 63


def best_match(
    queries: Tensor,
    keys: Tensor,
    key_mask: Optional[Tensor],
    segments: Segments,
    limbs: int,
) -> tuple[Tensor, Tensor]:
    """(index of the most similar key `[B, Nq]`, its similarity `[B, Nq]`); (−1, −inf) where no key can be matched.

    The similarity is the dot product of unit rows in multiples of 2⁻³⁰, a tie goes to the lower index. Rows with a
    norm that is not finite match nothing. Indices count from the start of the segment; a query of several segments
    gets the best of them.
    """
    # (integer similarity, inverted index) of the best so far.
    batch, count = queries.shape[:2]
    best = torch.full((batch, count), NONE, dtype=torch.int64, device=queries.device)
    for run in segment_runs(batch, count, keys.shape[1], segments):
        b, q, k = run[:3]
        if q.start < q.stop and k.start < k.stop:
            mask = None if key_mask is None else key_mask[b, k]
            home = homes(run, queries.device)[0] if len(run.key_counts) > 1 else None
            _search(queries[b, q], keys[b, k], mask, home, limbs, best[b, q])
    found = best > NONE
    similarity = (best >> 32).to(torch.float32) * 2.0**-30
    return torch.where(found, LAST - (best & LAST), -1), torch.where(found, similarity, -torch.inf)


def _search(
    queries: Tensor, keys: Tensor, key_mask: Optional[Tensor], home: Optional[Home], limbs: int, out: Tensor
) -> None:
    longest = keys if len(keys) > len(queries) else queries
    buffers = work_rows(longest, 2, CACHE_ELEMENTS)
    (key_rows,), (norms,) = grid_rows(keys[None], limbs, LOW_BITS, SEARCHED, buffers)
    unusable = ~(norms.abs() < torch.inf)
    if key_mask is not None:
        unusable[: len(keys)] |= ~key_mask
    unusable = unusable.nonzero()[:, 0]
    size = key_rows.element_size()
    step = max(1, PRODUCT_BYTES // (size * len(key_rows)))
    buffer = key_rows.new_empty(min(step, len(queries)), len(key_rows))
    block = max(1, PRODUCT_BYTES // (2 * size * keys.shape[1]))
    for first in range(0, len(queries), block):
        (query_rows,), (norms,) = grid_rows(queries[None, first : first + block], limbs, LOW_BITS, 1, buffers)
        for row in range(0, len(query_rows), step):
            part = query_rows[row : row + step]
            products = grid_products(part, key_rows, buffer[: len(part)])
            if len(unusable):
                products[:, unusable] = -(2.0**31)
            rows = slice(first + row, first + row + len(part))
            if home is not None:
                column = torch.arange(products.shape[1], device=keys.device)
                own = (column >= home.key_start[rows, None]) & (column < home.key_stop[rows, None])
                products = torch.where(own, products, -(2.0**31))
            best, index = _first_largest(products)
            if home is not None:
                index -= home.key_start[rows]
            found = (best > -(2.0**31)) & (norms[row : row + step].abs() < torch.inf)
            best = torch.where(found, (best.to(torch.int64) << 32) + (LAST - index), NONE)
            out[rows] = torch.maximum(out[rows], best)


def _first_largest(products: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row, halves rounded up to an integer, and the first index that rounds to the same."""
    parts = products.unflatten(1, (-1, SEARCHED))
    tops = parts.amax(-1)
    best = least = tops.amax(-1) + 0.0  # a zero is +0
    if products.dtype == torch.float64:
        best = (best + 0.5).floor_()
        least = best - 0.5
    part = _first(tops >= least[:, None])
    first = part * SEARCHED
    first += _first(parts[torch.arange(len(part), device=part.device), part] >= least[:, None])
    return best, first


def _first(mask: Tensor) -> Tensor:
    return mask.view(torch.uint8).argmax(-1)
