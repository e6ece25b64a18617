"""Descriptions of the ops in `ops/scoring.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import pyramid_ops

from ...ops.scoring import combine_scores_op, token_norm_op, token_variance_op
from ..describe import Call, Case, Cases, Description
from ..inputs import (
    BOUNDS,
    FLOATS,
    FORMATS,
    LARGE_SIZES,
    SIZES,
    Source,
    golden_rows,
    int32,
    name,
    offsets,
    offsets_to,
    special_inputs,
    special_scores,
)


def mixed_scores(batch: int, tokens: int, count: int, seed: int) -> list[Tensor]:
    """Of several dtypes and kinds: ties and what is not finite, ordinary, near overflow, subnormal, equal."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for k in range(count):
        kind, dtype = (seed + k) % 5, FLOATS[(seed + 2 * k) % 3]
        x = torch.randn(batch, tokens, generator=generator)
        if kind == 0:
            x = special_scores(batch, tokens, dtype, 2 * seed)
        elif kind == 2:
            x = x.clamp(-1, 1) * torch.finfo(dtype).max
        elif kind == 3:
            x *= 4 * torch.finfo(dtype).smallest_normal
        elif kind == 4:
            x[:, 1::2] = x[:, :1]
            x[:1] = 0.7
        made.append(x.to(dtype))
    return made


def token_variance_golden() -> Cases:
    for case, x in golden_rows():
        yield Case(case, (x, 1))
    for case, x in golden_rows(few=True):
        for correction in (0, 3):
            yield Case(f"{case}-correction{correction}", (x, correction))


def token_norm_golden() -> Cases:
    for case, x in golden_rows():
        yield Case(case, (x, 2))
    for case, x in golden_rows():
        yield Case(f"{case}-p1", (x, 1))


def combine_scores_golden() -> Cases:
    for normalize in (False, True):
        for dtype in FLOATS:
            case = f"{'minmax' if normalize else 'plain'}-{name(dtype)}"
            source = Source(case)
            _, _, bias, _ = FORMATS[dtype]
            scores = [
                source.floats(3, 1500, dtype=dtype),
                source.floats(3, 1500, low=-9, high=0),
                source.floats(3, 1500, dtype=dtype, low=bias - 3, high=bias + 1),
            ]
            scores[1][0], scores[0][1] = source.scores(1, 1500, torch.float32)[0], 0.5
            weights = [0.3, -1.0, 0.1]
            yield Case(case, (scores, weights, normalize, None))
            yield Case(f"{case}-packed", ([x[:1] for x in scores], weights, normalize, offsets_to(5, 5, 6, 700, 1400)))


def token_variance_bits() -> Cases:
    for case, x, slow in special_inputs(SIZES + LARGE_SIZES):
        yield Case(case, (x, 1), slow)
    for case, x, slow in special_inputs((1, 3, 65)):
        for correction in (0, 3):
            yield Case(f"{case}-correction{correction}", (x, correction), slow)


def token_norm_bits() -> Cases:
    for case, x, slow in special_inputs(SIZES + LARGE_SIZES):
        yield Case(case, (x, 2), slow)
    for case, x, slow in special_inputs((1, 3, 65, 257, 1024, 1537, 4097)):
        yield Case(f"{case}-p1", (x, 1), slow)


