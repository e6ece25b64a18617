"""Described methods that choose levels of a pyramid, and how finely a grid is read: features, gazes, scores in."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.merging import assign_mean
from ..ops.pairs import paired_similarity
from ..ops.pooling import pool_scores, pool_tokens
from ..ops.regions import broadcast_regions, region_variance
from ..plans.kept import keep as keep_tokens
from ..results import Keep
from .pyramid import lod_select

__all__ = [
    "foveal",
    "level_alignment",
    "query_levels",
    "query_regions",
    "redundant_levels",
    "skip_levels",
    "tension",
    "tokenflex",
]


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


def redundant_levels(levels: Sequence[Tensor], grids: Sequence[tuple[int, int]], *, threshold: float = 0.95) -> Tensor:
    """The levels of a pyramid that the next coarser one shows as well.

    Rule: a level is redundant where the mean cosine of the tokens of the next coarser level and of the means of what
    they cover in this one exceeds 0.95.

    Parameters
    ----------
    levels : list of Tensor
        ``[B, N_k, D]`` for each level, level 0 the finest; float16, bfloat16 or float32.
    grids : sequence of (int, int)
        Rows and columns of the tokens of each level.
    threshold : float
        From 0 to 1.

    Returns
    -------
    Tensor
        bool ``[B, L]``: True for redundant levels, False for the coarsest. ``~`` of it as float32 are weights of
        :func:`pyramid_ops.allocate_budgets_batch` that switch these levels off.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.pool_tokens` and :func:`pyramid_ops.paired_similarity`, and for other grids than levels.

    Notes
    -----
    Differs: nothing; the rule is described without code. Means are rounded to the dtype of the tokens.
    Cost: 9 launches and 5 of PyTorch for four levels; no host synchronisation.

    References
    ----------
    Described in 2025 for query-aware level selection.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> levels = [torch.tensor([[[1.0, 0.0], [0.9, 0.1]]]), torch.tensor([[[2.0, 0.1]]])]
    >>> methods.redundant_levels(levels, [(1, 2), (1, 1)])
    tensor([[ True, False]])
    """
    op = "redundant_levels"
    rows = check.level_rows(op, "levels", levels, "B N D")
    threshold = check.float32(op, "threshold", threshold)
    if not isinstance(grids, (list, tuple)) or len(grids) != len(rows):
        got = len(grids) if isinstance(grids, (list, tuple)) else check.describe(grids)
        raise ValueError(f"{op}: grids: expected one for each of {len(rows)} levels, got {got}")
    found = []
    for k, (fine, coarse) in enumerate(itertools.pairwise(rows)):
        similar = paired_similarity(pool_tokens(fine, grids[k], grids[k + 1]), coarse)
        size = coarse.shape[1]
        found.append(pool_scores(similar, (1, size), window=(1, size)) > threshold)
    return torch.cat([*found, torch.zeros(rows[0].shape[0], 1, dtype=torch.bool, device=rows[0].device)], 1)


def query_regions(
    x: Tensor, grid: tuple[int, int], query: Tensor, *, regions: tuple[int, int] = (4, 4), threshold: float = 0.3
) -> Tensor:
    """The tokens of a grid in regions that have to do with a query.

    Rule: a token stays where the cosine of the query and the mean of its region is at least 0.3.

    Parameters
    ----------
    x : Tensor
        ``[B, N, D]``; float16, bfloat16 or float32.
    grid : (int, int)
        Rows and columns of tokens, N in all.
    query : Tensor
        ``[B, D]``, like `x`.
    regions : (int, int)
        Rows and columns of regions.
    threshold : float
        From −1 to 1.

    Returns
    -------
    Tensor
        bool ``[B, N]``: `candidates` of :func:`pyramid_ops.plans.keep` and of methods.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.pool_tokens`, :func:`pyramid_ops.paired_similarity` and
        :func:`pyramid_ops.broadcast_regions`.

    Notes
    -----
    Differs: nothing; the rule is described without code. Means are rounded to the dtype of the tokens. Where regions do
    not divide the grid, means are of bins that overlap, as those of ``adaptive_avg_pool2d``.
    Cost: 3 launches and 1 of PyTorch; no host synchronisation.

    References
    ----------
    Described in 2025 for query-aware level selection.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> x = torch.tensor([[[1.0, 0.0], [1.0, 0.2], [0.0, 1.0], [0.1, 1.0]]])
    >>> methods.query_regions(x, (2, 2), torch.tensor([[0.0, 2.0]]), regions=(2, 1))
    tensor([[False, False,  True,  True]])
    """
    op = "query_regions"
    check.tensor(op, "x", x, "B N D", dtypes=check.FLOATS)
    check.tensor(op, "query", query, "B D", dtypes=check.FLOATS)
    threshold = check.float32(op, "threshold", threshold)
    near = paired_similarity(pool_tokens(x, grid, regions), query[:, None])
    return broadcast_regions(near >= threshold, grid, regions)


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


def foveal(gaze: Tensor, grid: tuple[int, int], *, radii: Sequence[float] = (0.15, 0.3, 0.6)) -> list[Keep]:
    """Tokens of a pyramid as an eye sees them: fine where the gaze rests, coarser around it.

    Rule: the level of a finest patch is the number of radii that the distance of its middle to the gaze reaches, both
    in shares of the sides of the image; the tokens of the pyramid that show it are those of :func:`lod_select`.

    Parameters
    ----------
    gaze : Tensor
        ``[B, 2]``; float16, bfloat16 or float32: (row, column) from 0 to 1, such as the center of mass of a score.
    grid : (int, int)
        Rows and columns of the finest patches; a coarser level has half of each, rounded up.
    radii : sequence of float
        Ascending; one fewer than levels.

    Returns
    -------
    list of Keep
        One for each level, level 0 the finest, for ``[B, N_l]`` tokens; how many stay is in `counts` on the device.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or value, radii that do not ascend from above 0, or an input that requires grad.

    Notes
    -----
    Patches all around a gaze that is NaN are of the coarsest level.
    Differs: nothing; the rule is described without code. Squares of distances are compared, in float32 arithmetic of
    PyTorch that rounds each operation once: the same on every device but where a compiler fuses them, which can move a
    patch that is on a radius.
    Cost: 28 launches and 24 of PyTorch for four levels; no host synchronisation.

    References
    ----------
    Described in 2025 for vision encoders with levels of detail.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> [plan.counts.tolist() for plan in methods.foveal(torch.tensor([[0.5, 0.5]]), (16, 16))]
    [[16], [20], [16], [4]]
    """
    op = "foveal"
    check.tensor(op, "gaze", gaze, "B 2", dtypes=check.FLOATS)
    if gaze.shape[1] != 2:
        raise ValueError(f"{op}: gaze: expected [B, 2], got {check.describe(gaze)}")
    rows, columns = check.pair(op, "grid", grid)
    limits = [check.number(op, f"radii[{k}]", limit) for k, limit in enumerate(check.sequence(op, "radii", radii))]
    if any(low >= high for low, high in itertools.pairwise([0.0, *limits])):
        raise ValueError(f"{op}: radii: expected ascending numbers above 0, got {limits}")
    row, column = gaze.float().unbind(1)
    down, across = (torch.arange(0.5, sides, device=gaze.device) / sides for sides in (rows, columns))
    down, across = down - row[:, None], across - column[:, None]
    near = -(down * down)[:, :, None] - (across * across)[:, None]
    return lod_select(near.flatten(1), grid, thresholds=[-limit * limit for limit in limits])


def tension(pulls: Sequence[tuple[Tensor, Tensor]], balance: Tensor) -> Tensor:
    """Scores that balance what pulls two ways, such as compression against detail, by weights of each sample.

    Rule: score = mean over pulls (a, b) of (1 − t) · a + t · b, t the sample's balance between the two.

    Parameters
    ----------
    pulls : sequence of (Tensor, Tensor)
        Scores ``[B, N]`` each; float16, bfloat16 or float32: what is common against what is rare, what is known
        against what is not, the region in focus against all regions.
    balance : Tensor
        ``[B, pulls]``; float16, bfloat16 or float32: from 0, all a, to 1, all b, such as a learned policy gives.

    Returns
    -------
    Tensor
        float32 ``[B, N]``: for :func:`pyramid_ops.plans.keep`, or relevance for :func:`lod_select`.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, no pulls, or an input that requires grad.

    Notes
    -----
    The balance is on the device; where it is the same for all samples, :func:`pyramid_ops.combine_scores` with numbers
    is one launch. Scores of different units are brought to [0, 1] by its `normalize` first.
    Differs: nothing; the rule is described without code. Float32 arithmetic of PyTorch, each operation rounded once:
    the same bits on every device but where a compiler fuses them.
    Cost: 0 launches and 5 of PyTorch for each pull; no host synchronisation.

    References
    ----------
    Described in 2025 for vision encoders whose relevance balances opposites.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> common, rare = torch.tensor([[4.0, 0.0], [4.0, 0.0]]), torch.tensor([[0.0, 8.0], [0.0, 8.0]])
    >>> methods.tension([(common, rare)], torch.tensor([[0.0], [0.5]]))
    tensor([[4., 0.],
            [2., 4.]])
    """
    op = "tension"
    if not isinstance(pulls, (list, tuple)) or not pulls:
        raise TypeError(f"{op}: pulls: expected a non-empty list of pairs of tensors, got {check.describe(pulls)}")
    check.tensor(op, "balance", balance, "B P", dtypes=check.FLOATS)
    for k, pair in enumerate(pulls):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise TypeError(f"{op}: pulls[{k}]: expected a pair of tensors, got {check.describe(pair)}")
        for x in pair:
            check.tensor(op, f"pulls[{k}]", x, "B N", dtypes=check.FLOATS)
            check.same_size(op, f"pulls[{k}]", x, pulls[0][0].shape, balance.device)
    check.same_size(op, "balance", balance, [pulls[0][0].shape[0], len(pulls)], balance.device)
    parts = [
        (1 - t[:, None]) * a.float() + t[:, None] * b.float()
        for (a, b), t in zip(pulls, balance.float().unbind(1), strict=True)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total / len(parts)
