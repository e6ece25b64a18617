"""Published methods that prune image tokens inside the language model by what the text attends to."""

from typing import Any, Optional

from torch import Tensor

from .. import _checks as check
from ..ops.scoring import combine_scores
from ..results import Keep
from ._common import Count, Where, flags, grouped, keep_visual, received, some_rows

__all__ = ["aim_described", "fitprune", "fitprune_described", "prunevid_llm"]


def fitprune(
    query: Tensor,
    key: Tensor,
    image: Tensor,
    text: Tensor,
    *,
    keep: Count,
    key_mask: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    capacity: Optional[int] = None,
    **attention: Any,
) -> Keep:
    """FitPrune: the image tokens stay that matter to the image and to the text.

    Rule: with A the greatest attention over heads, score_j = (Σ over image rows of A[i, j]) · (Σ over text rows of
    A[i, j]); of the image the `keep` tokens with the greatest stay, and all text.

    Parameters
    ----------
    query, key, image, key_mask, cu_seqlens, max_seqlen, capacity, **attention : optional
        As in :func:`fastv`, with all queries.
    text : Tensor
        bool ``[B, N]`` or ``[T]``: the tokens of the text that count.
    keep : int, sequence of int, or Tensor
        From a table of the layer, fitted to calibration data.

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
    Differs: the authors take a mean over image rows, which is the same order. Ties go to the lower index, where theirs
    are up to ``topk``. The product is one float32 multiplication of PyTorch.
    Cost: 19 launches and 2 of PyTorch; no N × N matrix, no host synchronisation.

    References
    ----------
    Ye et al., "Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large Language Models",
    arXiv 2409.10197.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> query, key, image = torch.randn(1, 4, 9, 8), torch.randn(1, 4, 9, 8), torch.arange(9)[None] < 6
    >>> methods.fitprune(query, key, image, ~image, keep=2).counts.tolist()
    [5]
    """
    op, where = "fitprune", Where(key_mask, cu_seqlens, max_seqlen)
    flags(op, "image", image)
    attention |= {"head_reduction": "max", "query_reduction": "sum"}
    own = received(query, key, where, **some_rows(image), **attention)
    cross = received(query, key, where, **some_rows(flags(op, "text", text, image)), **attention)
    return keep_visual(op, own * cross, image, keep, where, capacity)


def fitprune_described(
    query: Tensor,
    key: Tensor,
    image: Tensor,
    text: Tensor,
    *,
    keep: Count,
    key_mask: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    capacity: Optional[int] = None,
    **attention: Any,
) -> Keep:
    """FitPrune as it is also described: the image tokens stay that the text attends to.

    Rule: score_j = mean over heads and text rows i of A[i, j]; of the image the `keep` tokens with the greatest stay.

    Parameters
    ----------
    query, key, image, text, keep, key_mask, cu_seqlens, max_seqlen, capacity, **attention : optional
        As in :func:`fitprune`.

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
    A row of text before an image does not see it and is left out of its mean.
    Differs: a variant that is described, not the paper's, which is :func:`fitprune`. Ties go to the lower index.
    Cost: 11 launches and 1 of PyTorch; no host synchronisation.

    References
    ----------
    Described for FitPrune (arXiv 2409.10197).

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> query, key, image = torch.randn(1, 4, 9, 8), torch.randn(1, 4, 9, 8), torch.arange(9)[None] < 6
    >>> methods.fitprune_described(query, key, image, ~image, keep=2).counts.tolist()
    [5]
    """
    op, where = "fitprune_described", Where(key_mask, cu_seqlens, max_seqlen)
    scores = received(query, key, where, **some_rows(flags(op, "text", text)), **attention)
    return keep_visual(op, scores, image, keep, where, capacity)


