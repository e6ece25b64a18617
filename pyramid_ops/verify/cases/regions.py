"""Descriptions of the ops in `ops/regions.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

import pyramid_ops

from ...ops.regions import broadcast_regions_op, region_variance_op
from ...reference.arguments import Grid
from ..describe import Call, Case, Cases, Description
from ..inputs import BITS, FEATURES, GRIDS, Source, grids, int32, name, special_rows


def region_variance_golden() -> Cases:
    for features in (1, 65, 1024):
        for dtype in FEATURES:
            x = Source(f"{features}-{name(dtype)}").rows(features, dtype)
            for grid in ((3, 3, 1, 1), (3, 3, 3, 2), (9, 1, 4, 1), *([(3, 3, 4, 7)] if features == 65 else [])):
                yield Case(f"{features}-{name(dtype)}-{'x'.join(map(str, grid))}", (x, None, Grid(*grid)))
    x = Source("lengths").floats(2, 600, 24)
    yield Case("lengths", (x, torch.tensor([600, 37]), Grid(20, 30, 2, 3)))
    x = Source("packed").floats(1, 50, 24)
    for case in ("fitting", "other"):
        cu_seqlens, sides = GRIDS[case]
        for lengths in (None, Source(case).integers(0, 9, len(sides))):
            made = x, lengths, Grid(0, 0, 2, 3, cu_seqlens, sides)
            yield Case(f"packed-{case}" + ("-lengths" if lengths is not None else ""), made)


def broadcast_regions_golden() -> Cases:
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        scores = Source(name(dtype)).integers(0, 255, 2, 12, dtype=dtype)
        yield Case(name(dtype), (scores, Grid(7, 9, 3, 4)))
    yield Case("small", (scores, Grid(2, 5, 3, 4)))
    for case in ("fitting", "other"):
        cu_seqlens, sides = GRIDS[case]
        scores = Source(case).integers(0, 255, len(sides), 6)
        yield Case(f"packed-{case}", (scores, Grid(0, 0, 2, 3, cu_seqlens, sides, 52)))


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
    yield from _packed_variances(generator)


def _packed_variances(generator: torch.Generator) -> Cases:
    for k, (case, (cu_seqlens, sides)) in enumerate(GRIDS.items()):
        x = torch.randn(1, 50, 5 + k, generator=generator) + 10
        for regions in ((1, 1), (2, 3), (4, 4)):
            yield Case(f"packed-{case}-{regions[0]}", (x, None, Grid(0, 0, *regions, cu_seqlens, sides)))
        lengths = torch.randint(-1, 12, (len(sides),), generator=generator)
        yield Case(f"packed-{case}-lengths", (x, lengths, Grid(0, 0, 2, 1, cu_seqlens, sides)))
    x = special_rows(24, torch.bfloat16, 3).view(1, 18, 24)
    yield Case("packed-special", (x, None, Grid(0, 0, 2, 2, int32(0, 4, 10, 18), int32(2, 2, 2, 3, 2, 4).view(3, 2))))
    x = torch.randn(1, 1500, 3, generator=generator)
    sides = int32(20, 30, 1, 300, 600, 1).view(3, 2)
    yield Case("packed-long", (x, None, Grid(0, 0, 1, 2, int32(0, 600, 900, 1500), sides)))
    yield Case("packed-strided", (x[:, ::3, 1:], None, Grid(0, 0, 1, 2, int32(0, 200, 300, 500), sides)))
    yield Case("packed-no-tokens", (x[:, :0], None, Grid(0, 0, 2, 2, int32(0, 0, 0), int32(0, 3, 1, 1).view(2, 2))))


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
    for case, (cu_seqlens, sides) in GRIDS.items():
        for k, dtype in enumerate((torch.uint8, torch.int16, torch.int32, torch.int64)):
            rows, columns = ((1, 1), (2, 3), (4, 4), (9, 1))[k]
            scores = torch.randint(1, 99, (len(sides), rows * columns), generator=generator).to(dtype)
            grid = Grid(0, 0, rows, columns, cu_seqlens, sides, (50, 9, 300, 0)[k])
            yield Case(f"packed-{case}-{name(dtype)}", (scores, grid))
    sides = torch.randint(0, 7, (40, 2), generator=generator, dtype=torch.int32)
    cu_seqlens = torch.cat((sides.new_zeros(1), (sides[:, 0] * sides[:, 1]).cumsum(0))).to(torch.int32)
    scores = torch.randint(1, 99, (6, 40), generator=generator)
    yield Case("packed-many", (scores.T, Grid(0, 0, 3, 2, cu_seqlens, sides, 700)))


def region_variance_ones() -> Iterator[Call]:
    one, count, column = torch.empty(1, 1, 1), torch.ones(1, dtype=torch.int64), torch.empty(2, 256, 64)
    yield Call("region_variance", lambda: pyramid_ops.region_variance(one, (1, 1), (1, 1)))
    yield Call("region_variance-lengths", lambda: pyramid_ops.region_variance(one, (1, 1), (1, 1), lengths=count))
    yield Call("region_variance-small", lambda: pyramid_ops.region_variance(one, (1, 1), (4, 4)))
    yield Call("region_variance-column", lambda: pyramid_ops.region_variance(column, (256, 1), (3, 1)))
    bounds, sides = torch.zeros(2, dtype=torch.int32), torch.ones(1, 2, dtype=torch.int32)
    call = functools.partial(pyramid_ops.region_variance, one[0], sides, (1, 1), cu_seqlens=bounds)
    yield Call("region_variance-packed", call)
    yield Call("region_variance-packed-lengths", functools.partial(call, lengths=count))


def region_variance_compiled() -> Iterator[Call]:
    for dtype in (torch.float32, torch.bfloat16):
        for features in (64, 1024):
            x = torch.empty(2, 4096, features, dtype=dtype)
            call = functools.partial(pyramid_ops.region_variance, x, (64, 64))
            yield Call(f"region_variance, D = {features}", call, dtype)
        bounds, sides = torch.zeros(9, dtype=torch.int32), torch.zeros(8, 2, dtype=torch.int32)
        call = functools.partial(pyramid_ops.region_variance, x[0], sides, cu_seqlens=bounds)
        yield Call(f"region_variance, packed, D = {features}", call, dtype)


def broadcast_regions_ones() -> Iterator[Call]:
    one = torch.empty(1, 1)
    yield Call("broadcast_regions", lambda: pyramid_ops.broadcast_regions(one, (1, 1), (1, 1)))
    yield Call("broadcast_regions-small", lambda: pyramid_ops.broadcast_regions(one.expand(2, 16), (1, 1), (4, 4)))
    yield Call("broadcast_regions-row", lambda: pyramid_ops.broadcast_regions(one.expand(2, 3), (1, 256), (1, 3)))
    bounds, sides = torch.zeros(2, dtype=torch.int32), torch.ones(1, 2, dtype=torch.int32)
    options = {"cu_seqlens": bounds, "capacity": 1}
    yield Call("broadcast_regions-packed", lambda: pyramid_ops.broadcast_regions(one, sides, (1, 1), **options))


def broadcast_regions_compiled() -> Iterator[Call]:
    for dtype in (torch.uint8, torch.float32):
        spread = functools.partial(pyramid_ops.broadcast_regions, torch.empty(2, 16, dtype=dtype), (64, 64))
        yield Call("broadcast_regions, 4×4 to 64×64", spread, dtype)
        bounds, sides = torch.zeros(9, dtype=torch.int32), torch.zeros(8, 2, dtype=torch.int32)
        scores, options = torch.empty(8, 16, dtype=dtype), {"cu_seqlens": bounds, "capacity": 4096}
        spread = functools.partial(pyramid_ops.broadcast_regions, scores, sides, **options)
        yield Call("broadcast_regions, packed, 4×4 to 4096", spread, dtype)


def regions(so_far: Any) -> None:
    level = so_far.levels[0]
    tokens = level.shape[1]
    if tokens:
        down = so_far.choice(*[side for side in range(1, tokens + 1) if tokens % side == 0])
        grid = (down, tokens // down)
        parts = tuple(so_far.integer(1, 5) for _ in grid)
        scores = so_far.same(pyramid_ops.region_variance, level, grid, parts)
        so_far.same(pyramid_ops.broadcast_regions, scores, grid, parts)
        tokens = so_far.integer(0, 60)
        x = so_far.tensor(tokens, so_far.choice(1, 3, 65), dtype=level.dtype)
        cu_seqlens, sides = grids(so_far, tokens)
        lengths = so_far.choice(None, torch.arange(len(sides)))
        options = {"cu_seqlens": cu_seqlens, "lengths": lengths}
        scores = so_far.same(pyramid_ops.region_variance, x, sides, parts, **options)
        options = {"cu_seqlens": cu_seqlens, "capacity": so_far.choice(tokens, so_far.integer(0, 90))}
        so_far.same(pyramid_ops.broadcast_regions, scores, sides, parts, **options)


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
