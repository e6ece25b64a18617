"""ToMe's plan: which tokens merge into which."""

from typing import Optional

from torch import Tensor

from .. import _checks as check
from .._packed import ascending
from ..ops.bipartite import match_halves_op, place_pairs_op
from ..ops.matching import best_match_op
from ..reference.arguments import Halves, Segments
from ..results import Keep, Merge, MergePlan
from .joined import merge_by_rows

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
    rows, cu_seqlens, halves, limbs = _checked(
        op, metric, r, class_token, distill_token, precision, cu_seqlens, max_seqlen
    )
    *parts, owners, _, offsets = match_halves_op(rows, cu_seqlens, halves, limbs)
    sources, destinations, unmerged, similarities, row = (x if cu_seqlens is None else x[0] for x in parts)
    used = None if cu_seqlens is None else offsets
    return MergePlan(sources, destinations, unmerged, similarities, row, owners.shape[1], used)


def tome(
    metric: Tensor,
    r: int,
    *,
    class_token: bool = False,
    distill_token: bool = False,
    order: str = "tome",
    precision: Optional[str] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
) -> Merge:
    """ToMe's bipartite soft matching as a plan: the r even tokens that are most like an odd one become part of it.

    Parameters
    ----------
    metric, r, class_token, distill_token, precision, cu_seqlens, max_seqlen : optional
        As in :func:`pyramid_ops.tome_matching`.
    order : "tome" or "original"
        The rows in ToMe's order: unmerged tokens by descending similarity (ascending index with a class token), then
        destinations. Or in the order of the tokens that own them.

    Returns
    -------
    Merge
        With N − r rows, for packed tokens T, of which ``cu_seqlens[-1]`` are used. A row is owned by the token that
        would have stood there had nothing been merged.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.tome_matching`.

    Notes
    -----
    The matching is that of :func:`pyramid_ops.tome_matching`. Five kernel launches, and two for each tensor that
    :func:`apply` merges; no host synchronisation. Bolya et al., "Token Merging: Your ViT But Faster", arXiv 2210.09461.

    Examples
    --------
    ToMe in two lines, with the sizes that make later means and proportional attention right:

    >>> import torch
    >>> from pyramid_ops import plans
    >>> x, keys, sizes = torch.randn(2, 9, 32), torch.randn(2, 9, 8), torch.ones(2, 9)
    >>> plan = plans.tome(keys, 3, class_token=True)
    >>> x, sizes = plans.apply(plan, [x, sizes], weights=sizes, mode=["mean", "sum"])
    >>> x.shape, sizes.sum(1).tolist()
    (torch.Size([2, 6, 32]), [9.0, 9.0])
    """
    op = "tome"
    check.choice(op, "order", order, "tome", "original")
    rows, cu_seqlens, halves, limbs = _checked(
        op, metric, r, class_token, distill_token, precision, cu_seqlens, max_seqlen
    )
    halves = halves._replace(in_order=order == "original")
    *_, row, owners, counts, offsets = match_halves_op(rows, cu_seqlens, halves, limbs)
    if cu_seqlens is None:
        return merge_by_rows(Keep(owners, counts, rows.shape[1]), row)
    plan = Keep(owners[0], counts, rows.shape[1], offsets, cu_seqlens, halves.max_seqlen)
    return merge_by_rows(plan, row)


def _checked(
    op: str,
    metric: Tensor,
    r: int,
    class_token: bool,
    distill_token: bool,
    precision: Optional[str],
    cu_seqlens: Optional[Tensor],
    max_seqlen: Optional[int],
) -> tuple[Tensor, Optional[Tensor], Halves, int]:
    """What `match_halves` takes."""
    rows = check.feature_rows(op, "metric", metric)
    r, size = check.integer(op, "r", r, 0), rows.shape[1]
    protected = check.flag(op, "class_token", class_token) + check.flag(op, "distill_token", distill_token)
    limbs = check.limbs(op, precision, rows)
    if cu_seqlens is None:
        if metric.dim() == 2 or max_seqlen is not None:
            expected = "offsets for packed [T, D] tokens" if metric.dim() == 2 else "offsets with max_seqlen"
            raise ValueError(f"{op}: cu_seqlens: expected {expected}, got None")
        r = max(0, min(r, (size - protected) // 2))
        return rows, None, Halves(r, size, class_token, distill_token, False), limbs
    if metric.dim() != 2:
        raise ValueError(f"{op}: cu_seqlens: expected only with packed [T, D] tokens, got {check.describe(metric)}")
    cu_seqlens = ascending(check.cu_seqlens(op, "cu_seqlens", cu_seqlens, rows))
    longest = check.longest(op, "max_seqlen", max_seqlen, size)
    return rows, cu_seqlens, Halves(min(r, size), longest, class_token, distill_token, False), limbs


def bipartite_plan(queries: Tensor, keys: Tensor, a: Tensor, b: Tensor, r: int, limbs: int) -> MergePlan:
    """The plan that merges r of the tokens `a` `[nA]`, with rows `queries`, into the tokens `b` `[nB]`, rows `keys`."""
    segments = Segments(None, None, a.shape[0], b.shape[0])
    partner, similarity = best_match_op(queries, keys, None, segments, limbs)
    sources, destinations, unmerged, similarities, rows = place_pairs_op(partner, similarity, a, b, r)
    return MergePlan(sources, destinations, unmerged, similarities, rows, a.shape[0] - r + b.shape[0])
