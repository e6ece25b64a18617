"""Importance that flows along attention."""

from typing import Optional

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from .._packed import ascending
from ..reference import walk as reference
from ..reference.arguments import Softmax
from .attention import base2_scale, checked_heads

__all__ = ["attention_walk"]


attention_walk_op = Op(
    reference.attention_walk,
    lambda query, *_: query.new_empty(query.shape[0], query.shape[2], dtype=torch.float32),
)


def attention_walk(
    query: Tensor,
    key: Tensor,
    *,
    steps: int = 5,
    temperature: float = 0.1,
    scale: Optional[float] = None,
    head_reduction: str = "rms",
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    precision: Optional[str] = None,
) -> Tensor:
    """Importance that flows along attention: a few steps of p ← p · A from uniform p, without the attention matrix.

    With ``A = softmax(query @ key.T * scale / temperature)`` over all tokens, p of each head starts as 1 / N.

    Parameters
    ----------
    query, key : Tensor
        ``[B, H, N, D]`` and ``[B, Hkv, N, D]`` as attention takes them, or packed ``[T, H, D]`` and ``[T, Hkv, D]``
        with `cu_seqlens`; float16, bfloat16 or float32; H a multiple of Hkv: query head h uses key head
        h // (H // Hkv).
    steps : int
        At least 0: with 0, p stays 1 / N.
    temperature : float
        Logits are divided by it: below 1 it sharpens attention.
    scale : float, optional
        Default: 1 / √D.
    head_reduction : "rms", "mean", "sum" or "max"
        How p of heads become one score.
    cu_seqlens : Tensor, optional
        int32 or int64 ``[S + 1]``: tokens walk within their segment, from one over its tokens on. Offsets are clamped
        to [0, T]; one below an earlier one counts as that one.
    max_seqlen : int, optional
        Tokens of the longest segment (default: T). Tokens of a segment past it are left out.
    precision : "grid", "high" or None
        As in :func:`best_match`.

    Returns
    -------
    Tensor
        float32 ``[B, N]`` or ``[T]``, 0 for packed tokens of no segment: over the tokens each head's p adds up to 1,
        less what tokens with a NaN or an infinity take away: such keys get 0, such queries pass nothing on.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or option, head counts that do not divide, or an input that requires grad.

    Notes
    -----
    Attention is that of :func:`attention_importance`. Before each step p of each head is scaled by a power of two to
    just below 1, and p · A is added up as integers in units of 2⁻³⁰: the same bits on every device, for any tile or
    batch. The softmax is prepared once; a step is one pass over the N × N logits. Memory is O(N) per head. No host
    synchronisation.

    References
    ----------
    AIM (arXiv 2412.03248).

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> x = torch.tensor([[[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]]])
    >>> pyramid_ops.attention_walk(x, x, steps=0).tolist() == [[torch.tensor(1 / 3).item()] * 3]
    True
    >>> pyramid_ops.attention_walk(x, x[:, :, [0, 2, 2]]).argmax().item()
    0
    """
    op = "attention_walk"
    for name, x in (("query", query), ("key", key)):
        check.tensor(op, name, x, "B H N D" if cu_seqlens is None else "T H D", dtypes=check.FLOATS)
    q, k, packed = checked_heads(op, query, key)
    if k.shape[2] != q.shape[2]:
        raise ValueError(f"{op}: key: expected {q.shape[2]} tokens as query, got {check.describe(key)}")
    steps = check.integer(op, "steps", steps, 0)
    base2, _ = base2_scale(op, q.shape[3] ** -0.5 if scale is None else scale, None, temperature)
    check.choice(op, "head_reduction", head_reduction, "rms", "mean", "sum", "max")
    if cu_seqlens is not None:
        cu_seqlens = ascending(check.cu_seqlens(op, "cu_seqlens", cu_seqlens, q))
    elif max_seqlen is not None:
        raise ValueError(f"{op}: max_seqlen: expected only with cu_seqlens, got {max_seqlen}")
    max_seqlen = check.longest(op, "max_seqlen", max_seqlen, q.shape[2])
    softmax = Softmax(False, base2, 0.0, check.limbs(op, precision, q, k))
    p = attention_walk_op(q, k, softmax, steps, head_reduction, cu_seqlens, max_seqlen)
    return p[0] if packed else p
