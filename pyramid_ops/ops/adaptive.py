"""Budgets that follow the difficulty of a sample's instruction."""

import math
from collections.abc import Sequence
from typing import Optional, Union

from torch import Tensor

from .. import _checks as check
from .._op import Op
from ..reference import adaptive as reference
from ..reference.arguments import Difficulty
from .budgets import MAX_NUMBERS, allocate_batch
from .regions import region_variance

__all__ = ["adaptive_budgets", "adaptive_weights"]

_PTP_WEIGHTS = ((0.15, 0.20, 0.35, 0.30), (0.25, 0.30, 0.25, 0.20), (0.35, 0.30, 0.20, 0.15))


adaptive_weights_op = Op(
    reference.adaptive_weights,
    lambda variance, lengths, length, difficulty: variance.new_empty(
        variance.shape[0], len(difficulty.rows) // (len(difficulty.thresholds) + 1)
    ),
)


def adaptive_weights(
    instruction: Tensor,
    *,
    lengths: Optional[Tensor] = None,
    weights: Sequence[Sequence[float]] = _PTP_WEIGHTS,
    thresholds: Sequence[float] = (0.3, 0.7),
    length_scale: float = 0.1,
    variance_scale: float = 10.0,
) -> Tensor:
    """Level weights that follow how difficult a sample's instruction is.

    difficulty = sigmoid(length_scale · length + variance_scale · variance); below the first threshold a sample gets the
    first row of `weights`, below the second the second row, and so on, else the last.

    Parameters
    ----------
    instruction : Tensor
        Features of the instruction tokens ``[B, T, D]``, as :func:`region_variance` takes them; T at least 1. Their
        variance is the unbiased variance over all features of all tokens of a sample.
    lengths : Tensor, optional
        int32, int64 or bool ``[B]``: tokens of each instruction, the rest is padding. Default: T.
    weights : sequence of sequence of float
        One row for each difficulty, easiest first, one non-negative float for each level. As weights of budgets, 0
        switches a level off.
    thresholds : sequence of float
        Ascending, between 0 and 1; one fewer than rows.
    length_scale, variance_scale : float
        The two coefficients.

    Returns
    -------
    Tensor
        float32 ``[B, L]``, rows of `weights`.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or value, or an input that requires grad.

    Notes
    -----
    No sigmoid is computed: length_scale · length + variance_scale · variance, in float32 with each step rounded, is
    compared with log(t / (1 − t)), which the host computes. An undefined variance (fewer than two features, NaN) counts
    as most difficult. As length and variance are not negative, the default coefficients give at least sigmoid(0) = 0.5
    and with nine tokens more than 0.7: the first row is never chosen, and the second by short instructions only.

    References
    ----------
    The adaptive budget described for PTP (arXiv 2509.15704).

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> pyramid_ops.adaptive_weights(torch.zeros(1, 4, 16))
    tensor([[0.2500, 0.3000, 0.2500, 0.2000]])
    """
    return _weights("adaptive_weights", instruction, lengths, weights, thresholds, length_scale, variance_scale)


def _weights(
    op: str,
    instruction: Tensor,
    lengths: Optional[Tensor],
    weights: Sequence[Sequence[float]],
    thresholds: Sequence[float],
    length_scale: float,
    variance_scale: float,
) -> Tensor:
    check.features(op, "instruction", check.tensor(op, "instruction", instruction, "B T D"))
    tokens = instruction.shape[1]
    if not tokens:
        raise ValueError(f"{op}: instruction: expected at least one token, got {check.describe(instruction)}")
    limits = [
        check.number(op, f"thresholds[{k}]", value)
        for k, value in enumerate(check.sequence(op, "thresholds", thresholds))
    ]
    if not all(low < high for low, high in zip([0.0, *limits], [*limits, 1.0], strict=True)):
        raise ValueError(f"{op}: thresholds: expected ascending numbers between 0 and 1, got {limits}")
    rows = [check.sequence(op, f"weights[{k}]", row) for k, row in enumerate(check.sequence(op, "weights", weights))]
    if len(rows) != len(limits) + 1 or not 1 <= len(rows[0]) <= MAX_NUMBERS or len({len(row) for row in rows}) > 1:
        raise ValueError(
            f"{op}: weights: expected {len(limits) + 1} rows of one length, 1 to {MAX_NUMBERS}, got rows of "
            f"{[len(row) for row in rows]}"
        )
    flat = []
    for k, row in enumerate(rows):
        for i, weight in enumerate(row):
            if check.float32(op, f"weights[{k}][{i}]", weight) < 0:
                raise ValueError(f"{op}: weights[{k}][{i}]: expected a non-negative number, got {weight}")
            flat.append(float(weight))
    named = (("length_scale", length_scale), ("variance_scale", variance_scale))
    by_length, by_variance = (check.float32(op, name, scale) for name, scale in named)
    counts = None if lengths is None else check.int_vector(op, "lengths", lengths, instruction)
    variance = region_variance(instruction, (1, tokens), (1, 1), lengths=counts)[:, 0]
    logits = [math.log(limit / (1 - limit)) for limit in limits]
    return adaptive_weights_op(variance, counts, tokens, Difficulty(by_length, by_variance, logits, flat))


def adaptive_budgets(
    total: Union[int, Tensor],
    instruction: Tensor,
    sizes: Union[Sequence[int], Tensor],
    *,
    lengths: Optional[Tensor] = None,
    weights: Sequence[Sequence[float]] = _PTP_WEIGHTS,
    thresholds: Sequence[float] = (0.3, 0.7),
    length_scale: float = 0.1,
    variance_scale: float = 10.0,
    minimum: Union[int, Sequence[int]] = 0,
    maximum: Union[int, Sequence[int], None] = None,
) -> Tensor:
    """Budgets of each sample by the difficulty of its instruction, on the device, with an exact sum.

    :func:`allocate_budgets_batch` with the weights of :func:`adaptive_weights`.

    Parameters
    ----------
    total, sizes, minimum, maximum
        As :func:`allocate_budgets_batch` takes them.
    instruction, lengths, weights, thresholds, length_scale, variance_scale
        As :func:`adaptive_weights` takes them.

    Returns
    -------
    Tensor
        int32 ``[B, L]``. The sum of a row is the total, or what the levels hold that its weights leave on.

    Raises
    ------
    TypeError, ValueError
        As the two functions do.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> pyramid_ops.adaptive_budgets(273, torch.zeros(1, 4, 16), (4096, 1024, 256, 64))
    tensor([[68, 82, 68, 55]], dtype=torch.int32)
    """
    op = "adaptive_budgets"
    rows = _weights(op, instruction, lengths, weights, thresholds, length_scale, variance_scale)
    return allocate_batch(op, total, rows, sizes, minimum, maximum)
