"""Plans of tokens that become part of others, and plans one after the other."""

from typing import Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.grouping import group_tokens_op, join_tokens_op
from ..ops.keeping import mark_tokens_op, move_tokens_op
from ..ops.matching import best_match_op
from ..reference.arguments import Placed, Segments
from ..results import Keep, Merge
from .kept import checked_plan, keep

__all__ = ["concat", "join", "then"]


def join(metric: Tensor, plan: Keep, *, precision: Optional[str] = None) -> Merge:
    """Each token that does not stay joins the most similar one that does.

    Parameters
    ----------
    metric : Tensor
        What is compared, ``[B, N, D]`` or packed ``[T, D]``: float16, bfloat16, float32 or uint8; D from 1 to 16384.
    plan : Keep
        Which tokens stay, from :func:`keep`.
    precision : "grid", "high" or None
        As in :func:`pyramid_ops.best_match`.

    Returns
    -------
    Merge
        With the rows of `plan`. A token with a NaN or an infinity, and one of a sample or segment in which none stays,
        is dropped.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or option, a plan for other tokens, or an input that requires grad.

    Notes
    -----
    Similarity is the cosine, among equals the lower index goes first: :func:`pyramid_ops.best_match` of all tokens with
    those that stay. No host synchronisation. As VScan (arXiv 2505.22654) merges what it drops.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import plans
    >>> x = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.8]]])
    >>> plan = plans.join(x, plans.keep(torch.tensor([[0.9, 0.1, 0.8, 0.3]]), 2))
    >>> plan.rows.tolist(), plan.sizes.tolist()
    ([[0, 0, 1, 1]], [[2.0, 2.0]])
    >>> plans.apply(plan, x)[0, :, 0]
    tensor([0.9500, 0.0500])
    """
    op = "join"
    if isinstance(plan, Merge):
        raise TypeError(f"{op}: plan: expected a Keep, got a Merge")
    checked_plan(op, "plan", plan)
    rows = check.feature_rows(op, "metric", metric)
    if metric.shape[:-1] != (*plan.indices.shape[:-1], plan.num_tokens) or metric.device != plan.indices.device:
        expected = check.shape(*plan.indices.shape[:-1], plan.num_tokens, "D")
        raise ValueError(f"{op}: metric: expected {expected} on {plan.indices.device}, got {check.describe(metric)}")
    indices = plan.indices if plan.indices.dim() == 2 else plan.indices[None]
    longest = plan.num_tokens if plan.max_seqlen is None else plan.max_seqlen
    segments = Segments(plan.source_cu_seqlens, plan.source_cu_seqlens, longest, longest)
    stays = mark_tokens_op(indices, plan.num_tokens)
    partners, _ = best_match_op(rows, rows, stays, segments, check.limbs(op, precision, rows))
    return merge_by_rows(plan, join_tokens_op(indices, partners, plan.source_cu_seqlens, plan.num_tokens))


def merge_by_rows(plan: Union[Keep, Merge], rows: Tensor) -> Merge:
    """The Merge with the rows and owners of a plan, and that row of each token `[B, N]`."""
    dense = plan.indices.dim() == 2
    members, bounds = group_tokens_op(rows, plan.indices if dense else plan.indices[None], plan.indices.shape[-1])
    parts = (rows, members, bounds)
    return Merge(*plan[:6], *(parts if dense else (part[0] for part in parts)))


