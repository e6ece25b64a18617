"""Descriptions of the ops in `ops/bipartite.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

import pyramid_ops

from ...ops.bipartite import match_halves_op, place_pairs_op, trace_rows_op
from ...plans.applied import apply
from ...plans.halves import bipartite_plan, tome
from ...reference.arguments import Halves
from ..describe import Call, Case, Cases, Description
from ..inputs import FEATURES, Source, int32, name, offsets, special_rows, special_scores

FLAGS = ((False, False), (True, False), (True, True), (False, True))


def match_halves_golden() -> Cases:
    for i, dtype in enumerate(FEATURES):
        for packed in (False, True):
            case = f"{name(dtype)}{'-packed' * packed}"
            x = Source(case).rows(20, dtype).repeat(1, 3, 1)
            x, bounds = (x.flatten(0, 1)[None], int32(0, 7, 7, 30, 54)) if packed else (x, None)
            yield Case(case, (x, bounds, Halves(5, 25, *FLAGS[i], i % 2 == 1), 1 + i % 2))


def match_halves_bits() -> Cases:
    for i, (class_token, distill_token) in enumerate(FLAGS):
        for in_order in (False, True):
            kind = f"{'class-' * class_token}{'distill-' * distill_token}{'ordered' if in_order else 'tome'}"
            flags = (class_token, distill_token, in_order)
            x = special_rows(24, FEATURES[i], i).repeat(1, 10, 1)
            for size, r in ((1, 0), (2, 0), (3, 0), (5, 1), (90, 30), (89, 43)):
                yield Case(f"{size}-{kind}", (x[:, :size], None, Halves(r, size, *flags), 1 + in_order))
            bounds = int32(1, 4, 4, 5, 7, 60, 180)
            for longest in (180, 41):
                args = (x.flatten(0, 1)[None], bounds, Halves(17, longest, *flags), 2 - in_order)
                yield Case(f"packed-{longest}-{kind}", args)
    x = torch.randn(1, 1300, 16, generator=torch.Generator().manual_seed(0)).round()
    yield Case("several-tiles", (x, None, Halves(400, 1300, True, False, False), 1))
    yield Case("many-segments", (x, torch.arange(0, 1300, 4, dtype=torch.int32), Halves(1, 4, False, False, False), 1))
    yield Case("strided", (x.view(1, 650, 32)[:, :, 3:20], None, Halves(100, 650, False, False, True), 2))
    yield Case("no-tokens", (x[:, :0], None, Halves(0, 0, False, False, False), 1))
    yield Case("no-samples", (x[:0], None, Halves(3, 1300, False, False, False), 1))
    yield Case("no-segments", (x, int32(7), Halves(3, 1300, False, False, False), 1))


def match_halves_ones() -> Iterator[Call]:
    bounds = torch.empty(2, dtype=torch.int32)
    for size in (1, 2, 3):
        yield Call(f"tome-{size}", functools.partial(tome, torch.empty(1, size, 1), 1))
    yield Call("tome-packed", lambda: tome(torch.empty(3, 1), 1, cu_seqlens=bounds, distill_token=True))


def match_halves_compiled() -> Iterator[Call]:
    bounds = torch.empty(5, dtype=torch.int32)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.empty(8, 577, 64, dtype=dtype)
        yield Call("tome, 577 tokens", functools.partial(tome, x, 16, class_token=True), dtype)
        packed = functools.partial(tome, x.flatten(0, 1), 16, cu_seqlens=bounds, max_seqlen=1024, order="original")
        yield Call("tome, packed", packed, dtype)


def tome_plan(so_far: Any) -> None:
    level = so_far.levels[0]
    options: dict[str, Any] = {"order": so_far.choice("tome", "original"), "class_token": so_far.choice(True, False)}
    if so_far.choice(True, False) and level.shape[0]:
        level = level.flatten(0, 1)
        options["cu_seqlens"] = offsets(so_far, len(level))
    plan = so_far.same(tome, level, so_far.integer(0, 9), distill_token=so_far.choice(True, False), **options)
    so_far.same(apply, plan, [level], mode=so_far.choice("mean", "sum", "amax"))


def place_pairs_golden() -> Cases:
    source = Source("pairs")
    order = source.bits(60).argsort()
    args = source.integers(-1, 20, 2, 40), source.scores(2, 40, torch.float32), order[:40], order[40:]
    for r in (0, 13, 40):
        yield Case(f"{r}", (*args, r))


def place_pairs_bits() -> Cases:
    for count, targets, r in ((1, 1, 1), (1, 2, 0), (33, 7, 20), (7, 40, 7), (260, 90, 131), (5, 0, 3), (0, 4, 0)):
        generator = torch.Generator().manual_seed(count)
        order = torch.randperm(count + targets, generator=generator)
        partner = torch.randint(-1, max(targets, 1), (2, count), generator=generator)
        similarity = special_scores(2, count, torch.float32, count)
        yield Case(f"{count}-{targets}-{r}", (partner, similarity, order[:count], order[count:], r))
        far = torch.where(similarity > 0, partner + (1 << 40), -1 - partner)
        yield Case(f"{count}-{targets}-{r}-far", (far, similarity, order[:count], order[count:], r))
    apart = torch.arange(20)
    yield Case("strided", (far.new_zeros(10, 2).T, torch.randn(10, 2).T, apart[::2], apart[1::2], 4))
    yield Case("no-samples", (far[:0, :0], similarity[:0, :0], apart[:0], apart, 0))


def place_pairs_ones() -> Iterator[Call]:
    x = torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.zeros(1, dtype=torch.int64)
    yield Call("bipartite_plan", lambda: bipartite_plan(*x, x[2] + 1, 1, 1))


def place_pairs_compiled() -> Iterator[Call]:
    token = torch.arange(4096)
    args = torch.empty(2, 3072, dtype=torch.int64), torch.empty(2, 3072), token[:3072], token[3072:], 2048
    yield Call("place_pairs, 2048 of 3072 into 1024", functools.partial(place_pairs_op, *args))


def pairs(so_far: Any) -> None:
    """Some tokens that become part of the others, and their merging."""
    level = so_far.choice(*so_far.levels)
    size = level.shape[1]
    if size < 2:
        return
    targets, order = so_far.integer(1, size - 1), torch.arange(size).roll(so_far.integer(0, 9))
    a, b = order[targets:], order[:targets]
    plan = so_far.same(bipartite_plan, level[:, a], level[:, b], a, b, so_far.integer(0, size - targets), 1)
    so_far.same(pyramid_ops.merge_tokens, level, plan)


def trace_rows_golden() -> Cases:
    source = Source("trace")
    for in_order in (False, True):
        args = (source.integers(-2, 45, 2, 60), source.integers(-2, 62, 2, 20), 42, in_order)
        yield Case("in-order" if in_order else "tome", args)


def trace_rows_bits() -> Cases:
    generator = torch.Generator().manual_seed(0)
    for count, merged, num_rows in ((1, 0, 1), (33, 7, 26), (260, 100, 160), (40, 3, 200), (9, 4, 0), (0, 0, 3)):
        rows = torch.randint(-2, num_rows + 2, (2, count), generator=generator)
        sources = torch.randint(-2, count + 2, (2, merged), generator=generator)
        for in_order in (False, True):
            yield Case(f"{count}-{num_rows}-{'ordered' if in_order else 'tome'}", (rows, sources, num_rows, in_order))
    far = torch.randint(-(1 << 40), 1 << 40, (2, 40), generator=generator)
    far[:, ::2] %= 30
    yield Case("far", (far, far[:, 5:25], 30, True))
    yield Case("strided", (far.T.contiguous().T, far[:, ::3], 30, False))
    yield Case("no-samples", (far[:0], far[:0], 30, True))


def trace_rows_ones() -> Iterator[Call]:
    plan = pyramid_ops.tome_matching(torch.empty(1, 2, 1), 1)
    for order in ("tome", "original"):
        call = functools.partial(pyramid_ops.merge_tokens, torch.empty(1, 2, 1), plan, order=order)
        yield Call(f"merge_tokens-{order}", call)


def trace_rows_compiled() -> Iterator[Call]:
    plan = pyramid_ops.tome_matching(torch.zeros(8, 577, 8), 16)
    call = functools.partial(pyramid_ops.merge_tokens, torch.empty(8, 577, 1024), plan, order="original")
    yield Call("merge_tokens, 577 tokens, original order", call)


DESCRIPTIONS = [
    Description(
        match_halves_op,
        match_halves_golden,
        match_halves_bits,
        match_halves_ones,
        match_halves_compiled,
        tome_plan,
        "test_tome",
        scattered=("_rank_halves_kernel", "_place_halves_kernel"),
        dots=("_best_match_kernel",),
    ),
    Description(
        place_pairs_op,
        place_pairs_golden,
        place_pairs_bits,
        place_pairs_ones,
        place_pairs_compiled,
        pairs,
        "test_tome",
        dtypes=(torch.int64, torch.float32),
        scattered=("_place_pairs_kernel",),
    ),
    Description(
        trace_rows_op,
        trace_rows_golden,
        trace_rows_bits,
        trace_rows_ones,
        trace_rows_compiled,
        tome_plan,
        "test_tome",
        dtypes=(torch.int64,),
        scattered=("_owning_kernel", "_owners_kernel", "_order_rows_kernel"),
    ),
]
