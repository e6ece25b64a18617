"""Descriptions of the ops in `ops/regions.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

import pyramid_ops

from ...ops.regions import broadcast_regions_op, region_variance_op
from ...reference.arguments import Grid
from ..describe import Call, Case, Cases, Description
from ..inputs import BITS, FEATURES, Source, name, special_rows


def region_variance_golden() -> Cases:
    for features in (1, 65, 1024):
        for dtype in FEATURES:
            x = Source(f"{features}-{name(dtype)}").rows(features, dtype)
            for grid in ((3, 3, 1, 1), (3, 3, 3, 2), (9, 1, 4, 1), *([(3, 3, 4, 7)] if features == 65 else [])):
                yield Case(f"{features}-{name(dtype)}-{'x'.join(map(str, grid))}", (x, None, Grid(*grid)))
    x = Source("lengths").floats(2, 600, 24)
    yield Case("lengths", (x, torch.tensor([600, 37]), Grid(20, 30, 2, 3)))


def broadcast_regions_golden() -> Cases:
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        scores = Source(name(dtype)).integers(0, 255, 2, 12, dtype=dtype)
        yield Case(name(dtype), (scores, Grid(7, 9, 3, 4)))
    yield Case("small", (scores, Grid(2, 5, 3, 4)))


def region_variance_bits() -> Cases:
    for features in (1, 2, 3, 64, 65, 257, 768, 1024, 1537):
        for dtype in FEATURES:
            x = special_rows(features, dtype)
            for grid in ((3, 3, 1, 1), (3, 3, 3, 3), (9, 1, 4, 1), (1, 9, 1, 2)):
                if grid == (3, 3, 3, 3) or dtype == torch.float32 or features == 65:
                    case = f"{features}-{name(dtype)}-{'x'.join(map(str, grid))}"
                    yield Case(case, (x, None, Grid(*grid)))
    generator = torch.Generator().manual_seed(0)
    for tokens in (1, 2, 255, 256, 257, 513, 1000):
        x = torch.randn(1, tokens, 5, generator=generator) + 10 * torch.randn(1, tokens, 1, generator=generator)
        yield Case(f"{tokens}-tokens", (x, None, Grid(1, tokens, 1, 1)))
        x[:, tokens // 2 :] = x[:, :1, :1]
        yield Case(f"{tokens}-half-constant", (x, None, Grid(tokens, 1, min(2, tokens), 1)))
    x = torch.randn(2, 77, 24, generator=generator) + 1e4
    for k, lengths in enumerate(([0, 77], [1, 40], [-3, 1 << 30], [2, 76])):
        counts = torch.tensor(lengths, dtype=(torch.int32, torch.int64)[k % 2])
        yield Case(f"lengths-{k}", (x, counts, Grid(1, 77, 1, 1)))
        yield Case(f"lengths-{k}-regions", (x, counts, Grid(7, 11, 2, 3)))
    yield Case("batch-stride", (x.transpose(0, 1)[:12], None, Grid(1, 2, 1, 1)))
    yield Case("unaligned", (x[:, 1:65, 3:], None, Grid(8, 8, 4, 4)))
    yield Case("no-samples", (x[:0, :64], None, Grid(8, 8, 4, 4)))
    yield Case("expanded", (x[:1, :1].expand(3, 64, 24), None, Grid(8, 8, 3, 5)))
    yield Case("constant", (torch.full((1, 64, 24), -0.1), None, Grid(8, 8, 3, 5)))
    for grid in ((1, 1, 4, 4), (2, 2, 4, 4), (3, 5, 4, 4), (5, 3, 7, 1)):
        tokens = x[:, : grid[0] * grid[1]]
        yield Case("x".join(map(str, grid)), (tokens, None, Grid(*grid)))
        yield Case(f"lengths-{'x'.join(map(str, grid))}", (tokens, torch.tensor([1, 9]), Grid(*grid)))


def broadcast_regions_bits() -> Cases:
    generator = torch.Generator().manual_seed(0)
    large = (1, 1, 1, 1), (4, 4, 4, 4), (7, 9, 3, 4), (5, 300, 2, 7), (64, 1, 63, 1), (33, 32, 1, 1)
    for grid in (*large, (1, 1, 4, 4), (2, 2, 4, 4), (3, 5, 4, 4), (1, 40, 9, 33)):
        for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
            scores = torch.randint(0, 99, (2, grid[2] * grid[3]), generator=generator).to(dtype)
            case = f"{'x'.join(map(str, grid))}-{name(dtype)}"
            yield Case(case, (scores, Grid(*grid)))
    scores = torch.randint(0, 99, (6, 12), generator=generator)
    yield Case("transposed", (scores.T[:, :4], Grid(5, 6, 2, 2)))
    yield Case("expanded", (scores[:1].expand(3, 12), Grid(5, 6, 3, 4)))
    yield Case("no-samples", (scores[:0], Grid(5, 6, 3, 4)))


def region_variance_ones() -> Iterator[Call]:
    one, count, column = torch.empty(1, 1, 1), torch.ones(1, dtype=torch.int64), torch.empty(2, 256, 64)
    yield Call("region_variance", lambda: pyramid_ops.region_variance(one, (1, 1), (1, 1)))
    yield Call("region_variance-lengths", lambda: pyramid_ops.region_variance(one, (1, 1), (1, 1), lengths=count))
    yield Call("region_variance-small", lambda: pyramid_ops.region_variance(one, (1, 1), (4, 4)))
    yield Call("region_variance-column", lambda: pyramid_ops.region_variance(column, (256, 1), (3, 1)))


def region_variance_compiled() -> Iterator[Call]:
    for dtype in (torch.float32, torch.bfloat16):
        for features in (64, 1024):
            x = torch.empty(2, 4096, features, dtype=dtype)
            call = functools.partial(pyramid_ops.region_variance, x, (64, 64))
            yield Call(f"region_variance, D = {features}", call, dtype)


def broadcast_regions_ones() -> Iterator[Call]:
    one = torch.empty(1, 1)
    yield Call("broadcast_regions", lambda: pyramid_ops.broadcast_regions(one, (1, 1), (1, 1)))
    yield Call("broadcast_regions-small", lambda: pyramid_ops.broadcast_regions(one.expand(2, 16), (1, 1), (4, 4)))
    yield Call("broadcast_regions-row", lambda: pyramid_ops.broadcast_regions(one.expand(2, 3), (1, 256), (1, 3)))


def broadcast_regions_compiled() -> Iterator[Call]:
    for dtype in (torch.uint8, torch.float32):
        spread = functools.partial(pyramid_ops.broadcast_regions, torch.empty(2, 16, dtype=dtype), (64, 64))
        yield Call("broadcast_regions, 4×4 to 64×64", spread, dtype)


def regions(so_far: Any) -> None:
    level = so_far.levels[0]
    tokens = level.shape[1]
    if tokens:
        down = so_far.choice(*[side for side in range(1, tokens + 1) if tokens % side == 0])
        grid = (down, tokens // down)
        parts = tuple(so_far.integer(1, 5) for _ in grid)
        scores = so_far.same(pyramid_ops.region_variance, level, grid, parts)
        so_far.same(pyramid_ops.broadcast_regions, scores, grid, parts)


DESCRIPTIONS = [
    Description(
        region_variance_op,
        region_variance_golden,
        region_variance_bits,
        region_variance_ones,
        region_variance_compiled,
        regions,
        "test_region_variance",
        scattered=("_region_variance_kernel",),
    ),
    Description(
        broadcast_regions_op,
        broadcast_regions_golden,
        broadcast_regions_bits,
        broadcast_regions_ones,
        broadcast_regions_compiled,
        regions,
        "test_broadcast_regions",
        dtypes=BITS,
        scattered=("_broadcast_regions_kernel",),
    ),
]