def then(first: Union[Keep, Merge], second: Union[Keep, Merge]) -> Union[Keep, Merge]:
    """Two stages as one: a plan for the tokens of the first stage that has the rows of the second.

    Parameters
    ----------
    first : Keep or Merge
        The first stage.
    second : Keep or Merge
        A plan for the rows of the first, aligned left: its scores had a number for each of them. Where the first left
        some unused, ``candidates=first.indices >= 0`` keeps them out; of packed tokens `first.cu_seqlens` does.

    Returns
    -------
    Keep or Merge
        A Keep if both are, else a Merge.

    Raises
    ------
    TypeError, ValueError
        For anything but two plans, or a second one for another number of tokens than the first has rows.

    Notes
    -----
    Moved rows are those of both stages one after the other. Means are those of all tokens at once, up to rounding that
    of the stages weighted by their sizes. No host synchronisation.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import plans
    >>> first = plans.keep(torch.tensor([[0.1, 0.9, 0.5, 0.7]]), 3)
    >>> second = plans.keep(torch.tensor([[0.2, 0.6, 0.4]]), 1)
    >>> plans.then(first, second).indices
    tensor([[2]])
    """
    op = "then"
    checked_plan(op, "first", first)
    checked_plan(op, "second", second)
    dense = first.indices.dim() == 2
    expected, got = (*first.indices.shape,), (*second.indices.shape[:-1], second.num_tokens)
    if expected != got or first.indices.device != second.indices.device:
        raise ValueError(f"{op}: second: expected a plan for {list(expected)} rows of the first, got for {list(got)}")
    indices = _composed(first.indices, second.indices)
    plan = Keep(indices, second.counts, first.num_tokens, second.cu_seqlens, first.source_cu_seqlens, first.max_seqlen)
    if isinstance(first, Keep) and isinstance(second, Keep):
        return plan
    rows = _composed(_rows(second), _rows(first))
    return merge_by_rows(plan, rows if dense else rows[None])


def concat(first: Union[Keep, Merge], second: Union[Keep, Merge]) -> Union[Keep, Merge]:
    """Two plans for the same tokens as one: of each sample the rows of the first, then those of the second.

    Parameters
    ----------
    first, second : Keep or Merge
        For dense tokens ``[B, N]``, of which each is in one of them at most.

    Returns
    -------
    Keep or Merge
        A Keep if both are, else a Merge, without gaps: unused rows are the last. A token of both is a member of the
        first.

    Raises
    ------
    TypeError, ValueError
        For anything but two plans, plans for other numbers of samples or tokens, or for packed tokens.

    Notes
    -----
    No host synchronisation. Tokens that stay and what the others became, in one sequence for a language model: as
    SparseVLM (arXiv 2410.04417) appends what it recycles and VisionZip (arXiv 2412.04467) its contextual tokens.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import plans
    >>> scores = torch.tensor([[0.1, 0.9, 0.5, 0.7]])
    >>> best = plans.keep(scores, 1)
    >>> plans.concat(best, plans.keep(scores, 2, candidates=~plans.mask(best), largest=False)).indices
    tensor([[1, 0, 2]])
    """
    op = "concat"
    for name, plan in (("first", first), ("second", second)):
        if checked_plan(op, name, plan).indices.dim() == 1:
            raise ValueError(f"{op}: {name}: expected a plan for dense tokens, got one for packed tokens")
    expected, got = ((plan.indices.shape[0], plan.num_tokens) for plan in (first, second))
    if expected != got or first.indices.device != second.indices.device:
        raise ValueError(f"{op}: second: expected a plan for {list(expected)} tokens as the first, got for {list(got)}")
    both = torch.cat([first.indices, second.indices], 1)
    used = keep(torch.zeros(both.shape, device=both.device), candidates=both >= 0)
    plan = Keep(_composed(both, used.indices), used.counts, first.num_tokens)
    if isinstance(first, Keep) and isinstance(second, Keep):
        return plan
    rows, more = _rows(first), _rows(second)
    more = torch.where(more < 0, -1, more + first.indices.shape[1])
    return merge_by_rows(plan, _composed(_rows(used), torch.where(rows < 0, more, rows)))


def _rows(plan: Union[Keep, Merge]) -> Tensor:
    """The row of each token."""
    if isinstance(plan, Merge):
        return plan.rows
    indices = plan.indices if plan.indices.dim() == 2 else plan.indices[None]
    return join_tokens_op(indices, None, None, plan.num_tokens).view(*plan.indices.shape[:-1], plan.num_tokens)


def _composed(table: Tensor, at: Tensor) -> Tensor:
    """`table[b, at[b, i]]`, −1 outside of it."""
    rows, tokens = (x if x.dim() == 2 else x[None] for x in (table, at))
    placed = Placed(tokens.shape[1], False, False)
    return move_tokens_op([rows[:, None, :, None]], tokens, None, placed, [-1.0])[0].view(at.shape)
