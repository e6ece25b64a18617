"""Merging similar tokens: exact cosine matching, bipartite plans, deterministic means."""

from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor

from . import _checks as check
from ._dispatch import Op
from .numerics import feature_rows
from .reference.numerics import ordered_key
from .selection import gather_levels


class BestMatch(NamedTuple):
    """For each query the index of its best key, int64, and their cosine similarity, float32; (−1, −inf) for none."""

    indices: Tensor
    similarity: Tensor


class MergePlan(NamedTuple):
    """Which tokens merge into which, on the device of the tokens; made by :func:`tome_matching`.

    For packed tokens the first four are ``[T]``, segment after segment, and −1 (−inf) in the unused slots at the end.

    Attributes
    ----------
    sources : Tensor
        int64 ``[B, r]``: the tokens that are merged away, by descending similarity, among equals the lower index first.
    destinations : Tensor
        int64 ``[B, r]``: the token that each source merges into; −1 where it has none and is dropped.
    unmerged : Tensor
        int64 ``[B, U]``: the other tokens that could have been sources, in the order of ToMe.
    similarities : Tensor
        float32 ``[B, r]``: cosine similarity of source and destination.
    rows : Tensor
        int64 ``[B, N]`` or ``[T]``: the output row of each token in ToMe's order; −1 for a dropped token.
    num_rows : int
        Output rows of a sample; T for packed tokens, of which ``cu_seqlens[-1]`` are used.
    cu_seqlens : Tensor or None
        int32 ``[S + 1]``: where the segments of packed outputs begin.
    """

    sources: Tensor
    destinations: Tensor
    unmerged: Tensor
    similarities: Tensor
    rows: Tensor
    num_rows: int
    cu_seqlens: Optional[Tensor] = None


class MergedTokens(NamedTuple):
    """Merged tokens ``[B, M, D]`` in the dtype of the input, and what each stands for: float32 ``[B, M]``."""

    tokens: Tensor
    sizes: Tensor


