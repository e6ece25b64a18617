"""Published methods that keep image tokens unlike each other, one pick after another: features in, plans out."""

from typing import Any, Optional

from torch import Tensor

from .. import _checks as check
from ..ops.greedy import greedy_select
from ..ops.relevance import text_relevance
from ..ops.scoring import combine_scores
from ..results import Keep
from ._common import Count

__all__ = ["cdpruner", "cdpruner_relevance", "divprune", "greedyprune", "scope"]


def divprune(
    x: Tensor,
    *,
    keep: Count,
    key_mask: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    capacity: Optional[int] = None,
) -> Keep:
    """DivPrune: the patches stay that are as far from each other as can be.

    Rule: first the patch whose nearest other is farthest, then again and again the one whose nearest pick is farthest;
    the distance of two is 1 − their cosine.

    Parameters
    ----------
    x : Tensor
        ``[B, N, D]``, or packed ``[T, D]``: the patches as the language model gets them; uint8, float16, bfloat16 or
        float32.
    keep : int, sequence of int, or Tensor
        How many stay: one number, one for each sample or segment, or int32 or int64 ``[B]`` on the device.
    key_mask : Tensor, optional
        bool ``[B, N]`` or ``[T]``: the patches that there are.
    cu_seqlens, max_seqlen : optional
        Segments of packed patches, int32 or int64 ``[S + 1]``, and the length of the longest.
    capacity : int, optional
        Rows of each sample in the plan, as :func:`pyramid_ops.greedy_select`.

    Returns
    -------
    Keep
        The patches in their order.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.greedy_select`.

    Notes
    -----
    Differs: distances are exact integers of rounded unit rows, 0 between duplicates, where the authors' are in the
    dtype of the features, which decides on similar patches. Theirs may pick a patch twice, so that fewer stay. Ties go
    to the lower index.
    Cost: 5 launches; the cosines of a sample, 4 N² bytes; no host synchronisation.

    References
    ----------
    Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025,
    arXiv 2503.02175.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> x = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.1]]])
    >>> methods.divprune(x, keep=2).indices
    tensor([[0, 3]])
    """
    return _picked(x, keep, "maxmin", None, key_mask, cu_seqlens, max_seqlen, capacity)


def cdpruner_relevance(image: Tensor, text: Tensor, *, text_mask: Optional[Tensor] = None) -> Tensor:
    """CDPruner's relevance of patches to an instruction, from 0 to 1.

    Rule: r = (s − min s) / (max s − min s), s_j = −mean over words of cos(v_j, t).

    Parameters
    ----------
    image, text : Tensor
        ``[B, N, D]`` and ``[B, T, D]``, embeddings of one space, such as CLIP's; float16, bfloat16 or float32.
    text_mask : Tensor, optional
        bool ``[B, T]``: the words that count.

    Returns
    -------
    Tensor
        float32 ``[B, N]``: for :func:`cdpruner`.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.text_relevance`.

    Notes
    -----
    The sign is the authors': single patches of CLIP are less like the text that they show.
    Differs: limits are of each sample, where the authors' are of all tiles of an image; they add 1e-6 to the numerator,
    here the least relevance is 0, and such a patch the last to be picked. For another base of relevance,
    ``torch.exp(alpha * r)`` is in their code, as a comment.
    Cost: 6 launches and 1 of PyTorch; no N × T matrix, no host synchronisation.

    References
    ----------
    Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
    arXiv 2506.10967.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> image, text = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]]), torch.tensor([[[0.0, 1.0]]])
    >>> methods.cdpruner_relevance(image, text)
    tensor([[1.0000, 0.0000, 0.2929]])
    """
    match = text_relevance(image, text, reduction="mean", metric="cosine", text_mask=text_mask)
    return combine_scores([combine_scores([match], [-1.0])], [1.0], normalize="minmax")


def cdpruner(
    x: Tensor,
    relevance: Tensor,
    *,
    keep: Count,
    key_mask: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    capacity: Optional[int] = None,
) -> Keep:
    """CDPruner: the patches stay that are relevant to the instruction and unlike each other.

    Rule: greedy maximum of the determinant of r_i · cos(x_i, x_j) · r_j over the picks: a determinantal point process.

    Parameters
    ----------
    x, keep, key_mask, cu_seqlens, max_seqlen, capacity : optional
        As in :func:`divprune`.
    relevance : Tensor
        ``[B, N]`` or ``[T]``: r, from :func:`cdpruner_relevance` or any other, not below 0; float16, bfloat16 or
        float32.

    Returns
    -------
    Keep
        The patches in their order.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.greedy_select`.

    Notes
    -----
    Differs: the factor is in fixed point, exact in any order, where the authors' is a float32 sum, which decides on
    similar patches. Relevance is outside of it, so that it cannot lose digits. Ties go to the lower index; where
    nothing is left to gain, the lower index is next, where theirs may be NaN.
    Cost: 4 launches up to ``keep · N`` = 2¹⁸, else one for each pick; the cosines of a sample, 4 N² bytes; no host
    synchronisation.

    References
    ----------
    Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
    arXiv 2506.10967.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> x = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.1]]])
    >>> methods.cdpruner(x, torch.tensor([[1.0, 2.0, 1.0, 0.5]]), keep=2).indices
    tensor([[1, 2]])
    """
    check.tensor("cdpruner", "relevance", relevance, "B N", "T", dtypes=check.FLOATS)
    return _picked(x, keep, "dpp", relevance, key_mask, cu_seqlens, max_seqlen, capacity)


