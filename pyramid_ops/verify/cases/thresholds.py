"""Descriptions of the ops in `ops/thresholds.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

import pyramid_ops

from ...ops.thresholds import segment_threshold_op
from ...reference.arguments import Rule
from ..describe import Call, Case, Cases, Description
from ..inputs import BOUNDS, FLOATS, Source, int32, name, offsets, offsets_to, special_scores

RULES = (
    Rule("mean", 0, 1, 1.5),
    Rule("quantile", 9, 10, 1.5),
    Rule("iqr", 0, 1, 1.5),
    Rule("quantile", 1, 3, 1.5),
    Rule("quantile", 0, 1, 1.5),
    Rule("quantile", 1, 1, 1.5),
    Rule("iqr", 0, 1, -0.3),
    Rule("quantile", (1 << 20) - 1, 1 << 20, 1.5),
)


def segment_threshold_golden() -> Cases:
    for rule in RULES[:4]:
        for dtype in FLOATS:
            case = f"{rule.name}-{rule.numerator}-{name(dtype)}"
            source = Source(case)
            scores, candidates = source.floats(3, 700, dtype=dtype), source.bits(3, 700) % 3 > 0
            scores[1], scores[2, :9] = source.scores(1, 700, dtype)[0], source.scores(1, 9, dtype)[0]
            yield Case(case, (scores, None, None, 700, rule))
            packed = scores.view(1, -1), candidates.view(1, -1), offsets_to(400, 400, 401, 690, 2090), 650, rule
            yield Case(f"{case}-packed", packed)


def segment_threshold_bits() -> Cases:
    generator = torch.Generator().manual_seed(8)
    for i, (case, bounds) in enumerate(BOUNDS.items()):
        total = max(bounds[-1], 50)
        for j, rule in enumerate(RULES):
            scores = torch.randn(1, total, generator=generator).to(FLOATS[(i + j) % 3])
            if j % 2:  # with infinities, ties, and no NaN
                special = special_scores(1, total, scores.dtype, 2 * i)
                scores = torch.where(special == special, special, scores)
            candidates = torch.rand(1, total, generator=generator) < 0.5
            most = (2100, 100, 0)[j % 3] if i == 6 else 2100
            args = (scores, candidates if (i + j) % 3 else None, int32(*bounds), min(most, total), rule)
            yield Case(f"{case}-{j}", args)
    for size in (1, 2, 3, 5, 255, 256, 257, 1025, 2049, 5000):
        for j, rule in enumerate(RULES[:4]):
            scores = torch.randn(3, size, generator=generator).to(FLOATS[(size + j) % 3])
            scores[1] = special_scores(1, size, scores.dtype, size)[0]
            candidates = torch.rand(3, size, generator=generator) < 0.9
            yield Case(f"{size}-{j}", (scores, candidates if j % 2 else None, None, size, rule))
    pair = torch.tensor([[-torch.inf, 2.0], [2.0, torch.inf], [-3e38, 3e38], [1e-45, -0.0], [-torch.inf, torch.inf]])
    for j, rule in enumerate(RULES):
        yield Case(f"pairs-{j}", (pair, None, None, 2, rule))
        yield Case(f"no-candidates-{j}", (pair, torch.zeros_like(pair, dtype=torch.bool), None, 2, rule))
    for j, rule in enumerate(RULES[:3]):
        scores = special_scores(30, 24, torch.float32, 2)
        yield Case(f"transposed-{j}", (scores.T[:, :28], scores.T[:, :28] > 0, None, 28, rule))
        yield Case(f"unaligned-{j}", (scores[:, 1:], None, None, 23, rule))
        yield Case(f"expanded-{j}", (pair[:1].expand(3, 2), None, None, 2, rule))
        yield Case(f"no-scores-{j}", (scores[:, :0], None, None, 0, rule))
        yield Case(f"no-samples-{j}", (scores[:0], None, None, 24, rule))


def segment_threshold_ones() -> Iterator[Call]:
    one, row, bounds = torch.empty(1, 1), torch.empty(1, 4096), torch.empty(2, dtype=torch.int32)
    for rule in ("mean", "quantile", "iqr"):
        threshold = functools.partial(pyramid_ops.segment_threshold, rule=rule, q=1.0, factor=1.0)
        yield Call(f"segment_threshold-{rule}", functools.partial(threshold, one, candidates=one > 0))
        yield Call(f"segment_threshold-{rule}-packed", functools.partial(threshold, one[0], bounds))
        yield Call(f"segment_threshold-{rule}-row", functools.partial(threshold, row, candidates=row > 0))


def segment_threshold_compiled() -> Iterator[Call]:
    for dtype in (torch.float32, torch.bfloat16):
        for rule in ("mean", "quantile", "iqr"):
            scores, packed = torch.empty(2, 576, dtype=dtype), torch.empty(1 << 20, dtype=dtype)
            threshold = functools.partial(pyramid_ops.segment_threshold, rule=rule, q=0.9)
            yield Call(f"segment_threshold, {rule} of 576", functools.partial(threshold, scores), dtype)
            options = {"cu_seqlens": torch.empty(5, dtype=torch.int32), "candidates": packed > 0}
            call = functools.partial(threshold, packed, **options)
            yield Call(f"segment_threshold, {rule} of 2^20 packed, candidates", call, dtype)


def threshold(so_far: Any) -> None:
    """A threshold of the scores of each sample, or of packed segments."""
    count = so_far.integer(0, 600)
    shape = so_far.choice((2, count), (count,))
    options = {"rule": so_far.choice("mean", "quantile", "iqr"), "q": so_far.choice(0.0, 0.25, 0.9, 1 / 3)}
    if so_far.choice(True, False):
        options["candidates"] = so_far.tensor(*shape, dtype=torch.float32, kinds=("plain", "ties")) > 0
    if len(shape) == 1:
        options["cu_seqlens"] = offsets(so_far, count)
        options["max_seqlen"] = so_far.choice(None, so_far.integer(0, 20))
    scores = so_far.tensor(*shape, dtype=so_far.choice(*FLOATS), kinds=("plain", "plain", "ties", "bits"))
    so_far.same(pyramid_ops.segment_threshold, scores, **options)


DESCRIPTIONS = [
    Description(
        segment_threshold_op,
        segment_threshold_golden,
        segment_threshold_bits,
        segment_threshold_ones,
        segment_threshold_compiled,
        threshold,
        "test_segment_threshold",
        dtypes=FLOATS,
        scattered=("_segment_threshold_kernel",),
    ),
]
