"""ToMe's plan: which tokens merge into which."""

from typing import Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.matching import best_match_op, limbs_of
from ..reference.arithmetic import ordered_key
from ..reference.groups import Segments
from ..results import MergePlan

__all__ = ["tome_matching"]


def tome_matching(
    metric: Tensor,
    r: int,
    *,
    class_token: bool = False,
    distill_token: bool = False,
    precision: Optional[str] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
) -> MergePlan:
    """ToMe's bipartite soft matching: which r even tokens merge into which odd tokens.

    Each even token finds its most cosine-similar odd token; the r even tokens with the greatest similarity become
    sources, their partners destinations.

    Parameters
    ----------
    metric : Tensor
        What is compared, ``[B, N, D]`` or packed ``[T, D]``: in ToMe the keys of the attention, averaged over heads.
    r : int
        Tokens to merge away, at most ``(N - protected) // 2``: a larger r is capped, as in ToMe.
    class_token, distill_token : bool
        Protect token 0 from being merged, and token 1 from being merged into.
    precision : "grid", "high" or None
        As in :func:`best_match`.
    cu_seqlens, max_seqlen : optional
        Segments of packed tokens, int32 or int64 ``[S + 1]``, and the length of the longest; matching, `r` and
        protected tokens apply to each segment.

    Returns
    -------
    MergePlan
        To be used by :func:`merge_tokens`, :func:`unmerge_tokens` and :func:`merge_indices`.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or option, or an input that requires grad.

    Notes
    -----
    Total order: greater similarity first, then the lower index. All-zero tokens have similarity 0. Tokens with NaN or
    infinities merge with nothing; if `r` is so large that one has to go, it is dropped (destination −1). The same bits
    on every device; no host synchronisation. Source: Bolya et al., "Token Merging: Your ViT But Faster",
    arXiv 2210.09461.

    Repeated merging as in AIM: ``tome_matching(x, x.shape[1] // 2)``, :func:`merge_tokens` without sizes, then again
    with ``x.shape[1] // 2`` of what is left. Proportional attention: add ``sizes.log()`` to the logits of the keys.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> x = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.3]]])
    >>> plan = pyramid_ops.tome_matching(x, 1)
    >>> plan.sources.tolist(), plan.destinations.tolist(), plan.unmerged.tolist()
    ([[0]], [[1]], [[2]])
    >>> pyramid_ops.merge_tokens(x, plan).sizes.tolist()
    [[1.0, 2.0, 1.0]]
    """
    op = "tome_matching"
    rows = check.feature_rows(op, "metric", metric)
    r = check.integer(op, "r", r, 0)
    for name, value in (("class_token", class_token), ("distill_token", distill_token)):
        if not isinstance(value, bool):
            raise TypeError(f"{op}: {name}: expected a bool, got {check.describe(value)}")
    protected = int(class_token) + int(distill_token)
    limbs = limbs_of(op, precision, rows)
    if cu_seqlens is None:
        if metric.dim() == 2 or max_seqlen is not None:
            expected = "offsets for packed [T, D] tokens" if metric.dim() == 2 else "offsets with max_seqlen"
            raise ValueError(f"{op}: cu_seqlens: expected {expected}, got None")
        r = max(0, min(r, (rows.shape[1] - protected) // 2))
        token = torch.arange(rows.shape[1], device=rows.device)
        return bipartite_plan(
            rows[:, ::2], rows[:, 1::2], token[::2], token[1::2], r, limbs, class_token, distill_token
        )
    if metric.dim() != 2:
        raise ValueError(f"{op}: cu_seqlens: expected only with packed [T, D] tokens, got {check.describe(metric)}")
    cu_seqlens = check.cu_seqlens(op, "cu_seqlens", cu_seqlens, rows)
    longest = (
        rows.shape[1] if max_seqlen is None else min(check.integer(op, "max_seqlen", max_seqlen, 0), rows.shape[1])
    )
    return _packed_plan(rows, cu_seqlens, longest, r, limbs, class_token, distill_token)


def _descending(similarity: Tensor) -> Tensor:
    """Indices of `[B, N]` by descending similarity, then ascending index."""
    last = similarity.shape[1] - 1
    keys = (ordered_key(similarity).to(torch.int64) << 32) + (last - torch.arange(last + 1, device=similarity.device))
    return last - (keys.sort(1, descending=True).values & 0xFFFFFFFF)


def _output_rows(place: Tensor, target: Tensor, kept: Union[int, Tensor], distill_token: bool) -> tuple[Tensor, Tensor]:
    """Rows of unmerged tokens, by their place, and of destinations, by their number, after `kept` unmerged ones.

    ToMe puts the distillation token behind the class token.
    """
    if distill_token:
        return torch.where(place > 0, place + 1, 0), torch.where(target > 0, kept + target, 1)
    return place, kept + target


def bipartite_plan(
    queries: Tensor,
    keys: Tensor,
    a: Tensor,
    b: Tensor,
    r: int,
    limbs: int,
    class_token: bool = False,
    distill_token: bool = False,
) -> MergePlan:
    """The plan that merges r of the tokens `a` `[nA]`, with rows `queries`, into the tokens `b` `[nB]`, rows `keys`."""
    batch, count = queries.shape[0], len(a) + len(b)
    device = queries.device
    mask = None
    if distill_token:
        mask = (torch.arange(len(b), device=device) > 0).expand(batch, -1)
    partner, similarity = best_match_op(queries, keys, mask, Segments(None, None, len(a), len(b)), limbs)
    if class_token:
        similarity = torch.where(torch.arange(len(a), device=device) > 0, similarity, -torch.inf)
    order = _descending(similarity)
    merged, kept = order[:, :r], order[:, r:]
    if class_token:
        kept = kept.sort(1).values
    target = partner.gather(1, merged)
    place, target_place = _output_rows(
        torch.arange(kept.shape[1], device=device), torch.arange(len(b), device=device), kept.shape[1], distill_token
    )
    rows = torch.zeros(batch, count, dtype=torch.int64, device=device)
    rows.scatter_(1, a[kept], place.expand_as(kept))
    rows.scatter_(1, b.expand(batch, -1), target_place.expand(batch, -1))
    found, safe = target >= 0, target.clamp(min=0)
    rows.scatter_(1, a[merged], torch.where(found, target_place[safe], -1))
    return MergePlan(
        sources=a[merged],
        destinations=torch.where(found, b[safe], -1),
        unmerged=a[kept],
        similarities=similarity.gather(1, merged),
        rows=rows,
        num_rows=count - r,
    )


def _packed_plan(
    rows: Tensor, cu_seqlens: Tensor, longest: int, r: int, limbs: int, class_token: bool, distill_token: bool
) -> MergePlan:
    tokens = rows.shape[1]
    device = rows.device
    offsets = cu_seqlens.to(torch.int64).clamp(0, tokens)
    lengths = (offsets[1:] - offsets[:-1]).clamp(0, longest)
    token = torch.arange(tokens, device=device)
    segments = len(lengths)
    if not segments:
        empty = torch.full((tokens,), -1, dtype=torch.int64, device=device)
        return MergePlan(
            empty, empty, empty, torch.full_like(empty, -torch.inf, dtype=torch.float32), empty, tokens, cu_seqlens
        )

    def starts(counts: Tensor) -> Tensor:
        return torch.cat((counts.new_zeros(1), counts.cumsum(0)))

    def scatter(index: Tensor, keep: Tensor, values: Tensor, empty: float = -1) -> Tensor:
        """`out[index] = values` where `keep`, in `tokens` slots."""
        out = torch.full((tokens + 1,), empty, dtype=values.dtype, device=device)
        return out.scatter_(0, torch.where(keep, index, tokens), values)[:tokens]

    segment = (torch.searchsorted(offsets, token, right=True) - 1).clamp(0, segments - 1)
    position = token - offsets[segment]
    inside = (position >= 0) & (position < lengths[segment])
    even_counts, odd_counts = (lengths + 1) // 2, lengths // 2
    even_starts, odd_starts = starts(even_counts), starts(odd_counts)
    is_even = inside & (position % 2 == 0)
    is_odd = inside & (position % 2 == 1)
    a = scatter(even_starts[segment] + position // 2, is_even, token)
    b = scatter(odd_starts[segment] + position // 2, is_odd, token)
    mask = None
    if distill_token:
        mask = (b >= 0) & (position[b.clamp(min=0)] > 1)
    partner, similarity = best_match_op(
        rows[:, a.clamp(min=0)], rows[:, b.clamp(min=0)], None if mask is None else mask[None],
        Segments(even_starts.to(torch.int32), odd_starts.to(torch.int32), (longest + 1) // 2, longest // 2), limbs,
    )  # fmt: skip
    partner, similarity = partner[0], similarity[0]

    # From here on, slots of even tokens: [T], of which the first even_starts[-1] are used.
    used = a >= 0
    segment_a = torch.where(used, segment[a.clamp(min=0)], segments)
    position_a = position[a.clamp(min=0)]
    if class_token:
        similarity = torch.where(position_a > 0, similarity, -torch.inf)
    order = _descending(similarity[None])[0]
    order = order[segment_a[order].argsort(stable=True)]
    segment_a = segment_a.clamp(max=segments - 1)
    rank = torch.empty_like(order).scatter_(0, order, token) - even_starts[segment_a]
    protected = int(class_token) + int(distill_token)
    many = ((lengths - protected) // 2).clamp(0, r)
    new_starts = starts(lengths - many)
    merged = used & (rank < many[segment_a])
    kept = used & ~merged
    base, kept_count = new_starts[segment_a], (even_counts - many)[segment_a]
    place = rank - many[segment_a]
    if class_token:
        before = kept.to(torch.int64).cumsum(0) - kept.to(torch.int64)
        place = before - before[even_starts[segment_a].clamp(max=tokens - 1)]
    place, target_place = _output_rows(place, partner, kept_count, distill_token)
    target_row = torch.where(partner >= 0, base + target_place, -1)
    _, place_b = _output_rows(position, position // 2, (even_counts - many)[segment], distill_token)
    out = torch.where(is_odd, new_starts[segment] + place_b, -1)
    out = torch.where(is_even, scatter(a, used, torch.where(merged, target_row, base + place)), out)
    slot = starts(many)[segment_a] + rank
    partner_token = b[(odd_starts[segment_a] + partner).clamp(0, tokens - 1)]
    kept_slot = starts(even_counts - many)[segment_a] + (rank - many[segment_a])
    if class_token:
        kept_slot = before
    return MergePlan(
        sources=scatter(slot, merged, a),
        destinations=scatter(slot, merged, torch.where(partner >= 0, partner_token, -1)),
        unmerged=scatter(kept_slot, kept, a),
        similarities=scatter(slot, merged, similarity, -torch.inf),
        rows=out,
        num_rows=tokens,
        cu_seqlens=new_starts.to(torch.int32),
    )
