"""Published methods that prune image tokens after the vision encoder: scores in, plans out."""

from collections.abc import Sequence
from typing import Any, Optional, Union, cast

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.attention import attention_importance
from ..ops.budgets import allocate_budgets_batch
from ..ops.pooling import pool_scores
from ..ops.rounds import bipartite_prune
from ..ops.thresholds import segment_threshold
from ..plans.applied import apply
from ..plans.joined import then
from ..plans.kept import keep as keep_tokens
from ..plans.kept import mask
from ..results import Keep
from ._common import Count

__all__ = ["class_attention", "fastervlm", "hiprune", "hired", "hired_described", "prumerge_select", "vispruner"]


def class_attention(
    query: Tensor,
    key: Tensor,
    *,
    prefix: int = 1,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    **attention: Any,
) -> Tensor:
    """What each patch receives from the class token: the scores of most methods after the encoder.

    Rule: mean over heads of A[0, j] with A = softmax(q·kᵀ / √d) over all tokens.

    Parameters
    ----------
    query, key : Tensor
        Of one layer of the encoder: ``[B, H, N, D]``, or packed ``[T, H, D]``; float16, bfloat16 or float32; of each
        sample the class token first.
    prefix : int
        Tokens before the patches: the class token and registers. They have no score; of packed tokens it is 0.
    cu_seqlens, max_seqlen : optional
        Segments of packed tokens, one for each image.
    **attention
        `scale`, `head_reduction` ("sum" of the authors that add up heads), `log_sum_exp`, `center_keys`, `precision`
        and `key_mask` of :func:`pyramid_ops.attention_importance`.

    Returns
    -------
    Tensor
        float32 ``[B, N - prefix]``, or packed ``[T]``.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.attention_importance`.

    Notes
    -----
    Differs: the authors read it from a full attention matrix, for which FlashAttention has to be turned off. Encoders
    without a class token, such as SigLIP, take the attention that a patch receives from all:
    :func:`pyramid_ops.attention_importance` as it is.
    Cost: 6 launches and 1 of PyTorch; no host synchronisation.

    References
    ----------
    FasterVLM (arXiv 2412.01818), VisionZip (arXiv 2412.04467): the layer before the last.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> methods.class_attention(torch.randn(1, 2, 10, 8), torch.randn(1, 2, 10, 8)).shape
    torch.Size([1, 9])
    """
    if cu_seqlens is not None:
        attention |= {"cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens}
        attention |= {"max_seqlen_q": max_seqlen, "max_seqlen_k": max_seqlen}
    elif check.integer("class_attention", "prefix", prefix, 0) and isinstance(key, Tensor) and key.dim() == 4:
        attention["key_range"] = (prefix, key.shape[2])
    return attention_importance(query, key, query_indices=[0], **attention)


def fastervlm(
    attention: Tensor,
    *,
    keep: Count,
    key_mask: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    capacity: Optional[int] = None,
) -> Keep:
    """FasterVLM: the patches that the class token attends to stay.

    Rule: the `keep` patches with the greatest :func:`class_attention`, in their order.

    Parameters
    ----------
    attention : Tensor
        ``[B, N]``, or packed ``[T]``: from :func:`class_attention` at the layer before the last, a mean over heads.
    keep : int, sequence of int, or Tensor
        How many stay: one number, one for each sample or segment, or int32 or int64 ``[B]`` on the device.
    key_mask : Tensor, optional
        bool, like `attention`: the patches that there are.
    cu_seqlens, max_seqlen : optional
        Segments of packed patches, int32 or int64 ``[S + 1]``, and the length of the longest.
    capacity : int, optional
        Rows of each sample in the plan, as :func:`pyramid_ops.plans.keep`.

    Returns
    -------
    Keep
        For the patches, without the class token.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.plans.keep`.

    Notes
    -----
    Differs: ties go to the lower index, where the authors' are up to ``topk``.
    Cost: 3 launches, beside those of :func:`class_attention`; no host synchronisation.

    References
    ----------
    Zhang et al., "[CLS] Attention is All You Need for Training-Free Visual Token Pruning", arXiv 2412.01818.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods, plans
    >>> query, key, x = torch.randn(2, 4, 17, 8), torch.randn(2, 4, 17, 8), torch.randn(2, 16, 32)
    >>> plan = methods.fastervlm(methods.class_attention(query, key), keep=4)
    >>> plans.apply(plan, x).shape
    torch.Size([2, 4, 32])
    """
    packed: dict[str, Any] = {"cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}
    return keep_tokens(attention, keep, candidates=key_mask, capacity=capacity, **packed)


def hired(
    shallow: Tensor,
    deep: Tensor,
    *,
    keep: int,
    grid: tuple[int, int],
    tiles: tuple[int, int],
    alpha: float = 0.5,
    key_mask: Optional[Tensor] = None,
) -> Keep:
    """HiRED: a budget for the whole image, the rest for its tiles by what the encoder looks at first.

    Rule: the whole image gets int(K · α) of K tokens. Of its patches the top int(n · (1 − α)) in the first layer are
    marked; tiles share the rest in proportion to the marked patches where they lie. Of each the top in a late layer.

    Parameters
    ----------
    shallow : Tensor
        ``[B, n]``: :func:`class_attention` of the whole image in the first layer.
    deep : Tensor
        ``[B, 1 + tiles, n]``: that of the layer that tokens are chosen by, the whole image first, then tile by tile.
    keep : int
        K, the tokens that stay of an image and its tiles.
    grid : (int, int)
        Rows and columns of patches, n in all; of the whole image and of each tile.
    tiles : (int, int)
        Rows and columns of tiles, which divide those of the grid.
    alpha : float
        The share of the whole image, from 0 to 1.
    key_mask : Tensor, optional
        bool, like `deep`: the patches that there are, where tiles have padding. The whole image must have all of its
        own; where it has not, fewer than K stay.

    Returns
    -------
    Keep
        For ``B · (1 + tiles)`` samples of n patches; of those of an image K tokens stay.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or value, more tokens than there are, or an input that requires grad.

    Notes
    -----
    Attention is a sum over heads in the paper, which is the same order as a mean.
    Differs: shares are rounded to the sum K, the largest remainder up, and what full tiles cannot take goes to others,
    at last to those without a mark; the authors round down. They count the marked patches of consecutive rows, as
    ``grid=(1, n), tiles=(1, tiles)`` does here, instead of those where the tile lies. Ties go to the lower index.
    Cost: 9 launches and 5 of PyTorch; no host synchronisation.

    References
    ----------
    Arif et al., "HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language
    Models", AAAI 2025, arXiv 2408.10945: layers 0 and 22 of CLIP.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> plan = methods.hired(torch.rand(1, 36), torch.rand(1, 5, 36), keep=60, grid=(6, 6), tiles=(2, 2))
    >>> plan.counts[0].item(), plan.counts.sum().item()
    (30, 60)
    """
    op = "hired"
    check.tensor(op, "deep", deep, "B T n", dtypes=check.FLOATS)
    batch, images, size = deep.shape
    check.tensor(op, "shallow", shallow, "B n", dtypes=check.FLOATS)
    check.same_size(op, "shallow", shallow, [batch, size], deep.device)
    (rows, columns), (down, across) = check.pair(op, "grid", grid), check.pair(op, "tiles", tiles)
    if rows * columns != size:
        raise ValueError(f"{op}: grid: expected one of {size} patches, got {rows}×{columns}")
    if down * across != images - 1 or rows % down or columns % across:
        raise ValueError(
            f"{op}: tiles: expected {images - 1} that divide a grid of {size} patches, got {down}×{across} of "
            f"{rows}×{columns}"
        )
    if not 0 <= check.number(op, "alpha", alpha) <= 1:
        raise ValueError(f"{op}: alpha: expected a number from 0 to 1, got {alpha}")
    whole = min(int(check.integer(op, "keep", keep, 0) * alpha), size)
    marked = mask(keep_tokens(shallow, int(size * (1 - alpha)))).to(torch.float32)
    counts = pool_scores(marked, (rows, columns), window=(rows // down, columns // across), reduction="sum")
    counts = counts.clamp(min=2.0**-10)  # a tile without marks may still take what is over
    budgets = torch.full((batch, images), whole, dtype=torch.int32, device=deep.device)
    sizes: Union[Tensor, list[int]] = [size] * (images - 1)
    if key_mask is not None:
        check.tensor(op, "key_mask", key_mask, "B T n", dtypes=(torch.bool,))
        check.same_size(op, "key_mask", key_mask, deep.shape, deep.device)
        sizes, key_mask = key_mask[:, 1:].sum(2), key_mask.reshape(-1, size)
    budgets[:, 1:] = allocate_budgets_batch(keep - whole, counts, sizes)
    return keep_tokens(deep.reshape(-1, size), budgets.view(-1), candidates=key_mask)


def hired_described(scores: Sequence[Tensor], *, ratios: Sequence[float] = (0.7, 0.6)) -> Keep:
    """HiRED as it is also described: several stages, each keeps a share of what the one before has left.

    Rule: of n tokens the top int(n · 0.7) of the encoder's scores stay, of those the top 60 % of the query's, and so on
    with scores of layers of the language model.

    Parameters
    ----------
    scores : sequence of Tensor
        ``[B, N]`` for each stage, of all N tokens: :func:`class_attention`, :func:`pyramid_ops.text_relevance`, what a
        layer attends to.
    ratios : sequence of float
        One for each stage, from 0 to 1.

    Returns
    -------
    Keep
        One plan for the N tokens, in their order.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.plans.keep`, and for another number of ratios than scores.

    Notes
    -----
    Differs: a variant that is described, not the paper's, which is :func:`hired`. Ties go to the lower index.
    Cost: 8 launches for two stages; no host synchronisation.

    References
    ----------
    Described for HiRED (arXiv 2408.10945).

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> scores = [torch.rand(1, 196), torch.rand(1, 196)]
    >>> methods.hired_described(scores).counts.tolist() == [methods.retained.hired_described(196)[-1]] == [82]
    True
    """
    op = "hired_described"
    if not isinstance(scores, (list, tuple)) or not scores:
        raise TypeError(f"{op}: scores: expected a non-empty list of tensors, got {check.describe(scores)}")
    ratios = [check.number(op, f"ratios[{k}]", ratio) for k, ratio in enumerate(check.sequence(op, "ratios", ratios))]
    if len(ratios) != len(scores) or not all(0 <= ratio <= 1 for ratio in ratios):
        raise ValueError(f"{op}: ratios: expected {len(scores)} numbers from 0 to 1, got {ratios}")
    for k, x in enumerate(scores):
        check.tensor(op, f"scores[{k}]", x, "B N", dtypes=check.FLOATS)
        check.same_size(op, f"scores[{k}]", x, scores[0].shape, scores[0].device)
    plan = keep_tokens(scores[0], int(scores[0].shape[1] * ratios[0]))
    for x, ratio in zip(scores[1:], ratios[1:], strict=True):
        left = apply(plan, x)
        plan = cast(Keep, then(plan, keep_tokens(left, int(left.shape[1] * ratio))))
    return plan


def hiprune(middle: Tensor, deep: Tensor, *, keep: int, grid: tuple[int, int], alpha: float = 0.1) -> Keep:
    """HiPrune: patches stay that a middle layer looks at, those beside them, and those that a deep layer looks at.

    Rule: anchors are the top round(K · α / 5) of a middle layer; they stay with the patches to the left and right,
    above and below, and of all others the top of a deep layer, K in all.

    Parameters
    ----------
    middle, deep : Tensor
        ``[B, N]``: what a patch receives from all tokens, a mean over heads, in a middle layer of the encoder and in
        the one before the last: :func:`pyramid_ops.attention_importance` with the class token as a query too. Layers 9
        and −2 of CLIP.
    keep : int
        K, the tokens that stay.
    grid : (int, int)
        Rows and columns of patches, N in all.
    alpha : float
        The share of anchors and what is beside them, from 0 to 1.

    Returns
    -------
    Keep
        K patches in their order.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or value, more tokens than there are, or an input that requires grad.

    Notes
    -----
    As in the authors' code, what is beside the end of a row is the start of the next one, and before the first patch or
    after the last one there is that one. If all this is more than K patches, the lowest stay.
    Differs: ties go to the lower index, where theirs are up to ``topk``.
    Cost: 7 launches and 8 of PyTorch; no host synchronisation.

    References
    ----------
    Liu et al., "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models",
    arXiv 2508.00553.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> middle, deep = torch.arange(16.0).roll(7)[None], torch.arange(16.0, 0, -1)[None]
    >>> methods.hiprune(middle, deep, keep=7, grid=(4, 4), alpha=0.6).indices
    tensor([[ 0,  1,  2,  5,  6,  7, 10]])
    """
    op = "hiprune"
    check.tensor(op, "deep", deep, "B N", dtypes=check.FLOATS)
    check.tensor(op, "middle", middle, "B N", dtypes=check.FLOATS)
    check.same_size(op, "middle", middle, deep.shape, deep.device)
    (rows, columns), size = check.pair(op, "grid", grid), deep.shape[1]
    if rows * columns != size:
        raise ValueError(f"{op}: grid: expected one of {size} patches, got {rows}×{columns}")
    if not 0 <= check.number(op, "alpha", alpha) <= 1:
        raise ValueError(f"{op}: alpha: expected a number from 0 to 1, got {alpha}")
    if check.integer(op, "keep", keep, 0) > size:
        raise ValueError(f"{op}: keep: expected at most the {size} patches, got {keep}")
    anchors = keep_tokens(middle, round(keep * alpha / 5))
    own = anchors.indices
    around = torch.cat([own, own - 1, own + 1, own - columns, own + columns], 1).clamp(0, size - 1)
    beside = mask(Keep(around, anchors.counts * 5, size))
    return keep_tokens(deep, keep, forced=beside, capacity=keep)


def prumerge_select(
    attention: Tensor,
    *,
    factor: float = 1.5,
    key_mask: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    capacity: Optional[int] = None,
) -> Keep:
    """PruMerge's choice: the patches stay whose attention is an outlier among all.

    Rule: score_j > Q3 + 1.5 · (Q3 − Q1), the quartiles of the sample's own scores.

    Parameters
    ----------
    attention : Tensor
        ``[B, N]`` or packed ``[T]``: :func:`class_attention` of the last layer; the authors' has one head as wide as
        all.
    factor : float
        How far above the quartile an outlier is.
    key_mask, cu_seqlens, max_seqlen, capacity : optional
        As in :func:`fastervlm`.

    Returns
    -------
    Keep
        How many stay is in `counts` on the device; at most `capacity`, the best.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.segment_threshold` and :func:`pyramid_ops.plans.keep`.

    Notes
    -----
    Differs: the authors keep int(N · (outliers / N)), which rounding can make one fewer, and read the count on the
    host. What they merge into the tokens that stay is not part of it.
    Cost: 4 launches; no host synchronisation.

    References
    ----------
    Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", arXiv 2403.15388.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> methods.prumerge_select(torch.tensor([[1.0, 2.0, 3.0, 50.0, 4.0, 40.0, 2.0, 3.0]]), capacity=3).indices
    tensor([[ 3,  5, -1]])
    """
    packed: dict[str, Any] = {"cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen, "candidates": key_mask}
    above = segment_threshold(attention, rule="iqr", factor=factor, **packed)
    return keep_tokens(attention, threshold=above, capacity=capacity, **packed)


def vispruner(x: Tensor, attention: Tensor, *, keep: int, important: int, step: int = 8) -> Keep:
    """VisPruner: important patches stay, and of the others those that are unlike each other.

    Rule: the top patches of the attention are important. The others, by descending attention, lose again and again the
    `step` at even places that are most similar to one at an odd place, until keep − important are left; then the even
    ones stand first, by descending similarity.

    Parameters
    ----------
    x : Tensor
        ``[B, N, D]``: the patches; float16, bfloat16, float32 or uint8.
    attention : Tensor
        ``[B, N]``: :func:`class_attention` of the layer before the last, a mean over heads.
    keep, important : int
        How many patches stay in all, and for being important: int(keep · ratio), a ratio of 1/2 by default in the
        authors' code.
    step : int
        How many go at a time.

    Returns
    -------
    Keep
        The patches in their order.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.bipartite_prune`.

    Notes
    -----
    Differs: the authors' code takes an even number of others only; here an odd number has one more even place. Equal
    similarities go to the lower place, equal attention to the lower index, where theirs are up to ``argsort``. Which
    patch is at an even place turns on the last bits of similarities: :func:`pyramid_ops.bipartite_prune` says how far.
    At most 23170 patches are not important.
    Cost: 18 launches and 5 of PyTorch up to 1024 other patches, else two for each turn; the cosines of the others, 4 N²
    bytes each sample, at most 2 GiB at a time; no host synchronisation.

    References
    ----------
    Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs",
    arXiv 2412.01818.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> methods.vispruner(torch.randn(1, 40, 8), torch.rand(1, 40), keep=12, important=6).counts.tolist()
    [12]
    """
    op = "vispruner"
    check.tensor(op, "attention", attention, "B N", dtypes=check.FLOATS)
    size = attention.shape[1]
    check.tensor(op, "x", x, "B N D", dtypes=check.FEATURES)
    check.same_size(op, "x", x[..., 0], attention.shape, attention.device)
    check.integer(op, "step", step, 1)
    if not check.integer(op, "important", important, 0) <= check.integer(op, "keep", keep, 0) <= size:
        raise ValueError(f"{op}: keep: expected {important}, the important ones, to {size}, got {keep}")
    top = keep_tokens(attention, important)
    if keep == important:
        return top
    rest = keep_tokens(attention, size - important, candidates=~mask(top), order="value")
    diverse = then(rest, bipartite_prune(apply(rest, x), keep - important, step=step))
    return keep_tokens(attention, keep, candidates=mask(top) | mask(diverse))
