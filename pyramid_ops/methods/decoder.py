"""Published methods that prune image tokens inside the language model by the attention of late rows, or of all."""

from typing import Any, Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.walk import attention_walk
from ..results import Keep
from ._common import Count, Where, flags, keep_visual, one_row, received

__all__ = ["aim_prune", "dtoma_decode", "fastv", "pyramiddrop", "vscan_decode"]


def fastv(
    query: Tensor,
    key: Tensor,
    image: Tensor,
    *,
    keep: Count,
    last: Union[int, Tensor] = -1,
    key_mask: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    capacity: Optional[int] = None,
    **attention: Any,
) -> Keep:
    """FastV: after an early layer, only the image tokens that the last token attends to stay.

    Rule: score_j = mean over heads of A[last, j] with A = softmax(q·kᵀ / √d) over all tokens in sight; of the image the
    `keep` tokens with the greatest stay, and all text.

    Parameters
    ----------
    query, key : Tensor
        Of one layer, after rotary embedding: ``[B, H, N, D]`` and ``[B, Hkv, N, D]``, or packed ``[T, H, D]`` and
        ``[T, Hkv, D]``; float16, bfloat16 or float32. Of the queries only the last is read: ``query[:, :, -1:]`` will
        do.
    image : Tensor
        bool ``[B, N]`` or ``[T]``: the tokens that may go, of any number of images.
    keep : int, sequence of int, or Tensor
        How many image tokens stay in all: one number, one for each sample or segment, or int32 or int64 ``[B]`` on the
        device. :func:`pyramid_ops.methods.retained.fastv` of a ratio.
    last : int or Tensor
        The query that scores, from the end where negative; or int32 or int64 ``[B]`` on the device.
    key_mask : Tensor, optional
        bool ``[B, N]`` or ``[T]``: the tokens that there are. Padding takes no part and does not stay.
    cu_seqlens, max_seqlen : optional
        Segments of packed tokens, int32 or int64 ``[S + 1]``, and the length of the longest.
    capacity : int, optional
        Rows of each sample in the plan, such as `keep` and the tokens of text (default: N).
    **attention
        `scale`, `softcap`, `log_sum_exp`, `center_keys` and `precision` of :func:`pyramid_ops.attention_importance`;
        `cu_seqlens_q` and `max_seqlen_q` where there are other packed queries than keys.

    Returns
    -------
    Keep
        Text and kept image tokens in their order.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.attention_importance` and :func:`pyramid_ops.plans.keep`.

    Notes
    -----
    Differs: the authors take one image, at a place known beforehand, of a batch of one, and a full attention matrix;
    ties go to the lower index, where theirs are up to ``topk``. The same bits on every device and in any batch.
    Cost: 9 launches and 1 of PyTorch, the mask of the text; no host synchronisation.

    References
    ----------
    Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764: after layer 2, half of them.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods, plans
    >>> query, key, hidden = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 9, 32)
    >>> image = torch.tensor([[False, True, True, True, True, True, True, False, False]] * 2)
    >>> plan = methods.fastv(query, key, image, keep=methods.retained.fastv(6, 0.5), capacity=6)
    >>> plans.apply(plan, hidden).shape
    torch.Size([2, 6, 32])
    """
    where = Where(key_mask, cu_seqlens, max_seqlen)
    scores = received(query, key, where, **one_row(last), **attention)
    return keep_visual("fastv", scores, image, keep, where, capacity)


