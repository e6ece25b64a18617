"""Unit rows on a grid where dot products are exact."""

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from ..reference import units as reference

__all__ = ["unit_rows"]


def _unit_rows_fake(x: Tensor, limbs: int, bits: int) -> tuple[Tensor, Tensor]:
    return (
        x.new_empty(*x.shape[:2], limbs, x.shape[2], dtype=torch.float16),
        x.new_empty(x.shape[:2], dtype=torch.float32),
    )


unit_rows_op = Op(reference.unit_rows, _unit_rows_fake)


def low_limb_bits(features: int) -> int:
    """Fraction bits of the second limb: the most with which no dot product of limbs passes 2^24 grid units.

    |lo| ≤ 1/2, so |Σ lo·lo| ≤ D/4; in units of 2^(−2b) that stays within 2^24 for b ≤ 13 − log2(D)/2.
    """
    log_features = (features - 1).bit_length()
    return min(11, 13 - (log_features + 1) // 2)


def unit_rows(x: Tensor, *, limbs: int = 1) -> tuple[Tensor, Tensor]:
    """Each row as a unit vector on a grid, on which dot products are exact in any order, and its L2 norm.

    Components are multiples of 2⁻¹¹ (at most 1 in magnitude, exact in float16), so products are multiples of 2⁻²² and
    every partial sum of a dot product stays below 2: float32 accumulation is exact on tensor cores, in BLAS, anywhere.

    Parameters
    ----------
    x : Tensor
        ``[B, N, D]`` or packed ``[T, D]``; uint8, float16, bfloat16 or float32; D from 1 to 16384.
    limbs : 1 or 2
        With 2, a second limb holds the remainder · 2¹¹ on a grid of 2⁻ᵇ with b = min(11, 13 − ⌈log2(D)/2⌉), the most
        bits with which sums of products of limbs stay exact: x ≈ norm · (limb 0 + limb 1 · 2⁻¹¹).

    Returns
    -------
    units : Tensor
        float16 ``[B, N, limbs, D]`` or ``[T, limbs, D]``.
    norms : Tensor
        float32 ``[B, N]`` or ``[T]``. The row is scaled by a power of two first, so that squares neither overflow nor
        vanish. **A row is usable where 0 < norm < inf**: all-zero rows (norm 0), rows with a NaN (norm NaN) or an
        infinity (norm inf) and rows whose norm overflows float32 (norm inf) become zero rows.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or number of limbs, or an input that requires grad.

    Notes
    -----
    A component is x · s · r rounded to the grid, where s is the power of two and r = 1 / ‖x · s‖, all in float32.
    Rows are independent: the same bits on every device, for any tile, batch or stride. Rows that are not contiguous in
    their last dimension are copied first.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> units, norms = pyramid_ops.unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    >>> norms
    tensor([5., 0.])
    >>> (units[0, 0] * 2048).tolist()
    [1229.0, 1638.0]
    """
    rows = check.feature_rows("unit_rows", "x", x)
    if check.integer("unit_rows", "limbs", limbs, 1) > 2:
        raise ValueError(f"unit_rows: limbs: expected 1 or 2, got {limbs}")
    units, norms = unit_rows_op(rows, int(limbs), low_limb_bits(rows.shape[2]))
    return (units, norms) if x.dim() == 3 else (units[0], norms[0])
