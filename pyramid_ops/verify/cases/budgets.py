"""Descriptions of the ops in `ops/budgets.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import pyramid_ops

from ...ops.budgets import allocate_budgets_batch_op
from ...reference.arguments import Amount, Bounds
from ..describe import Call, Case, Cases, Description
from ..inputs import Source


def special_weights(batch: int, levels: int, seed: int) -> Tensor:
    """Weights of all magnitudes, ties, zeros, and rows with what is no weight."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, levels, generator=generator)
    special = [0.0, -0.0, torch.nan, -torch.nan, torch.inf, -torch.inf, -1.0, 1e-45, 1e-39, 1e-38, 3e38, 1.0, 2.0**-30]
    values = torch.tensor(special)[torch.randint(0, len(special), (batch, levels), generator=generator)]
    x = torch.where(torch.rand(batch, levels, generator=generator) < 0.2, values, x)
    x[1::5] = values[1::5]
    x[2::5] = x[2::5, :1]
    x[3::5] *= 2.0 ** -(torch.arange(levels) * 7)
    x[4::5] = torch.tensor(special[:7])[torch.arange(levels) % 7]
    return x


RULES = [(remainder, surplus) for remainder in ("fraction", "weight") for surplus in ("finest", "weight")]


def allocate_budgets_batch_golden() -> Cases:
    most = (1 << 31) - 1
    for levels in (1, 3, 4, 13):
        source = Source(f"{levels}")
        weights = source.floats(20, levels, low=-20, high=1, signed=False)
        weights[1::4] = source.scores(5, levels, torch.float32)
        bounds = Bounds([0] * levels, [most] * levels), Bounds([3] * levels, [40 + 7 * k for k in range(levels)])
        for k, limits in enumerate(bounds):
            size = [4096 >> (2 * level % 14) for level in range(levels)]
            yield Case(f"{levels}-bounds{k}", (weights, None, 273, Amount(None, size), limits))
            total, sizes = source.integers(-9, 900, 20), source.integers(-9, 300, 20, levels, dtype=torch.int32)
            yield Case(f"{levels}-tensors-bounds{k}", (weights, total, 0, Amount(sizes, [0] * levels), limits))
    for levels in (4, 200):
        source = Source(f"{levels}-rules")
        weights = source.floats(20, levels, low=-8, high=1, signed=False)
        total, sizes = source.integers(-9, 60 * levels, 20), source.integers(-9, 99, 20, levels, dtype=torch.int32)
        for remainder, surplus in RULES:
            bounds = Bounds([3], [most], remainder, surplus)
            yield Case(f"{levels}-{remainder}-{surplus}", (weights, total, 0, Amount(sizes, [0]), bounds))


def allocate_budgets_batch_bits() -> Cases:
    largest = (1 << 31) - 1
    for levels in (1, 2, 3, 4, 5, 8, 13, 64):
        generator = torch.Generator().manual_seed(levels)
        weights = special_weights(40, levels, levels)
        size = [(1 << 12) >> (2 * k % 14) for k in range(levels)]
        totals = torch.randint(-9, 2 * sum(size), (40,), generator=generator)
        sizes = torch.randint(-9, 300, (40, levels), generator=generator)
        free = Bounds([0] * levels, [largest] * levels)
        bounds = Bounds([3 + k % 2 for k in range(levels)], [40 + 7 * k for k in range(levels)])
        for k, limits in enumerate((free, bounds)):
            for total in (5, 273):
                args = (weights, None, total, Amount(None, size), limits)
                yield Case(f"{levels}-{total}-bounds{k}", args)
            args = (weights, totals, 0, Amount(sizes.to(torch.int32), [0] * levels), limits)
            yield Case(f"{levels}-tensors-bounds{k}", args)
        args = (weights, None, largest, Amount(None, [largest] * levels), free)
        yield Case(f"{levels}-largest", args)
        extremes = torch.tensor([-(1 << 62), (1 << 62), 5, largest])
        huge = extremes[torch.randint(0, 4, (40, levels), generator=generator)]
        args = (weights, huge[:, 0].contiguous(), 0, Amount(huge, [0] * levels), free)
        yield Case(f"{levels}-extreme-tensors", args)
    for levels in (1, 5, 64, 65, 200, 1024):
        weights = special_weights(10, levels, levels)
        totals = torch.randint(-9, 45 * levels, (10,), generator=generator)
        sizes = torch.randint(-9, 99, (10, levels), generator=generator)
        for remainder, surplus in RULES:
            bounds = Bounds([3], [largest], remainder, surplus)
            yield Case(f"{levels}-{remainder}-{surplus}", (weights, totals, 0, Amount(sizes, [0]), bounds))
        huge = Amount(None, [largest])
        bounds = Bounds([0], [largest >> 1], "fraction", "weight")
        yield Case(f"{levels}-largest-weight", (weights, None, largest, huge, bounds))
    for batch in (0, 1, 65):
        sizes = Amount(None, [4096, 1024, 256, 64])
        args = (special_weights(batch, 4, batch), None, 273, sizes, Bounds([0] * 4, [largest] * 4))
        yield Case(f"batch-{batch}", args)
    args = (special_weights(4, 9, 0).T, None, 20, Amount(None, [9, 9, 9, 9]), Bounds([0] * 4, [largest] * 4))
    yield Case("transposed", args)


def allocate_budgets_batch_ones() -> Iterator[Call]:
    allocate, one, count = pyramid_ops.allocate_budgets_batch, torch.empty(1, 1), torch.ones(1, dtype=torch.int64)
    yield Call("allocate_budgets_batch", lambda: allocate(1, one, [1], minimum=1, maximum=1))
    yield Call("allocate_budgets_batch-tensors", lambda: allocate(count, one, count[:, None]))


def allocate_budgets_batch_compiled() -> Iterator[Call]:
    for levels in (4, 64, 1024):
        weights = torch.empty(64, levels)
        allocate = functools.partial(pyramid_ops.allocate_budgets_batch, 20, weights, [64] * levels)
        yield Call(f"allocate_budgets_batch, {levels} levels", allocate)
        by_weight = functools.partial(allocate, remainder="weight", surplus="weight")
        yield Call(f"allocate_budgets_batch, {levels} levels, by weight", by_weight)


def budget(so_far: Any) -> None:
    """Budgets of each sample, within bounds."""
    batch, levels = so_far.integer(0, 5), so_far.choice(so_far.integer(1, 6), 70)
    weights = so_far.tensor(batch, levels, dtype=torch.float32, kinds=("plain", "ties", "bits"))
    sizes = [so_far.integer(0, 300) for _ in range(levels)]
    remainder, surplus = so_far.choice(*RULES)
    options = {"remainder": remainder, "surplus": surplus}
    if levels == 70:
        sizes = sizes[:1] * levels
    elif so_far.choice(True, False):
        options["maximum"] = [so_far.integer(0, 300) for _ in range(levels)]
    total = torch.tensor([so_far.integer(-5, 900) for _ in range(batch)], dtype=torch.int32)
    so_far.same(pyramid_ops.allocate_budgets_batch, total, weights, sizes, **options)


DESCRIPTIONS = [
    Description(
        allocate_budgets_batch_op,
        allocate_budgets_batch_golden,
        allocate_budgets_batch_bits,
        allocate_budgets_batch_ones,
        allocate_budgets_batch_compiled,
        budget,
        "test_allocate_budgets_batch",
        dtypes=(torch.float32,),
        scattered=("_allocate_budgets_kernel",),
    ),
]
