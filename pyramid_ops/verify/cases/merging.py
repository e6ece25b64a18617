"""Descriptions of the ops in `ops/merging.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

import pyramid_ops

from ...ops.merging import fold_groups_op
from ...reference.arguments import Groups
from ..describe import Call, Case, Cases, Description
from ..inputs import FEATURES, Source, name, special_rows


def fold_groups_golden() -> Cases:
    sizes = (0, 1, 2, 31, 32, 33, 97, 5)
    offsets = torch.tensor([sum(sizes[:k]) for k in range(len(sizes) + 1)]).expand(2, -1).contiguous()
    for mode in ("mean", "sum", "amax"):
        for dtype in FEATURES:
            for weighted in (False, True):
                case = f"{mode}-{name(dtype)}" + "-weighted" * weighted
                source = Source(case)
                x = torch.cat([source.rows(33, dtype) for _ in range(3)], 1)
                weights = source.floats(2, 27, signed=False) if weighted else None
                first, members = source.integers(-2, 29, 2, len(sizes)), source.integers(-1, 28, 2, sum(sizes))
                yield Case(case, (x, weights, Groups(first, members, offsets), mode))


def fold_groups_bits() -> Cases:
    generator = torch.Generator().manual_seed(4)
    sizes = torch.tensor([0, 1, 2, 31, 32, 33, 0, 64, 97, 1, 5])
    offsets = torch.cat((sizes.new_zeros(1), sizes.cumsum(0))).expand(2, -1).contiguous()
    many, groups = int(sizes.sum()), len(sizes)
    members = torch.randint(0, 40, (2, many), generator=generator)
    members[0, 40], members[0, 41], members[0, 0] = -1, 99, 77
    first = torch.randint(-2, 44, (2, groups), generator=generator)
    first[1, 1:3] = -1
    for dtype in FEATURES:
        for mode in ("mean", "sum", "amax"):
            for width in (1, 33):
                x = special_rows(width, dtype, width).repeat(1, 5, 1)[:, :40]
                weights = torch.rand(2, 40, generator=generator) if width > 1 else None
                if weights is not None:
                    weights[0, ::5], weights[1, 3] = 0.0, torch.nan
                case = f"{width}-{mode}-{name(dtype)}"
                yield Case(case, (x, weights, Groups(first, members, offsets), mode))
    x = torch.randn(2, 60, 40, generator=generator)[:, ::2, 4:30]
    yield Case("strided", (x, None, Groups(first, members, offsets), "mean"))
    weights, *indices = [i.T.contiguous().T for i in (torch.rand(2, 30, generator=generator), first, members, offsets)]
    yield Case("strided-indices", (x, weights, Groups(*indices), "mean"))
    yield Case("no-members", (x, None, Groups(first, members[:, :0], offsets * 0), "mean"))
    yield Case("no-tokens", (x[:, :0], None, Groups(first, members, offsets), "mean"))
    yield Case("no-groups", (x, None, Groups(first[:, :0], members, offsets[:, :1]), "sum"))
    yield Case("no-samples", (x[:0], None, Groups(first[:0], members[:0], offsets[:0]), "sum"))


def fold_groups_ones() -> Iterator[Call]:
    none = torch.zeros(1, 70, dtype=torch.int64)
    many, weights = torch.empty(1, 70, 1), torch.ones(1, 70)
    for width in (1, 65):
        x = torch.empty(1, 1, width)
        yield Call(f"assign_mean-{width}", functools.partial(pyramid_ops.assign_mean, x, none[:, :1], 1))
    yield Call("assign_mean-long", lambda: pyramid_ops.assign_mean(many, none, 1, weights=weights))
    plan = pyramid_ops.tome_matching(torch.ones(1, 70, 1), 34)
    yield Call("merge_tokens-amax", lambda: pyramid_ops.merge_tokens(many, plan, weights, mode="amax"))


def fold_groups_compiled() -> Iterator[Call]:
    clusters = torch.zeros(2, 4096, dtype=torch.int64)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.empty(2, 4096, 1024, dtype=dtype)
        yield Call("assign_mean, D = 1024", functools.partial(pyramid_ops.assign_mean, x, clusters, 2048), dtype)


def merge(so_far: Any) -> None:
    level = so_far.choice(*so_far.levels)
    flags = so_far.choice({}, {"class_token": True}, {"class_token": True, "distill_token": True})
    order = so_far.choice("tome", "original")
    if so_far.choice(True, False) and level.shape[0]:
        level = level.flatten(0, 1)
        starts = torch.tensor(sorted(so_far.integer(0, len(level)) for _ in range(3)), dtype=torch.int32)
        plan = so_far.same(pyramid_ops.tome_matching, level, so_far.integer(0, 9), cu_seqlens=starts, **flags)
    else:
        plan = so_far.same(pyramid_ops.tome_matching, level, so_far.integer(0, 12), **flags)
    mode = so_far.choice("mean", "sum", "amax")
    merged, _ = so_far.same(pyramid_ops.merge_tokens, level, plan, mode=mode, order=order)
    so_far.same(pyramid_ops.unmerge_tokens, merged, plan, order=order)


DESCRIPTIONS = [
    Description(
        fold_groups_op,
        fold_groups_golden,
        fold_groups_bits,
        fold_groups_ones,
        fold_groups_compiled,
        merge,
        "test_tome",
    ),
]
