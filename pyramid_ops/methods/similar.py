"""Published methods by which tokens leave, or become part of, those that they are like: features in, plans out."""

import math
from typing import Any, Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from .._packed import ascending
from ..ops.grouping import cluster_rows_op, join_tokens_op
from ..ops.keeping import mark_tokens_op
from ..ops.merging import assign_mean
from ..ops.nearest import nearest
from ..ops.pairs import paired_similarity
from ..ops.pooling import pool_tokens
from ..ops.regions import broadcast_regions
from ..ops.scoring import token_norm
from ..ops.suppression import suppress
from ..ops.units import unit_rows
from ..plans.applied import apply
from ..plans.joined import merge_by_rows
from ..plans.kept import keep as keep_tokens
from ..plans.kept import mask
from ..results import Keep, Merge
from ._common import Where, flags, keep_visual
from .encoder import prumerge_select

__all__ = ["aim_pair", "dart", "dtoma_merge", "prumerge", "prumerge_plus_select", "vscan_described"]


def dart(
    hidden: Tensor,
    key: Tensor,
    image: Tensor,
    text: Tensor,
    *,
    each: int,
    pivots: int = 4,
    text_pivots: int = 4,
    key_mask: Optional[Tensor] = None,
    capacity: Optional[int] = None,
) -> Keep:
    """DART: image tokens stay that duplicate none of a few pivots.

    Rule: pivots are the 4 image tokens and the 4 text tokens with the greatest Σ ``|k|`` over all heads. For one after
    the other, the `each` image tokens with the least cosine of hidden states to it stay, of those that do not stay yet;
    and the pivots of the image.

    Parameters
    ----------
    hidden : Tensor
        ``[B, N, D]``: what the layer before gives, normalised as for the output; float16, bfloat16 or float32.
    key : Tensor
        ``[B, H, N, d]``: the keys of that layer; float16, bfloat16 or float32.
    image, text : Tensor
        bool ``[B, N]``: the tokens that may go, and those of the text that may be pivots, in the authors' code what
        comes after the image.
    each : int
        How many stay for each pivot; :func:`pyramid_ops.methods.retained.dart` says how many that are.
    pivots, text_pivots : int
        How many pivots of each kind.
    key_mask : Tensor, optional
        bool ``[B, N]``: False for padding.
    capacity : int, optional
        As in :func:`fastv`.

    Returns
    -------
    Keep
        Text and kept image tokens in their order.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or value, or an input that requires grad.

    Notes
    -----
    Where a sample has fewer pivots, nothing stays for the others.
    Differs: pivots go from the greatest norm down, those of the image first, where the authors' are in the order of a
    Python set of their places. Ties go to the lower index, where theirs are up to ``topk``. They take one sample.
    Cost: 53 launches and 29 of PyTorch for eight pivots; no N × N matrix, no host synchronisation.

    References
    ----------
    Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More", EMNLP 2025,
    arXiv 2502.11494: after layer 2.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> hidden, key, image = torch.randn(1, 90, 32), torch.randn(1, 2, 90, 8), torch.arange(90)[None] < 80
    >>> plan = methods.dart(hidden, key, image, ~image, each=2)
    >>> plan.counts.tolist() == [methods.retained.dart(80, 0.75) + 10] == [30]
    True
    """
    op = "dart"
    check.tensor(op, "hidden", hidden, "B N D", dtypes=check.FLOATS)
    check.tensor(op, "key", key, "B H N d", dtypes=check.FLOATS)
    check.same_size(op, "key", key, [hidden.shape[0], key.shape[1], hidden.shape[1], key.shape[3]], hidden.device)
    flags(op, "text", text, flags(op, "image", image, hidden[..., 0]))
    check.integer(op, "each", each, 0)
    most = min(each, hidden.shape[1])
    norms = token_norm(key.transpose(1, 2).flatten(2), p=1)
    asked = [
        keep_tokens(norms, min(check.integer(op, name, number, 0), hidden.shape[1]), candidates=of, order="value")
        for name, number, of in (("pivots", pivots, image), ("text_pivots", text_pivots, text))
    ]
    own = mask(asked[0])
    left = image & ~own
    rows = torch.cat([apply(plan, hidden) for plan in asked], 1)
    many = torch.cat([plan.indices.mT >= 0 for plan in asked]).to(torch.int32) * most
    for pivot in range(rows.shape[1]):
        near = paired_similarity(hidden, rows[:, pivot : pivot + 1])
        turn = keep_tokens(near, many[pivot], candidates=left, largest=False, capacity=most)
        left = left > mask(turn)  # those of which it is not
    return keep_visual(op, norms, image, None, Where(key_mask, None, None), capacity, candidates=image & ~left)