def scope(
    x: Tensor,
    attention: Tensor,
    *,
    keep: Count,
    key_mask: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    capacity: Optional[int] = None,
) -> Keep:
    """SCOPE: the patches stay that are salient and cover what the others show.

    Rule: the next pick has the greatest a_i · Σ_j max(0, cos(x_i, x_j) − c_j), where c_j = max(0, max over picks p of
    cos(x_p, x_j)) is how well patch j is covered.

    Parameters
    ----------
    x, keep, key_mask, cu_seqlens, max_seqlen, capacity : optional
        As in :func:`divprune`: the hidden states of the layer before the last of the encoder.
    attention : Tensor
        ``[B, N]`` or ``[T]``: a, :func:`class_attention` of that layer, or a power of it; float16, bfloat16 or float32.

    Returns
    -------
    Keep
        The patches in their order.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.greedy_select`.

    Notes
    -----
    Attention is a sum over heads in the authors' code, which is the same order as a mean; they hand in its power α,
    1 by default.
    Differs: coverage is a sum of integers, rounded once, where the authors' is a sum in the dtype of the features. Ties
    go to the lower index.
    Cost: 148 launches and 1 of PyTorch for 144 of 576, one for each pick; the cosines of a sample, 4 N² bytes; no host
    synchronisation.

    References
    ----------
    Deng et al., "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodel LLMs", NeurIPS 2025,
    arXiv 2510.24214.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> x = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.1]]])
    >>> methods.scope(x, torch.tensor([[0.2, 0.3, 0.3, 0.2]]), keep=2).indices
    tensor([[1, 2]])
    """
    check.tensor("scope", "attention", attention, "B N", "T", dtypes=check.FLOATS)
    return _picked(x, keep, "coverage", attention, key_mask, cu_seqlens, max_seqlen, capacity)


def greedyprune(
    x: Tensor,
    saliency: Tensor,
    *,
    keep: Count,
    key_mask: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    capacity: Optional[int] = None,
) -> Keep:
    """GreedyPrune, as far as it is public: a greedy choice that is salient and diverse.

    Rule: the next pick has the greatest s_i² · (what is left of x_i beside the picks): the greedy maximum of the
    determinant of s_i · cos(x_i, x_j) · s_j.

    Parameters
    ----------
    x, keep, key_mask, cu_seqlens, max_seqlen, capacity : optional
        As in :func:`divprune`.
    saliency : Tensor
        ``[B, N]`` or ``[T]``: s, what text or class token attend to, not below 0; float16, bfloat16 or float32.

    Returns
    -------
    Keep
        The patches in their order.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.greedy_select`.

    Notes
    -----
    Differs: the abstract says that saliency and diversity are optimised together by a greedy algorithm; its objective
    and code are not public, so that this one is ours, and picks need not be the authors'. Ties go to the lower index.
    Cost: 4 launches up to ``keep · N`` = 2¹⁸, else one for each pick; the cosines of a sample, 4 N² bytes; no host
    synchronisation.

    References
    ----------
    Pei et al., "GreedyPrune: Retenting Critical Visual Token Set for Large Vision Language Models", arXiv 2506.13166.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> x = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.1]]])
    >>> methods.greedyprune(x, torch.tensor([[0.1, 0.2, 0.1, 0.4]]), keep=2).indices
    tensor([[2, 3]])
    """
    check.tensor("greedyprune", "saliency", saliency, "B N", "T", dtypes=check.FLOATS)
    return _picked(x, keep, "dpp", saliency, key_mask, cu_seqlens, max_seqlen, capacity)


def _picked(
    x: Tensor,
    keep: Count,
    rule: str,
    relevance: Optional[Tensor],
    key_mask: Optional[Tensor],
    cu_seqlens: Optional[Tensor],
    max_seqlen: Optional[int],
    capacity: Optional[int],
) -> Keep:
    options: dict[str, Any] = {"rule": rule, "relevance": relevance, "candidates": key_mask, "capacity": capacity}
    return greedy_select(x, keep, order="index", cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, **options)
