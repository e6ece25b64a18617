"""Descriptions of the ops in `ops/pairs.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

import pyramid_ops

from ...ops.pairs import paired_similarity_op
from ..describe import Call, Case, Cases, Description
from ..inputs import FEATURES, LARGE_SIZES, SIZES, Source, golden_rows, name, special_inputs, special_rows


def paired_similarity_golden() -> Cases:
    for case, x in golden_rows():
        yield Case(case, (x, x.flip(1)))
    source = Source("paired")
    x, y = source.floats(3, 9, 130), source.rows(130, torch.bfloat16)
    yield Case("dtypes", (x[:2], y))
    yield Case("frames", (x[1:], x[:-1]))
    yield Case("one-partner", (x, x[:1, 4:5].expand(3, 9, 130)))


def paired_similarity_bits() -> Cases:
    for case, x, slow in special_inputs(SIZES + LARGE_SIZES):
        yield Case(case, (x, x.flip(1)), slow)
    for k, dtype in enumerate(FEATURES):
        x, y = special_rows(129, dtype, 1), special_rows(129, FEATURES[k - 1], 2)
        yield Case(f"dtypes-{name(dtype)}", (x, y))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 60, 65, generator=generator)
    x[1] = x[0] * 0.5
    x[2] = -x[0]
    yield Case("frames", (x[1:], x[:-1]))
    yield Case("frames-in-a-row", (x[:, 20:], x[:, :-20]))
    yield Case("one-sample", (x, x[:1].expand_as(x)))
    yield Case("one-row", (x, x[:, :1].expand_as(x)))
    yield Case("one-row-unaligned", (x[:, :, 1:], x[:1, :1, :-1].expand(3, 60, 64)))


def paired_similarity_ones() -> Iterator[Call]:
    one, row = torch.empty(1, 1, 1), torch.empty(1, 300, 100)
    yield Call("paired_similarity", lambda: pyramid_ops.paired_similarity(one, one))
    yield Call("paired_similarity-one-row", lambda: pyramid_ops.paired_similarity(row, row[:, :1]))
    column = torch.empty(1, 300, 1)
    yield Call("paired_similarity-one-feature", lambda: pyramid_ops.paired_similarity(column, column))


def paired_similarity_compiled() -> Iterator[Call]:
    for dtype in (torch.float32, torch.bfloat16):
        for features in (64, 768, 1024, 1152, 4096):
            x = torch.empty(16, 256, features, dtype=dtype)
            call = functools.partial(pyramid_ops.paired_similarity, x[1:], x[:-1])
            yield Call(f"paired_similarity, D = {features}", call, dtype)


def paired_similarity_sizes() -> Iterator[Call]:
    for features in (16, 256, 588, 1536, 1537, 3584, 5120, 8192, 16384):
        x = torch.empty(2, 256, features, dtype=torch.bfloat16)
        call = functools.partial(pyramid_ops.paired_similarity, x, x.flip(1))
        yield Call(f"paired_similarity-{features}", call, torch.bfloat16)


def pair(so_far: Any) -> None:
    x = so_far.choice(*so_far.levels)
    batch, tokens, features = x.shape
    shape = (so_far.choice(1, batch), so_far.choice(1, tokens), features)
    so_far.same(pyramid_ops.paired_similarity, x, so_far.tensor(*shape, dtype=so_far.choice(*FEATURES)))
    if batch:
        so_far.same(pyramid_ops.paired_similarity, x[0], x[0].flip(0))


DESCRIPTIONS = [
    Description(
        paired_similarity_op,
        paired_similarity_golden,
        paired_similarity_bits,
        paired_similarity_ones,
        paired_similarity_compiled,
        pair,
        "test_paired_similarity",
        sizes=paired_similarity_sizes,
    ),
]