def combine_scores_bits() -> Cases:
    weights = [0.3, -1.0, 1.0, 0.0, 2.5]
    for normalize in (False, True):
        mode = "minmax" if normalize else "plain"
        for tokens in (1, 2, 127, 128, 129, 1024, 1025, 2500):
            for seed in range(5 if tokens == 129 else 2):
                count = 1 + (seed + tokens) % 4
                scores = mixed_scores(3, tokens, count, seed + tokens)
                args = (scores, weights[:count], normalize, None)
                yield Case(f"{tokens}-{seed}-{mode}", args)
        for k, (case, bounds) in enumerate(BOUNDS.items()):
            tokens = max(bounds[-1], 50) + k % 3
            args = (mixed_scores(1, tokens, 1 + k % 3, k), weights[: 1 + k % 3], normalize, int32(*bounds))
            yield Case(f"{case}-{mode}", args)
        generator = torch.Generator().manual_seed(0)
        for case, bounds in (
            ("outside", int32(-9, -3, 200, 999, 2000)),
            ("descending", torch.randint(-50, 900, (200,), generator=generator).int()),
            ("tiny", torch.arange(0, 900, dtype=torch.int32)),
            ("many-empty", (torch.arange(5000) // 9).int()),
        ):
            args = (mixed_scores(1, 800, 2, 7), weights[:2], normalize, bounds)
            yield Case(f"{case}-{mode}", args)
        x = mixed_scores(40, 300, 5, 1)[4]
        scores = [x[:30, ::10], x.T[:30, :30], x[:1, :30].expand(30, 30), x[5:35, 7:37].half()]
        yield Case(f"strided-{mode}", (scores, weights[:4], normalize, None))
        yield Case(f"no-samples-{mode}", ([x[:0], x[:0]], weights[:2], normalize, None))
        yield Case(f"no-tokens-{mode}", ([x[:, :0]], weights[:1], normalize, None))
        yield Case(f"none-packed-{mode}", ([x[:1, :0]], weights[:1], normalize, int32(0, 3)))


def token_variance_ones() -> Iterator[Call]:
    yield Call("token_variance", lambda: pyramid_ops.token_variance(torch.empty(1, 1, 1), correction=0))


def token_variance_compiled() -> Iterator[Call]:
    for dtype in (torch.float32, torch.bfloat16):
        for features in (64, 768, 1024, 1152, 4096, 16384):
            x = torch.empty(2, 512, features, dtype=dtype)
            yield Call(f"token_variance, D = {features}", functools.partial(pyramid_ops.token_variance, x), dtype)


def token_norm_ones() -> Iterator[Call]:
    for p in (1, 2):
        yield Call(f"token_norm-{p}", functools.partial(pyramid_ops.token_norm, torch.empty(1, 1, 1), p=p))


def token_norm_compiled() -> Iterator[Call]:
    for dtype in (torch.float32, torch.bfloat16):
        for features in (64, 768, 1024, 1152, 4096, 16384):
            x = torch.empty(2, 512, features, dtype=dtype)
            yield Call(f"token_norm, D = {features}", functools.partial(pyramid_ops.token_norm, x), dtype)
        call = functools.partial(pyramid_ops.token_norm, torch.empty(2, 512, 1024, dtype=dtype), p=1)
        yield Call("token_norm, p = 1, D = 1024", call, dtype)


def combine_scores_ones() -> Iterator[Call]:
    bounds = torch.empty(2, dtype=torch.int32)
    mixed = [torch.empty(1), torch.empty(1, dtype=torch.float16)]
    strided = [torch.empty(300, 5).T, torch.empty(5, 300, dtype=torch.bfloat16)]
    for normalize in (None, "minmax"):
        combine = functools.partial(pyramid_ops.combine_scores, normalize=normalize)
        yield Call(f"combine_scores-{normalize}", functools.partial(combine, [torch.empty(1, 1)], [1]))
        yield Call(f"combine_scores-{normalize}-packed", functools.partial(combine, mixed, [1, 1], cu_seqlens=bounds))
        yield Call(f"combine_scores-{normalize}-strided", functools.partial(combine, strided, [1, 1]))


def combine_scores_compiled() -> Iterator[Call]:
    for dtype in (torch.float32, torch.bfloat16):
        scores = [torch.empty(2, 5440, dtype=dtype)] * 2
        packed = [torch.empty(1 << 20, dtype=dtype)] * 2
        for mode, normalize in (("plain", None), ("min-max", "minmax")):
            combine = functools.partial(pyramid_ops.combine_scores, weights=[0.5, 0.5], normalize=normalize)
            yield Call(f"combine_scores, 2 of 5440, {mode}", functools.partial(combine, scores), dtype)
            ragged = functools.partial(combine, packed, cu_seqlens=torch.empty(5, dtype=torch.int32))
            yield Call(f"combine_scores, 2 of 2^20 packed, {mode}", ragged, dtype)


def score(so_far: Any) -> None:
    if so_far.choice(True, False, False):
        op, options = so_far.choice(
            (pyramid_ops.token_variance, {}), (pyramid_ops.token_norm, {}), (pyramid_ops.token_norm, {"p": 1})
        )
        so_far.scores = [so_far.same(op, level, **options) for level in so_far.levels]
    else:
        dtype = so_far.choice(*FLOATS)
        kinds = ("ties", "ties", "bits", "plain")
        so_far.scores = [so_far.tensor(*level.shape[:2], dtype=dtype, kinds=kinds) for level in so_far.levels]


def combine(so_far: Any) -> None:
    shape = so_far.choice(so_far.levels[0].shape[:2], (2, so_far.integer(0, 600)))
    options = {"normalize": so_far.choice(None, "minmax")}
    if so_far.choice(True, False):
        shape = (so_far.integer(0, 600),)
        options["cu_seqlens"] = offsets(so_far, *shape)
    scores = [so_far.tensor(*shape, dtype=so_far.choice(*FLOATS)) for _ in range(so_far.integer(1, 3))]
    weights = [so_far.choice(1, -0.5, 0.3, 1e30) for _ in scores]
    so_far.same(pyramid_ops.combine_scores, scores, weights, **options)


DESCRIPTIONS = [
    Description(
        token_variance_op,
        token_variance_golden,
        token_variance_bits,
        token_variance_ones,
        token_variance_compiled,
        score,
        "test_scores",
    ),
    Description(
        token_norm_op,
        token_norm_golden,
        token_norm_bits,
        token_norm_ones,
        token_norm_compiled,
        score,
        "test_scores",
    ),
    Description(
        combine_scores_op,
        combine_scores_golden,
        combine_scores_bits,
        combine_scores_ones,
        combine_scores_compiled,
        combine,
        "test_combine_scores",
        dtypes=FLOATS,
    ),
]
