"""Published and described methods that choose tokens of an image pyramid or of tiles: features and scores in."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal, Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.adaptive import adaptive_budgets
from ..ops.budgets import allocate_budgets_batch
from ..ops.pooling import pool_scores
from ..ops.ragged import select_topk_levels_packed
from ..ops.regions import broadcast_regions, region_variance
from ..ops.relevance import text_relevance
from ..ops.scoring import combine_scores, token_variance
from ..ops.selection import select_topk_levels
from ..ops.thresholds import segment_threshold
from ..plans.kept import keep as keep_tokens
from ..plans.kept import mask
from ..results import Keep, LevelSelection, PackedLevelSelection
from ._common import Where, flags, grouped, received, some_rows

__all__ = ["adaptive_select", "holov", "lod_select", "ptp", "ptp_described", "ptp_relevance", "pyramid_select"]

_Grids = Sequence[tuple[int, int]]


def pyramid_select(
    levels: Sequence[Tensor],
    grids: Optional[_Grids] = None,
    *,
    keep: int = 273,
    weights: Union[str, Sequence[float], None] = "falling",
    saliency: Literal["region", "variance", "norm", "attention"] = "variance",
    regions: tuple[int, int] = (4, 4),
    order: str = "saliency",
) -> LevelSelection:
    """Selection from an image pyramid, also described as PyramidDrop: of each level its most salient tokens.

    Rule: of `keep` tokens level k gets int(keep · w_k), w = (0.4, 0.3, 0.2, 0.1), level 0 the finest and with the
    remainder; of each level those with the greatest variance over features, or of their region, stay.

    Parameters
    ----------
    levels : list of Tensor
        ``[B, N_k, D]`` for each level, level 0 the finest; uint8, float16, bfloat16 or float32.
    grids : sequence of (int, int), optional
        Rows and columns of the tokens of each level, for "region".
    keep, weights, order : optional
        `target_tokens`, `level_weights` and `order` of :func:`pyramid_ops.select_topk_levels`.
    saliency : "region", "variance", "norm" or "attention"
        The variance over all features of all tokens of a region, or a score of each token.
    regions : (int, int)
        Rows and columns of regions in every level, for "region".

    Returns
    -------
    LevelSelection
        Tokens ``[B, keep, D]`` and (level, index in the level).

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.select_topk_levels` and :func:`pyramid_ops.region_variance`.

    Notes
    -----
    Differs: what a level cannot hold goes to the other levels, where the plain rule fails; tokens of one region are
    equal in "region", the lower index goes first. :func:`pyramiddrop` is the published method of that name.
    Cost: 2 launches, of more than some 4096 tokens 3, for "region" 3 more for each level; no host synchronisation.

    References
    ----------
    Described in 2025 for pyramids of vision encoders; the pyramid is that of :func:`pyramid_ops.gaussian_pyramid`.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> levels = [torch.randn(1, side * side, 32) for side in (32, 16, 8, 4)]
    >>> tokens, indices = methods.pyramid_select(levels, [(side, side) for side in (32, 16, 8, 4)], saliency="region")
    >>> tokens.shape, indices.shape
    (torch.Size([1, 273, 32]), torch.Size([1, 273, 2]))
    """
    op = "pyramid_select"
    scores: Union[str, list[Tensor]] = check.choice(op, "saliency", saliency, "region", "variance", "norm", "attention")
    if scores == "region":
        scores = _region_scores(op, levels, grids, regions)
    return select_topk_levels(levels, keep, weights, saliency=scores, order=order)


def _region_scores(
    op: str, levels: Sequence[Tensor], grids: Optional[_Grids], regions: tuple[int, int]
) -> list[Tensor]:
    if not isinstance(grids, (list, tuple)) or len(grids) != len(levels):
        got = check.describe(grids) if not isinstance(grids, (list, tuple)) else len(grids)
        raise ValueError(f"{op}: grids: expected one for each of {len(levels)} levels, got {got}")
    pairs = zip(levels, grids, strict=True)
    return [broadcast_regions(region_variance(x, grid, regions), grid, regions) for x, grid in pairs]


def holov(attention: Tensor, *, keep: int, crops: int = 16) -> Keep:
    """HoloV: a budget for each crop of the image by its attention, so that all of the scene is kept in view.

    Rule: the patches, row by row, are cut into `crops` of equal length, the first ones a patch longer where they do not
    divide them. Crops share K patches in proportion to their mean attention, rounded down, the rest one by one to the
    crops with the greatest; of each the top of the attention stay.

    Parameters
    ----------
    attention : Tensor
        ``[B, N]``; float16, bfloat16 or float32: from :func:`class_attention` of the layer before the last, a mean over
        heads.
    keep : int
        K, the patches that stay.
    crops : int
        How many there are, at most N.

    Returns
    -------
    Keep
        K patches in their order.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or value, more patches than there are, or an input that requires grad.

    Notes
    -----
    In the authors' code a crop's score is the mean of a + 0.09 · v · mean(a) / (mean(v) + 1e-6), where v is the
    variance of the cosines of a patch to the others of its crop: (1 + 0.09 / (1 + 1e-6 / mean v)) · mean(a). So the
    features have no part in it but where all of a crop are alike to 1e-3; they are left out here.
    Differs: what a full crop cannot take goes to others, the first with room, where the authors fill up with zeros.
    Ties go to the lower index. Patches stay in their order, theirs are by attention within a crop.
    Cost: 9 launches and 13 of PyTorch; no host synchronisation.

    References
    ----------
    Zou et al., "Don't Just Chase 'Highlighted Tokens' in MLLMs: Revisiting Visual Holistic Context Retention",
    NeurIPS 2025, arXiv 2510.02912.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> methods.holov(torch.tensor([[0.4, 0.1, 0.1, 0.2, 0.1, 0.1]]), keep=3, crops=2).indices
    tensor([[0, 1, 3]])
    """
    op = "holov"
    check.tensor(op, "attention", attention, "B N", dtypes=check.FLOATS)
    batch, size = attention.shape
    if not 1 <= check.integer(op, "crops", crops, 1) <= max(size, 1):
        raise ValueError(f"{op}: crops: expected at most the {size} patches, got {crops}")
    if check.integer(op, "keep", keep, 0) > size:
        raise ValueError(f"{op}: keep: expected at most the {size} patches, got {keep}")
    each, longer = divmod(size, crops)
    number = torch.arange(batch * crops + 1, device=attention.device)
    crop = number % crops
    groups = number // crops * size + crop * each + crop.clamp(max=longer)
    longest = each + (longer > 0)
    means = segment_threshold(attention.reshape(-1), groups, "mean", max_seqlen=longest).view(batch, crops)
    sizes = [each + (place < longer) for place in range(crops)]
    budgets = allocate_budgets_batch(keep, means, sizes, remainder="weight")
    chosen = grouped(attention, budgets.view(-1), groups, longest)
    return keep_tokens(attention, candidates=chosen, capacity=keep)


def ptp_described(
    levels: Sequence[Tensor],
    grids: _Grids,
    text: Tensor,
    *,
    keep: int = 273,
    weights: tuple[float, float, float] = (0.3, 0.4, 0.3),
    text_mask: Optional[Tensor] = None,
    regions: tuple[int, int] = (4, 4),
    order: str = "saliency",
) -> LevelSelection:
    """Pyramid Token Pruning as it is also described: one top-k over all levels by region, token and instruction.

    Rule: score = 0.3 · variance of the region + 0.4 · variance of the token + 0.3 · max over words of v·t / √D; the
    `keep` tokens with the greatest of all levels stay.

    Parameters
    ----------
    levels, grids, keep, regions, order : optional
        As in :func:`pyramid_select`.
    text : Tensor
        ``[B, T, D]``, float16, bfloat16 or float32: the instruction.
    weights : (float, float, float)
        Of region, token and relevance.
    text_mask : Tensor, optional
        bool ``[B, T]``: the words that count.

    Returns
    -------
    LevelSelection
        Tokens ``[B, keep, D]`` and (level, index in the level).

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_select` and :func:`pyramid_ops.text_relevance`.

    Notes
    -----
    Differs: a variant that is described, not the paper's, which is :func:`ptp`. Ties go to the lower level, then to the
    lower index.
    Cost: 34 launches for four levels; no host synchronisation.

    References
    ----------
    Described for PTP (arXiv 2509.15704).

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> levels, text = [torch.randn(1, side * side, 32) for side in (16, 8)], torch.randn(1, 7, 32)
    >>> methods.ptp_described(levels, [(16, 16), (8, 8)], text, keep=40).tokens.shape
    torch.Size([1, 40, 32])
    """
    scores = [
        combine_scores([region, token_variance(x), text_relevance(x, text, text_mask=text_mask)], weights)
        for region, x in zip(_region_scores("ptp_described", levels, grids, regions), levels, strict=True)
    ]
    return select_topk_levels(levels, keep, None, saliency=scores, order=order)


def ptp_relevance(
    query: Tensor,
    key: Tensor,
    text: Tensor,
    *,
    key_mask: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    **attention: Any,
) -> Tensor:
    """Pyramid Token Pruning's relevance of image tokens to the instruction, from one layer of the language model.

    Rule: c_j = max over text rows i of the mean over heads of A[i, j], A = softmax(q·kᵀ / √d) over all in sight.

    Parameters
    ----------
    query, key, key_mask, cu_seqlens, max_seqlen, **attention : optional
        As in :func:`fastv`, with all queries.
    text : Tensor
        bool ``[B, N]`` or packed ``[T]``: the tokens of the instruction.

    Returns
    -------
    Tensor
        float32 ``[B, N]`` or ``[T]``: of all tokens, those of the image for :func:`ptp`.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.attention_importance`.

    Notes
    -----
    Differs: the authors read it from a full attention matrix.
    Cost: 8 launches; no host synchronisation.

    References
    ----------
    Pyramid Token Pruning, arXiv 2509.15704: layer 2.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> query, key, text = torch.randn(1, 4, 40, 8), torch.randn(1, 4, 40, 8), torch.arange(40)[None] >= 32
    >>> methods.ptp_relevance(query, key, text)[:, :32].shape
    torch.Size([1, 32])
    """
    where = Where(key_mask, cu_seqlens, max_seqlen)
    rows = some_rows(flags("ptp_relevance", "text", text))
    return received(query, key, where, query_reduction="max", **rows, **attention)


def ptp(saliency: Tensor, relevance: Tensor, *, keep: Union[int, Tensor], alpha: float = 0.5) -> Keep:
    """Pyramid Token Pruning: a budget for each tile, in it the tokens that are salient and that the text asks for.

    Rule: tiles share K tokens in proportion to their mean saliency, rounded down, the rest one by one to the most
    salient tiles. With b the saliency, min-max-normalised in its tile, score = (1 − α) · b + α · c; of each tile the
    top.

    Parameters
    ----------
    saliency : Tensor
        ``[B, tiles, n]``: what each patch receives in the vision encoder; the thumbnail is a tile too.
    relevance : Tensor
        ``[B, tiles, n]``: c, from :func:`ptp_relevance`.
    keep : int or Tensor
        K, for each sample, or int32 or int64 ``[B]`` on the device.
    alpha : float
        The share of relevance.

    Returns
    -------
    Keep
        For ``B · tiles`` samples of n patches; of those of an image K tokens stay.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.allocate_budgets_batch` and :func:`pyramid_ops.combine_scores`.

    Notes
    -----
    Differs: what a full tile cannot take goes to the others, the first with room. Ties go to the lower index.
    Cost: 8 launches and 1 of PyTorch; no host synchronisation.

    References
    ----------
    Pyramid Token Pruning, arXiv 2509.15704.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> methods.ptp(torch.rand(1, 5, 36), torch.rand(1, 5, 36), keep=60).counts.sum().item()
    60
    """
    op = "ptp"
    for name, x in (("saliency", saliency), ("relevance", relevance)):
        check.tensor(op, name, x, "B tiles n", dtypes=check.FLOATS)
        check.same_size(op, name, x, saliency.shape, saliency.device)
    alpha = check.number(op, "alpha", alpha)
    tiles, size = saliency.shape[1:]
    share = pool_scores(saliency.flatten(1), (tiles, size), window=(1, size))
    budgets = allocate_budgets_batch(keep, share, [size] * tiles, remainder="weight")
    own = combine_scores([saliency.reshape(-1, size)], [1.0], normalize="minmax")
    scores = combine_scores([own, relevance.reshape(-1, size)], [1 - alpha, alpha])
    return keep_tokens(scores, budgets.view(-1))


def adaptive_select(
    levels: Sequence[Tensor],
    instruction: Tensor,
    *,
    keep: int = 273,
    lengths: Optional[Tensor] = None,
    saliency: Union[str, Sequence[Tensor]] = "variance",
    order: str = "saliency",
) -> PackedLevelSelection:
    """Selection from an image pyramid whose budgets follow how difficult the instruction is.

    Rule: difficulty = sigmoid(0.1 · words + 10 · variance of the instruction); below 0.3 levels share K tokens by
    (.15, .20, .35, .30), below 0.7 by (.25, .30, .25, .20), else by (.35, .30, .20, .15); of each the most salient.

    Parameters
    ----------
    levels : list of Tensor
        ``[B, N_k, D]`` for each of four levels, level 0 the finest.
    instruction, lengths : Tensor
        As :func:`pyramid_ops.adaptive_budgets` takes them.
    keep : int
        K, the tokens that stay of each sample.
    saliency : "variance", "norm", "attention" or list of Tensor
        As in :func:`pyramid_ops.select_topk_levels`.
    order : "saliency" or "index"
        As in :func:`pyramid_ops.select_topk_levels`.

    Returns
    -------
    PackedLevelSelection
        Of each sample K tokens, packed: ``tokens.view(B, K, D)``.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.adaptive_budgets` and :func:`pyramid_ops.select_topk_levels_packed`.

    Notes
    -----
    Differs: shares are rounded to the sum K. With these coefficients difficulty is at least 0.5.
    Cost: 7 launches and 5 of PyTorch for four levels; no host synchronisation.

    References
    ----------
    Described for PTP (arXiv 2509.15704).

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> levels = [torch.randn(2, n, 32) for n in (256, 64, 16, 4)]
    >>> methods.adaptive_select(levels, torch.randn(2, 9, 32), keep=40).tokens.view(2, 40, 32).shape
    torch.Size([2, 40, 32])
    """
    levels = check.level_rows("adaptive_select", "levels", levels, "B N D")
    batch, sizes = levels[0].shape[0], [x.shape[1] for x in levels]
    budgets = adaptive_budgets(keep, instruction, sizes, lengths=lengths)
    if isinstance(saliency, (list, tuple)):
        saliency = [x.reshape(-1) for x in saliency]
    ends = [(batch * size + 1, max(size, 1)) for size in sizes]
    offsets = [torch.arange(0, end, step, dtype=torch.int32, device=levels[0].device) for end, step in ends]
    return select_topk_levels_packed(
        [x.reshape(-1, x.shape[2]) for x in levels],
        offsets,
        budgets,
        max_seqlen=max(sizes),
        capacity=keep,
        saliency=saliency,
        order=order,
    )


def lod_select(
    relevance: Tensor, grid: tuple[int, int], *, thresholds: Sequence[float] = (0.8, 0.5, 0.3)
) -> list[Keep]:
    """A level of detail for each place by its relevance, and the tokens of the pyramid that show it.

    Rule: the level of a finest patch is the number of thresholds that its relevance does not exceed; a token of level
    l, over 2^l × 2^l of them, stays where any of them is of level l.

    Parameters
    ----------
    relevance : Tensor
        ``[B, N]``: of the finest patches, such as a min-max-normalised :func:`pyramid_ops.combine_scores` of entropy,
        saliency and coupling with the query, by 0.3, 0.3 and 0.4; float16, bfloat16 or float32.
    grid : (int, int)
        Rows and columns of the finest patches; a coarser level has half of each, rounded up.
    thresholds : sequence of float
        Descending; one fewer than levels.

    Returns
    -------
    list of Keep
        One for each level, level 0 the finest, for ``[B, N_l]`` tokens.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.pool_scores` and :func:`pyramid_ops.plans.keep`, and for thresholds that do not descend.

    Notes
    -----
    A NaN is above nothing: of the coarsest level.
    Differs: nothing; the rule is described without code.
    Cost: 28 launches and 14 of PyTorch for four levels; no host synchronisation.

    References
    ----------
    Described in 2025 for vision encoders with levels of detail, as texture units choose them.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> relevance = torch.tensor([[0.9, 0.1, 0.6, 0.6, 0.1, 0.1, 0.6, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]])
    >>> [plan.indices[0, : plan.counts[0]].tolist() for plan in methods.lod_select(relevance, (4, 4))]
    [[0], [1], [], [0]]
    """
    op = "lod_select"
    limits = check.sequence(op, "thresholds", thresholds)
    limits = [check.float32(op, f"thresholds[{k}]", limit) for k, limit in enumerate(limits)]
    if any(low >= high for high, low in itertools.pairwise(limits)):
        raise ValueError(f"{op}: thresholds: expected descending numbers, got {limits}")
    above = [mask(keep_tokens(relevance, threshold=limit)) for limit in limits]
    of_level = [*above, torch.ones_like(above[0])] if above else [mask(keep_tokens(relevance))]
    plans = []
    for level, at_least in enumerate(of_level):
        here = at_least & ~above[level - 1] if level else at_least
        asked = pool_scores(here.to(torch.float32), grid, window=(2**level, 2**level), reduction="max")
        plans.append(keep_tokens(asked, threshold=0.5))
    return plans
