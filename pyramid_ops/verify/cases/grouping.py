"""Descriptions of the ops in `ops/grouping.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

from ...ops.grouping import cluster_rows_op, group_tokens_op, join_tokens_op
from ...ops.merging import assign_mean
from ...plans.applied import apply
from ...plans.joined import concat, join, then
from ...plans.kept import keep
from ..describe import Call, Case, Cases, Description
from ..inputs import BOUNDS, Source, int32, offsets

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


def cluster_rows_golden() -> Cases:
    source = Source("clusters")
    yield Case("66", (source.integers(-1, 9, 66), int32(3, 3, 40, 64), int32(0, 5, 12, 15), 14))


def cluster_rows_bits() -> Cases:
    generator = torch.Generator().manual_seed(0)
    for case, values in BOUNDS.items():
        size = max(1, *values) + 3
        assignment = torch.randint(-2, 40, (size,), generator=generator)
        cu_clusters = torch.randint(0, 30, (len(values),), generator=generator).cumsum(0).to(torch.int32)
        args = int32(*values), cu_clusters, max(0, int(cu_clusters[-1]) - 9)
        yield Case(case, (assignment, *args))
        yield Case(f"{case}-empty", (assignment[:0], *args))
    yield Case("descending", (assignment, int32(*values), cu_clusters.flip(0), 40))
    far = torch.randint(-(1 << 40), 1 << 40, (2 * size,), generator=generator)
    far[::4] %= 9
    yield Case("far", (far[::2], int32(0, 9, size), int32(-(1 << 31), 7, (1 << 31) - 1), 1 << 30))


def merged(features: int, tokens: int, kept: int, dtype: torch.dtype = torch.float32) -> object:
    x = torch.empty(1, tokens, features, dtype=dtype)
    plan = keep(torch.empty(1, tokens), kept)
    return apply(join(x, plan), x), then(plan, keep(torch.empty(1, kept), 1))


def join_ones() -> Iterator[Call]:
    yield Call("join", functools.partial(merged, 1, 1, 1))


def packed_ones() -> Iterator[Call]:
    bounds = torch.empty(2, dtype=torch.int32)
    yield Call("join-packed", lambda: join(torch.empty(1, 1), keep(torch.empty(1), 1, cu_seqlens=bounds)))


def clusters_of(tokens: int, clusters: int, features: int) -> object:
    bounds = int32(0, tokens)
    x, assignment = torch.empty(tokens, features), torch.zeros(tokens, dtype=torch.int64)
    return assign_mean(x, assignment, clusters, cu_seqlens=bounds, cu_clusters=int32(0, clusters))


def clusters_ones() -> Iterator[Call]:
    yield Call("assign_mean-packed", functools.partial(clusters_of, 1, 1, 1))


def clusters_compiled() -> Iterator[Call]:
    yield Call("assign_mean, 576 packed in 20", functools.partial(clusters_of, 576, 20, 1024))


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
    so_far.same(concat, plan, so_far.same(keep, scores, so_far.integer(0, 9)))


def clustering(so_far: Any) -> None:
    """Packed tokens in clusters of their segments."""
    tokens = so_far.choice(*so_far.levels).flatten(0, 1)
    bounds = offsets(so_far, len(tokens))
    many = [so_far.integer(0, 4) for _ in bounds]
    cu_clusters = torch.tensor(many).cumsum(0).to(torch.int32)
    assignment = torch.tensor([so_far.integer(-1, 4) for _ in tokens], dtype=torch.int64)
    mode, options = so_far.choice("mean", "sum", "amax"), {"cu_seqlens": bounds, "cu_clusters": cu_clusters}
    so_far.same(assign_mean, tokens, assignment, so_far.integer(0, sum(many)), mode=mode, **options)


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
        cluster_rows_op,
        cluster_rows_golden,
        cluster_rows_bits,
        clusters_ones,
        clusters_compiled,
        clustering,
        "test_tome",
        dtypes=INDICES,
        scattered=("_cluster_rows_kernel",),
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