def pyramiddrop(
    query: Tensor,
    key: Tensor,
    image: Tensor,
    *,
    keep: Count,
    last: Union[int, Tensor] = -1,
    key_mask: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    capacity: Optional[int] = None,
    **attention: Any,
) -> Keep:
    """PyramidDrop: a stage of image tokens dropped inside the language model, by the last instruction token.

    Rule: score_j = mean over heads of A[last, j] with the queries and keys of the layer that comes next; of the image
    int(n₀ · ratio) tokens with the greatest stay, n₀ the image tokens before the first stage.

    Parameters
    ----------
    query, key, image, last, key_mask, cu_seqlens, max_seqlen, capacity, **attention : optional
        As in :func:`fastv`; `last` is the last token of the instruction.
    keep : int, sequence of int, or Tensor
        :func:`pyramid_ops.methods.retained.pyramiddrop` gives it for each stage.

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
    A stage is for the tokens that the stage before has left: :func:`pyramid_ops.plans.then` makes one plan of two.
    Differs: the authors compute q and k of the last instruction token sample by sample; ties go to the lower index,
    where theirs are up to ``topk``. The pyramid of image levels is another method: :func:`pyramid_select`.
    Cost: 9 launches and 1 of PyTorch a stage; no host synchronisation.

    References
    ----------
    Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
    arXiv 2410.17247: before layers 8, 16 and 24 of 32, to 1/2, 1/4 and 1/8.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> methods.retained.pyramiddrop(576)
    [288, 144, 72]
    >>> query, key, image = torch.randn(1, 4, 9, 8), torch.randn(1, 4, 9, 8), torch.arange(9)[None] < 8
    >>> methods.pyramiddrop(query, key, image, keep=methods.retained.pyramiddrop(8)[0]).counts.tolist()
    [5]
    """
    where = Where(key_mask, cu_seqlens, max_seqlen)
    scores = received(query, key, where, **one_row(last), **attention)
    return keep_visual("pyramiddrop", scores, image, keep, where, capacity)


def vscan_decode(
    query: Tensor,
    key: Tensor,
    image: Tensor,
    *,
    keep: Count,
    key_mask: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    capacity: Optional[int] = None,
    **attention: Any,
) -> Keep:
    """The described prune of VScan while it decodes: the image tokens stay that generated tokens attend to.

    Rule: score_j = Σ over generated rows of the mean over heads of A[i, j]; of n image tokens
    int(n · (1 − min(r · generated / 20, 0.9))) with the greatest stay, and all else.

    Parameters
    ----------
    query, key, image, key_mask, cu_seqlens, max_seqlen, capacity, **attention : optional
        As in :func:`fastv`; the queries ``[B, H, M, D]`` are those of the tokens generated so far, the keys are those
        of the cache, the image is where they are. Packed queries need `cu_seqlens_q`.
    keep : int, sequence of int, or Tensor
        :func:`pyramid_ops.methods.retained.vscan_decode` gives it.

    Returns
    -------
    Keep
        For the keys and values of the cache.

    Raises
    ------
    TypeError, ValueError
        As :func:`fastv`.

    Notes
    -----
    Differs: this is a variant that is described for VScan, not in the paper, which prunes once, at layer 16, by the
    last instruction token: that is :func:`fastv` with queries and keys of layer 16. Ties go to the lower index.
    Cost: 10 launches and 1 of PyTorch; no host synchronisation.

    References
    ----------
    Zhang et al., "VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models",
    arXiv 2505.22654.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods, plans
    >>> query, key, value = torch.randn(1, 4, 3, 8), torch.randn(1, 4, 20, 8), torch.randn(1, 4, 20, 8)
    >>> keep = methods.retained.vscan_decode(10, generated=3, rate=4)
    >>> plan = methods.vscan_decode(query, key, torch.arange(20)[None] < 10, keep=keep, capacity=keep + 10)
    >>> key, value = plans.apply(plan, [key, value])
    >>> key.shape
    torch.Size([1, 4, 14, 8])
    """
    where = Where(key_mask, cu_seqlens, max_seqlen)
    scores = received(query, key, where, query_reduction="sum", **attention)
    return keep_visual("vscan_decode", scores, image, keep, where, capacity)


