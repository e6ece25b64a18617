"""Descriptions of the ops in `ops/matching.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

import pyramid_ops

from ...ops.matching import best_match_op
from ...reference.arguments import Segments
from ..describe import Call, Case, Cases, Description
from ..inputs import FEATURES, Source, name, offsets_to, special_rows


def best_match_golden() -> Cases:
    for features in (1, 65, 130):
        for dtype in FEATURES:
            for limbs in (1, 2):
                case = f"{features}-{name(dtype)}-limbs{limbs}"
                source = Source(case)
                keys = torch.cat([source.rows(features, dtype) for _ in range(4)], 1)
                yield Case(case, (source.rows(features, dtype), keys, None, Segments(None, None, 9, 36), limbs))
    source = Source("packed")
    x, mask = source.floats(1, 60, 24), source.bits(1, 60) % 4 > 0
    for limbs in (1, 2):
        offsets = (offsets_to(0, 17, 40, 60), offsets_to(9, 9, 50, 70))
        yield Case(f"packed-limbs{limbs}", (x, x.flip(1), mask, Segments(*offsets, 20, 30), limbs))


def best_match_bits() -> Cases:
    for dtype in FEATURES:
        for features, queries, keys in ((1, 3, 2), (24, 17, 31), (65, 5, 130), (128, 130, 7), (5000, 3, 4)):
            if features == 5000 and dtype != torch.float32:
                continue
            q, k = special_rows(features, dtype, 1), special_rows(features, dtype, 2)
            q = q.repeat(1, -(-queries // 9), 1)[:, :queries]
            k = k.repeat(1, -(-keys // 9), 1)[:, :keys]
            for limbs in (1, 2):
                args = (q, k, None, Segments(None, None, queries, keys), limbs)
                yield Case(f"{queries}x{keys}x{features}-{name(dtype)}-limbs{limbs}", args)
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(2, size, 40, generator=generator) for size in (50, 300))
    mask = torch.rand(2, 300, generator=generator) > 0.3
    for limbs in (1, 2):
        yield Case(f"masked-limbs{limbs}", (q, k, mask, Segments(None, None, 50, 300), limbs))
        none = torch.zeros(2, 300, dtype=torch.bool)
        yield Case(f"all-masked-limbs{limbs}", (q, k, none, Segments(None, None, 50, 300), limbs))
    x = k.view(1, 600, 40)
    yield Case("even-odd", (x[:, ::2], x[:, 1::2], None, Segments(None, None, 300, 300), 1))
    for case, q_offsets, k_offsets, longest in (
        ("segments", [0, 10, 10, 33, 50], [3, 3, 40, 200, 300], 300),
        ("clamped", [-5, 10, 30, 999], [0, 7, 200, 300], 300),
        ("short", [0, 20, 40], [0, 150, 300], 16),
        ("no-segments", [0], [0], 300),
    ):
        offsets = [torch.tensor(x, dtype=torch.int32) for x in (q_offsets, k_offsets)]
        for limbs in (1, 2):
            segments = Segments(*offsets, min(longest, 50), longest)
            args = (q[:1], k[:1], mask[:1] if limbs == 1 else None, segments, limbs)
            yield Case(f"{case}-limbs{limbs}", args)
    zero, negative = torch.zeros(1, 3, 1), -torch.ones(1, 40, 1)  # products of −0
    for limbs in (1, 2):
        yield Case(f"zeros-limbs{limbs}", (zero, negative, None, Segments(None, None, 3, 40), limbs))
    yield Case("no-queries", (q[:, :0], k, None, Segments(None, None, 0, 300), 1))
    yield Case("no-keys", (q, k[:, :0], None, Segments(None, None, 50, 0), 2))
    yield Case("no-samples", (q[:0], k[:0], None, Segments(None, None, 50, 300), 2))


def best_match_ones() -> Iterator[Call]:
    one, offsets = torch.empty(1, 1, 1), torch.zeros(2, dtype=torch.int32)
    packed = {"key_mask": torch.ones(1, dtype=torch.bool), "cu_seqlens_q": offsets, "cu_seqlens_k": offsets}
    wide, key = torch.empty(1, 300, 100), torch.empty(1, 1, 100)
    for precision in ("grid", "high"):
        match = functools.partial(pyramid_ops.best_match, precision=precision)
        yield Call(f"best_match-{precision}", functools.partial(match, one, one))
        yield Call(f"best_match-{precision}-1-key", functools.partial(match, wide, key))
        yield Call(f"best_match-{precision}-packed", functools.partial(match, one[0], one[0], **packed))


def best_match_compiled() -> Iterator[Call]:
    for dtype in (torch.float32, torch.bfloat16):
        for features in (64, 1024):
            x = torch.empty(2, 4096, features, dtype=dtype)
            for precision in ("grid", "high"):
                match = functools.partial(pyramid_ops.best_match, x[:, ::2], x[:, 1::2], precision=precision)
                yield Call(f"best_match, {precision}, 2048 × 2048, D = {features}", match, dtype)


def best_match_sizes() -> Iterator[Call]:
    mask, packed_mask = torch.ones(2, 2048, dtype=torch.bool), torch.ones(4096, dtype=torch.bool)
    offsets = torch.zeros(3, dtype=torch.int32)
    packed = {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets, "max_seqlen_q": 300, "max_seqlen_k": 300}
    for precision, many in (("grid", (16, 32, 48, 80, 100, 128, 192, 768)), ("high", (16, 48, 80, 128, 768))):
        match = functools.partial(pyramid_ops.best_match, precision=precision)
        for features in many:
            x = torch.empty(2, 4096, features, dtype=torch.bfloat16)
            masked = functools.partial(match, x[:, ::2], x[:, 1::2], key_mask=mask)
            yield Call(f"best_match-{precision}-{features}", masked, torch.bfloat16)
            ragged = functools.partial(match, x[0], x[0], key_mask=packed_mask, **packed)
            yield Call(f"best_match-{precision}-{features}-packed", ragged, torch.bfloat16)


def match(so_far: Any) -> None:
    precision = so_far.choice("grid", "high")
    queries, keys = so_far.choice(*so_far.levels), so_far.choice(*so_far.levels)
    found = so_far.same(pyramid_ops.best_match, queries, keys, precision=precision)
    if keys.shape[1]:
        sizes = so_far.tensor(*queries.shape[:2], dtype=torch.float32, kinds=("plain", "ties"))
        weights = so_far.choice(None, sizes)
        so_far.same(pyramid_ops.assign_mean, queries, found.indices, keys.shape[1], weights=weights)


DESCRIPTIONS = [
    Description(
        best_match_op,
        best_match_golden,
        best_match_bits,
        best_match_ones,
        best_match_compiled,
        match,
        "test_tome",
        sizes=best_match_sizes,
        dots=("_best_match_kernel",),
    ),
]
