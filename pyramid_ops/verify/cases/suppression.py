"""Descriptions of the ops in `ops/suppression.py`."""

import functools
import math
from collections.abc import Iterator
from typing import Any, Optional

import torch
from torch import Tensor

import pyramid_ops

from ...ops.suppression import suppress_op
from ...reference.arguments import Alike
from ..describe import Call, Case, Cases, Description
from ..inputs import (
    BOUNDS,
    FEATURES,
    FLOATS,
    Source,
    few_features,
    int32,
    name,
    offsets,
    offsets_to,
    special_rows,
    special_scores,
)

# From one that all tokens reach to one that none does.
THRESHOLDS = (-2.0, -1.0, -0.3, 0.0, 2.0**-30, 0.9, 0.999, 1.0, 1.5)


def _units(threshold: float) -> int:
    return math.ceil(threshold * 2**30)


def clustered(source: Source, batch: int, tokens: int, features: int, dtype: torch.dtype) -> Tensor:
    """Small integers near one of twelve centers, some of them equal."""
    centers, near = source.integers(-7, 8, batch * 12, features), source.integers(-6, 7, batch, tokens, features)
    x = 16 * centers[source.integers(0, batch * 12, batch, tokens)] + near * source.integers(0, 2, batch, tokens, 1)
    return (x + 120 if dtype == torch.uint8 else x).to(dtype)


def suppress_golden() -> Cases:
    for features in (1, 65, 130):
        for dtype in FEATURES:
            case = f"{features}-{name(dtype)}"
            source, limbs = Source(case), 2 if dtype == torch.float32 else 1 + features % 2
            x = torch.cat([source.rows(features, dtype)] * 2 + [clustered(source, 2, 60, features, dtype)], 1)
            scores, candidates = source.scores(2, 78, FLOATS[features % 3]), source.bits(2, 78) % 8 > 0
            yield Case(case, (x, scores, candidates, Alike(None, _units(0.9), limbs), None, 78))
    source = Source("packed")
    x, scores = clustered(source, 1, 200, 24, torch.float32), source.floats(1, 200)
    for limbs in (1, 2):
        alike = Alike(torch.tensor([0.5, 0.9, math.nan, 0.99]), 0, limbs)
        yield Case(f"packed-limbs{limbs}", (x, scores, None, alike, offsets_to(33, 33, 101, 190), 80))
        yield Case(f"by-index-limbs{limbs}", (x, None, None, Alike(None, _units(0.97), limbs), None, 200))


