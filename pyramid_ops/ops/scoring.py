"""A score per token from its own features, and scores combined."""

from collections.abc import Sequence
from typing import Literal, Optional

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from ..reference import scoring as reference

__all__ = ["combine_scores", "token_norm", "token_variance"]

_MOST_SCORES = 64


def _token_scores_fake(features: Tensor, _: int) -> Tensor:
    return features.new_empty(features.shape[:2], dtype=torch.float32)


token_variance_op = Op(reference.token_variance, _token_scores_fake)
token_norm_op = Op(reference.token_norm, _token_scores_fake)
combine_scores_op = Op(
    reference.combine_scores,
    lambda scores, weights, normalize, cu_seqlens: scores[0].new_empty(scores[0].shape, dtype=torch.float32),
)


def token_variance(features: Tensor, *, correction: int = 1) -> Tensor:
    """Variance of each token over its features, as ``features.float().var(-1, correction=correction)``.

    Parameters
    ----------
    features : Tensor
        ``[B, N, D]`` or packed ``[T, D]``; uint8, float16, bfloat16 or float32; D from 1 to 16384.
    correction : int
        Degrees of freedom taken off: the sum of squares is divided by D − correction. At least 0.

    Returns
    -------
    Tensor
        float32 ``[B, N]`` or ``[T]``, within 8 ulp of the exact variance for finite rows whose squares neither
        overflow nor vanish, whatever their mean. NaN where D ≤ correction, where a feature is NaN or infinite, and
        where the sum of unequal features overflows float32. Otherwise exactly 0 where all features of a token are the
        same finite number.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or correction, or an input that requires grad.

    Notes
    -----
    Σ((x − mean) − rest)² / (D − correction) with rest = Σ(x − mean)/D, what rounding took from the mean, in float32 in
    a written order: the same bits on every device, for any tile, batch or stride. Features are read once. Rows that
    are not contiguous in their last dimension are copied first.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> pyramid_ops.token_variance(torch.tensor([[1.0, 2.0, 3.0, 4.0], [7.0, 7.0, 7.0, 7.0]]))
    tensor([1.6667, 0.0000])
    """
    rows = check.feature_rows("token_variance", "features", features)
    scores = token_variance_op(rows, check.integer("token_variance", "correction", correction, 0))
    return scores if features.dim() == 3 else scores[0]


def token_norm(features: Tensor, *, p: Literal[1, 2] = 2) -> Tensor:
    """Norm of each token, as ``features.float().norm(p, dim=-1)`` without overflow in the squares.

    Parameters
    ----------
    features : Tensor
        ``[B, N, D]`` or packed ``[T, D]``; uint8, float16, bfloat16 or float32; D from 1 to 16384.
    p : 1 or 2
        The L2 norm, or for 1 the sum of magnitudes.

    Returns
    -------
    Tensor
        float32 ``[B, N]`` or ``[T]``; NaN where a feature is NaN, else inf where one is infinite.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or p, or an input that requires grad.

    Notes
    -----
    The row is scaled by a power of two, squares, or magnitudes of the row as it is, are added in float32 in a written
    order: the same bits on every
    device, for any tile, batch or stride. Features are read once. Rows that are not contiguous in their last
    dimension are copied first.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> pyramid_ops.token_norm(torch.tensor([[3.0, 4.0], [3e30, 4e30]]))
    tensor([5.0000e+00, 5.0000e+30])
    >>> pyramid_ops.token_norm(torch.tensor([[3.0, -4.0]]), p=1)
    tensor([7.])
    """
    rows = check.feature_rows("token_norm", "features", features)
    if check.integer("token_norm", "p", p) not in (1, 2):
        raise ValueError(f"token_norm: p: expected 1 or 2, got {p}")
    scores = token_norm_op(rows, int(p))
    return scores if features.dim() == 3 else scores[0]


