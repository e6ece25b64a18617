"""How much tokens match a text, without the matrix."""

from typing import Literal, Optional

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from ..reference import relevance as reference
from ..reference.arguments import Masks, Segments, Similarity
from .attention import base2_scale, checked_segments

__all__ = ["text_relevance"]


def _text_relevance_fake(
    tokens: Tensor, text: Tensor, masks: Masks, of: Segments, similarity: Similarity, reduction: str
) -> Tensor:
    like = text if reduction == "softmax" else tokens
    return like.new_empty(like.shape[:2], dtype=torch.float32)


text_relevance_op = Op(reference.text_relevance, _text_relevance_fake)


def text_relevance(
    tokens: Tensor,
    text: Tensor,
    *,
    reduction: Literal["max", "mean", "var", "count", "softmax"] = "max",
    scale: Optional[float] = None,
    text_mask: Optional[Tensor] = None,
    precision: Optional[str] = None,
    token_mask: Optional[Tensor] = None,
    metric: Literal["dot", "cosine"] = "dot",
    threshold: Optional[float] = None,
    cu_seqlens_tokens: Optional[Tensor] = None,
    cu_seqlens_text: Optional[Tensor] = None,
    max_seqlen_tokens: Optional[int] = None,
    max_seqlen_text: Optional[int] = None,
) -> Tensor:
    """How much each visual token matches the text, or each text token the visual ones: without the N × T matrix.

    The similarity of a visual and a text token is ``tokens @ text.T * scale``, or their cosine times `scale`.

    Parameters
    ----------
    tokens, text : Tensor
        ``[B, N, D]`` and ``[B, T, D]``, visual and text tokens, or packed ``[Tn, D]`` and ``[Tt, D]``; float16,
        bfloat16 or float32; D from 1 to 16384.
    reduction : "max", "mean", "var", "count" or "softmax"
        The greatest or the mean similarity over text tokens: the relevance of visual tokens to an instruction. Its
        unbiased variance; or how many text tokens have one above `threshold`. Or the mean over visual tokens of the
        softmax over the text, by which SparseVLM chooses its raters: the text tokens above their mean
        (:func:`segment_threshold`).
    scale : float, optional
        Above 0. Default: 1 / √D; for "softmax" and cosines 1.
    text_mask : Tensor, optional
        bool ``[B, T]``, packed ``[Tt]``: the text tokens that count (default: all).
    precision : "grid", "high" or None
        As in :func:`best_match`.
    token_mask : Tensor, optional
        bool ``[B, N]``, packed ``[Tn]``: the visual tokens that count (default: all).
    metric : "dot" or "cosine"
        Cosines not for "softmax".
    threshold : float, optional
        For "count", and only there.
    cu_seqlens_tokens, cu_seqlens_text : Tensor, optional
        int32 or int64 ``[S + 1]``: segments of packed rows. An offset outside the tensor is clamped, one below an
        earlier one counts as that one.
    max_seqlen_tokens, max_seqlen_text : int, optional
        Rows of the longest segment (default: all rows); rows of a segment past it are left out.

    Returns
    -------
    Tensor
        float32 ``[B, N]`` or ``[Tn]``, for "softmax" ``[B, T]`` or ``[Tt]``.

        All but "softmax": NaN for a visual token with a NaN or an infinity. Such text tokens do not count. Where no
        text token of a sample does, the greatest is −inf, the mean and the count 0; the variance is NaN where fewer
        than two do. A visual token that does not count, or is in no segment, has −inf for "max" and else 0.

        "softmax": 0 for a text token that does not count. A visual token with a NaN or an infinity, or one that sees
        no text, adds 0 to the mean over all visual tokens that count.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or option, or an input that requires grad.

    Notes
    -----
    Cosines of unit rows are exact (:func:`unit_rows`) and norms are multiplied back. The mean is a sum of integers in
    units of 2⁻³⁰ of (a power of two above) the largest text norm; the variance one of squares of such integers less
    their mean, in units of 2⁻²⁹, exact before its division; the softmax is that of :func:`attention_importance`: the
    same bits on every device, for any tile or batch. Norms and norms · scale above 2⁶⁰ count as 2⁶⁰. No host
    synchronisation.

    References
    ----------
    Pyramid Token Pruning (arXiv 2509.15704): "max". SparseVLM (arXiv 2410.04417): "softmax".

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> tokens = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    >>> text = torch.tensor([[[0.0, 3.0], [4.0, 0.0], [0.0, 9.0]]])
    >>> mask = torch.tensor([[True, True, False]])
    >>> pyramid_ops.text_relevance(tokens, text, scale=1.0, text_mask=mask)
    tensor([[4., 6.]])
    >>> pyramid_ops.text_relevance(tokens, text, metric="cosine", reduction="count", threshold=0.9)
    tensor([[1., 2.]])
    """
    op = "text_relevance"
    check.choice(op, "reduction", reduction, "max", "mean", "var", "count", "softmax")
    cosine = check.choice(op, "metric", metric, "dot", "cosine") == "cosine"
    if cosine and reduction == "softmax":
        raise ValueError(f"{op}: metric: expected 'dot' for the reduction 'softmax', got 'cosine'")
    if (threshold is None) == (reduction == "count"):
        expected = "a number" if reduction == "count" else "only with the reduction 'count'"
        raise ValueError(f"{op}: threshold: expected {expected}, got {threshold}")
    threshold = 0.0 if threshold is None else check.float32(op, "threshold", threshold)
    packed = isinstance(tokens, Tensor) and tokens.dim() == 2
    rows = []
    for name, x, layout in (("tokens", tokens, "B N D"), ("text", text, "B T D")):
        check.tensor(op, name, x, layout, "T D", dtypes=check.FLOATS)
        check.features(op, name, x)
        rows.append(check.rows(x[None] if packed and x.dim() == 2 else x))
    x, words = rows
    if text.dim() != tokens.dim() or [*words.shape[::2]] != [*x.shape[::2]] or text.device != tokens.device:
        raise ValueError(
            f"{op}: text: expected the batch size, feature size and device of tokens ({check.describe(tokens)}), got "
            f"{check.describe(text)}"
        )
    if scale is None:
        scale = 1.0 if cosine or reduction == "softmax" else tokens.shape[-1] ** -0.5
    base2_scale(op, scale, None, 1.0)
    masks = []
    for name, mask, of, layout in (("token_mask", token_mask, tokens, "B N"), ("text_mask", text_mask, text, "B T")):
        if mask is not None:
            check.tensor(op, name, mask, "T" if packed else layout, dtypes=(torch.bool,))
            check.same_size(op, name, mask, of.shape[:-1], tokens.device)
            mask = mask[None] if packed else mask
        masks.append(mask)
    offsets, longest = (cu_seqlens_tokens, cu_seqlens_text), (max_seqlen_tokens, max_seqlen_text)
    segments, _ = checked_segments(op, x, words, packed, offsets, longest, ("tokens", "text"))
    similarity = Similarity(cosine, float(scale), threshold, check.limbs(op, precision, tokens, text))
    relevance = text_relevance_op(x, words, Masks(*masks), segments, similarity, reduction)
    return relevance[0] if packed else relevance
