"""Descriptions of the ops in `ops/channels.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

import pyramid_ops

from ...ops.channels import channel_variance_op
from ..describe import Call, Case, Cases, Description
from ..inputs import FEATURES, Source, int32, name, offsets, offsets_to, special_rows


def channel_variance_golden() -> Cases:
    for features, dtype in ((1, torch.float32), (3, torch.bfloat16), (65, torch.float16), (128, torch.uint8)):
        source = Source(f"channels-{features}-{name(dtype)}")
        for tokens in (1, 64, 203):
            x = source.floats(2, tokens, features, dtype=dtype)
            if dtype != torch.uint8:
                x[0, tokens // 2] = source.rows(features, dtype)[1, tokens % 9]
            yield Case(f"{tokens}x{features}-{name(dtype)}", (x, None))
        x = torch.cat([source.rows(features, dtype).flatten(0, 1) for _ in range(12)])
        yield Case(f"rows-{features}-{name(dtype)}", (x.mT.contiguous().view(1, -1, features), None))
        bounds = offsets_to(3, 3, 4, 70, 134, 200, 201)
        yield Case(f"packed-{features}-{name(dtype)}", (x[None], bounds))


def channel_variance_bits() -> Cases:
    generator = torch.Generator().manual_seed(0)
    for k, tokens in enumerate((1, 2, 9, 63, 64, 65, 129, 1100)):
        for j, features in enumerate((1, 8, 40, 300)):
            dtype = FEATURES[(k + j) % 4]
            x = 100 * torch.randn(2, tokens, features, generator=generator) + 1e3 * (j % 2)
            x = x.clamp(0, 255) if dtype == torch.uint8 else x
            x[1, :, ::3] = x[1, :1, ::3]
            slow = features * tokens > 3000
            yield Case(f"{tokens}x{features}-{name(dtype)}", (x.to(dtype), None), slow)
    for dtype in FEATURES:
        x = special_rows(35, dtype).repeat(1, 9, 1)
        yield Case(f"rows-{name(dtype)}", (x, None))
        yield Case(f"channels-{name(dtype)}", (x.mT.contiguous(), None))
    x = torch.randn(3, 300, 40, generator=generator)
    x[1:, 64:] = x[1:, :1]
    yield Case("alike-chunks", (x, None))
    for case, bounds in (
        ("segments", (0, 64, 64, 65, 128, 300)),
        ("inside", (7, 8, 9, 75, 130, 258)),
        ("clamped", (-9, 100, 290, 999)),
        ("one", (0, 300)),
        ("none", (0,)),
        ("outside", (300, 300, 400)),
        ("short", tuple(range(0, 300, 25))),
    ):
        yield Case(case, (x[:1], int32(*bounds)))
    yield Case("transposed", (x[:, :5].transpose(0, 1), None))
    yield Case("sliced", (x[1:, ::2, 8:24], None))
    yield Case("unaligned", (x[:, :, 1:], None))
    yield Case("expanded", (x[:1, :1].expand(2, 70, 40), None))
    yield Case("no-tokens", (x[:, :0], None))
    yield Case("no-samples", (x[:0], None))
    yield Case("no-tokens-packed", (x[:1, :0], int32(0, 0, 3)))


def channel_variance_ones() -> Iterator[Call]:
    one, bounds = torch.empty(1, 1), torch.zeros(2, dtype=torch.int32)
    yield Call("channel_variance", lambda: pyramid_ops.channel_variance(one))
    yield Call("channel_variance-packed", lambda: pyramid_ops.channel_variance(one, cu_seqlens=bounds))
    yield Call("channel_variance-several", lambda: pyramid_ops.channel_variance(one.expand(200, 1), cu_seqlens=bounds))


def channel_variance_compiled() -> Iterator[Call]:
    bounds = torch.empty(9, dtype=torch.int32)
    for dtype in (torch.float32, torch.bfloat16):
        for features in (64, 1024, 1152):
            x = torch.empty(8, 576, features, dtype=dtype)
            variance = functools.partial(pyramid_ops.channel_variance, x)
            yield Call(f"channel_variance, 8 of 576, D = {features}", variance, dtype)
        variance = functools.partial(pyramid_ops.channel_variance, x.flatten(0, 1), cu_seqlens=bounds)
        yield Call(f"channel_variance, 8 packed, D = {features}", variance, dtype)


def vary(so_far: Any) -> None:
    level = so_far.choice(*so_far.levels)
    so_far.same(pyramid_ops.channel_variance, level)
    if level.shape[0]:
        so_far.same(pyramid_ops.channel_variance, level[0], cu_seqlens=offsets(so_far, level.shape[1]))


DESCRIPTIONS = [
    Description(
        channel_variance_op,
        channel_variance_golden,
        channel_variance_bits,
        channel_variance_ones,
        channel_variance_compiled,
        vary,
        "test_channel_variance",
        scattered=("_channel_variance_kernel",),
    ),
]
