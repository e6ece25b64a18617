"""Descriptions of the ops in `ops/relevance.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

import pyramid_ops

from ...ops.relevance import text_relevance_op
from ..describe import Call, Case, Cases, Description
from ..inputs import FLOATS, Source, few_features, name, special_rows


def text_relevance_golden() -> Cases:
    for features in (24, 130):
        for dtype in FLOATS:
            for limbs in (1, 2):
                case = f"{features}-{name(dtype)}-limbs{limbs}"
                source = Source(case)
                tokens, text = source.rows(features, dtype), source.rows(features, dtype)
                yield Case(f"max-{case}", (tokens, text, "max", 0.25, limbs))
                yield Case(f"mean-{case}", (tokens, text[:, :7], "mean", 0.25, limbs))


def text_relevance_bits() -> Cases:
    for dtype in FLOATS:
        for features, tokens, words in ((1, 3, 2), (24, 17, 31), (65, 130, 5), (128, 70, 33), (1100, 7, 3)):
            x, text = special_rows(features, dtype, 1), special_rows(features, dtype, 2)
            x = x.repeat(1, -(-tokens // 9), 1)[:, :tokens]
            text = text.repeat(1, -(-words // 9), 1)[:, :words]
            for reduction in ("max", "mean"):
                limbs = 1 + (features + len(reduction)) % 2 if dtype != torch.float32 else 2
                case = f"{tokens}x{words}x{features}-{reduction}-{name(dtype)}-limbs{limbs}"
                yield Case(case, (x, text, reduction, features**-0.5, limbs))
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 70, 40, generator=generator)
    text = torch.randn(2, 40, 40, generator=generator) * torch.rand(2, 40, 1, generator=generator) ** 9
    masked = text.clone()
    masked[0, ::3], masked[1] = torch.nan, torch.nan
    for reduction in ("max", "mean"):
        for limbs in (1, 2):
            for case, tensors in (
                ("masked", (x, masked)),
                ("tiny", (x * 1e-38, text * 1e-30)),
                ("subnormal", (x, text * 1e-40)),
                ("huge", (x * 1e30, text * 1e30)),
                ("opposite", (x[:, :1].expand(2, 5, 40), -x[:, :1] * torch.arange(3)[:, None])),
                ("strided", (x.transpose(0, 1)[:9, :, 1:], text.transpose(0, 1)[:9, :, 1:])),
                ("no-tokens", (x[:, :0], text)),
                ("no-text", (x, text[:, :0])),
                ("no-samples", (x[:0], text[:0])),
            ):
                yield Case(f"{case}-{reduction}-limbs{limbs}", (*tensors, reduction, 0.3, limbs))


def text_relevance_ones() -> Iterator[Call]:
    one = torch.empty(1, 1, 1)
    for reduction, precision in (("max", "high"), ("mean", "grid")):
        relevance = functools.partial(pyramid_ops.text_relevance, reduction=reduction, precision=precision)
        yield Call(f"text_relevance-{reduction}", functools.partial(relevance, one, one))


def text_relevance_compiled() -> Iterator[Call]:
    tokens, words = (torch.empty(2, count, 1024, dtype=torch.bfloat16) for count in (4096, 77))
    for precision, reduction in (("grid", "max"), ("high", "mean")):
        relevance = functools.partial(pyramid_ops.text_relevance, tokens, words, reduction=reduction)
        call = functools.partial(relevance, precision=precision)
        yield Call(f"text_relevance, {precision}, {reduction}, D = 1024", call, torch.bfloat16)


def relate(so_far: Any) -> None:
    level = so_far.choice(*so_far.levels)
    batch, features = level.shape[0], few_features(so_far, level)
    dtype = so_far.choice(*FLOATS)
    tokens, text = (so_far.tensor(batch, so_far.integer(0, 25), features, dtype=dtype) for _ in range(2))
    options = {"reduction": so_far.choice("max", "mean", "softmax"), "precision": so_far.choice("grid", "high")}
    so_far.same(pyramid_ops.text_relevance, tokens, text, **options)


DESCRIPTIONS = [
    Description(
        text_relevance_op,
        text_relevance_golden,
        text_relevance_bits,
        text_relevance_ones,
        text_relevance_compiled,
        relate,
        "test_text_relevance",
        dtypes=FLOATS,
        dots=("_relevance_kernel",),
    ),
]
