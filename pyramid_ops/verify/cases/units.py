"""Descriptions of the ops in `ops/units.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

import pyramid_ops

from ...ops.units import low_limb_bits, unit_rows_op
from ..describe import Call, Case, Cases, Description
from ..inputs import golden_rows, special_inputs


def unit_rows_golden() -> Cases:
    for case, x in golden_rows():
        yield Case(case, (x, 2, low_limb_bits(x.shape[2])))
    for case, x in golden_rows(few=True):
        yield Case(f"{case}-limbs1", (x, 1, 0))


def unit_rows_bits() -> Cases:
    for case, x, slow in special_inputs((1, 3, 64, 65, 256, 257, 1024, 1025, 1537, 3072)):
        for limbs in (1, 2):
            yield Case(f"{case}-limbs{limbs}", (x, limbs, low_limb_bits(x.shape[2])), slow)


def unit_rows_ones() -> Iterator[Call]:
    yield Call("unit_rows", lambda: pyramid_ops.unit_rows(torch.empty(1, 1, 1)))


def unit_rows_compiled() -> Iterator[Call]:
    for dtype in (torch.float32, torch.bfloat16):
        for features in (64, 1024):
            x = torch.empty(2, 512, features, dtype=dtype)
            yield Call(f"unit_rows, D = {features}", functools.partial(pyramid_ops.unit_rows, x, limbs=2), dtype)


def units(so_far: Any) -> None:
    so_far.same(pyramid_ops.unit_rows, so_far.choice(*so_far.levels), limbs=so_far.integer(1, 2))


DESCRIPTIONS = [
    Description(
        unit_rows_op,
        unit_rows_golden,
        unit_rows_bits,
        unit_rows_ones,
        unit_rows_compiled,
        units,
        "test_unit_rows",
    ),
]
