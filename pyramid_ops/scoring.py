"""A score per token from its own features."""

import torch
from torch import Tensor

from . import _checks as check
from ._dispatch import Op
from .numerics import feature_rows


def _scores_fake(features: Tensor, correction: int = 0) -> Tensor:
    return features.new_empty(features.shape[:2], dtype=torch.float32)


_token_variance = Op("scoring", "token_variance", _scores_fake)
_token_norm = Op("scoring", "token_norm", _scores_fake)


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
    rows = feature_rows("token_variance", "features", features)
    scores = _token_variance(rows, check.integer("token_variance", "correction", correction, 0))
    return scores if features.dim() == 3 else scores[0]


def token_norm(features: Tensor) -> Tensor:
    """L2 norm of each token, as ``features.float().norm(dim=-1)`` without overflow in the squares.

    Parameters
    ----------
    features : Tensor
        ``[B, N, D]`` or packed ``[T, D]``; uint8, float16, bfloat16 or float32; D from 1 to 16384.

    Returns
    -------
    Tensor
        float32 ``[B, N]`` or ``[T]``; NaN where a feature is NaN, else inf where one is infinite.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or dtype, or an input that requires grad.

    Notes
    -----
    The row is scaled by a power of two, squares are added in float32 in a written order: the same bits on every
    device, for any tile, batch or stride. Features are read once. Rows that are not contiguous in their last
    dimension are copied first.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> pyramid_ops.token_norm(torch.tensor([[3.0, 4.0], [3e30, 4e30]]))
    tensor([5.0000e+00, 5.0000e+30])
    """
    scores = _token_norm(feature_rows("token_norm", "features", features))
    return scores if features.dim() == 3 else scores[0]
