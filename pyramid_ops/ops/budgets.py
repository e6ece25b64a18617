"""How many tokens each level keeps: on the host for all samples, or on the device for each of its own."""

import functools
import math
from collections.abc import Sequence
from typing import Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from ..reference import budgets as reference
from ..reference.arguments import Amount, Bounds

__all__ = ["allocate_budgets", "allocate_budgets_batch"]

_MOST = (1 << 31) - 1
_MAX_LEVELS = 1024
# What a kernel takes as one argument for each level.
MAX_NUMBERS = 64


allocate_budgets_batch_op = Op(
    reference.allocate_budgets_batch,
    lambda weights, *_: weights.new_empty(weights.shape, dtype=torch.int32),
)


def allocate_budgets(
    total: int,
    weights: Sequence[float],
    sizes: Sequence[int],
    *,
    minimum: Union[int, Sequence[int]] = 0,
    maximum: Union[int, Sequence[int], None] = None,
    rule: str = "level0",
    remainder: str = "fraction",
    surplus: str = "finest",
) -> list[int]:
    """Split a number of tokens over levels.

    A weight of 0 switches a level off: it gets no token. First each level that is on gets its share of the total:

    * ``rule="level0"``: level k gets ``int(total * weights[k])``, never more than are left, and level 0, or the finest
      level that is on, what that leaves;
    * ``rule="largest_remainder"``: level k gets the whole part of total · w_k / Σw, and the levels with the largest
      remainders, or with ``remainder="weight"`` those with the largest weights, among equal ones the lower level, one
      more each. The weights are first rounded down to multiples of 2⁻³⁰ of the power of two above the largest, all else
      is exact: :func:`allocate_budgets_batch` gives the same. A positive weight that becomes 0 so has no share, but its
      level is on.

    Then shares are brought between `minimum` and `maximum`, which a level's size bounds too. What a level cannot take
    goes to the other levels that are on:

    * ``surplus="finest"``: finest first, each filled before the next;
    * ``surplus="weight"``: in proportion to the rounded weights, equally among levels that all have 0. Each level with
      room has a quota, surplus · w_k / Σw over these levels. Levels whose quota reaches their room are filled, and the
      rest is shared by the others, until there are none such; then each gets the whole part of its quota, and what that
      leaves goes one by one as with ``rule="largest_remainder"``.

    What minimums take beyond the total is taken from the other levels, coarsest first, each down to its minimum. So the
    sum is always `total`.

    Parameters
    ----------
    total : int
        Tokens to keep, at most what the levels that are on hold.
    weights : sequence of float
        One for each level, non-negative, with sum 1 within 1e-6; 0: the level is off.
    sizes : sequence of int
        Tokens that each level holds.
    minimum, maximum : int or sequence of int
        Bounds of each budget, for all levels or one for each. None: the size of the level. The minimum of a level that
        is off is 0.
    rule : "level0" or "largest_remainder"
        How the total is rounded to shares.
    remainder : "fraction" or "weight"
        Which levels the largest-remainder rule rounds up: "fraction" is Hamilton's method.
    surplus : "finest" or "weight"
        Where tokens go that a full level cannot take.

    Returns
    -------
    list of int
        One budget for each level.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or number of weights or bounds, weights that are negative, NaN or do not sum to 1, a total
        above the number of tokens of the levels that are on, bounds that no budgets meet, an option that is none, or a
        `remainder` other than "fraction" for a rule that leaves none.

    Examples
    --------
    >>> import pyramid_ops
    >>> pyramid_ops.allocate_budgets(273, (0.4, 0.3, 0.2, 0.1), (4096, 1024, 256, 64))
    [111, 81, 54, 27]
    >>> pyramid_ops.allocate_budgets(80, (0.4, 0.3, 0.2, 0.1), (64, 16, 4, 1))
    [59, 16, 4, 1]
    >>> pyramid_ops.allocate_budgets(273, (0.4, 0.3, 0.2, 0.1), (4096, 1024, 256, 64), rule="largest_remainder")
    [109, 82, 55, 27]
    >>> pyramid_ops.allocate_budgets(273, (0.4, 0.3, 0.2, 0.1), (4096, 1024, 256, 64), minimum=40, maximum=100)
    [100, 81, 52, 40]
    >>> pyramid_ops.allocate_budgets(40, (0, 0.5, 0, 0.5), (256, 64, 16, 4))
    [0, 36, 0, 4]
    >>> pyramid_ops.allocate_budgets(800, (0.3, 0.3, 0.4), (600, 600, 80), surplus="weight")
    [360, 360, 80]
    """
    options = minimum, maximum, rule, remainder, surplus
    return allocate("allocate_budgets", "total", "weights", total, weights, sizes, *options)