def _best_match_fake(queries: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    shape = queries.shape[:2]
    return queries.new_empty(shape, dtype=torch.int64), queries.new_empty(shape, dtype=torch.float32)


def _merge_fake(
    x: Tensor, weights: Optional[Tensor], first: Tensor, members: Tensor, offsets: Tensor, mode: str
) -> tuple[Tensor, Tensor]:
    return x.new_empty(*first.shape, x.shape[2]), x.new_empty(first.shape, dtype=torch.float32)


_best_match = Op("merging", "best_match", _best_match_fake)
_merge_tokens = Op("merging", "merge_tokens", _merge_fake)


def limbs_of(op: str, precision: Optional[str], *xs: Tensor) -> int:
    """How many limbs a precision has."""
    if precision is None:
        precision = "high" if any(x.dtype == torch.float32 for x in xs) else "grid"
    return 2 if check.choice(op, "precision", precision, "grid", "high") == "high" else 1


def best_match(
    queries: Tensor,
    keys: Tensor,
    *,
    key_mask: Optional[Tensor] = None,
    cu_seqlens_q: Optional[Tensor] = None,
    cu_seqlens_k: Optional[Tensor] = None,
    max_seqlen_q: Optional[int] = None,
    max_seqlen_k: Optional[int] = None,
    precision: Optional[str] = None,
) -> BestMatch:
    """For each query row the key row with the greatest cosine similarity, without the similarity matrix.

    Parameters
    ----------
    queries, keys : Tensor
        ``[B, Nq, D]`` and ``[B, Nk, D]``, or packed ``[Tq, D]`` and ``[Tk, D]``; uint8, float16, bfloat16 or float32;
        D from 1 to 16384.
    key_mask : Tensor, optional
        bool ``[B, Nk]`` or ``[Tk]``: keys that may be matched.
    cu_seqlens_q, cu_seqlens_k : Tensor, optional
        int32 ``[S + 1]``, ascending: segment s of packed rows is ``[cu_seqlens[s], cu_seqlens[s + 1])``. Queries match
        keys of the same segment. Offsets outside the tensor are clamped.
    max_seqlen_q, max_seqlen_k : int, optional
        Rows of the longest segment (default: all rows); rows of a segment past it are left out.
    precision : "grid", "high" or None
        Unit rows are rounded to multiples of 2⁻¹¹ ("grid": tensor cores at full float16 speed) or of 2⁻²¹ ("high": four
        products). None: "high" if an input is float32, else "grid".

    Returns
    -------
    BestMatch
        ``indices`` int64 ``[B, Nq]`` or ``[Tq]``, within the segment; among equally similar keys the lowest.
        ``similarity`` float32: the exact dot product of the rounded unit rows, to multiples of 2⁻³⁰. A query without a
        key to match gets −1 and −inf: no key in the segment, none that `key_mask` leaves, or a norm that is NaN or
        infinite. Such keys are never matched. An all-zero row has similarity 0 to everything.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or option, inputs that do not match, or an input that requires grad.

    Notes
    -----
    Dot products of rounded unit rows are exact in any order (see :func:`unit_rows`), so the result has the same bits on
    every device, for any tile, batch or stride. Memory is O(Nq + Nk). No host synchronisation.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> keys = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 5.0]])
    >>> pyramid_ops.best_match(torch.tensor([[0.1, 9.0], [3.0, 0.0]]), keys).indices.tolist()
    [1, 0]
    """
    op = "best_match"
    packed = isinstance(queries, Tensor) and queries.dim() == 2
    q, k = feature_rows(op, "queries", queries), feature_rows(op, "keys", keys)
    if keys.dim() != queries.dim() or k.shape[0] != q.shape[0] or k.shape[2] != q.shape[2] or k.device != q.device:
        raise ValueError(
            f"{op}: keys: expected the batch size, feature size and device of queries ({check.describe(queries)}), got "
            f"{check.describe(keys)}"
        )
    if key_mask is not None:
        check.tensor(op, "key_mask", key_mask, "Tk" if packed else "B Nk", dtypes=(torch.bool,))
        if key_mask.shape != keys.shape[:-1] or key_mask.device != k.device:
            raise ValueError(
                f"{op}: key_mask: expected {list(keys.shape[:-1])} on {k.device}, got {check.describe(key_mask)}"
            )
        key_mask = key_mask[None] if packed else key_mask
    if (cu_seqlens_q is None) != (cu_seqlens_k is None):
        missing = "cu_seqlens_q" if cu_seqlens_q is None else "cu_seqlens_k"
        raise ValueError(f"{op}: {missing}: expected with the other offsets, got None")
    longest = []
    for name, value, x in (("max_seqlen_q", max_seqlen_q, q), ("max_seqlen_k", max_seqlen_k, k)):
        if value is not None and cu_seqlens_q is None:
            raise ValueError(f"{op}: {name}: expected only with cu_seqlens_q and cu_seqlens_k, got {value}")
        longest.append(x.shape[1] if value is None else min(check.integer(op, name, value, 0), x.shape[1]))
    if cu_seqlens_q is not None and cu_seqlens_k is not None:
        if not packed:
            raise ValueError(
                f"{op}: cu_seqlens_q: expected only with packed [T, D] rows, got {check.describe(queries)}"
            )
        cu_seqlens_q = check.cu_seqlens(op, "cu_seqlens_q", cu_seqlens_q, q)
        cu_seqlens_k = check.cu_seqlens(op, "cu_seqlens_k", cu_seqlens_k, k, len(cu_seqlens_q) - 1)
    limbs = limbs_of(op, precision, q, k)
    indices, similarity = _best_match(q, k, key_mask, cu_seqlens_q, cu_seqlens_k, *longest, limbs)
    return BestMatch(indices[0], similarity[0]) if packed else BestMatch(indices, similarity)


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
        Segments of packed tokens; matching, `r` and protected tokens apply to each segment.

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
    rows = feature_rows(op, "metric", metric)
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
    partner, similarity = _best_match(queries, keys, mask, None, None, len(a), len(b), limbs)
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
    partner, similarity = _best_match(
        rows[:, a.clamp(min=0)], rows[:, b.clamp(min=0)], None if mask is None else mask[None],
        even_starts.to(torch.int32), odd_starts.to(torch.int32), (longest + 1) // 2, longest // 2, limbs,
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


def merge_indices(plan: MergePlan, *, order: str = "tome") -> Tensor:
    """The output row of each original token: source tracing without a dense matrix.

    Parameters
    ----------
    plan : MergePlan
        From :func:`tome_matching`.
    order : "tome" or "original"
        As in :func:`merge_tokens`.

    Returns
    -------
    Tensor
        int64 ``[B, N]``, or ``[T]`` for packed tokens: rows of the packed output; −1 for a token that was dropped.

    Raises
    ------
    TypeError, ValueError
        For a wrong plan or order.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> x = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.3]]])
    >>> pyramid_ops.merge_indices(pyramid_ops.tome_matching(x, 1)).tolist()
    [[1, 1, 0, 2]]
    """
    rows, _, _ = _assignment("merge_indices", plan, order)
    return rows if plan.rows.dim() == 2 else rows[0]


def _assignment(op: str, plan: MergePlan, order: str) -> tuple[Tensor, Tensor, Tensor]:
    """(row of each token, the token that owns each row, sources), each with a batch dimension."""
    if not isinstance(plan, MergePlan):
        raise TypeError(f"{op}: plan: expected a MergePlan, got {check.describe(plan)}")
    check.choice(op, "order", order, "tome", "original")
    rows, sources = (x if x.dim() == 2 else x[None] for x in (plan.rows, plan.sources))
    batch, count = rows.shape
    token = torch.arange(count, device=rows.device).expand(batch, count)
    spare = torch.where(sources < 0, count, sources)
    is_source = torch.zeros(batch, count + 1, dtype=torch.bool, device=rows.device).scatter_(1, spare, True)[:, :count]
    owns = ~is_source & (rows >= 0)
    owner = torch.full((batch, plan.num_rows + 1), -1, dtype=torch.int64, device=rows.device)
    owner = owner.scatter_(1, torch.where(owns, rows, plan.num_rows), token)[:, : plan.num_rows]
    if order == "original" and count:
        place = torch.where(owns, owns.to(torch.int64).cumsum(1) - 1, plan.num_rows)
        row_owner = owner.gather(1, rows.clamp(min=0)) if plan.num_rows else rows
        rows = torch.where(rows < 0, -1, place.gather(1, row_owner.clamp(min=0)))
        owner = torch.full((batch, plan.num_rows + 1), -1, dtype=torch.int64, device=rows.device)
        owner = owner.scatter_(1, place, token)[:, : plan.num_rows]
    return rows, owner, sources


def merge_tokens(
    x: Tensor, plan: MergePlan, sizes: Optional[Tensor] = None, *, mode: str = "mean", order: str = "tome"
) -> MergedTokens:
    """Merge tokens by a plan: sources into their destinations, everything else unchanged.

    Parameters
    ----------
    x : Tensor
        ``[B, N, D]`` or packed ``[T, D]``; uint8, float16, bfloat16 or float32; any D.
    plan : MergePlan
        From :func:`tome_matching`, for as many tokens.
    sizes : Tensor, optional
        float32 ``[B, N]`` or ``[T]``: how many tokens each token already stands for (default: 1 each).
    mode : "mean", "sum" or "amax"
        The mean Σ s·x / Σ s and the sum Σ s·x are weighted by `sizes`; the maximum is not.
    order : "tome" or "original"
        ToMe's order: unmerged tokens by descending similarity (ascending index with a class token), then destinations.
        Or the order of the tokens that remain in the input.

    Returns
    -------
    MergedTokens
        ``tokens`` ``[B, N - r, D]`` in the dtype of `x`, computed in float32 and rounded once, and ``sizes`` float32
        ``[B, N - r]``. For packed tokens ``[T, D]`` and ``[T]``: `plan.cu_seqlens` says which rows are used, the others
        are 0. A mean of one token only is that token, bit for bit.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or option, a plan for other tokens, or an input that requires grad.

    Notes
    -----
    The order of additions is written: the destination, then its sources in chunks of 32 in ascending index order, each
    chunk added up on its own from +0, chunks in ascending order. So the same bits on every device, for any tile or
    batch, without atomics, and in parallel where thousands of sources meet.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> x = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [-1.0, 0.3]]])
    >>> plan = pyramid_ops.tome_matching(torch.tensor([[[1.0], [1.0], [0.0], [-1.0]]]), 1)
    >>> tokens, sizes = pyramid_ops.merge_tokens(x, plan, order="original")
    >>> tokens[0, 0].tolist(), sizes.tolist()
    ([1.0, 0.5], [[2.0, 1.0, 1.0]])
    """
    op = "merge_tokens"
    check.choice(op, "mode", mode, "mean", "sum", "amax")
    rows, owner, sources = _assignment(op, plan, order)
    x3, weights = _tokens(op, "x", x, plan.rows), _weights(op, "sizes", sizes, x)
    if x3.device != rows.device:
        raise ValueError(f"{op}: x: expected a tensor on {rows.device} as the plan, got {check.describe(x)}")
    row = torch.where(sources < 0, -1, rows.gather(1, sources.clamp(min=0))) if rows.shape[1] else sources
    members, offsets = _group(sources, row, plan.num_rows)
    tokens, totals = _merge_tokens(x3, weights, owner, members, offsets, mode)
    return MergedTokens(tokens, totals) if x.dim() == 3 else MergedTokens(tokens[0], totals[0])


def _tokens(op: str, name: str, x: Tensor, like: Optional[Tensor] = None) -> Tensor:
    """Checked tokens as `[B, N, D]` with contiguous rows."""
    check.tensor(op, name, x, "B N D", "T D")
    if like is not None and x.shape[:-1] != like.shape:
        raise ValueError(f"{op}: {name}: expected {[*like.shape, 'D']} as the plan, got {check.describe(x)}")
    return check.rows(x if x.dim() == 3 else x[None])


def _weights(op: str, name: str, weights: Optional[Tensor], x: Tensor) -> Optional[Tensor]:
    if weights is None:
        return None
    check.tensor(op, name, weights, "B N" if x.dim() == 3 else "T", dtypes=(torch.float32,))
    if weights.shape != x.shape[:-1] or weights.device != x.device:
        raise ValueError(f"{op}: {name}: expected {list(x.shape[:-1])} on {x.device}, got {check.describe(weights)}")
    return check.rows(weights if x.dim() == 3 else weights[None]).contiguous()


def _group(tokens: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """(tokens `[B, N]` by group, then ascending, where each group begins `[B, groups + 1]`); others are last."""
    group = torch.where((group >= 0) & (group < groups), group, groups)
    keys = ((group << 32) | (tokens & 0xFFFFFFFF)).sort(1).values
    bounds = torch.arange(groups + 1, device=tokens.device).expand(len(tokens), -1).contiguous()
    return keys & 0xFFFFFFFF, torch.searchsorted(keys >> 32, bounds)


def unmerge_tokens(merged: Tensor, plan: MergePlan, *, order: str = "tome") -> Tensor:
    """Give each original token the row it was merged into.

    Parameters
    ----------
    merged : Tensor
        ``[B, N - r, D]`` or packed ``[T, D]``, as :func:`merge_tokens` returns it; any dtype of at most 8 bytes.
    plan : MergePlan
        The plan it was merged by.
    order : "tome" or "original"
        The order it was merged with.

    Returns
    -------
    Tensor
        ``[B, N, D]`` or ``[T, D]``, bits unchanged; zeros for tokens that were dropped.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, a plan for other tokens, or an input that requires grad.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> x = torch.tensor([[[1.0, 0.0], [1.0, 0.5], [0.0, 1.0], [-1.0, 0.25]]])
    >>> plan = pyramid_ops.tome_matching(x, 1)
    >>> pyramid_ops.unmerge_tokens(pyramid_ops.merge_tokens(x, plan).tokens, plan)[0, 0].tolist()
    [1.0, 0.25]
    """
    op = "unmerge_tokens"
    rows, _, _ = _assignment(op, plan, order)
    check.tensor(op, "merged", merged, "B M D" if plan.rows.dim() == 2 else "T D", dtypes=())
    merged3 = merged if merged.dim() == 3 else merged[None]
    if merged3.shape[:2] != (rows.shape[0], plan.num_rows) or merged.device != rows.device:
        expected = f"{[rows.shape[0], plan.num_rows, 'D']} on {rows.device}"
        raise ValueError(f"{op}: merged: expected {expected}, got {check.describe(merged)}")
    out = gather_levels([merged3], torch.stack((torch.zeros_like(rows), rows), 2))
    return out if merged.dim() == 3 else out[0]


def assign_mean(x: Tensor, assignment: Tensor, num_clusters: int, *, weights: Optional[Tensor] = None) -> MergedTokens:
    """Weighted mean of the tokens of each cluster, for any assignment.

    Parameters
    ----------
    x : Tensor
        ``[B, N, D]`` or packed ``[T, D]``; uint8, float16, bfloat16 or float32; any D.
    assignment : Tensor
        int64 ``[B, N]`` or ``[T]``: the cluster of each token. Tokens with a number outside [0, num_clusters), such as
        −1, belong to none.
    num_clusters : int
        Clusters of each sample.
    weights : Tensor, optional
        float32 ``[B, N]`` or ``[T]`` (default: 1 each).

    Returns
    -------
    MergedTokens
        ``tokens`` ``[B, num_clusters, D]`` in the dtype of `x`: Σ w·x / Σ w; 0 where Σ w is 0, as in an empty cluster.
        ``sizes`` float32 ``[B, num_clusters]``: Σ w.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or number, or an input that requires grad.

    Notes
    -----
    Added up in a written order, as in :func:`merge_tokens`: the same bits on every device. Clusters may hold any number
    of tokens.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> x = torch.tensor([[1.0], [3.0], [10.0]])
    >>> means, sizes = pyramid_ops.assign_mean(x, torch.tensor([0, 0, 2]), 3)
    >>> means.tolist(), sizes.tolist()
    ([[2.0], [0.0], [10.0]], [2.0, 0.0, 1.0])
    """
    op = "assign_mean"
    tokens = _tokens(op, "x", x)
    weights = _weights(op, "weights", weights, x)
    check.tensor(op, "assignment", assignment, "B N" if x.dim() == 3 else "T", dtypes=(torch.int64,))
    if assignment.shape != x.shape[:-1] or assignment.device != x.device:
        raise ValueError(
            f"{op}: assignment: expected {list(x.shape[:-1])} on {x.device}, got {check.describe(assignment)}"
        )
    clusters = check.integer(op, "num_clusters", num_clusters, 0)
    group = assignment if x.dim() == 3 else assignment[None]
    members, offsets = _group(torch.arange(group.shape[1], device=x.device).expand_as(group), group, clusters)
    none = torch.full((group.shape[0], clusters), -1, dtype=torch.int64, device=x.device)
    means, totals = _merge_tokens(tokens, weights, none, members, offsets, "mean")
    return MergedTokens(means, totals) if x.dim() == 3 else MergedTokens(means[0], totals[0])