def prumerge_plus_select(
    attention: Tensor, *, keep: Optional[int] = None, factor: float = 1.5, key_mask: Optional[Tensor] = None
) -> Keep:
    """PruMerge+'s choice: patches whose attention is an outlier among all, and a sample of the others by place.

    Rule: the k patches of :func:`prumerge_select`, or the top `keep` of the attention; and of the N but the last every
    s-th, s = ⌊⌊N / k⌋ / 3⌋, at least 1.

    Parameters
    ----------
    attention, factor, key_mask : optional
        As in :func:`prumerge_select`, dense: ``[B, N]``.
    keep : int, optional
        k, the same for all samples, so that no count depends on the data but by what the two have in common.

    Returns
    -------
    Keep
        The patches in their order; without `keep` with N rows, and how many are used in `counts` on the device.

    Raises
    ------
    TypeError, ValueError
        As :func:`prumerge_select`.

    Notes
    -----
    Differs: the authors' divisions are of floating-point ratios, and so may give the next lower number; their stride of
    0, of more than a third of outliers, fails, as no outlier does. Patches stay in their order, where theirs are by
    attention, then the sample. Places are those of N = 576, all but the last.
    Cost: 8 launches and 11 of PyTorch; no host synchronisation.

    References
    ----------
    Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", ICCV 2025,
    arXiv 2403.15388.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> attention = torch.tensor([[0.1, 0.1, 0.1, 0.1, 0.1, 9.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]])
    >>> plan = methods.prumerge_plus_select(attention)
    >>> plan.indices[0, : plan.counts[0]].tolist()
    [0, 4, 5, 8]
    """
    op = "prumerge_plus_select"
    check.tensor(op, "attention", attention, "B N", dtypes=check.FLOATS)
    size = attention.shape[1]
    if keep is None:
        top = prumerge_select(attention, factor=factor, key_mask=key_mask)
        stride = (size // top.counts.clamp(min=1) // 3).clamp(min=1)[:, None]
        capacity = size
    else:
        top = keep_tokens(attention, keep, candidates=key_mask)
        step = max(1, size // max(1, keep) // 3)
        stride, capacity = torch.full_like(top.counts, step)[:, None], min(size, keep + (size + step - 2) // step)
    sample = torch.zeros_like(attention, dtype=torch.bool)
    sample[:, :-1] = torch.arange(size - 1, device=attention.device) % stride == 0
    chosen = mask(top) | (sample if key_mask is None else sample & key_mask)
    return keep_tokens(attention, candidates=chosen, capacity=capacity)


def prumerge(
    x: Tensor,
    key: Tensor,
    attention: Tensor,
    plan: Keep,
    *,
    neighbours: int = 32,
    key_mask: Optional[Tensor] = None,
) -> tuple[Tensor, Tensor]:
    """PruMerge's merging: each patch that stays takes in those that it is like, and one token all that do not stay.

    Rule: x_i + Σ a_j · x_j over the 32 other patches j whose keys have the greatest cosine to that of i, whether they
    stay or not; and Σ a_j · x_j over all j that do not stay.

    Parameters
    ----------
    x : Tensor
        ``[B, N, D]``: the patches; float16, bfloat16 or float32.
    key : Tensor
        ``[B, N, C]``: their keys in the last layer of the encoder, of all heads; float16, bfloat16 or float32.
    attention : Tensor
        float32 ``[B, N]``: a, :func:`class_attention` of that layer.
    plan : Keep
        Which patches stay: from :func:`prumerge_select`, :func:`prumerge_plus_select`, or a fixed number.
    neighbours : int
        How many each takes in, at most 64.
    key_mask : Tensor, optional
        bool ``[B, N]``: the patches that there are.

    Returns
    -------
    (Tensor, Tensor)
        ``[B, M, D]``, in the rows of the plan, zeros in unused ones; and ``[B, 1, D]``, the one token of the rest. A
        patch may be part of many, so this is no plan.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or value, or an input that requires grad.

    Notes
    -----
    Differs: sums are float32 in a written order, rounded once. Neighbours of equal similarity: the lower index, where
    the authors' are up to ``topk``. A plan in the order of patches gives that order, theirs is by attention.
    Cost: 13 launches and 12 of PyTorch; ``M · 33`` rows of patches, no N × N matrix; no host synchronisation.

    References
    ----------
    Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", ICCV 2025,
    arXiv 2403.15388.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods, plans
    >>> x, key, attention = torch.randn(2, 99, 32), torch.randn(2, 99, 8), torch.rand(2, 99)
    >>> tokens, rest = methods.prumerge(x, key, attention, plans.keep(attention, 12))
    >>> torch.cat([tokens, rest], 1).shape
    torch.Size([2, 13, 32])
    """
    op = "prumerge"
    check.tensor(op, "x", x, "B N D", dtypes=check.FLOATS)
    check.tensor(op, "key", key, "B N C", dtypes=check.FLOATS)
    check.same_size(op, "key", key, [*x.shape[:2], key.shape[2]], x.device)
    check.tensor(op, "attention", attention, "B N", dtypes=(torch.float32,))
    check.same_size(op, "attention", attention, x.shape[:2], x.device)
    if not isinstance(plan, Keep):
        raise TypeError(f"{op}: plan: expected a Keep, got {check.describe(plan)}")
    near = nearest(key, key, neighbours, exclude_self=True, key_mask=key_mask).indices
    taken = torch.cat([plan.indices[..., None], apply(plan, near, fill=-1)], 2)
    every = Keep(taken.flatten(1), torch.full_like(plan.counts, taken[0].numel()), plan.num_tokens)
    rows, weights = apply(every, [x, attention])
    weights.view(taken.shape)[..., 0] = 1.0
    row = torch.arange(taken.shape[1], device=x.device).repeat_interleave(taken.shape[2]).expand(len(x), -1)
    tokens = assign_mean(rows, row, taken.shape[1], weights=weights, mode="sum").tokens
    gone = ~mask(plan) if key_mask is None else key_mask & ~mask(plan)
    return tokens, assign_mean(x, gone.to(torch.int64) - 1, 1, weights=attention, mode="sum").tokens


def vscan_described(
    x: Tensor,
    *,
    threshold: Union[float, Tensor],
    scores: Optional[Tensor] = None,
    key_mask: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
) -> Merge:
    """VScan's merging as it is also described: tokens join the first that they are like, from first to last.

    Rule: a token that is in no cluster begins one, and all later ones of no cluster whose cosine to it is at least the
    threshold join it; each cluster becomes its mean.

    Parameters
    ----------
    x : Tensor
        ``[B, N, D]``, or packed ``[T, D]``: float16, bfloat16, float32 or uint8.
    threshold, scores, cu_seqlens, max_seqlen : optional
        As :func:`pyramid_ops.suppress`; with `scores` clusters begin with the best instead of the first.
    key_mask : Tensor, optional
        bool ``[B, N]`` or ``[T]``: the tokens that there are.

    Returns
    -------
    Merge
        A row for each cluster, in the order of the tokens that began them; how many is in `counts` on the device.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.suppress`.

    Notes
    -----
    Differs: a variant that is described, not the paper's, which is :func:`vscan`; a cosine at the threshold is enough.
    Cost: 10 launches and 2 of PyTorch; N² / 8 bytes of a sample, no N × N matrix; no host synchronisation.

    References
    ----------
    Described for VScan (arXiv 2505.22654).

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods, plans
    >>> x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.1, 0.8]]])
    >>> plan = methods.vscan_described(x, threshold=0.9)
    >>> plan.counts, plans.apply(plan, x)[0, :2]
    (tensor([2], dtype=torch.int32), tensor([[0.9500, 0.0500],
            [0.0500, 0.9000]]))
    """
    where: dict[str, Any] = {"cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}
    leaders = suppress(x, threshold, scores=scores, candidates=key_mask, **where)
    size, places = leaders.shape[-1], leaders if leaders.dim() == 2 else leaders[None]
    if cu_seqlens is not None:
        bounds = ascending(check.cu_seqlens("vscan_described", "cu_seqlens", cu_seqlens, x[None]))
        places = cluster_rows_op(leaders, bounds, bounds, size)[None]
    first = mark_tokens_op(places, size).view(leaders.shape)
    plan = keep_tokens(torch.zeros_like(leaders, dtype=torch.float32), candidates=first, **where)
    return _joined(plan, leaders)


def _joined(plan: Keep, leaders: Tensor) -> Merge:
    """Tokens that are no row of a plan as part of the row of their leader, which packed segments count themselves."""
    indices, partners = (each if each.dim() == 2 else each[None] for each in (plan.indices, leaders))
    return merge_by_rows(plan, join_tokens_op(indices, partners, plan.source_cu_seqlens, plan.num_tokens))


def aim_pair(x: Tensor) -> tuple[Merge, Tensor]:
    """AIM's merging as it is also described: the two tokens that are most alike become one, weighted by how much.

    Rule: of all pairs a ≠ b the one with the greatest cosine s becomes s · a + (1 − s) · b.

    Parameters
    ----------
    x : Tensor
        ``[B, N, D]``, N at least 2: float16, bfloat16, float32 or uint8.

    Returns
    -------
    (Merge, Tensor)
        A plan with N − 1 rows in the order of the tokens, b being the later of the two, and the weights float32
        ``[B, N]`` that :func:`pyramid_ops.plans.apply` takes. The next pair is that of what it gives.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.nearest`, and for fewer than two tokens.

    Notes
    -----
    Differs: a variant that is described, not the paper's, which is :func:`aim_merge`. It is described with half of that
    sum, which would make a token of half the size of two equal ones. A pair whose cosine is below 0 is merged too.
    Equal cosines: the pair with the lowest indices; those of duplicates are 1 within 2⁻²⁰. A sample without two tokens
    of a finite norm loses its last.
    Cost: 15 launches and 9 of PyTorch; no N × N matrix, no host synchronisation.

    References
    ----------
    Described for AIM (arXiv 2412.03248).

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods, plans
    >>> x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]]])
    >>> plan, weights = methods.aim_pair(x)
    >>> plans.apply(plan, x, weights=weights)
    tensor([[[ 1.0000,  0.0000],
             [ 0.1200,  0.9600],
             [-1.0000,  0.0000]]])
    """
    op = "aim_pair"
    check.tensor(op, "x", x, "B N D")
    if x.shape[1] < 2:
        raise ValueError(f"{op}: x: expected at least two tokens, got {check.describe(x)}")
    near = nearest(x, x, 1, exclude_self=True)
    partners, cosines = (part[..., 0].contiguous() for part in near)
    first = keep_tokens(cosines, 1)
    gone = mask(first._replace(indices=apply(first, partners)))
    plan = keep_tokens(cosines, candidates=~gone, capacity=x.shape[1] - 1)
    share = apply(first, cosines)
    weights = torch.where(gone, 1 - share, torch.where(mask(first), share, 1.0))
    return _joined(plan, torch.where(gone, first.indices, -1)), weights


def dtoma_merge(x: Tensor, grid: tuple[int, int], *, threshold: float = 0.8, depth: int = 3) -> Merge:
    """DToMA's merging, as it is described: the patches of a cell of a quadtree become one where they are alike.

    Rule: of the cells of 1 × 1, 2 × 2, …, 2^depth × 2^depth to a grid, the largest around a patch in which the mean
    cosine of all pairs of patches is above the threshold becomes its mean.

    Parameters
    ----------
    x : Tensor
        ``[B, N, D]``: the patches; float16, bfloat16 or float32.
    grid : (int, int)
        Rows and columns of patches, N in all.
    threshold : float
        Above which patches are alike.
    depth : int
        The smallest cells: 2^depth divides both sides of the grid.

    Returns
    -------
    Merge
        In the order of the patches, each cell where its first is; how many rows there are is in `counts` on the device.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or value, a grid that cells do not divide, or an input that requires grad.

    Notes
    -----
    Pairs are of different patches; a cell of one is itself. A patch with a NaN or an infinity counts as a row of zeros.
    Differs: the rule is described, its depth and threshold are not. Cosines are of rows rounded to 2⁻²¹.
    Cost: 18 launches and 24 of PyTorch for a depth of 3; no N × N matrix, no host synchronisation.

    References
    ----------
    Described for DToMA (IJCAI 2025).

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat_interleave(8, 0)[None]
    >>> methods.dtoma_merge(x, (4, 4), depth=2).rows.view(4, 4)
    tensor([[0, 0, 1, 1],
            [0, 0, 1, 1],
            [2, 2, 3, 3],
            [2, 2, 3, 3]])
    """
    op = "dtoma_merge"
    check.tensor(op, "x", x, "B N D", dtypes=check.FLOATS)
    (rows, columns), parts = check.pair(op, "grid", grid), 2 ** check.integer(op, "depth", depth, 0)
    if rows * columns != x.shape[1] or rows % parts or columns % parts:
        raise ValueError(
            f"{op}: grid: expected one of {x.shape[1]} patches that {parts}×{parts} cells divide, got {rows}×{columns}"
        )
    threshold = check.number(op, "threshold", threshold)
    high, low = unit_rows(x, limbs=2)[0].float().unbind(2)
    units, place = high + low * 2.0**-11, torch.arange(x.shape[1], device=x.device)
    firsts = [place.expand(x.shape[:2])]
    while parts:
        tall, wide = rows // parts, columns // parts
        if (many := tall * wide) > 1:
            norm = token_norm(pool_tokens(units, grid, (parts, parts)))
            corner = place[:: tall * columns, None] + place[:columns:wide]
            # |mean|² = (1 + (n − 1) · mean cosine) / n of n unit rows.
            alike = norm > math.sqrt(max(0.0, threshold * (many - 1) + 1) / many)
            of_cell = torch.where(alike, corner.flatten(), x.shape[1])
            firsts.append(broadcast_regions(of_cell, grid, (parts, parts)))
        parts //= 2
    # Of cells within each other the largest has the least first patch.
    leaders = torch.stack(firsts).amin(0)
    plan = keep_tokens(torch.zeros(x.shape[:2], device=x.device), candidates=leaders == place)
    return _joined(plan, leaders)
