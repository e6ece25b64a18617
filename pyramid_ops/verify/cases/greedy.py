"""Descriptions of the ops in `ops/greedy.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

import pyramid_ops

from ...ops.greedy import greedy_select_op
from ...plans.kept import mask
from ...reference.arguments import Amount, Slots
from ..describe import Call, Case, Cases, Description
from ..inputs import (
    BOUNDS,
    FEATURES,
    Source,
    few_features,
    int32,
    name,
    offsets,
    offsets_to,
    special_rows,
    special_scores,
)

RULES = ("maxmin", "dpp", "coverage")


def greedy_select_golden() -> Cases:
    for rule in RULES:
        for features in (1, 65):
            for dtype in FEATURES:
                source = Source(f"{rule}-{features}-{name(dtype)}")
                x = source.rows(features, dtype)
                relevance = None if dtype == torch.uint8 else source.scores(2, 9, dtype)
                for limbs in (1, 2):
                    case = f"{rule}-{features}-{name(dtype)}-limbs{limbs}"
                    yield Case(case, (x, relevance, None, None, Amount(None, [9]), Slots(9, 9), rule, False, limbs))
        source = Source(f"{rule}-packed")
        x, flags = source.floats(1, 90, 24), source.bits(1, 90) % 4 > 0
        x[0, 1::3] = x[0, :1].clone()
        amount = Amount(int32(11, 30, 40), [0])
        for by_index in (False, True):
            args = (x, None, flags, offsets_to(40, 40, 90), amount, Slots(45, 20), rule, by_index, 2)
            yield Case(f"{rule}-packed{'-by-index' * by_index}", args)


def like(rows: int, features: int, seed: int) -> torch.Tensor:
    """Clusters of near and of equal tokens, `[2, N, D]`."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(1 + rows // 7, features, generator=generator)
    at = torch.randint(0, len(centers), (2, rows), generator=generator)
    noise = torch.randn(2, rows, features, generator=generator)
    return centers[at] + noise * (torch.rand(2, rows, 1, generator=generator) > 0.5) * 0.1


def greedy_select_bits() -> Cases:
    for rule in RULES:
        for i, dtype in enumerate(FEATURES):
            x = special_rows(65, dtype, i)
            for limbs in (1, 2):
                for weights in (None, *([] if dtype == torch.uint8 else [dtype])):
                    relevance = None if weights is None else special_scores(2, 9, weights, i)
                    case = f"{rule}-special-{name(dtype)}-limbs{limbs}{'-relevance' * (weights is not None)}"
                    yield Case(case, (x, relevance, None, None, Amount(None, [9]), Slots(9, 9), rule, False, limbs))
        x = like(70, 24, 0)
        flags = special_scores(2, 140, torch.float32, 3).view(2, 2, 70) > 0
        relevance = torch.rand(2, 70, generator=torch.Generator().manual_seed(1))
        for case, weights, candidates, k, capacity in (
            ("some", None, None, Amount(None, [20, 3]), 20),
            ("all", relevance, None, Amount(None, [70]), 70),
            ("candidates", relevance.to(torch.bfloat16), flags[0], Amount(int32(20, -1), [0]), 15),
            ("more", None, flags[1], Amount(int32(1 << 30, 33), [0]), 50),
        ):
            for by_index in (False, True):
                slow = case == "all" and by_index
                args = (x, weights, candidates, None, k, Slots(70, capacity), rule, by_index, 2)
                yield Case(f"{rule}-{case}{'-by-index' * by_index}", args, slow)
        for i, (case, bounds) in enumerate(BOUNDS.items()):
            total = min(max(bounds[-1], 50), 90)
            x = like(total, 24, i)[:1]
            flags = special_scores(1, total, torch.float32, i) < 2
            segments = len(bounds) - 1
            device = int32(*[(-3, 5, 1 << 30, 16, 1, 300)[(s + i) % 6] for s in range(segments)])
            args = (x, None, flags, int32(*bounds), Amount(device, [0]), Slots(60, 12), rule, bool(i % 2), 1 + i % 2)
            yield Case(f"{rule}-{case}", args)
        for wanted in (0, 3):
            amount, slots = Amount(None, [wanted]), Slots(x.shape[1], wanted)
            yield Case(f"{rule}-{wanted}-no-samples", (x[:0], None, None, None, amount, slots, rule, False, 2))
            yield Case(f"{rule}-{wanted}-no-segments", (x, None, None, int32(0), amount, slots, rule, True, 2))
        yield Case(f"{rule}-no-tokens", (x[:, :0], None, None, None, Amount(None, [3]), Slots(0, 0), rule, True, 2))
        none = torch.zeros(x.shape[:2], dtype=torch.bool)
        yield Case(f"{rule}-none", (x, None, none, None, Amount(None, [3]), Slots(x.shape[1], 3), rule, True, 2))
    x = like(60, 5, 2)  # of rank 5
    args = (x, None, None, None, Amount(None, [40]), Slots(60, 40), "dpp", False, 2)
    yield Case("dpp-exhausted", args)
    x = like(1100, 24, 1)[:1]
    for rule in RULES:
        args = (x, None, None, None, Amount(None, [3]), Slots(1100, 3), rule, False, 1)
        yield Case(f"{rule}-tiles", args, rule != "dpp")


