"""Descriptions of the ops in `ops/pooling.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

import pyramid_ops

from ...ops.pooling import pool_scores_op, pool_scores_packed_op, pool_tokens_op
from ...reference.arguments import Grid, Windows
from ..describe import Call, Case, Cases, Description
from ..inputs import FEATURES, FLOATS, GRIDS, Source, grids, int32, name, special_rows, special_scores


def pool_scores_golden() -> Cases:
    for grid in ((4, 6), (7, 9)):
        for window in ((2, 2), (3, 4)):
            for reduction in ("mean", "sum", "max"):
                for dtype in FLOATS:
                    case = f"{'x'.join(map(str, grid + window))}-{reduction}-{name(dtype)}"
                    source = Source(case)
                    scores = source.floats(3, grid[0] * grid[1], dtype=dtype)
                    scores[0] = source.scores(1, grid[0] * grid[1], dtype)[0]
                    yield Case(case, (scores, Windows(*grid, *window), reduction))


def pool_scores_bits() -> Cases:
    windows = ((1, 1), (2, 2), (2, 3), (5, 1), (4, 33))
    for k, grid in enumerate(((1, 1), (1, 7), (6, 1), (4, 6), (7, 9), (33, 32))):
        for j, window in enumerate(windows):
            for i, reduction in enumerate(("mean", "sum", "max")):
                scores = special_scores(2, grid[0] * grid[1], FLOATS[(i + j + k) % 3], 2 * k)
                if (i + j) % 2:
                    scores += torch.rand(scores.shape, generator=torch.Generator().manual_seed(k)).to(scores.dtype)
                case = f"{'x'.join(map(str, (*grid, *window)))}-{reduction}"
                yield Case(case, (scores, Windows(*grid, *window), reduction))
    scores = special_scores(30, 24, torch.float32, 2)
    for reduction in ("mean", "max"):
        yield Case(f"transposed-{reduction}", (scores.T[:, :28], Windows(4, 7, 2, 2), reduction))
        yield Case(f"expanded-{reduction}", (scores[:1].expand(3, 24), Windows(4, 6, 3, 4), reduction))
        yield Case(f"no-samples-{reduction}", (scores[:0], Windows(4, 6, 2, 2), reduction))


def pool_scores_packed_golden() -> Cases:
    for which, of in GRIDS.items():
        for k, reduction in enumerate(("mean", "sum", "max")):
            dtype = FLOATS[k]
            source = Source(f"packed-{which}-{reduction}")
            scores = source.floats(50, dtype=dtype)
            scores[::2] = source.scores(1, 25, dtype)[0]
            yield Case(f"{which}-{reduction}-{name(dtype)}", (scores, *of, 2, 3, 40, reduction))


def pool_scores_packed_bits() -> Cases:
    windows = ((1, 1), (2, 2), (3, 2), (50, 50), (1 << 30, 1))
    for k, (which, of) in enumerate(GRIDS.items()):
        for j, window in enumerate(windows):
            for i, reduction in enumerate(("mean", "sum", "max")):
                dtype, capacity = FLOATS[(i + j + k) % 3], (50, 9, 100)[(j + k) % 3]
                scores = special_scores(1, 50, dtype, 2 * k)[0]
                if (i + j) % 2:
                    scores += torch.rand(50, generator=torch.Generator().manual_seed(k)).to(dtype)
                case = f"{which}-{window[0]}x{window[1]}-{reduction}-{name(dtype)}"
                yield Case(case, (scores, *of, *window, capacity, reduction))
    scores, (cu_seqlens, sides) = special_scores(5, 50, torch.float32, 2), GRIDS["fitting"]
    yield Case("strided", (scores.T.contiguous()[:, 1], cu_seqlens, sides, 2, 2, 50, "mean"))
    yield Case("expanded", (scores[0, :1].expand(50), cu_seqlens, sides, 2, 2, 50, "sum"))
    yield Case("no-scores", (scores[0, :0], cu_seqlens, sides, 2, 2, 5, "mean"))
    yield Case("no-capacity", (scores[0], cu_seqlens, sides, 2, 2, 0, "max"))
    many = torch.arange(1501, dtype=torch.int32) * 6
    sides = int32(2, 3, 3, 2).view(2, 2).repeat(750, 1)
    scores = torch.rand(9000, generator=torch.Generator().manual_seed(0))
    yield Case("many-segments", (scores, many, sides, 2, 2, 9000, "mean"))
    yield Case("many-segments-capacity", (scores, many * 0 + many[-1:] * (many > 0), sides, 2, 2, 2000, "max"))


def pool_scores_ones() -> Iterator[Call]:
    one, column = torch.empty(1, 1), torch.empty(1, 256)
    yield Call("pool_scores", lambda: pyramid_ops.pool_scores(one, (1, 1), window=(1, 1), reduction="max"))
    yield Call("pool_scores-column", lambda: pyramid_ops.pool_scores(column, (256, 1), window=(3, 1)))


def pool_scores_compiled() -> Iterator[Call]:
    for dtype in (torch.float32, torch.bfloat16):
        pool = functools.partial(pyramid_ops.pool_scores, torch.empty(2, 4096, dtype=dtype), (64, 64))
        yield Call("pool_scores, 2×2 of 64×64", pool, dtype)
        yield Call("pool_scores, 2×2 of 64×64, max", functools.partial(pool, reduction="max"), dtype)


def pool_scores_packed_ones() -> Iterator[Call]:
    one, bounds, sides = torch.empty(1), torch.zeros(2, dtype=torch.int32), torch.ones(1, 2, dtype=torch.int32)
    pack = pyramid_ops.pool_scores_packed
    yield Call("pool_scores_packed", lambda: pack(one, bounds, sides, window=(1, 1), reduction="max"))
    yield Call("pool_scores_packed-several", lambda: pack(one.expand(256), bounds, sides, capacity=1))


def pool_scores_packed_compiled() -> Iterator[Call]:
    bounds, sides = torch.empty(9, dtype=torch.int32), torch.empty(8, 2, dtype=torch.int32)
    for dtype in (torch.float32, torch.bfloat16):
        pack = functools.partial(pyramid_ops.pool_scores_packed, torch.empty(32768, dtype=dtype), bounds, sides)
        yield Call("pool_scores_packed, 2×2 of 32768", pack, dtype)
        yield Call("pool_scores_packed, 2×2 of 32768, max", functools.partial(pack, reduction="max"), dtype)


OUT_GRIDS = {(1, 1): ((1, 1), (2, 3)), (4, 6): ((2, 3), (1, 1), (4, 6)), (7, 5): ((3, 2), (4, 5), (9, 11), (1, 7))}


def pool_tokens_golden() -> Cases:
    for grid, outs in OUT_GRIDS.items():
        for k, out in enumerate(outs):
            for mode in ("mean", "amax"):
                for dtype in FEATURES:
                    case = f"{'x'.join(map(str, grid + out))}-{mode}-{name(dtype)}"
                    rows = Source(case).rows(17, dtype).flatten(0, 1).repeat(5, 1)
                    tokens = rows[k : k + 2 * grid[0] * grid[1]].view(2, -1, 17)
                    yield Case(case, (tokens, Grid(*grid, *out), mode))


def pool_tokens_bits() -> Cases:
    for features in (1, 8, 65, 300, 1030):
        for k, (grid, outs) in enumerate(OUT_GRIDS.items()):
            for j, out in enumerate(outs):
                dtype = FEATURES[(features + k + j) % 4]
                rows = special_rows(features, dtype, j).flatten(0, 1).repeat(4, 1)
                tokens = rows[: 2 * grid[0] * grid[1]].view(2, -1, features)
                for mode in ("mean", "amax"):
                    case = f"{features}-{'x'.join(map(str, grid + out))}-{mode}-{name(dtype)}"
                    yield Case(case, (tokens, Grid(*grid, *out), mode))
    x = torch.randn(4, 35, 40, generator=torch.Generator().manual_seed(0))
    of = Grid(7, 5, 3, 2)
    for mode in ("mean", "amax"):
        yield Case(f"transposed-{mode}", (x.transpose(0, 1)[:, :3], Grid(1, 3, 1, 2), mode))
        yield Case(f"sliced-{mode}", (x[1:, :, 8:40], of, mode))
        yield Case(f"unaligned-{mode}", (x[:, :, 1:], of, mode))
        yield Case(f"expanded-{mode}", (x[:1].expand(3, 35, 40), of, mode))
        yield Case(f"no-samples-{mode}", (x[:0], of, mode))


def pool_tokens_ones() -> Iterator[Call]:
    one, column = torch.empty(1, 1, 1), torch.empty(1, 256, 1)
    yield Call("pool_tokens", lambda: pyramid_ops.pool_tokens(one, (1, 1), (1, 1), mode="amax"))
    yield Call("pool_tokens-column", lambda: pyramid_ops.pool_tokens(column, (256, 1), (3, 1)))


def pool_tokens_compiled() -> Iterator[Call]:
    for dtype in (torch.float32, torch.bfloat16):
        for features in (64, 1024, 1152):
            x = torch.empty(2, 576, features, dtype=dtype)
            call = functools.partial(pyramid_ops.pool_tokens, x, (24, 24), (12, 12))
            yield Call(f"pool_tokens, 24×24 to 12×12, D = {features}", call, dtype)
        call = functools.partial(call, mode="amax")
        yield Call(f"pool_tokens, 24×24 to 12×12, D = {features}, amax", call, dtype)


def pool(so_far: Any) -> None:
    tokens = so_far.levels[0].shape[1]
    if tokens:
        down = so_far.choice(*[side for side in range(1, tokens + 1) if tokens % side == 0])
        scores = so_far.tensor(so_far.levels[0].shape[0], tokens, dtype=so_far.choice(*FLOATS))
        options = {
            "window": (so_far.integer(1, 4), so_far.integer(1, 4)),
            "reduction": so_far.choice("mean", "sum", "max"),
        }
        so_far.same(pyramid_ops.pool_scores, scores, (down, tokens // down), **options)
        out, mode = (so_far.integer(1, 6), so_far.integer(1, 6)), so_far.choice("mean", "amax")
        so_far.same(pyramid_ops.pool_tokens, so_far.levels[0], (down, tokens // down), out, mode=mode)
    scores = so_far.tensor(tokens, dtype=so_far.choice(*FLOATS))
    options = {"reduction": so_far.choice("mean", "sum", "max"), "capacity": so_far.choice(None, 3, 50)}
    so_far.same(pyramid_ops.pool_scores_packed, scores, *grids(so_far, tokens), **options)


DESCRIPTIONS = [
    Description(
        pool_scores_op,
        pool_scores_golden,
        pool_scores_bits,
        pool_scores_ones,
        pool_scores_compiled,
        pool,
        "test_pool_scores",
        dtypes=FLOATS,
        scattered=("_pool_scores_kernel",),
    ),
    Description(
        pool_scores_packed_op,
        pool_scores_packed_golden,
        pool_scores_packed_bits,
        pool_scores_packed_ones,
        pool_scores_packed_compiled,
        pool,
        "test_pool_scores_packed",
        dtypes=FLOATS,
        scattered=("_windows_kernel", "_pool_scores_packed_kernel"),
    ),
    Description(
        pool_tokens_op,
        pool_tokens_golden,
        pool_tokens_bits,
        pool_tokens_ones,
        pool_tokens_compiled,
        pool,
        "test_pool_tokens",
    ),
]
