"""ToMe's plan: which tokens merge into which."""

from typing import Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from .._packed import ascending, extents, places
from ..ops.matching import best_match_op
from ..reference.arguments import Segments
from ..reference.arithmetic import NO_KEY, ordered_key
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
        protected tokens apply to each segment. An offset outside the tensor is clamped, one below an earlier one counts
        as that one.

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
    infinities merge with nothing; if `r` is so large that a token has to go that no other can take, it is dropped
    (destination −1). Where the distillation token is the only odd one, the first even token merges into it all the
    same, as in ToMe, with similarity −inf. The same bits on every device; no host synchronisation. Source: Bolya et
    al., "Token Merging: Your ViT But Faster", arXiv 2210.09461.

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
    protected = check.flag(op, "class_token", class_token) + check.flag(op, "distill_token", distill_token)
    limbs = check.limbs(op, precision, rows)
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
    longest = check.longest(op, "max_seqlen", max_seqlen, rows.shape[1])
    return _packed_plan(rows, cu_seqlens, longest, r, limbs, class_token, distill_token)


def _descending(similarity: Tensor, protected: Optional[Tensor]) -> Tensor:
    """Indices of `[B, N]` by descending similarity, then ascending index; those that are `protected` are last."""
    last = similarity.shape[1] - 1
    keys = ordered_key(similarity).to(torch.int64)
    if protected is not None:
        keys = torch.where(protected, NO_KEY, keys)
    keys = (keys << 32) + (last - torch.arange(last + 1, device=similarity.device))
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
    batch, device = queries.shape[0], queries.device
    sources, targets = a.shape[0], b.shape[0]
    mask = protected = None
    if distill_token:
        # The first one only where there is no other.
        mask = (torch.arange(targets, device=device) >= min(1, targets - 1)).expand(batch, -1)
    partner, similarity = best_match_op(queries, keys, mask, Segments(None, None, sources, targets), limbs)
    if distill_token:
        similarity = torch.where(partner > 0, similarity, -torch.inf)
    if class_token:
        protected = torch.arange(sources, device=device) == 0
    order = _descending(similarity, protected)
    merged, kept = order[:, :r], order[:, r:]
    if class_token:
        kept = kept.sort(1).values
    target = partner.gather(1, merged)
    left = sources - r
    place, target_place = _output_rows(
        torch.arange(left, device=device), torch.arange(targets, device=device), left, distill_token
    )
    rows = torch.zeros(batch, sources + targets, dtype=torch.int64, device=device)
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
        num_rows=left + targets,
    )


def _starts(counts: Tensor) -> Tensor:
    return torch.cat((counts.new_zeros(1), counts.cumsum(0)))


def _slots(index: Tensor, keep: Tensor, values: Tensor, empty: float = -1) -> Tensor:
    """`out[index] = values` where `keep`, in as many slots; the others are `empty`."""
    count = index.shape[0]
    out = torch.full((count + 1,), empty, dtype=values.dtype, device=values.device)
    return out.scatter_(0, torch.where(keep, index, count), values)[:count]


def _packed_plan(
    rows: Tensor, cu_seqlens: Tensor, longest: int, r: int, limbs: int, class_token: bool, distill_token: bool
) -> MergePlan:
    tokens, segments, device = rows.shape[1], cu_seqlens.shape[0] - 1, rows.device
    if not segments:
        empty = torch.full((tokens,), -1, dtype=torch.int64, device=device)
        return MergePlan(
            empty, empty, empty, torch.full_like(empty, -torch.inf, dtype=torch.float32), empty, tokens, cu_seqlens
        )
    starts, lengths = extents(rows, 1, ascending(cu_seqlens), longest)
    segment, position = places(starts, tokens)
    token = torch.arange(tokens, device=device)
    inside = (position >= 0) & (position < lengths[segment])
    even_counts, odd_counts = (lengths + 1) // 2, lengths // 2
    even_starts, odd_starts = _starts(even_counts), _starts(odd_counts)
    is_even = inside & (position % 2 == 0)
    is_odd = inside & (position % 2 == 1)
    a = _slots(even_starts[segment] + position // 2, is_even, token)
    b = _slots(odd_starts[segment] + position // 2, is_odd, token)
    mask = None
    if distill_token:
        # The first one only where there is no other.
        odd = b.clamp(min=0)
        mask = ((b >= 0) & ((position[odd] > 1) | (odd_counts[segment[odd]] == 1)))[None]
    of = Segments(even_starts.to(torch.int32), odd_starts.to(torch.int32), (longest + 1) // 2, longest // 2)
    match = best_match_op(rows[:, a.clamp(min=0)], rows[:, b.clamp(min=0)], mask, of, limbs)
    partner, similarity = (x[0] for x in match)
    if distill_token:
        similarity = torch.where(partner > 0, similarity, -torch.inf)

    # From here on, slots of even tokens: [T], of which the first even_starts[-1] are used.
    used, even = a >= 0, a.clamp(min=0)
    order = _descending(similarity[None], position[even] == 0 if class_token else None)[0]
    order = order[torch.where(used, segment[even], segments)[order].argsort(stable=True)]
    segment_a = torch.where(used, segment[even], segments - 1)
    rank = torch.empty_like(order).scatter_(0, order, token) - even_starts[segment_a]
    many = ((lengths - int(class_token) - int(distill_token)) // 2).clamp(0, min(r, tokens))
    left, new_starts = even_counts - many, _starts(lengths - many)
    merged = used & (rank < many[segment_a])
    kept = used & ~merged
    place = rank - many[segment_a]
    kept_slot = _starts(left)[segment_a] + place
    if class_token:
        kept_slot = kept.to(torch.int64).cumsum(0) - kept.to(torch.int64)
        place = kept_slot - _starts(left)[segment_a]
    place, target_place = _output_rows(place, partner, left[segment_a], distill_token)
    target_row = torch.where(partner >= 0, new_starts[segment_a] + target_place, -1)
    _, place_b = _output_rows(position, position // 2, left[segment], distill_token)
    out = torch.where(is_odd, new_starts[segment] + place_b, -1)
    row_a = torch.where(merged, target_row, new_starts[segment_a] + place)
    partner_token = b[(odd_starts[segment_a] + partner).clamp(0, tokens - 1)]
    slot = _starts(many)[segment_a] + rank
    return MergePlan(
        sources=_slots(slot, merged, a),
        destinations=_slots(slot, merged, torch.where(partner >= 0, partner_token, -1)),
        unmerged=_slots(kept_slot, kept, a),
        similarities=_slots(slot, merged, similarity, -torch.inf),
        rows=torch.where(is_even, _slots(a, used, row_a), out),
        num_rows=tokens,
        cu_seqlens=new_starts.to(torch.int32),
    )