def allocate(
    op: str,
    total_name: str,
    weights_name: str,
    total: int,
    weights: Sequence[float],
    sizes: Sequence[int],
    minimum: Union[int, Sequence[int]] = 0,
    maximum: Union[int, Sequence[int], None] = None,
    rule: str = "level0",
    remainder: str = "fraction",
    surplus: str = "finest",
) -> list[int]:
    """`allocate_budgets`, whose arguments have the names that its errors give."""
    sizes = _sizes(op, sizes)
    total = token_total(op, total_name, total, sizes)
    weights = check.sequence(op, weights_name, weights)
    weights = [check.number(op, f"{weights_name}[{k}]", weight) for k, weight in enumerate(weights)]
    if len(weights) != len(sizes):
        raise ValueError(f"{op}: {weights_name}: expected one for each of {len(sizes)} levels, got {len(weights)}")
    for k, weight in enumerate(weights):
        if weight < 0:
            raise ValueError(f"{op}: {weights_name}[{k}]: expected a non-negative number, got {weight}")
    if abs(math.fsum(weights) - 1) > 1e-6:
        raise ValueError(f"{op}: {weights_name}: expected a sum of 1 within 1e-6, got {math.fsum(weights)}")
    least, most = _bounds(op, minimum, maximum, len(sizes))
    if not all(weights):  # else nothing is off, and `torch.compile` has fewer symbolic numbers to trace
        for k, (weight, low) in enumerate(zip(weights, least, strict=True)):
            if low and not weight:
                raise ValueError(f"{op}: minimum: expected 0 for level {k}, whose weight is 0, got {low}")
        sizes = [size if weight else 0 for size, weight in zip(sizes, weights, strict=True)]
        if total > sum(sizes):
            raise ValueError(
                f"{op}: {total_name}: expected at most {sum(sizes)}, the tokens of the levels whose weight is not 0, "
                f"got {total}"
            )
    most = _feasible(op, total_name, total, sizes, least, most)
    by_weight, surplus_by_weight = _choices(op, remainder, surplus)
    if check.choice(op, "rule", rule, "level0", "largest_remainder") == "level0":
        if by_weight:
            raise ValueError(f"{op}: remainder: expected 'fraction' with rule='level0', got {remainder!r}")
        budgets = _level0(total, weights)
    else:
        budgets = _shares(total, _weight_integers(weights), by_weight)

    missing = sum(max(budget - high, 0) for budget, high in zip(budgets, most, strict=True))
    budgets = [min(budget, high) for budget, high in zip(budgets, most, strict=True)]
    # Without minimums nothing is taken back; `torch.compile` would trace the comparisons of symbolic numbers for long.
    if any(least):
        missing -= sum(max(low - budget, 0) for budget, low in zip(budgets, least, strict=True))
        budgets = [max(budget, low) for budget, low in zip(budgets, least, strict=True)]
        for k in reversed(range(len(budgets))):
            extra = min(max(-missing, 0), budgets[k] - least[k])
            budgets[k] -= extra
            missing += extra
        missing = max(missing, 0)
    if surplus_by_weight:
        room = [high - budget for budget, high in zip(budgets, most, strict=True)]
        given = _by_weight(missing, _weight_integers(weights), room, by_weight)
        return [budget + extra for budget, extra in zip(budgets, given, strict=True)]
    for k, high in enumerate(most):
        extra = min(high - budgets[k], missing)
        budgets[k] += extra
        missing -= extra
    return budgets


def allocate_again(
    op: str, total_name: str, weights_name: str, total: int, weights: Sequence[float], sizes: Sequence[int]
) -> list[int]:
    """`allocate`, which remembers plain numbers: it takes longer than a launch, and most calls repeat the last one."""
    plain = type(total) is int and isinstance(weights, (list, tuple)) and not torch.compiler.is_compiling()
    if plain and {*map(type, weights), *map(type, sizes)} <= {int, float}:
        return list(_remembered(op, total_name, weights_name, total, tuple(weights), tuple(sizes)))
    return allocate(op, total_name, weights_name, total, weights, sizes)


_remembered = functools.lru_cache(1024)(allocate)


def _level0(total: int, weights: Sequence[float]) -> list[int]:
    budgets = [0] * len(weights)
    left = total
    finest = next(k for k, weight in enumerate(weights) if weight)
    for k in range(len(weights) - 1, finest, -1):
        budgets[k] = min(int(total * weights[k]), left)
        left -= budgets[k]
    budgets[finest] = left
    return budgets


