"""Published methods that prune and merge image tokens after the vision encoder: scores and features in, plans out."""

from typing import Any, Optional, cast

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.attention import attention_importance
from ..plans.applied import apply
from ..plans.joined import join, then
from ..plans.kept import keep as keep_tokens
from ..plans.kept import mask
from ..results import Keep, Merge
from ._common import Count

__all__ = ["class_attention", "fastervlm", "visionzip"]


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


def visionzip(attention: Tensor, metric: Tensor, *, dominant: int, contextual: int) -> tuple[Keep, Merge]:
    """VisionZip: the patches that dominate the class token's attention stay, the others are merged into a few.

    Rule: dominant are the top patches of the attention. Of the n others in their order, every ⌊n / contextual⌋-th is a
    target, and each one else joins the target with the greatest cosine of `metric`.

    Parameters
    ----------
    attention : Tensor
        ``[B, N]``: from :func:`class_attention` at the layer before the last.
    metric : Tensor
        ``[B, N, D]``: the keys of that layer, averaged over heads.
    dominant, contextual : int
        How many tokens of each kind.

    Returns
    -------
    (Keep, Merge)
        The dominant tokens in their order and the contextual ones, which the model reads after them.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.plans.keep` and :func:`pyramid_ops.plans.join`, and for more tokens than there are.

    Notes
    -----
    Differs: the authors keep the class token too, and take as a contextual token the target plus the mean of those that
    join it; :func:`pyramid_ops.plans.apply` takes the mean of all. Theirs is::

        joined = plan.rows.masked_fill(plans.mask(plan), -1)
        plans.apply(plan, x, mode="owner") + pyramid_ops.assign_mean(x, joined, contextual).tokens

    Equal similarities go to the lower target. Only where all samples have N patches: the stride is one number.
    Cost: 19 launches and 6 of PyTorch, on small tensors; no N × N matrix, no host synchronisation.

    References
    ----------
    Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", arXiv 2412.04467: 54 + 10.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods, plans
    >>> attention, metric, x = torch.rand(2, 16), torch.randn(2, 16, 8), torch.randn(2, 16, 32)
    >>> both = methods.visionzip(attention, metric, dominant=4, contextual=2)
    >>> torch.cat([plans.apply(plan, x) for plan in both], 1).shape
    torch.Size([2, 6, 32])
    """
    op = "visionzip"
    check.tensor(op, "attention", attention, "B N", dtypes=check.FLOATS)
    batch, size = attention.shape
    others = size - check.integer(op, "dominant", dominant, 0)
    if check.integer(op, "contextual", contextual, 1) > others:
        raise ValueError(f"{op}: contextual: expected at most {others}, the other tokens, got {contextual}")
    first = keep_tokens(attention, dominant)
    rest = keep_tokens(attention, others, candidates=~mask(first))
    targets = torch.arange(0, others, others // contextual, device=attention.device)[:contextual]
    counts = torch.full((batch,), contextual, dtype=torch.int32, device=attention.device)
    chosen = Keep(targets.expand(batch, -1).contiguous(), counts, others)
    return first, cast(Merge, then(rest, join(apply(rest, metric), chosen)))
