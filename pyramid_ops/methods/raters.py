"""SparseVLM: image tokens pruned inside the language model by the text tokens that the image has to do with."""

from typing import Any, Optional, cast

from torch import Tensor

from .. import _checks as check
from ..ops.clustering import dpc_knn
from ..ops.nearest import MOST_NEIGHBOURS
from ..ops.relevance import text_relevance
from ..ops.scoring import combine_scores
from ..ops.thresholds import segment_threshold
from ..plans.applied import apply
from ..plans.joined import merge_by_rows, then
from ..plans.kept import keep as keep_tokens
from ..plans.kept import mask
from ..results import Keep, Merge
from . import retained
from ._common import Count, Where, flags, keep_visual, received, some_rows

__all__ = ["sparsevlm", "sparsevlm_cosine", "sparsevlm_described", "sparsevlm_raters", "sparsevlm_recycle"]


def sparsevlm_raters(
    hidden: Tensor,
    image: Tensor,
    text: Tensor,
    *,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    precision: Optional[str] = None,
) -> Tensor:
    """SparseVLM's raters: the text tokens that the image has to do with.

    Rule: m_t = mean over image tokens v of softmax over t of (h_v · h_t); t is a rater where m_t > mean(m).

    Parameters
    ----------
    hidden : Tensor
        ``[B, N, D]`` or packed ``[T, D]``; float16, bfloat16 or float32: what goes into the language model.
    image, text : Tensor
        bool ``[B, N]`` or ``[T]``: the tokens of images, and of the text that may rate, which in the authors' code is
        what comes after the image. Padding is neither.
    cu_seqlens, max_seqlen : optional
        Segments of packed tokens, int32 or int64 ``[S + 1]``, and the length of the longest.
    precision : "grid", "high" or None
        As in :func:`pyramid_ops.best_match`.

    Returns
    -------
    Tensor
        bool ``[B, N]`` or ``[T]``, as :func:`sparsevlm` takes them. None in a sample without image or text.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.text_relevance` and :func:`pyramid_ops.segment_threshold`.

    Notes
    -----
    Differs: the authors take one sample, and the mean over all samples of a larger batch.
    Cost: 13 launches and 1 of PyTorch, once a prompt; no matrix of image and text, no host synchronisation.

    References
    ----------
    Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference",
    arXiv 2410.04417.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> hidden = torch.tensor([[[3.0, 0.0], [2.0, 1.0], [4.0, 0.0], [0.0, 1.0], [0.0, 2.0]]])
    >>> place = torch.arange(5)[None]
    >>> methods.sparsevlm_raters(hidden, place < 2, place >= 2)
    tensor([[False, False,  True, False, False]])
    """
    op = "sparsevlm_raters"
    flags(op, "image", image)
    flags(op, "text", text, image)
    packed: dict[str, Any] = {"cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}
    both = {f"{name}_{of}": x for name, x in packed.items() for of in ("tokens", "text")}
    scores = text_relevance(
        hidden, hidden, reduction="softmax", token_mask=image, text_mask=text, precision=precision, **both
    )
    above = segment_threshold(scores, rule="mean", candidates=text, **packed)
    return mask(keep_tokens(scores, candidates=text, threshold=above, **packed))


def sparsevlm(
    query: Tensor,
    key: Tensor,
    image: Tensor,
    raters: Tensor,
    *,
    keep: Count,
    key_mask: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    capacity: Optional[int] = None,
    **attention: Any,
) -> Keep:
    """SparseVLM: a stage of image tokens dropped inside the language model, by the attention of its raters.

    Rule: score_j = mean over heads and raters i of A[i, j] with A = softmax(q·kᵀ / √d) over all tokens in sight; of the
    image the `keep` tokens with the greatest stay, and all text.

    Parameters
    ----------
    query, key, image, key_mask, cu_seqlens, max_seqlen, capacity, **attention : optional
        As in :func:`fastv`, with all queries.
    raters : Tensor
        bool ``[B, N]`` or ``[T]``: from :func:`sparsevlm_raters`, moved by :func:`pyramid_ops.plans.apply` with all
        else from stage to stage.
    keep : int, sequence of int, or Tensor
        :func:`pyramid_ops.methods.retained.sparsevlm` has the authors' numbers for each stage.

    Returns
    -------
    Keep
        Text and kept image tokens in their order.

    Raises
    ------
    TypeError, ValueError
        As :func:`fastv`.

    Notes
    -----
    A rater before an image does not see it and is left out of its mean.
    Differs: the recycling of what is dropped is not part of it, nor the number that follows the rank of the attention,
    which the authors' code does not use either. Ties go to the lower index, where theirs are up to ``topk``; theirs is
    for a batch of one.
    Cost: 11 launches and 1 of PyTorch; no host synchronisation.

    References
    ----------
    Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference",
    arXiv 2410.04417: with the queries and keys of layers 2, 6 and 15, before the next one.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> query, key, hidden = torch.randn(1, 4, 9, 8), torch.randn(1, 4, 9, 8), torch.randn(1, 9, 32)
    >>> image = torch.arange(9)[None] < 6
    >>> raters = methods.sparsevlm_raters(hidden, image, ~image)
    >>> methods.sparsevlm(query, key, image, raters, keep=2).counts.tolist()
    [5]
    """
    op = "sparsevlm"
    where = Where(key_mask, cu_seqlens, max_seqlen)
    scores = received(query, key, where, **some_rows(flags(op, "raters", raters)), **attention)
    return keep_visual(op, scores, image, keep, where, capacity)


def sparsevlm_recycle(hidden: Tensor, scores: Tensor, deleted: Tensor, *, number: int) -> Merge:
    """SparseVLM's recycling: the best of the image tokens that a stage deletes live on as the means of a few clusters.

    Rule: of the n deleted tokens the m = int(0.3 · n) + 1 with the greatest scores are clustered by DPC-KNN around
    C = int(m / 10) + 1 centers, densities being of C neighbours; each cluster becomes its mean.

    Parameters
    ----------
    hidden : Tensor
        ``[B, N, D]``: what the layer gives; float16, bfloat16 or float32.
    scores : Tensor
        ``[B, N]``: those that the stage kept by.
    deleted : Tensor
        bool ``[B, N]``: the tokens that it deletes: ``image & ~plans.mask(plan)``.
    number : int
        n, how many are deleted of each sample.

    Returns
    -------
    Merge
        For the N tokens, with C rows, those around the best centers first. :func:`pyramid_ops.plans.concat` puts them
        behind the image tokens that stay, as in the example; :func:`pyramid_ops.methods.retained.sparsevlm_recycle`
        says how many they are.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.plans.keep` and :func:`pyramid_ops.dpc_knn`.

    Notes
    -----
    A row is owned by its center: positions and cache that are moved are the center's. The authors number positions
    anew instead.
    Differs: the authors break ties of densities by random noise of 1e-6, here they go to the lower index; densities are
    of 64 neighbours at most; one sample at a time there. Of a sample in which fewer than m
    tokens are deleted, those.
    Cost: 22 launches and 1 of PyTorch; no host synchronisation.

    References
    ----------
    Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference",
    arXiv 2410.04417.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods, plans
    >>> hidden, scores, place = torch.randn(1, 50, 8), torch.rand(1, 50), torch.arange(50)[None]
    >>> image = (place >= 4) & (place < 44)  # between four tokens of text and six
    >>> best = plans.keep(scores, 10, candidates=image, forced=place < 4, capacity=14)
    >>> recycled = methods.sparsevlm_recycle(hidden, scores, image & ~plans.mask(best), number=30)
    >>> question = plans.keep(scores, 6, candidates=place >= 44)
    >>> plan = plans.concat(plans.concat(best, recycled), question)
    >>> plans.apply(plan, hidden).shape, methods.retained.sparsevlm_recycle(30)
    (torch.Size([1, 22, 8]), 2)
    """
    op = "sparsevlm_recycle"
    check.tensor(op, "scores", scores, "B N", dtypes=check.FLOATS)
    flags(op, "deleted", deleted, scores)
    check.tensor(op, "hidden", hidden, "B N D", dtypes=check.FLOATS)
    check.same_size(op, "hidden", hidden, [*scores.shape, hidden.shape[2]], scores.device)
    if check.integer(op, "number", number, 0) > scores.shape[1]:
        raise ValueError(f"{op}: number: expected at most the {scores.shape[1]} tokens, got {number}")
    most, clusters = int(0.3 * number) + 1, retained.sparsevlm_recycle(number)
    best = keep_tokens(scores, min(most, scores.shape[1]), candidates=deleted)
    # A row that is not there is infinite, and so in no cluster.
    found = dpc_knn(apply(best, hidden, fill=float("inf")), clusters, min(clusters, MOST_NEIGHBOURS))
    means = merge_by_rows(Keep(found.centers, found.counts, best.indices.shape[1]), found.assignment)
    return cast(Merge, then(best, means))


def sparsevlm_described(
    scores: Tensor,
    image: Tensor,
    *,
    percentile: float = 0.75,
    key_mask: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    capacity: Optional[int] = None,
) -> Keep:
    """SparseVLM as it is also described: the image tokens above a percentile of their own scores stay.

    Rule: score_j > quantile of the image's scores at `percentile`, interpolated as ``torch.quantile``.

    Parameters
    ----------
    scores : Tensor
        ``[B, N]`` or packed ``[T]``; float16, bfloat16 or float32: the attention from text to image, such as
        :func:`pyramid_ops.attention_importance` of the raters.
    image : Tensor
        bool, like the scores: the tokens that may go.
    percentile : float
        From 0 to 1: the share that goes.
    key_mask, cu_seqlens, max_seqlen, capacity : optional
        As in :func:`fastv`.

    Returns
    -------
    Keep
        Text and kept image tokens in their order; how many is in `counts` on the device.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.segment_threshold` and :func:`pyramid_ops.plans.keep`.

    Notes
    -----
    Differs: a variant that is described, not the paper's, which is :func:`sparsevlm`. Of equal scores all go or stay.
    Cost: 4 launches and 1 of PyTorch; no host synchronisation.

    References
    ----------
    Described for SparseVLM (arXiv 2410.04417).

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> scores = torch.tensor([[9.0, 0.4, 0.1, 0.3, 0.2]])
    >>> methods.sparsevlm_described(scores, torch.arange(5)[None] > 0, percentile=0.5).indices
    tensor([[ 0,  1,  3, -1, -1]])
    """
    op = "sparsevlm_described"
    where, image = Where(key_mask, cu_seqlens, max_seqlen), flags(op, "image", image)
    above = segment_threshold(scores, cu_seqlens, "quantile", q=percentile, max_seqlen=max_seqlen, candidates=image)
    return keep_visual(op, scores, image, None, where, capacity, threshold=above)


def sparsevlm_cosine(
    visual: Tensor,
    text: Tensor,
    saliency: Tensor,
    *,
    keep: Count,
    weights: tuple[float, float] = (0.7, 0.3),
    key_mask: Optional[Tensor] = None,
) -> Keep:
    """SparseVLM as it is also described: similarity to the text and visual saliency.

    Rule: score = 0.7 · cosine(v, t) + 0.3 · saliency; the `keep` image tokens with the greatest stay.

    Parameters
    ----------
    visual : Tensor
        ``[B, N, D]``; float16, bfloat16 or float32: image tokens.
    text : Tensor
        ``[B, T, D]``, like `visual`: one pooled vector a sample, T = 1, or tokens, of which the most similar counts.
    saliency : Tensor
        ``[B, N]``, such as :func:`class_attention` or a rollout of it.
    keep : int, sequence of int, or Tensor
        How many stay: one number, one for each sample, or int32 or int64 ``[B]`` on the device.
    weights : (float, float)
        Of cosine and saliency.
    key_mask : Tensor, optional
        bool ``[B, N]``: the image tokens that there are.

    Returns
    -------
    Keep
        For the image tokens.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.text_relevance`, :func:`pyramid_ops.combine_scores` and :func:`pyramid_ops.plans.keep`.

    Notes
    -----
    Differs: a variant that is described, not the paper's, which is :func:`sparsevlm`. Ties go to the lower index.
    Cost: 7 launches; no host synchronisation.

    References
    ----------
    Described for SparseVLM (arXiv 2410.04417).

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> visual, text = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]]), torch.tensor([[[0.0, 2.0]]])
    >>> methods.sparsevlm_cosine(visual, text, torch.tensor([[1.0, 0.0, 0.0]]), keep=2).indices
    tensor([[1, 2]])
    """
    cosine = text_relevance(visual, text, metric="cosine")
    return keep_tokens(combine_scores([cosine, saliency], weights), keep, candidates=key_mask)
