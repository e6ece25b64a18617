"""Similarity of paired rows."""

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from ..reference import pairs as reference

__all__ = ["paired_similarity"]

paired_similarity_op = Op(
    reference.paired_similarity,
    lambda x, y: x.new_empty(x.shape[:2], dtype=torch.float32),
)


def paired_similarity(x: Tensor, y: Tensor) -> Tensor:
    """Cosine similarity of each row with its partner, row n of `x` with row n of `y`, both read once.

    Parameters
    ----------
    x : Tensor
        ``[B, N, D]`` or packed ``[T, D]``; uint8, float16, bfloat16 or float32; D from 1 to 16384.
    y : Tensor
        The partners: the shape of `x`, or 1 in place of B, N or T for rows that are partners of several; any of these
        dtypes. May share memory with `x`, as frames shifted by one do.

    Returns
    -------
    Tensor
        float32 ``[B, N]`` or ``[T]``: the exact dot product of the unit rows, these rounded to multiples of 2⁻²¹, in
        multiples of 2⁻³⁰; the bits of :func:`best_match` of one key each with ``precision="high"``. Within 2⁻²¹ · √D
        of the exact cosine, mostly within 2⁻²¹. 0 where a row is all zeros, −inf where a norm is NaN or infinite.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or dtype, inputs that do not match, or an input that requires grad.

    Notes
    -----
    One launch. Products are added up as integers: the same bits on every device, for any tile, batch or stride. Rows
    that are not contiguous in their last dimension are copied first; a partner of several is never expanded in memory.

    References
    ----------
    EVS (arXiv 2510.14624) drops the patches of a video that are like the same patch of the frame before: of frames
    ``[F, N, D]``, ``paired_similarity(frames[1:], frames[:-1])``.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> frames = torch.tensor([[[1.0, 0.0], [3.0, 4.0]], [[2.0, 0.0], [4.0, -3.0]]])
    >>> pyramid_ops.paired_similarity(frames[1:], frames[:-1])
    tensor([[1., 0.]])
    """
    op = "paired_similarity"
    rows, partners = check.feature_rows(op, "x", x), check.feature_rows(op, "y", y)
    sizes = zip(y.shape[:-1], x.shape[:-1], strict=True) if y.dim() == x.dim() else [(0, 1)]
    if y.shape[-1] != x.shape[-1] or y.device != x.device or any(of not in (1, size) for of, size in sizes):
        raise ValueError(
            f"{op}: y: expected the shape, or 1 in place of all but the last size, and the device of x "
            f"({check.describe(x)}), got {check.describe(y)}"
        )
    similarity = paired_similarity_op(rows, partners.expand_as(rows))
    return similarity if x.dim() == 3 else similarity[0]
