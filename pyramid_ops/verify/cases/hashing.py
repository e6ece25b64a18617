"""Descriptions of the ops in `ops/hashing.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

import pyramid_ops

from ...ops.hashing import hash_uniform_op
from ..describe import Call, Case, Cases, Description
from ..inputs import FLOATS, name

SEEDS = torch.tensor([0, 1, 2, -1, 1 << 31, (1 << 32) + 1, 0x9E3779B97F4A7C15 - (1 << 64), -(1 << 63), (1 << 63) - 1])


def hash_uniform_golden() -> Cases:
    for dtype in FLOATS:
        yield Case(name(dtype), (SEEDS, 300, dtype))


def hash_uniform_bits() -> Cases:
    for k, count in enumerate((1, 2, 127, 1024, 1025, 3000)):
        yield Case(f"{count}", (SEEDS[k:], count, FLOATS[k % 3]))
    for dtype in FLOATS:
        yield Case(f"one-seed-{name(dtype)}", (SEEDS[6:7], 5000, dtype))
    yield Case("none", (SEEDS, 0, torch.float32))
    yield Case("no-seeds", (SEEDS[:0], 9, torch.float32))


def hash_uniform_ones() -> Iterator[Call]:
    yield Call("hash_uniform", lambda: pyramid_ops.hash_uniform((1,), 1))
    yield Call("hash_uniform-tensor", lambda: pyramid_ops.hash_uniform((3, 1), torch.zeros(3, dtype=torch.int64)))


def hash_uniform_compiled() -> Iterator[Call]:
    for dtype in FLOATS[:2]:
        call = functools.partial(pyramid_ops.hash_uniform, (4, 5440), SEEDS[:4], dtype=dtype)
        yield Call("hash_uniform, 4 of 5440", call, dtype)


def hashed(so_far: Any) -> None:
    shape, dtype = so_far.levels[0].shape, so_far.choice(*FLOATS)
    so_far.same(pyramid_ops.hash_uniform, tuple(shape), so_far.integer(-(1 << 63), (1 << 63) - 1), dtype=dtype)
    seeds = torch.tensor([so_far.integer(-9, 1 << 40) for _ in range(shape[0])], dtype=torch.int64)
    so_far.same(pyramid_ops.hash_uniform, tuple(shape[:2]), seeds, dtype=dtype)


DESCRIPTIONS = [
    Description(
        hash_uniform_op,
        hash_uniform_golden,
        hash_uniform_bits,
        hash_uniform_ones,
        hash_uniform_compiled,
        hashed,
        "test_hash_uniform",
        dtypes=(torch.int64,),
        scattered=("_hash_uniform_kernel",),
    ),
]