def prunevid_llm(
    query: Tensor,
    key: Tensor,
    image: Tensor,
    text: Tensor,
    groups: Tensor,
    *,
    keep: Count,
    longest: Optional[int] = None,
    key_mask: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    capacity: Optional[int] = None,
    **attention: Any,
) -> Keep:
    """PruneVid inside the language model: of each static set and each frame the tokens stay that any word attends to.

    Rule: score_j = greatest over heads and text rows i of A[i, j]; of each group int(0.4 · n) with the greatest stay.

    Parameters
    ----------
    query, key, key_mask, cu_seqlens, max_seqlen, capacity, **attention : optional
        As in :func:`fastv`, with all queries.
    image, text : Tensor
        bool ``[B, N]`` or ``[T]``: the tokens of the video, and those of the text that count.
    groups : Tensor
        int32 or int64 ``[G + 1]``: tokens ``groups[g]`` to ``groups[g + 1]`` of all samples one after the other, with
        their padding, are group g: a static set, the tokens of a frame, or what is between videos, which may not go.
    keep : int, sequence of int, or Tensor
        How many tokens stay of each group: one number, one for each group, or int32 or int64 ``[G]`` on the device.
        :func:`pyramid_ops.methods.retained.prunevid_llm` of its size.
    longest : int, optional
        Tokens of the longest group (default: all).

    Returns
    -------
    Keep
        Text and kept tokens in their order.

    Raises
    ------
    TypeError, ValueError
        As :func:`fastv`.

    Notes
    -----
    Differs: the authors loop over groups; ties go to the lower index, where theirs are up to ``topk``.
    Cost: 15 launches and 2 of PyTorch; no host synchronisation.

    References
    ----------
    Huang et al., "PruneVid: Visual Token Pruning for Efficient Video Large Language Models", ACL 2025,
    arXiv 2412.16117: at layer 10.

    Examples
    --------
    Two frames of five tokens, and three words:

    >>> import torch
    >>> from pyramid_ops import methods
    >>> query, key, video = torch.randn(1, 4, 13, 8), torch.randn(1, 4, 13, 8), torch.arange(13)[None] < 10
    >>> groups, keep = torch.tensor([0, 5, 10, 13]), methods.retained.prunevid_llm(5)
    >>> methods.prunevid_llm(query, key, video, ~video, groups, keep=keep).counts.tolist()
    [7]
    """
    op, where = "prunevid_llm", Where(key_mask, cu_seqlens, max_seqlen)
    flags(op, "image", image)
    attention |= {"head_reduction": "max", "query_reduction": "max"}
    scores = received(query, key, where, **some_rows(flags(op, "text", text, image)), **attention)
    flags(op, "image", image, scores)
    chosen = grouped(scores, keep, groups, longest, candidates=image.reshape(-1))
    return keep_visual(op, scores, image, None, where, capacity, candidates=chosen)


def aim_described(
    query: Tensor,
    key: Tensor,
    image: Tensor,
    text: Tensor,
    *,
    keep: Count,
    alpha: float,
    key_mask: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    capacity: Optional[int] = None,
    **attention: Any,
) -> Keep:
    """AIM as it is also described: attention from text to image, and of the image to itself.

    Rule: score_j = α · mean over text rows of A[i, j] + (1 − α) · mean over image rows of V[i, j], with A over all
    tokens in sight and V over those of the image only; α = layer / layers.

    Parameters
    ----------
    query, key, image, text, key_mask, cu_seqlens, max_seqlen, capacity, **attention : optional
        As in :func:`fitprune`.
    keep : int, sequence of int, or Tensor
        How many image tokens stay: 100, 80, 60 and 40 % of them, stage by stage.
    alpha : float
        How far into the model the layer is, from 0 to 1.

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
    Rows that do not see a token are left out of its mean.
    Differs: a variant that is described, not the paper's, which is :func:`aim_prune`. Both parts are causal. Ties go to
    the lower index.
    Cost: 20 launches and 1 of PyTorch; no N × N matrix, no host synchronisation.

    References
    ----------
    Described for AIM (arXiv 2412.03248).

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> query, key, image = torch.randn(1, 4, 9, 8), torch.randn(1, 4, 9, 8), torch.arange(9)[None] < 6
    >>> methods.aim_described(query, key, image, ~image, keep=3, alpha=8 / 32).counts.tolist()
    [6]
    """
    op, where = "aim_described", Where(key_mask, cu_seqlens, max_seqlen)
    alpha = check.number(op, "alpha", alpha)
    flags(op, "image", image)
    cross = received(query, key, where, **some_rows(flags(op, "text", text, image)), **attention)
    own = received(query, key, where._replace(key_mask=image), **some_rows(image), **attention)
    scores = combine_scores([cross, own], [alpha, 1 - alpha])
    return keep_visual(op, scores, image, keep, where, capacity)