def greedy_select_ones() -> Iterator[Call]:
    one, bounds = torch.empty(1, 1, 1), torch.empty(2, dtype=torch.int32)
    flag = torch.empty(1, 1, dtype=torch.bool)
    for rule in RULES:
        select = functools.partial(pyramid_ops.greedy_select, rule=rule)
        yield Call(f"greedy_select-{rule}", functools.partial(select, one, 1))
        given = functools.partial(select, one, bounds[:1], relevance=torch.empty(1, 1), candidates=flag, capacity=1)
        yield Call(f"greedy_select-{rule}-given", functools.partial(given, order="index"))
        yield Call(f"greedy_select-{rule}-packed", functools.partial(select, one[0], 1, cu_seqlens=bounds))
    wide = torch.empty(1, 4000, 16)
    yield Call("greedy_select-dpp-steps", functools.partial(pyramid_ops.greedy_select, wide, 66, rule="dpp"))


def greedy_select_compiled() -> Iterator[Call]:
    bounds = torch.empty(5, dtype=torch.int32)
    for dtype in (torch.float32, torch.bfloat16):
        for tokens, features, k in ((576, 1024, 64), (2880, 1024, 192)):
            x = torch.empty(1, tokens, features, dtype=dtype)
            for rule in RULES:
                call = functools.partial(pyramid_ops.greedy_select, x, 1 if rule == "coverage" else k, rule=rule)
                yield Call(f"greedy_select, {rule}, {k} of {tokens}, D = {features}", call, dtype)
        many = torch.empty(1, 1, features, dtype=dtype).expand(1, 32768, features)
        call = functools.partial(pyramid_ops.greedy_select, many, 1)
        yield Call("greedy_select, maxmin, of 32768", call, dtype)
        call = functools.partial(pyramid_ops.greedy_select, x[0], 64, cu_seqlens=bounds, max_seqlen=1024, order="index")
        yield Call("greedy_select, maxmin, packed, by index", call, dtype)
        for what, given in (("grid", x), ("grid, of 32768", many)):
            call = functools.partial(pyramid_ops.greedy_select, given, 1, precision="grid")
            yield Call(f"greedy_select, maxmin, {what}", call, dtype)


def greedy_select_sizes() -> Iterator[Call]:
    for precision, many in (("grid", (16, 32, 48, 80, 128, 768)), ("high", (16, 48, 80, 128, 768))):
        for features in many:
            x = torch.empty(1, 256, features, dtype=torch.bfloat16)
            call = functools.partial(pyramid_ops.greedy_select, x, 8, precision=precision)
            yield Call(f"greedy_select-{precision}-{features}", call, torch.bfloat16)


def greedy(so_far: Any) -> None:
    """Some tokens that differ, of a level; then what belongs to them."""
    level = so_far.choice(*so_far.levels)
    if not level.shape[1]:
        return
    level = level[..., : few_features(so_far, level)]
    options: dict[str, Any] = {"order": so_far.choice("pick", "index"), "rule": so_far.choice(*RULES)}
    if so_far.choice(True, False):
        level = level.flatten(0, 1)
        options["cu_seqlens"] = offsets(so_far, len(level))
    if so_far.choice(True, False):
        options["relevance"] = so_far.tensor(*level.shape[:-1], dtype=torch.float32, kinds=("plain", "ties"))
    plan = so_far.same(pyramid_ops.greedy_select, level, so_far.integer(0, 9), **options)
    so_far.same(mask, plan)


DESCRIPTIONS = [
    Description(
        greedy_select_op,
        greedy_select_golden,
        greedy_select_bits,
        greedy_select_ones,
        greedy_select_compiled,
        greedy,
        "test_greedy",
        sizes=greedy_select_sizes,
        dtypes=FEATURES,
        scattered=("_apart_kernel", "_bounds_kernel", "_keep_tokens_kernel", "_maxmin_kernel", "_picks_kernel"),
        dots=("_farthest_kernel", "_gram_kernel", "_spread_kernel"),
        limits={"gram_limit": 0, "alone_limit": 0},
    ),
]
