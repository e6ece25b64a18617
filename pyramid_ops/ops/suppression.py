"""Leaders: tokens that stand for all that are like them."""

import math
from typing import Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from .._packed import ascending, samples
from ..reference import suppression as reference
from ..reference.arguments import Alike

__all__ = ["suppress"]

# The most tokens of a sample or segment: N² / 8 bytes, 512 MB, say which of them are alike.
_MOST = 1 << 16

suppress_op = Op(reference.suppress, lambda x, *_: x.new_empty(x.shape[:2], dtype=torch.int64))


def suppress(
    x: Tensor,
    threshold: Union[float, Tensor],
    *,
    scores: Optional[Tensor] = None,
    candidates: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    precision: Optional[str] = "high",
) -> Tensor:
    """For each token its leader: the best token that it is like, of tokens that are not like each other.

    Greedy: the best token becomes a leader, all that are like it join it, then the best of those that are left, and so
    on, as in non-maximum suppression.

    Parameters
    ----------
    x : Tensor
        ``[B, N, D]``, or packed ``[T, D]`` with `cu_seqlens`; uint8, float16, bfloat16 or float32; D from 1 to 16384.
    threshold : float or Tensor
        Two tokens are alike where their cosine similarity is at least this: a number, or float32, float16 or bfloat16
        ``[B]``, or ``[S]``, on the device of `x`. It is rounded up to a multiple of 2⁻³⁰. From more than 1 on no token
        joins another; at −1.5 and below all join the best one. With a NaN in a tensor no tokens of that sample are
        alike.
    scores : Tensor, optional
        ``[B, N]`` or ``[T]``; float16, bfloat16 or float32: leaders are looked for from the highest score down, then
        from the lowest index up (default: by index alone). NaN ranks above +inf. An order of tokens as a permutation
        ``p`` is that of ``-p.argsort(-1).float()``.
    candidates : Tensor, optional
        bool ``[B, N]`` or ``[T]``: tokens that lead and join (default: all).
    cu_seqlens : Tensor, optional
        int32 or int64 ``[S + 1]``: tokens of segment s, ``x[cu_seqlens[s] : cu_seqlens[s + 1]]``, join tokens of the
        same segment. Offsets are clamped to [0, T]; one below an earlier one counts as that one.
    max_seqlen : int, optional
        Tokens of the longest segment (default: T), at most 65536, as N is. Tokens of a segment past it are left out.
    precision : "grid", "high" or None
        Unit rows are rounded to multiples of 2⁻¹¹ ("grid") or of 2⁻²¹ ("high"), as in :func:`best_match`. None: "high"
        if `x` is float32, else "grid".

    Returns
    -------
    Tensor
        int64 ``[B, N]`` or ``[T]``: the index of each token's leader, its own for a leader; of packed tokens counted
        from the start of their segment. −1 for a token that is no candidate or in no segment, and for one with a norm
        that is NaN or infinite. Any number of leaders is possible: ``leader == torch.arange(N)`` says which tokens to
        keep, and ``assign_mean(x, leader, N)`` gives the mean of each cluster. An all-zero row has similarity 0 to
        everything, and leads itself whatever the threshold.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype, device, value or option, inputs that do not match, more than 65536 tokens in a
        sample or segment, or an input that requires grad.

    Notes
    -----
    Similarities are those of :func:`best_match`: exact dot products of rounded unit rows, in multiples of 2⁻³⁰. So the
    result has the same bits on every device, for any tile, batch or stride. Leaders are found by the plain greedy loop,
    or by anything with the same result: kernels keep a bit for each pair of tokens, N² / 8 bytes a sample (packed:
    T · max_seqlen / 8), and one program of each sample finds its leaders, 32 tokens at a time. Four launches, five with
    scores. No host synchronisation.

    References
    ----------
    Leader clustering (Hartigan, Clustering Algorithms, 1975, chapter 3).

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.1, 0.8]])
    >>> pyramid_ops.suppress(x[None], 0.9)
    tensor([[0, 1, 0, 1]])
    >>> pyramid_ops.suppress(x[None], 0.9, scores=torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    tensor([[2, 3, 2, 3]])
    >>> pyramid_ops.suppress(x, 0.9, cu_seqlens=torch.tensor([0, 1, 4]))
    tensor([0, 0, 1, 0])
    """
    op = "suppress"
    packed = cu_seqlens is not None
    rows, cu_seqlens, parts, max_seqlen = samples(op, x, cu_seqlens, max_seqlen)
    shape = "T" if packed else "B N"
    if scores is not None:
        check.tensor(op, "scores", scores, shape, dtypes=check.FLOATS)
        check.same_size(op, "scores", scores, x.shape[:-1], x.device)
        scores = check.rows(scores[None] if packed else scores)
    if candidates is not None:
        check.tensor(op, "candidates", candidates, shape, dtypes=(torch.bool,))
        check.same_size(op, "candidates", candidates, x.shape[:-1], x.device)
        candidates = candidates[None] if packed else candidates
    cu_seqlens = None if cu_seqlens is None else ascending(cu_seqlens)
    if max_seqlen > _MOST:
        name = "max_seqlen" if packed else "x"
        raise ValueError(f"{op}: {name}: expected at most {_MOST} tokens in a sample or segment, got {max_seqlen}")
    alike = _alike(op, threshold, rows, parts, check.limbs(op, precision, rows))
    leaders = suppress_op(rows, scores, candidates, alike, cu_seqlens, max_seqlen)
    return leaders[0] if packed else leaders


def _alike(op: str, threshold: Union[float, Tensor], x: Tensor, parts: int, limbs: int) -> Alike:
    """A threshold in units of 2⁻³⁰, beyond ±1.5 as good as there; those of a tensor as they are."""
    if isinstance(threshold, Tensor):
        check.tensor(op, "threshold", threshold, "S", dtypes=check.FLOATS)
        check.same_size(op, "threshold", threshold, (parts,), x.device)
        return Alike(threshold.resolve_neg(), 0, limbs)
    return Alike(None, math.ceil(min(max(check.number(op, "threshold", threshold), -1.5), 1.5) * 2.0**30), limbs)
