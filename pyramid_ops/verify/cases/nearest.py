"""Descriptions of the ops in `ops/nearest.py`."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch

import pyramid_ops

from ...ops.nearest import nearest_op
from ...reference.arguments import Allowed, Nearest, Segments
from ..describe import Call, Case, Cases, Description
from ..inputs import FEATURES, FLOATS, Source, int32, name, offsets_to, special_rows, special_scores

ANY = Allowed(None, None)
# What is wanted, and how many limbs it has.
WAYS = {
    "grid": (Nearest(3, False, True, True), 1),
    "high": (Nearest(5, False, True, False), 2),
    "least": (Nearest(2, False, False, True), 2),
    "near": (Nearest(4, True, True, False), 2),
    "far": (Nearest(3, True, False, True), 2),
}


def nearest_golden() -> Cases:
    for features, dtype in itertools.product((1, 65, 130), FEATURES):
        source = Source(f"nearest-{features}-{name(dtype)}")
        queries = source.rows(features, dtype)
        keys = torch.cat([queries, *(source.rows(features, dtype) for _ in range(3))], 1)
        for way, (wanted, limbs) in WAYS.items():
            args = (queries, keys, ANY, Segments(None, None, 9, 36), wanted, limbs)
            yield Case(f"{features}-{name(dtype)}-{way}", args)
    source = Source("nearest-packed")
    x, mask, rank = source.floats(1, 60, 24), source.bits(1, 60) % 4 > 0, source.scores(1, 60, torch.float32)
    x[:, 30:40] = x[:, 10:20]
    segments = Segments(offsets_to(0, 17, 40, 60), offsets_to(9, 9, 50, 70), 20, 30)
    for way, (wanted, limbs) in WAYS.items():
        yield Case(f"packed-{way}", (x, x, Allowed(mask, rank), segments, wanted, limbs))


def nearest_bits() -> Cases:
    for dtype in FEATURES:
        for features, queries, keys in ((1, 3, 2), (24, 9, 31), (65, 3, 130), (128, 17, 7), (5000, 2, 4)):
            if features == 5000 and dtype != torch.float32:
                continue
            q = special_rows(features, dtype, 1)[:, :queries].repeat(1, -(-queries // 9), 1)[:, :queries]
            k = special_rows(features, dtype, 2).repeat(1, -(-keys // 9), 1)[:, :keys]
            for way in ("grid", "near"):
                wanted, limbs = WAYS[way]
                args = (q, k, ANY, Segments(None, None, queries, keys), wanted, limbs)
                yield Case(f"{queries}x{keys}x{features}-{name(dtype)}-{way}", args)
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(2, size, 24, generator=generator) for size in (20, 150))
    k[:, 135:150] = k[:, 5:20]  # ties of different groups
    k[:, 40:50] = k[:, 50:60]  # and of one
    mask = torch.rand(2, 150, generator=generator) > 0.3
    dense, small = Segments(None, None, 20, 150), Segments(None, None, 20, 20)
    for way, (wanted, limbs) in WAYS.items():
        yield Case(f"masked-{way}", (q, k, Allowed(mask, None), dense, wanted, limbs))
    for way, dtype in zip(("high", "near", "far"), FLOATS, strict=True):
        wanted, limbs = WAYS[way]
        rank = special_scores(2, 20, dtype, 4)
        yield Case(f"ranked-{way}", (q, q, Allowed(mask[:, :20], rank), small, wanted, limbs))
    for case, ways, q_offsets, k_offsets, longest in (
        ("segments", WAYS, (0, 4, 4, 13, 20), (3, 3, 20, 100, 150), 150),
        ("clamped", ("grid",), (-5, 4, 12, 999), (0, 7, 100, 150), 150),
        ("short", ("near",), (0, 10, 20), (0, 75, 150), 7),
        ("backwards", ("far",), (9, 4, -7, 16, 8, 18), (0, 50, 30, 100, 90, 150), 60),
        ("no-segments", ("high",), (0,), (0,), 150),
    ):
        segments = Segments(int32(*q_offsets), int32(*k_offsets), min(longest, 20), longest)
        for way in ways:
            wanted, limbs = WAYS[way]
            args = (q[:1], k[:1], Allowed(mask[:1] if limbs == 1 else None, None), segments, wanted, limbs)
            yield Case(f"{case}-{way}", args)
    equal = k[:1, :1].expand(1, 20, 24)
    yield Case("all-equal", (equal, equal, ANY, small, Nearest(64, True, True, True), 2))
    wanted = Nearest(2, True, True, True)
    yield Case("all-masked", (q, k, Allowed(torch.zeros_like(mask), None), dense, wanted, 2))
    yield Case("no-queries", (q[:, :0], k, ANY, Segments(None, None, 0, 150), wanted, 2))
    yield Case("no-keys", (q, k[:, :0], ANY, Segments(None, None, 20, 0), wanted, 2))
    yield Case("no-samples", (q[:0], k[:0], ANY, dense, wanted, 2))
    yield Case("none-wanted", (q, k, ANY, dense, Nearest(0, False, True, True), 1))


def nearest_ones() -> Iterator[Call]:
    one, offsets = torch.empty(1, 1, 1), torch.zeros(2, dtype=torch.int32)
    packed = {"key_mask": torch.ones(1, dtype=torch.bool), "cu_seqlens_q": offsets, "cu_seqlens_k": offsets}
    wide, key = torch.empty(1, 300, 100), torch.empty(1, 1, 100)
    for way, options in {
        "grid": {"precision": "grid"},
        "high": {"precision": "high"},
        "euclidean": {"metric": "euclidean"},
    }.items():
        near = functools.partial(pyramid_ops.nearest, **options)
        yield Call(f"nearest-{way}", functools.partial(near, one, one, exclude_self=True))
        yield Call(f"nearest-{way}-1-key", functools.partial(near, wide, key, 3))
        yield Call(f"nearest-{way}-packed", functools.partial(near, one[0], one[0], rank=torch.ones(1), **packed))


def nearest_compiled() -> Iterator[Call]:
    for dtype in (torch.float32, torch.bfloat16):
        for features in (64, 1024):
            x = torch.empty(2, 2048, features, dtype=dtype)
            near = functools.partial(pyramid_ops.nearest, x, x, 8, exclude_self=True)
            size = f"2048 × 2048, D = {features}"
            yield Call(f"nearest, grid, {size}", functools.partial(near, precision="grid"), dtype)
            yield Call(f"nearest, high, {size}", functools.partial(near, precision="high"), dtype)
            yield Call(f"nearest, euclidean, {size}", functools.partial(near, metric="euclidean"), dtype)


def nearest_sizes() -> Iterator[Call]:
    rank, packed_rank = torch.ones(2, 4096), torch.ones(4096)
    offsets = torch.zeros(3, dtype=torch.int32)
    packed = {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets, "max_seqlen_q": 300, "max_seqlen_k": 300}
    for way, options, many in (
        ("grid", {"precision": "grid"}, (16, 32, 48, 80, 100, 128, 192, 768)),
        ("high", {"precision": "high"}, (16, 48, 80, 128, 768)),
        ("euclidean", {"metric": "euclidean"}, (16, 48, 80, 128, 768)),
    ):
        near = functools.partial(pyramid_ops.nearest, k=32, exclude_self=True, **options)
        for features in many:
            x = torch.empty(2, 4096, features, dtype=torch.bfloat16)
            masked = functools.partial(near, x, x, rank=rank, key_mask=rank > 0)
            yield Call(f"nearest-{way}-{features}", masked, torch.bfloat16)
            ragged = functools.partial(near, x[0], x[0], rank=packed_rank, key_mask=packed_rank > 0, **packed)
            yield Call(f"nearest-{way}-{features}-packed", ragged, torch.bfloat16)
    for count in (300, 40000, 100000):
        x = torch.empty(1, count, 64)
        yield Call(f"nearest-{count}", functools.partial(pyramid_ops.nearest, x[:, :9], x, 64))


def near(so_far: Any) -> None:
    queries, keys = so_far.choice(*so_far.levels), so_far.choice(*so_far.levels)
    options = so_far.choice({"precision": "grid"}, {"precision": "high"}, {"metric": "euclidean"})
    options = {**options, "largest": so_far.choice(True, False), "exclude_self": so_far.choice(True, False)}
    if so_far.choice(True, False):
        options["key_mask"] = so_far.tensor(*keys.shape[:2], dtype=torch.float32) > 0
    if queries.shape[1] == keys.shape[1] and so_far.choice(True, False):
        options["rank"] = so_far.tensor(*keys.shape[:2], dtype=so_far.choice(*FLOATS))
    so_far.same(pyramid_ops.nearest, queries, keys, so_far.choice(0, 1, 2, 5), **options)


DESCRIPTIONS = [
    Description(
        nearest_op,
        nearest_golden,
        nearest_bits,
        nearest_ones,
        nearest_compiled,
        near,
        "test_nearest",
        sizes=nearest_sizes,
        dots=("_similarity_kernel",),
    ),
]
