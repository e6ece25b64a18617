"""Variance of channels over tokens."""

from typing import Optional

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from .._packed import ascending
from ..reference import channels as reference

__all__ = ["channel_variance"]


def _channel_variance_fake(features: Tensor, cu_seqlens: Optional[Tensor]) -> Tensor:
    samples = features.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return features.new_empty(samples, features.shape[2], dtype=torch.float32)


channel_variance_op = Op(reference.channel_variance, _channel_variance_fake)


def channel_variance(features: Tensor, *, cu_seqlens: Optional[Tensor] = None) -> Tensor:
    """Variance of each channel over the tokens of a sample or packed segment, as ``features.float().var(-2)``.

    Parameters
    ----------
    features : Tensor
        ``[B, N, D]``, or ``[T, D]``, one sample or with `cu_seqlens` packed segments; uint8, float16, bfloat16 or
        float32; D from 1 to 16384, at most 2³⁰ tokens for each sample.
    cu_seqlens : Tensor, optional
        int32 or int64 ``[S + 1]``: tokens ``cu_seqlens[s]`` to ``cu_seqlens[s + 1] - 1`` are segment s. Offsets are
        clamped to [0, T]; one below an earlier one counts as that one.

    Returns
    -------
    Tensor
        float32 ``[B, D]``, ``[D]`` or ``[S, D]``. For segments of at most 2¹⁶ tokens within 8 ulp of the exact unbiased
        variance, whatever the mean, for finite features whose squares neither overflow nor vanish; above, rounding
        grows with the tokens of a lane (see the notes). NaN for fewer than two tokens, where a feature of the channel
        is NaN or infinite, and where a sum of unequal features overflows float32. Otherwise exactly 0 where all
        features of the channel are the same finite number.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or device, or an input that requires grad.

    Notes
    -----
    Two launches, features read from memory once: the mean of each chunk of 64 tokens, what rounding took from it and
    the squared deviations; then Σ squares + Σ n · (chunk mean − mean)², over tokens − 1. Chunks begin with their
    segment. In a chunk 8 lanes each add every 8th token, over chunks 16 lanes every 16th chunk, then adjacent lanes in
    pairs, and so on: the same bits on every device, for any tile, batch or stride. Rows that are not contiguous in
    their last dimension are copied first. No host synchronisation.

    References
    ----------
    VidCom2 (arXiv 2505.14454) weighs the frames of a video by how much their channels vary.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> features = torch.tensor([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0], [5.0, 1.0], [7.0, 1.0]])
    >>> pyramid_ops.channel_variance(features, cu_seqlens=torch.tensor([0, 3, 5]))
    tensor([[1., 0.],
            [2., 0.]])
    """
    op = "channel_variance"
    rows = check.feature_rows(op, "features", features)
    check.packed_size(op, "features", rows.shape[1])
    if cu_seqlens is None:
        variance = channel_variance_op(rows, None)
        return variance if features.dim() == 3 else variance[0]
    if features.dim() == 3:
        expected = "expected only with packed [T, D] features"
        raise ValueError(f"{op}: cu_seqlens: {expected}, got {check.describe(features)}")
    cu_seqlens = check.cu_seqlens(op, "cu_seqlens", cu_seqlens, rows)
    check.packed_size(op, "cu_seqlens", cu_seqlens.shape[0])
    return channel_variance_op(rows, ascending(cu_seqlens))