def _weight_integers(weights: Sequence[float]) -> list[int]:
    exponent = math.frexp(max(weights))[1]
    return [int(math.ldexp(weight, 30 - exponent)) for weight in weights]


def _shares(total: int, weights: Sequence[int], by_weight: bool) -> list[int]:
    whole = max(sum(weights), 1)
    budgets = [total * weight // whole for weight in weights]
    keys = weights if by_weight else [total * weight % whole for weight in weights]
    for k in sorted(range(len(weights)), key=lambda k: (-keys[k], k))[: total - sum(budgets)]:
        budgets[k] += 1
    return budgets


def _by_weight(missing: int, weights: Sequence[int], room: Sequence[int], by_weight: bool) -> list[int]:
    given = [0] * len(room)
    while True:
        has_room = [extra < most for extra, most in zip(given, room, strict=True)]
        shared = [weight * free for weight, free in zip(weights, has_room, strict=True)]
        if not any(shared):
            shared = [int(free) for free in has_room]
        whole = max(sum(shared), 1)
        full = [k for k, free in enumerate(has_room) if free and missing * shared[k] // whole >= room[k]]
        if not full:
            return [a + b for a, b in zip(given, _shares(missing, shared, by_weight), strict=True)]
        for k in full:
            given[k] = room[k]
            missing -= room[k]


def _choices(op: str, remainder: str, surplus: str) -> tuple[bool, bool]:
    """Which of the two go by weight."""
    remainder = check.choice(op, "remainder", remainder, "fraction", "weight")
    return remainder == "weight", check.choice(op, "surplus", surplus, "finest", "weight") == "weight"


def token_total(op: str, name: str, total: int, sizes: Sequence[int]) -> int:
    total = check.integer(op, name, total, 0)
    if total > sum(sizes):
        raise ValueError(f"{op}: {name}: expected at most {sum(sizes)}, the tokens of the levels, got {total}")
    return total


def _sizes(op: str, sizes: Sequence[int]) -> list[int]:
    return [check.integer(op, f"sizes[{k}]", size, 0) for k, size in enumerate(check.sequence(op, "sizes", sizes))]


def _bounds(
    op: str, minimum: Union[int, Sequence[int]], maximum: Union[int, Sequence[int], None], levels: int
) -> tuple[list[int], Optional[list[int]]]:
    least = _bound(op, "minimum", minimum, levels)
    if maximum is None:
        return least, None
    most = _bound(op, "maximum", maximum, levels)
    for k, (low, high) in enumerate(zip(least, most, strict=True)):
        if low > high:
            raise ValueError(f"{op}: minimum: expected at most the maximum {high} of level {k}, got {low}")
    return least, most


def _bound(op: str, name: str, bound: Union[int, Sequence[int]], levels: int) -> list[int]:
    if not check.is_sequence(bound):
        return [check.integer(op, name, bound, 0)] * levels
    bound = check.sequence(op, name, bound)
    if len(bound) != levels:
        raise ValueError(f"{op}: {name}: expected one for each of {levels} levels, got {len(bound)}")
    return [check.integer(op, f"{name}[{k}]", value, 0) for k, value in enumerate(bound)]


def _feasible(
    op: str, total_name: str, total: int, sizes: Sequence[int], least: Sequence[int], most: Optional[Sequence[int]]
) -> list[int]:
    """The upper bounds within the sizes, for which the total and the minimums are not too large."""
    if any(least):
        for k, (low, size) in enumerate(zip(least, sizes, strict=True)):
            if low > size:
                raise ValueError(f"{op}: minimum: expected at most the {size} tokens of level {k}, got {low}")
        if sum(least) > total:
            raise ValueError(f"{op}: minimum: expected a sum of at most {total}, the {total_name}, got {sum(least)}")
    if most is None:
        return list(sizes)
    most = [min(size, high) for size, high in zip(sizes, most, strict=True)]
    if total > sum(most):
        raise ValueError(f"{op}: {total_name}: expected at most {sum(most)}, the sum of the maximums, got {total}")
    return most


def allocate_budgets_batch(
    total: Union[int, Tensor],
    weights: Tensor,
    sizes: Union[Sequence[int], Tensor],
    *,
    minimum: Union[int, Sequence[int]] = 0,
    maximum: Union[int, Sequence[int], None] = None,
    remainder: str = "fraction",
    surplus: str = "finest",
) -> Tensor:
    """Split a number of tokens over levels for each sample, on the device: the largest-remainder rule.

    The same integers as ``allocate_budgets(..., rule="largest_remainder")`` for each sample, weights normalised.

    Parameters
    ----------
    total : int or Tensor
        Tokens to keep in each sample, or int32, int64 or bool ``[B]``.
    weights : Tensor
        float32 ``[B, L]``, L from 1 to 1024; need not sum to 1. A weight of 0 switches a level off: it gets no token.
        What is not a positive finite number (NaN, negative, infinite) counts as 0; if nothing is left in a sample, all
        its levels have equal weights.
    sizes : sequence of int or Tensor
        Tokens that each level holds: L integers, or int32, int64 or bool ``[B, L]``.
    minimum, maximum : int or sequence of int
        Bounds of each budget, for all levels or one for each. None: the size of the level.
    remainder, surplus : str
        As in :func:`allocate_budgets`.

    Returns
    -------
    Tensor
        int32 ``[B, L]``. The sum of a row is the total; less, and as much as there is, where the levels that are on
        cannot hold the total.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or dtype; where `total` and `sizes` are integers, as :func:`allocate_budgets` does for
        bounds that no budgets meet if all levels are on; of more than 64 levels, for integers that are not the same for
        all of them (sizes, and with them maximums, can be a tensor).

    Notes
    -----
    Nothing on the device can be an error: sizes are clamped to 0 … 2³¹ − 1, each maximum to the size, that of a level
    that is off to 0, each minimum to the maximum, the total to 0 … sum of the maximums, and minimums that still exceed
    the total give way, coarsest level first. The sum of a row is that total, exactly. Integer arithmetic, one launch,
    no synchronisation. Up to 64 levels are ranked by comparing each with each, more by 40 counts; ``surplus="weight"``
    takes a round for each time that levels are filled, at most one for each level.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> weights = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.0, 0.0, 1.0, 2.0]])
    >>> pyramid_ops.allocate_budgets_batch(273, weights, (4096, 1024, 256, 64))
    tensor([[109,  82,  55,  27],
            [  0,   0, 209,  64]], dtype=torch.int32)
    """
    op = "allocate_budgets_batch"
    return allocate_batch(op, total, weights, sizes, minimum, maximum, remainder, surplus)


def allocate_batch(
    op: str,
    total: Union[int, Tensor],
    weights: Tensor,
    sizes: Union[Sequence[int], Tensor],
    minimum: Union[int, Sequence[int]],
    maximum: Union[int, Sequence[int], None],
    remainder: str = "fraction",
    surplus: str = "finest",
) -> Tensor:
    check.tensor(op, "weights", weights, "B L", dtypes=(torch.float32,))
    levels = weights.shape[1]
    if not 1 <= levels <= _MAX_LEVELS:
        raise ValueError(f"{op}: weights: expected 1 to {_MAX_LEVELS} levels, got {check.describe(weights)}")
    _choices(op, remainder, surplus)
    least, most = _bounds(op, minimum, maximum, levels)
    totals, size_tensor, size = None, None, [0] * levels
    if isinstance(total, Tensor):
        totals, total = check.int_vector(op, "total", total, weights), 0
    else:
        total = check.integer(op, "total", total, 0)
        if total > _MOST:
            raise ValueError(f"{op}: total: expected at most {_MOST}, got {total}")
    if isinstance(sizes, Tensor):
        check.tensor(op, "sizes", sizes, "B L", dtypes=check.INTEGERS)
        check.same_size(op, "sizes", sizes, weights.shape, weights.device)
        size_tensor = check.as_integers(sizes)
    else:
        size = _sizes(op, sizes)
        if len(size) != levels:
            raise ValueError(f"{op}: sizes: expected one for each of {levels} levels, got {len(size)}")
        if totals is None:
            _feasible(op, "total", token_total(op, "total", total, size), size, least, most)
    ceiling = [_MOST] * levels if most is None else most
    named = (("minimum", least), ("maximum", ceiling), ("sizes", size))
    least, ceiling, size = (_numbers(op, name, values) for name, values in named)
    bounds = Bounds(least, ceiling, remainder, surplus)
    return allocate_budgets_batch_op(weights.resolve_neg(), totals, total, Amount(size_tensor, size), bounds)


def _numbers(op: str, name: str, values: Sequence[int]) -> list[int]:
    """Numbers of each level as a kernel takes them; of many levels, one for all."""
    if len(values) > MAX_NUMBERS:
        if min(values) != max(values):
            expected = "a tensor or " * (name == "sizes") + f"one number for all of more than {MAX_NUMBERS} levels"
            raise ValueError(f"{op}: {name}: expected {expected}, got {min(values)} to {max(values)}")
        values = values[:1]
    return [min(value, _MOST) for value in values]