def aim_prune(
    query: Tensor,
    key: Tensor,
    image: Tensor,
    *,
    keep: Count,
    steps: int = 5,
    temperature: float = 0.1,
    capacity: Optional[int] = None,
    **attention: Any,
) -> Keep:
    """AIM inside the language model: the image tokens stay to which importance flows along attention.

    Rule: M = softmax(q·kᵀ / (√d · 0.1)) over all tokens; p ← p·M five times from uniform p; score = root mean square
    over heads; of the image the `keep` tokens with the greatest stay, and all text.

    Parameters
    ----------
    query, key, image, keep, capacity : optional
        As in :func:`fastv`, dense and without padding; :func:`pyramid_ops.methods.retained.aim_prune` of a layer gives
        `keep`.
    steps, temperature, **attention
        As :func:`pyramid_ops.attention_walk` takes them, and its `scale` and `precision`.

    Returns
    -------
    Keep
        Text and kept image tokens in their order.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.attention_walk` and :func:`pyramid_ops.plans.keep`.

    Notes
    -----
    Differs: the authors multiply by a full matrix for each head; ties go to the lower index, where theirs are up to
    ``topk``. For samples of one length: the walk knows no padding.
    Cost: 19 launches and 3 of PyTorch; no N × N matrix, no host synchronisation.

    References
    ----------
    Zhong et al., "AIM: Adaptive Inference of Multi-Modal LLMs via Token Merging and Pruning", arXiv 2412.03248: from
    layer 14 on.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> query, key, image = torch.randn(1, 4, 40, 8), torch.randn(1, 4, 40, 8), torch.arange(40)[None] < 32
    >>> methods.aim_prune(query, key, image, keep=methods.retained.aim_prune(32, layer=16)).counts.tolist()
    [28]
    """
    scores = attention_walk(query, key, steps=steps, temperature=temperature, **attention)
    return keep_visual("aim_prune", scores, image, keep, Where(None, None, None), capacity)


def dtoma_decode(
    scores: Tensor,
    image: Tensor,
    unused: Tensor,
    *,
    referenced: Optional[Tensor] = None,
    boost: float = 2.0,
    threshold: float = 0.1,
    steps: int = 3,
    key_mask: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    capacity: Optional[int] = None,
) -> tuple[Keep, Tensor]:
    """DToMA's pruning as it is described: image tokens go that nothing has attended to for some steps.

    Rule: with scores of what the text refers to boosted, a token is unused where its score is below 0.1; image tokens
    that are unused in so many steps one after the other go.

    Parameters
    ----------
    scores : Tensor
        ``[B, N]`` or packed ``[T]``; float16, bfloat16 or float32: what each token receives in this step, such as
        :func:`pyramid_ops.attention_importance` of its query.
    image : Tensor
        bool, like the scores: the tokens that may go.
    unused : Tensor
        int32 or int64, like the scores: for how many steps each has been unused so far, zeros at first.
    referenced : Tensor, optional
        bool, like the scores: the tokens that the text refers to.
    boost : float
        What their scores are multiplied by.
    threshold : float
        Below which a token is unused.
    steps : int
        A token that was unused in so many steps goes.
    key_mask, cu_seqlens, max_seqlen, capacity : optional
        As in :func:`fastv`.

    Returns
    -------
    (Keep, Tensor)
        Text and kept image tokens in their order, how many is in `counts` on the device; and `unused` after this step:
        for the next one ``plans.apply(plan, unused)``.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.plans.keep`, and for other shapes or dtypes.

    Notes
    -----
    A NaN is not below the threshold. Differs: the rule is described; boost and steps are not. The product of a score
    and the boost is one float32 multiplication of PyTorch.
    Cost: 3 launches and 9 of PyTorch; no host synchronisation.

    References
    ----------
    Described for DToMA (IJCAI 2025); its merging is :func:`dtoma_merge`.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods, plans
    >>> scores, image = torch.tensor([[0.9, 0.01, 0.5, 0.06]]), torch.tensor([[False, True, True, True]])
    >>> unused = torch.tensor([[0, 2, 2, 2]])
    >>> plan, unused = methods.dtoma_decode(scores, image, unused, referenced=image.roll(1, 1))
    >>> plan.indices[0, : plan.counts[0]], unused
    (tensor([0, 2, 3]), tensor([[0, 3, 0, 0]]))
    """
    op = "dtoma_decode"
    check.tensor(op, "scores", scores, "B N", "T", dtypes=check.FLOATS)
    flags(op, "image", image, scores)
    check.tensor(op, "unused", unused, "B N", "T", dtypes=(torch.int32, torch.int64))
    check.same_size(op, "unused", unused, scores.shape, scores.device)
    boost, threshold = check.float32(op, "boost", boost), check.float32(op, "threshold", threshold)
    check.integer(op, "steps", steps, 1)
    usage = scores.float()
    if referenced is not None:
        usage = torch.where(flags(op, "referenced", referenced, scores), usage * boost, usage)
    unused = torch.where(usage < threshold, unused + 1, 0)
    where = Where(key_mask, cu_seqlens, max_seqlen)
    return keep_visual(op, usage, image, None, where, capacity, candidates=image & (unused < steps)), unused