def suppress_bits() -> Cases:
    generator = torch.Generator().manual_seed(3)
    for i, (features, tokens) in enumerate(((1, 3), (24, 31), (65, 33), (128, 70), (3, 130), (1100, 18))):
        for j, dtype in enumerate(FEATURES):
            x = special_rows(features, dtype, i).repeat(1, -(-tokens // 9), 1)[:, :tokens]
            x = torch.where(torch.rand(2, tokens, 1, generator=generator) < 0.4, x.flip(1), x)
            scores = special_scores(2, tokens, FLOATS[(i + j) % 3], i + j) if (i + j) % 2 else None
            candidates = torch.rand(2, tokens, generator=generator) < 0.8 if j < 2 else None
            for limbs in (1, 2):
                threshold = THRESHOLDS[(2 * i + 3 * j + limbs) % len(THRESHOLDS)]
                case = f"{features}x{tokens}-{name(dtype)}-limbs{limbs}"
                yield Case(case, (x, scores, candidates, Alike(None, _units(threshold), limbs), None, tokens))
    x = clustered(Source("clusters"), 2, 140, 40, torch.float32)
    scores = torch.randn(2, 140, generator=generator)
    for k, threshold in enumerate(THRESHOLDS):
        for limbs in (1, 2):
            # One for all, or one for each sample.
            alike = Alike(torch.tensor([threshold, 0.98]).to(FLOATS[k % 3]), 0, limbs)
            if (k + limbs) % 2:
                alike = Alike(None, _units(threshold), limbs)
            yield Case(f"clusters-{k}-limbs{limbs}", (x, scores if k % 3 else None, None, alike, None, 140))
    yield from _of_segments(generator)
    yield from _of_layouts(x, scores)


def _of_segments(generator: torch.Generator) -> Cases:
    for i, (case, bounds) in enumerate(BOUNDS.items()):
        total, segments = max(bounds[-1], 50), len(bounds) - 1
        x = clustered(Source(case), 1, total, 16, torch.float32)
        scores = torch.randn(1, total, generator=generator).to(FLOATS[i % 3])
        candidates = torch.rand(1, total, generator=generator) < 0.7
        ascending = int32(*bounds).cummax(0).values
        slow = case == "several-tiles"
        longest = min(total, 2100 if slow else 260)
        for limbs in (1, 2):
            thresholds: Optional[Tensor] = torch.linspace(0.5, 1.0, segments) if (i + limbs) % 2 else None
            alike = Alike(thresholds, _units(0.9), limbs)
            given = (scores if (i // 2 + limbs) % 2 else None, candidates if i % 3 else None)
            yield Case(f"{case}-limbs{limbs}", (x, *given, alike, ascending, longest), slow)
        yield Case(f"{case}-short", (x, scores, None, alike, ascending, 7), slow)
        yield Case(f"{case}-none", (x, scores, None, alike, ascending, 0))


def _of_layouts(x: Tensor, scores: Tensor) -> Cases:
    """Of `[2, 140, 40]`."""
    alike = Alike(None, _units(0.9), 2)
    yield Case("transposed", (x.transpose(0, 1)[:20], scores.T[:20], (scores > 0).T[:20], alike, None, 2))
    yield Case("unaligned", (x[:, ::3, 1:], scores[:, ::3], (scores > 0)[:, ::3], alike, None, 47))
    yield Case("expanded", (x[:1].expand(3, 140, 40), scores[:1].expand(3, 140), None, alike, None, 140))
    edges = torch.tensor([math.nan, math.inf, -math.inf, 2.0, -2.0, 1e-45, -1e-45, 3e38, 0.0, -0.0])
    for limbs in (1, 2):
        each = Alike(edges.repeat_interleave(2)[::2], 0, limbs)
        yield Case(f"edges-limbs{limbs}", (x[:1, :40].expand(10, 40, 40), None, None, each, None, 40))
    # On an arc, each like its neighbours: leaders are every other one.
    angle = 0.3 * torch.arange(70)
    arc = torch.stack((angle.cos(), angle.sin()), 1)[None]
    yield Case("arc", (arc, None, None, Alike(None, _units(0.95), 2), None, 70))
    none = torch.zeros(2, 140, dtype=torch.bool)
    yield Case("no-candidates", (x, scores, none, alike, None, 140))
    yield Case("no-tokens", (x[:, :0], scores[:, :0], none[:, :0], alike, None, 0))
    yield Case("no-samples", (x[:0], None, None, alike, None, 140))


def suppress_ones() -> Iterator[Call]:
    one, wide, bounds = torch.empty(1, 1, 1), torch.empty(1, 300, 100), torch.zeros(2, dtype=torch.int32)
    for precision in ("grid", "high"):
        suppress = functools.partial(pyramid_ops.suppress, threshold=1.0, precision=precision)
        yield Call(f"suppress-{precision}", functools.partial(suppress, one, candidates=one[0] > 0))
        yield Call(f"suppress-{precision}-scores", functools.partial(suppress, wide, scores=wide[..., 0]))
        options = {"scores": one[0, 0], "cu_seqlens": bounds, "threshold": one[0, 0]}
        yield Call(f"suppress-{precision}-packed", functools.partial(suppress, one[0], **options))


def suppress_compiled() -> Iterator[Call]:
    for precision in ("grid", "high"):
        for features, tokens in ((64, 576), (1024, 2880)):
            x = torch.empty(2, tokens, features, dtype=torch.bfloat16)
            suppress = functools.partial(pyramid_ops.suppress, threshold=0.8, precision=precision)
            yield Call(
                f"suppress, {precision}, {tokens}, D = {features}", functools.partial(suppress, x), torch.bfloat16
            )
    options = {"cu_seqlens": torch.empty(5, dtype=torch.int32), "scores": x[0, :, 0], "threshold": torch.empty(4)}
    call = functools.partial(suppress, x[0], **options)
    yield Call("suppress, high, packed, scores, D = 1024", call, torch.bfloat16)


def suppress_sizes() -> Iterator[Call]:
    offsets, scores = torch.zeros(3, dtype=torch.int32), torch.empty(2, 600, dtype=torch.bfloat16)
    for precision, many in (("grid", (16, 32, 48, 80, 100, 128, 192, 768)), ("high", (16, 48, 80, 128, 768))):
        for features in many:
            x = torch.empty(2, 600, features, dtype=torch.bfloat16)
            suppress = functools.partial(pyramid_ops.suppress, threshold=0.8, precision=precision)
            yield Call(f"suppress-{precision}-{features}", functools.partial(suppress, x), torch.bfloat16)
            options = {"cu_seqlens": offsets, "scores": scores[0], "threshold": scores[0, :2], "max_seqlen": 300}
            ragged = functools.partial(suppress, x[0], **options)
            yield Call(f"suppress-{precision}-{features}-packed", ragged, torch.bfloat16)


def suppressing(so_far: Any) -> None:
    """Leaders of some tokens, and the means of their clusters."""
    level = so_far.choice(*so_far.levels)
    features = few_features(so_far, level)
    shape = so_far.choice((2, so_far.integer(0, 70)), (so_far.integer(0, 70),))
    options: dict[str, Any] = {"precision": so_far.choice("grid", "high")}
    parts = 2
    if len(shape) == 1:
        options["cu_seqlens"] = offsets(so_far, shape[0])
        options["max_seqlen"] = so_far.choice(None, so_far.integer(0, 50))
        parts = len(options["cu_seqlens"]) - 1
    if so_far.choice(True, False):
        options["scores"] = so_far.tensor(*shape, dtype=so_far.choice(*FLOATS))
    if so_far.choice(True, False):
        options["candidates"] = so_far.tensor(*shape, dtype=torch.float32, kinds=("plain", "ties")) > 0
    threshold = so_far.choice(-1.0, -0.2, 0.0, 0.2, 0.9, 1, so_far.tensor(parts, dtype=torch.float32))
    x = so_far.tensor(*shape, features, dtype=so_far.choice(*FEATURES))
    leader = so_far.same(pyramid_ops.suppress, x, threshold, **options)
    if len(shape) == 2 and shape[1]:
        so_far.same(pyramid_ops.assign_mean, x, leader, shape[1])


DESCRIPTIONS = [
    Description(
        suppress_op,
        suppress_golden,
        suppress_bits,
        suppress_ones,
        suppress_compiled,
        suppressing,
        "test_suppress",
        sizes=suppress_sizes,
        scattered=("_order_tokens_kernel", "_leaders_kernel", "_join_leaders_kernel"),
        dots=("_alike_kernel",),
    ),
]
