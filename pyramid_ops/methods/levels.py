"""Described methods that choose whole levels of a pyramid, and how finely a grid is read: features in."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.merging import assign_mean
from ..ops.pairs import paired_similarity
from ..ops.pooling import pool_tokens
from ..ops.regions import region_variance
from ..plans.kept import keep as keep_tokens
from ..results import Keep

__all__ = ["level_alignment", "query_levels", "skip_levels", "tokenflex"]


def level_alignment(levels: Sequence[Tensor], query: Tensor) -> Tensor:
    """How well each level of a pyramid matches a query.

    Rule: cosine of the query and the mean of the level's tokens.

    Parameters
    ----------
    levels : list of Tensor
        ``[B, N_k, D]`` for each level; float16, bfloat16 or float32.
    query : Tensor
        ``[B, D]``.

    Returns
    -------
    Tensor
        float32 ``[B, L]``: for :func:`query_levels`, and weights of budgets.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.assign_mean` and :func:`pyramid_ops.paired_similarity`.

    Notes
    -----
    Differs: nothing; the rule is described without code. Means are rounded to the dtype of the tokens.
    Cost: 15 launches and 9 of PyTorch for four levels; no host synchronisation.

    References
    ----------
    Described in 2025 for query-aware level selection.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> levels = [torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[0.0, 2.0]]])]
    >>> methods.level_alignment(levels, torch.tensor([[0.0, 3.0]]))
    tensor([[0.7071, 1.0000]])
    """
    rows = check.level_rows("level_alignment", "levels", levels, "B N D")
    check.tensor("level_alignment", "query", query, "B D")
    found = []
    for x in rows:
        whole = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
        found.append(paired_similarity(assign_mean(x, whole, 1).tokens, query[:, None]))
    return torch.cat(found, 1)


def query_levels(levels: Sequence[Tensor], query: Tensor, *, keep: int = 3) -> Keep:
    """The levels of a pyramid that match a query best.

    Rule: the `keep` levels with the greatest :func:`level_alignment`.

    Parameters
    ----------
    levels, query
        As in :func:`level_alignment`.
    keep : int
        How many levels stay.

    Returns
    -------
    Keep
        For ``[B, L]`` levels, in their order: :func:`pyramid_ops.plans.mask` of it, as float32, are weights of
        :func:`pyramid_ops.allocate_budgets_batch` that switch the others off.

    Raises
    ------
    TypeError, ValueError
        As :func:`level_alignment`, and for more levels than there are.

    Notes
    -----
    Differs: nothing; the rule is described without code. Ties go to the finer level.
    Cost: 18 launches and 9 of PyTorch for four levels; no host synchronisation.

    References
    ----------
    Described in 2025 for query-aware level selection.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> levels = [torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[1.0, 2.0]]])]
    >>> methods.query_levels(levels, torch.tensor([[0.0, 3.0]]), keep=2).indices
    tensor([[1, 2]])
    """
    aligned = level_alignment(levels, query)
    if check.integer("query_levels", "keep", keep, 0) > aligned.shape[1]:
        raise ValueError(f"query_levels: keep: expected at most {aligned.shape[1]} levels, got {keep}")
    return keep_tokens(aligned, keep)


def skip_levels(levels: Sequence[Tensor], query: Tensor, *, alignment: float = 0.3, variance: float = 0.1) -> Tensor:
    """The levels of a pyramid that are worth reading: those that match the query and are not flat.

    Rule: a level is skipped where its :func:`level_alignment` is below 0.3 or the variance over all its features is
    below 0.1.

    Parameters
    ----------
    levels, query
        As in :func:`level_alignment`.
    alignment, variance : float
        The least of each.

    Returns
    -------
    Tensor
        bool ``[B, L]``: True for levels that stay.

    Raises
    ------
    TypeError, ValueError
        As :func:`level_alignment` and :func:`pyramid_ops.region_variance`.

    Notes
    -----
    A level with a NaN is skipped. Where all are, a budget with these weights gives all levels the same.
    Differs: nothing; the rule is described without code.
    Cost: 23 launches and 13 of PyTorch for four levels; no host synchronisation.

    References
    ----------
    Described in 2025 for query-aware level selection.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> levels = [torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[1.0, 1.0]]])]
    >>> methods.skip_levels(levels, torch.tensor([[0.0, 3.0]]))
    tensor([[False,  True, False]])
    """
    op = "skip_levels"
    alignment, variance = check.float32(op, "alignment", alignment), check.float32(op, "variance", variance)
    aligned = level_alignment(levels, query)
    spread = torch.cat([region_variance(x, (1, x.shape[1]), (1, 1)) for x in levels], 1)
    return (aligned >= alignment) & (spread >= variance)


def tokenflex(x: Tensor, grid: tuple[int, int], *, keep: int = 144) -> Tensor:
    """TokenFLEX: a grid of patches read as 64, 144, 256 or any square number of tokens.

    Rule: adaptive average pooling to √keep × √keep bins, before the projector.

    Parameters
    ----------
    x : Tensor
        ``[B, N, D]``: the patches; uint8, float16, bfloat16 or float32.
    grid : (int, int)
        Rows and columns of patches, N in all.
    keep : int
        A square number.

    Returns
    -------
    Tensor
        ``[B, keep, D]``: row by row. Bins overlap where they do not divide the grid, so this is no plan.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.pool_tokens`, and for a number that is no square.

    Notes
    -----
    Differs: sums are in a written order, as ``adaptive_avg_pool2d`` up to rounding. The projector, with SwiGLU, is the
    model's.
    Cost: 1 launches; no host synchronisation.

    References
    ----------
    Hu et al., "TokenFLEX: Unified VLM Training for Flexible Visual Tokens Inference", arXiv 2504.03154.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> methods.tokenflex(torch.randn(1, 576, 32), (24, 24), keep=256).shape
    torch.Size([1, 256, 32])
    """
    side = math.isqrt(check.integer("tokenflex", "keep", keep, 1))
    if side * side != keep:
        raise ValueError(f"tokenflex: keep: expected a square number, got {keep}")
    return pool_tokens(x, grid, (side, side))
