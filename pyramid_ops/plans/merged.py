"""Tokens merged by a plan, and back."""

from typing import Optional

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.bipartite import trace_rows_op
from ..ops.gathering import gather_levels
from ..ops.grouping import group_tokens_op
from ..ops.merging import fold_groups_op, token_rows, token_weights
from ..reference.arguments import Groups
from ..results import MergedTokens, MergePlan

__all__ = ["merge_indices", "merge_tokens", "unmerge_tokens"]


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
    rows, _ = _assignment("merge_indices", plan, order)
    return rows if plan.rows.dim() == 2 else rows[0]


def _assignment(op: str, plan: MergePlan, order: str) -> tuple[Tensor, Tensor]:
    """(row of each token, the token that owns each row), both with a batch dimension; −1 for none."""
    if not isinstance(plan, MergePlan):
        raise TypeError(f"{op}: plan: expected a MergePlan, got {check.describe(plan)}")
    check.choice(op, "order", order, "tome", "original")
    check.tensor(op, "plan.rows", plan.rows, "B N", "T", dtypes=(torch.int64,))
    check.tensor(op, "plan.sources", plan.sources, "B r" if plan.rows.dim() == 2 else "T", dtypes=(torch.int64,))
    if plan.sources.shape[:-1] != plan.rows.shape[:-1] or plan.sources.device != plan.rows.device:
        raise ValueError(
            f"{op}: plan.sources: expected the batch size and device of plan.rows ({check.describe(plan.rows)}), got "
            f"{check.describe(plan.sources)}"
        )
    num_rows = check.integer(op, "plan.num_rows", plan.num_rows, 0)
    rows, sources = (x if x.dim() == 2 else x[None] for x in (plan.rows, plan.sources))
    return trace_rows_op(rows, sources, num_rows, order == "original")


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
    rows, owner = _assignment(op, plan, order)
    x3, weights = token_rows(op, "x", x, plan.rows), token_weights(op, "sizes", sizes, x)
    if x3.device != rows.device:
        raise ValueError(f"{op}: x: expected a tensor on {rows.device} as the plan, got {check.describe(x)}")
    members, offsets = group_tokens_op(rows, owner, plan.num_rows)
    tokens, totals = fold_groups_op(x3, weights, Groups(owner, members, offsets), mode)
    return MergedTokens(tokens, totals) if x.dim() == 3 else MergedTokens(tokens[0], totals[0])


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
    rows, _ = _assignment(op, plan, order)
    check.tensor(op, "merged", merged, "B M D" if plan.rows.dim() == 2 else "T D", dtypes=())
    if merged.element_size() > 8:
        raise TypeError(f"{op}: merged: expected a dtype of at most 8 bytes, got {check.describe(merged)}")
    merged3 = merged if merged.dim() == 3 else merged[None]
    if merged3.shape[:2] != (rows.shape[0], plan.num_rows) or merged.device != rows.device:
        expected = f"{check.shape(rows.shape[0], plan.num_rows, 'D')} on {rows.device}"
        raise ValueError(f"{op}: merged: expected {expected}, got {check.describe(merged)}")
    out = gather_levels([merged3], torch.stack((torch.zeros_like(rows), rows), 2))
    return out if merged.dim() == 3 else out[0]
