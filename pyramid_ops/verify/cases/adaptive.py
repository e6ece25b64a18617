"""Descriptions of the ops in `ops/adaptive.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

import pyramid_ops

from ...ops.adaptive import adaptive_weights_op
from ...reference.arguments import Difficulty
from ..describe import Call, Case, Cases, Description
from ..inputs import Source


def adaptive_weights_golden() -> Cases:
    rows = [0.15, 0.2, 0.35, 0.3, 0.25, 0.3, 0.25, 0.2, 0.35, 0.3, 0.2, 0.15]
    source = Source("difficulty")
    variance = torch.cat((source.scores(1, 20, torch.float32)[0], source.floats(20, signed=False)))
    limits = [-0.8472978603872036, 0.8472978603872034]
    yield Case("one-length", (variance, None, 3, Difficulty(0.1, 10.0, limits, rows)))
    yield Case("lengths", (variance, source.integers(-3, 50, 40), 0, Difficulty(-0.1, 3.0, limits, rows)))


def adaptive_weights_bits() -> Cases:
    rows = [0.15, 0.2, 0.35, 0.3, 0.25, 0.3, 0.25, 0.2, 0.35, 0.3, 0.2, 0.15]
    limits = [-0.8472978603872036, 0.8472978603872034]
    special = [0.0, 0.0747298, 0.07472979, -1.0, 1e-3, 1.0, torch.inf, torch.nan, -torch.inf, -0.0, 3e38]
    variance = torch.tensor(special)
    lengths = torch.arange(-1, len(special) - 1)
    yield Case("one-length", (variance, None, 1, Difficulty(0.1, 10.0, limits, rows)))
    yield Case("lengths", (variance, lengths, 1, Difficulty(0.1, 10.0, limits, rows)))
    yield Case("one-row", (variance, lengths.int(), 1, Difficulty(-0.1, 3.0, [], rows[:5])))
    yield Case("no-samples", (variance[:0], None, 3, Difficulty(0.1, 10.0, limits, rows)))
    yield Case("strided", (torch.cat([variance] * 9)[::2], None, 3, Difficulty(-0.4, 7.0, [-1.0, 0.0, 1.0], rows)))


def adaptive_weights_ones() -> Iterator[Call]:
    one = torch.empty(1, 1, 1)
    adapt = functools.partial(pyramid_ops.adaptive_budgets, 1, one, [1], weights=[[1.0]], thresholds=[])
    yield Call("adaptive_budgets", adapt)


def adaptive_weights_compiled() -> Iterator[Call]:
    instruction, lengths = torch.empty(2, 77, 1024), torch.empty(2, dtype=torch.int32)
    adapt = functools.partial(pyramid_ops.adaptive_budgets, 273, instruction, (4096, 1024, 256, 64), lengths=lengths)
    yield Call("adaptive_budgets, 4 levels", adapt)


def adapt(so_far: Any) -> None:
    """Budgets by the difficulty of an instruction."""
    level = so_far.levels[0]
    if level.shape[1]:
        options = {"length_scale": so_far.choice(0.1, -0.4), "variance_scale": so_far.choice(10.0, 1e-4)}
        so_far.same(pyramid_ops.adaptive_budgets, so_far.integer(0, 80), level, (64, 16, 4, 1), **options)


DESCRIPTIONS = [
    Description(
        adaptive_weights_op,
        adaptive_weights_golden,
        adaptive_weights_bits,
        adaptive_weights_ones,
        adaptive_weights_compiled,
        adapt,
        "test_adaptive",
        dtypes=(torch.float32,),
        scattered=("_adaptive_weights_kernel",),
    ),
]