def combine_scores(
    scores: Sequence[Tensor],
    weights: Sequence[float],
    *,
    normalize: Optional[Literal["minmax"]] = None,
    cu_seqlens: Optional[Tensor] = None,
) -> Tensor:
    """Weighted sum of several scores of the same tokens, each first brought to [0, 1] within its sample if wanted.

    Parameters
    ----------
    scores : sequence of Tensor
        1 to 64 tensors ``[B, N]``, or ``[T]``, one sample or with `cu_seqlens` packed segments, of one shape; float16,
        bfloat16 or float32, which may differ; at most 2³⁰ scores for each sample.
    weights : sequence of float
        One number for each tensor, finite in float32, of any sign and sum.
    normalize : None or "minmax"
        With "minmax" each s becomes (s − min) / (max − min), where minimum and maximum are of the finite scores of
        that tensor in the same sample, or the same packed segment. Where those are equal, 0. +inf becomes 1, −inf 0,
        NaN stays NaN: neither changes the score of another token.
    cu_seqlens : Tensor, optional
        int32 or int64 ``[S + 1]``: tokens ``cu_seqlens[s]`` to ``cu_seqlens[s + 1] - 1`` are segment s.

    Returns
    -------
    Tensor
        float32 ``[B, N]`` or ``[T]``. With `cu_seqlens` exactly 0 for tokens of no segment, whether normalised or not.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype, device, value or option, or an input that requires grad.

    Notes
    -----
    Σ w_k · s_k in float32, each product rounded, added in ascending k from +0. A normalised score is within 3 ulp of
    the exact one unless it is subnormal, never outside [0, 1], and in the order of the scores; where max − min
    overflows, all is halved first. One launch, with "minmax" two and a fill: limits are integer keys, combined with
    integer atomics. The same bits on every device, for any tile, batch or stride. No host synchronisation; offsets on
    the device cannot make it fault: a token is in one segment at most, and where offsets descend, in one that a search
    finds.

    References
    ----------
    PTP (arXiv 2509.15704) scores tokens by (1 − α) · b + α · c with b the min-max-normalised saliency: first
    ``b = combine_scores([saliency], [1.0], normalize="minmax")``, then ``combine_scores([b, c], [1 - alpha, alpha])``.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> saliency, attention = torch.tensor([[3.0, 5.0, 7.0]]), torch.tensor([[0.5, 0.25, 0.0]])
    >>> pyramid_ops.combine_scores([saliency, attention], [1.0, 2.0])
    tensor([[4.0000, 5.5000, 7.0000]])
    >>> pyramid_ops.combine_scores([saliency, attention], [0.5, 0.5], normalize="minmax")
    tensor([[0.5000, 0.5000, 0.5000]])
    """
    op = "combine_scores"
    if not isinstance(scores, (list, tuple)):
        raise TypeError(f"{op}: scores: expected a list or tuple of tensors, got {check.describe(scores)}")
    if not 1 <= len(scores) <= _MOST_SCORES:
        raise ValueError(f"{op}: scores: expected 1 to {_MOST_SCORES} tensors, got {len(scores)}")
    for k, x in enumerate(scores):
        check.tensor(op, f"scores[{k}]", x, *(("B N", "T") if cu_seqlens is None else ("T",)), dtypes=check.FLOATS)
        check.same_size(op, f"scores[{k}]", x, scores[0].shape, scores[0].device)
    check.packed_size(op, "scores", scores[0].shape[-1])
    numbers = [check.number(op, f"weights[{k}]", w) for k, w in enumerate(check.sequence(op, "weights", weights))]
    if len(numbers) != len(scores):
        raise ValueError(f"{op}: weights: expected one for each of {len(scores)} tensors, got {len(numbers)}")
    for k, weight in enumerate(numbers):
        if abs(weight) > check.FLOAT32_MAX:
            raise ValueError(f"{op}: weights[{k}]: expected a number that is finite in float32, got {weight}")
    if normalize is not None and not (isinstance(normalize, str) and normalize == "minmax"):
        raise ValueError(f"{op}: normalize: expected None or 'minmax', got {check.describe(normalize)}")
    rows = [x.resolve_neg() if x.dim() == 2 else x.resolve_neg()[None] for x in scores]
    if cu_seqlens is not None:
        cu_seqlens = check.cu_seqlens(op, "cu_seqlens", cu_seqlens, rows[0])
        check.packed_size(op, "cu_seqlens", cu_seqlens.shape[0])
    combined = combine_scores_op(rows, numbers, normalize is not None, cu_seqlens)
    return combined if scores[0].dim() == 2 else combined[0]
