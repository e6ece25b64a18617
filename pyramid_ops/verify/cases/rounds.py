"""Descriptions of the ops in `ops/rounds.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

import pyramid_ops

from ...ops.rounds import bipartite_prune_op
from ...plans.kept import mask
from ...reference.arguments import Amount, Slots
from ..describe import Call, Case, Cases, Description
from ..inputs import BOUNDS, FEATURES, Source, few_features, int32, name, offsets, offsets_to, special_rows
from .greedy import like


def bipartite_prune_golden() -> Cases:
    for features in (1, 65):
        for dtype in FEATURES:
            x = Source(f"prune-{features}-{name(dtype)}").rows(features, dtype)
            for limbs in (1, 2):
                case = f"{features}-{name(dtype)}-limbs{limbs}"
                yield Case(case, (x, None, Amount(None, [4]), Slots(9, 4), 2, limbs))
    source = Source("prune-packed")
    x = source.floats(1, 90, 24)
    x[0, 1::3] = x[0, :1].clone()
    yield Case("packed", (x, offsets_to(40, 40, 90), Amount(int32(11, 30, 20), [0]), Slots(45, 20), 3, 2))


def bipartite_prune_bits() -> Cases:
    for i, dtype in enumerate(FEATURES):
        x = special_rows(65, dtype, i)
        size = x.shape[1]
        for limbs in (1, 2):
            for step in (1, 2, size):
                args = (x, None, Amount(None, [1 + i % 2]), Slots(size, 2), step, limbs)
                yield Case(f"special-{name(dtype)}-limbs{limbs}-step{step}", args)
    x = like(70, 24, 0)
    for case, k, capacity, step in (
        ("some", Amount(None, [20, 3]), 20, 8),
        ("half", Amount(None, [11]), 11, 99),
        ("one", Amount(None, [1]), 1, 5),
        ("all", Amount(None, [70]), 70, 8),
        ("device", Amount(int32(1 << 30, -5), [0]), 50, 8),
        ("fewer-places", Amount(None, [50, 30]), 20, 8),
        ("less-than-wanted", Amount(int32(33, 12), [0]), 15, 8),
    ):
        yield Case(case, (x, None, k, Slots(70, capacity), step, 2))
    for i, (case, bounds) in enumerate(BOUNDS.items()):
        total = min(max(bounds[-1], 50), 90)
        x, segments = like(total, 24, i)[:1], len(bounds) - 1
        device = int32(*[(-3, 5, 1 << 30, 16, 1, 300)[(s + i) % 6] for s in range(segments)])
        args = (x, int32(*bounds), Amount(device, [0]), Slots(60, 12), 1 + 3 * i, 1 + i % 2)
        yield Case(f"packed-{case}", args)
    for wanted in (0, 3):
        slots = Slots(x.shape[1], wanted)
        yield Case(f"{wanted}-no-samples", (x[:0], None, Amount(None, [wanted]), slots, 8, 2))
        yield Case(f"{wanted}-no-segments", (x, int32(0), Amount(None, [wanted]), slots, 8, 2))
    yield Case("no-tokens", (x[:, :0], None, Amount(None, [3]), Slots(0, 0), 8, 2))
    x = like(1100, 24, 1)[:1]
    for step, left in ((400, 300), (8, 1070)):
        yield Case(f"tiles-step{step}", (x, None, Amount(None, [left]), Slots(1100, left), step, 1), step == 8)


def bipartite_prune_ones() -> Iterator[Call]:
    one, bounds = torch.empty(1, 1, 1), torch.empty(2, dtype=torch.int32)
    prune = pyramid_ops.bipartite_prune
    yield Call("bipartite_prune", functools.partial(prune, one, 1, step=1))
    yield Call("bipartite_prune-given", functools.partial(prune, one, bounds[:1], step=1, capacity=1))
    yield Call("bipartite_prune-packed", functools.partial(prune, one[0], 1, cu_seqlens=bounds))
    wide = torch.empty(1, 1040, 16)
    for step in (1, 8):
        yield Call(f"bipartite_prune-rounds-{step}", functools.partial(prune, wide, 1039, step=step))


def bipartite_prune_compiled() -> Iterator[Call]:
    bounds = torch.empty(5, dtype=torch.int32)
    for dtype in (torch.float32, torch.bfloat16):
        for tokens, k in ((576, 72), (2880, 2872)):
            x = torch.empty(1, tokens, 1024, dtype=dtype)
            call = functools.partial(pyramid_ops.bipartite_prune, x, k)
            yield Call(f"bipartite_prune, {k} of {tokens}, D = 1024", call, dtype)
        call = functools.partial(pyramid_ops.bipartite_prune, x[0], 64, cu_seqlens=bounds, max_seqlen=1024)
        yield Call("bipartite_prune, packed", call, dtype)


def prune(so_far: Any) -> None:
    """What is left of a level when the most similar tokens went; then what belongs to them."""
    level = so_far.choice(*so_far.levels)
    if not level.shape[1]:
        return
    level = level[..., : few_features(so_far, level)]
    options: dict[str, Any] = {"step": so_far.integer(1, 9)}
    if so_far.choice(True, False):
        level = level.flatten(0, 1)
        options["cu_seqlens"] = offsets(so_far, len(level))
    plan = so_far.same(pyramid_ops.bipartite_prune, level, so_far.integer(0, 9), **options)
    so_far.same(mask, plan)


DESCRIPTIONS = [
    Description(
        bipartite_prune_op,
        bipartite_prune_golden,
        bipartite_prune_bits,
        bipartite_prune_ones,
        bipartite_prune_compiled,
        prune,
        "test_rounds",
        dtypes=FEATURES,
        scattered=("_bounds_kernel", "_keep_tokens_kernel", "_left_kernel", "_round_kernel", "_rounds_kernel"),
        dots=("_gram_kernel",),
        limits={"gram_limit": 0, "alone_limit": 0},
    ),
]
