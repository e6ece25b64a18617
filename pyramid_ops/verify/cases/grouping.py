"""Descriptions of the ops in `ops/grouping.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

from ...ops.grouping import group_tokens_op, join_tokens_op
from ...ops.merging import assign_mean
from ...plans.applied import apply
from ...plans.joined import join, then
from ...plans.kept import keep
from ..describe import Call, Case, Cases, Description
from ..inputs import Source, int32

INDICES = (torch.int64,)


def join_tokens_golden() -> Cases:
    source = Source("join")
    args = (source.integers(-1, 70, 2, 20), source.integers(-1, 70, 2, 66), None, 66)
    yield Case("dense", args)
    yield Case("packed", (args[0][:1], source.integers(-1, 40, 1, 66), int32(3, 3, 40, 64), 66))


def join_tokens_bits() -> Cases:
    generator = torch.Generator().manual_seed(0)

    def integers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    for count, size in ((1, 1), (7, 33), (130, 260), (300, 128)):
        tokens, partners = integers(-2, size + 2, 2, count), integers(-2, size + 2, 2, size)
        yield Case(f"{count}-of-{size}", (tokens, partners, None, size))
        yield Case(f"{count}-of-{size}-alone", (tokens, None, None, size))
        bounds = int32(size // 4, size // 4, size // 2, size - 1, size - 1)
        yield Case(f"{count}-of-{size}-packed", (tokens[:1], partners[:1], bounds, size))
    yield Case("no-segments", (tokens[:1], partners[:1], int32(3), size))
    yield Case("far", (tokens + (1 << 40), partners - (1 << 40), None, size))
    yield Case("far-packed", (tokens[:1], partners[:1] + (1 << 40), bounds, size))
    yield Case("no-rows", (tokens[:, :0], partners, None, size))
    yield Case("no-tokens", (tokens, partners[:, :0], None, 0))
    yield Case("no-samples", (tokens[:0], partners[:0], None, size))


def group_tokens_golden() -> Cases:
    source = Source("group")
    for size, groups in ((66, 20), (20, 66)):
        yield Case(f"{size}", (source.integers(-1, groups + 1, 2, size), source.integers(-1, size, 2, groups), groups))


def group_tokens_bits() -> Cases:
    generator = torch.Generator().manual_seed(0)
    for size, groups in ((1, 1), (33, 7), (260, 130), (128, 300), (5, 0), (0, 5)):
        rows = torch.randint(-2, groups + 2, (2, size), generator=generator)
        owners = torch.randint(-1, max(1, size), (2, groups), generator=generator)
        yield Case(f"{size}-in-{groups}", (rows, owners, groups))
        yield Case(f"{size}-in-{groups}-without", (rows, None, groups))
    rows = torch.randint(-(1 << 40), 1 << 40, (2, 40), generator=generator)
    rows[:, ::2] %= 9
    yield Case("far", (rows, None, 9))
    owners = torch.randint(-1, 20, (2, 9), generator=generator)
    yield Case("strided", (rows[:, ::2], owners.T.contiguous().T, 9))
    yield Case("no-samples", (rows[:0], None, 9))


def merged(features: int, tokens: int, kept: int, dtype: torch.dtype = torch.float32) -> object:
    x = torch.empty(1, tokens, features, dtype=dtype)
    plan = keep(torch.empty(1, tokens), kept)
    return apply(join(x, plan), x), then(plan, keep(torch.empty(1, kept), 1))


def join_ones() -> Iterator[Call]:
    yield Call("join", functools.partial(merged, 1, 1, 1))


def packed_ones() -> Iterator[Call]:
    bounds = torch.empty(2, dtype=torch.int32)
    yield Call("join-packed", lambda: join(torch.empty(1, 1), keep(torch.empty(1), 1, cu_seqlens=bounds)))


def join_compiled() -> Iterator[Call]:
    yield Call("join, 144 of 576", functools.partial(merged, 64, 576, 144))


def group_compiled() -> Iterator[Call]:
    x, clusters = torch.empty(1, 576, 64), torch.zeros(1, 576, dtype=torch.int64)
    yield Call("assign_mean, 576 in 20", functools.partial(assign_mean, x, clusters, 20))


def joining(so_far: Any) -> None:
    """Tokens that join those that stay, and their means."""
    if not so_far.scores or not so_far.levels[0].shape[1]:
        return
    level = so_far.levels[0]
    scores = level.flatten(2)[:, :, 0].to(torch.float32)
    plan = so_far.same(keep, scores, so_far.integer(0, 9), order=so_far.choice("index", "value"))
    plan = so_far.same(join, level, plan)
    mode = so_far.choice("mean", "sum", "amax", "owner")
    so_far.same(apply, plan, [level, scores], mode=mode, align=so_far.choice("left", "right"))
    second = so_far.same(keep, plan.sizes, so_far.integer(0, 4), candidates=plan.indices >= 0)
    so_far.same(then, plan, second)


DESCRIPTIONS = [
    Description(
        join_tokens_op,
        join_tokens_golden,
        join_tokens_bits,
        join_ones,
        join_compiled,
        joining,
        "test_keep",
        dtypes=INDICES,
        scattered=("_join_tokens_kernel",),
    ),
    Description(
        group_tokens_op,
        group_tokens_golden,
        group_tokens_bits,
        packed_ones,
        group_compiled,
        joining,
        "test_keep",
        dtypes=INDICES,
        scattered=("_group_tokens_kernel",),
    ),
]
