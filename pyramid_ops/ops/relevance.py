"""How much tokens match a text, without the matrix."""

from typing import Optional

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from ..reference import relevance as reference
from ..reference.arguments import Queries, Reduction, Segments, Softmax, Span
from .attention import attention_importance_op, base2_scale

__all__ = ["text_relevance"]


def _text_relevance_fake(tokens: Tensor, text: Tensor, reduction: str, scale: float, limbs: int) -> Tensor:
    return tokens.new_empty(tokens.shape[:2], dtype=torch.float32)


text_relevance_op = Op(reference.text_relevance, _text_relevance_fake)


def text_relevance(
    tokens: Tensor,
    text: Tensor,
    *,
    reduction: str = "max",
    scale: Optional[float] = None,
    text_mask: Optional[Tensor] = None,
    precision: Optional[str] = None,
) -> Tensor:
    """How much each visual token matches the text, or each text token the visual ones: without the N × T matrix.

    Parameters
    ----------
    tokens, text : Tensor
        ``[B, N, D]`` and ``[B, T, D]``, visual and text tokens; float16, bfloat16 or float32; D from 1 to 16384.
    reduction : "max", "mean" or "softmax"
        The greatest or the mean over text tokens of ``tokens @ text.T * scale``: the relevance of visual tokens to an
        instruction. Or the mean over visual tokens of its softmax over the text, by which SparseVLM chooses its raters:
        the text tokens above their mean.
    scale : float, optional
        Above 0. Default: 1 / √D, for "softmax" 1.
    text_mask : Tensor, optional
        bool ``[B, T]``: the text tokens that count (default: all).
    precision : "grid", "high" or None
        As in :func:`best_match`.

    Returns
    -------
    Tensor
        float32 ``[B, N]``, for "softmax" ``[B, T]``.

        "max" and "mean": NaN for a visual token with a NaN or an infinity. Such text tokens do not count. Where no text
        token of a sample does, the greatest is −inf and the mean 0.

        "softmax": 0 for a text token that does not count. A visual token with a NaN or an infinity, or one that sees
        no text, adds 0 to the mean over all N.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or option, or an input that requires grad.

    Notes
    -----
    Cosines of unit rows are exact (:func:`unit_rows`) and norms are multiplied back. The mean is a sum of integers in
    units of 2⁻³⁰ of (a power of two above) the largest text norm, the softmax is that of :func:`attention_importance`:
    the same bits on every device, for any tile or batch. Norms and norms · scale above 2⁶⁰ count as 2⁶⁰. No host
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
    """
    op = "text_relevance"
    for name, x in (("tokens", tokens), ("text", text)):
        check.tensor(op, name, x, "B N D" if name == "tokens" else "B T D", dtypes=check.FLOATS)
        check.features(op, name, x)
    batch, count, features = tokens.shape
    length = text.shape[1]
    if text.shape[0] != batch or text.shape[2] != features or text.device != tokens.device:
        raise ValueError(
            f"{op}: text: expected the batch size, feature size and device of tokens ({check.describe(tokens)}), got "
            f"{check.describe(text)}"
        )
    softmax = check.choice(op, "reduction", reduction, "max", "mean", "softmax") == "softmax"
    if scale is None:
        scale = 1.0 if softmax else features**-0.5
    base2, _ = base2_scale(op, scale, None, 1.0)
    limbs = check.limbs(op, precision, tokens, text)
    if text_mask is not None:
        check.tensor(op, "text_mask", text_mask, "B T", dtypes=(torch.bool,))
        check.same_size(op, "text_mask", text_mask, [batch, length], tokens.device)
        # Rows with a NaN are of no use, as keys and as text.
        text = torch.where(text_mask[:, :, None], text, torch.nan)
    tokens, text = check.rows(tokens), check.rows(text)
    if not softmax:
        return text_relevance_op(tokens, text, reduction, float(scale), limbs)
    return attention_importance_op(
        tokens[:, None],
        text[:, None],
        Queries(),
        Segments(None, None, count, length),
        Span(0, length),
        Softmax(False, base2, 0.0, limbs),
        Reduction("sum", "mean", True),
    )
