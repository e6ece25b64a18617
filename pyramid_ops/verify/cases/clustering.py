"""Descriptions of the ops in `ops/clustering.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

import pyramid_ops

from ...ops.clustering import dpc_knn_op
from ...reference.arguments import Amount, Slots
from ..describe import Call, Case, Cases, Description
from ..inputs import FEATURES, Source, few_features, int32, name, offsets, offsets_to, special_rows


def dpc_knn_golden() -> Cases:
    for features in (1, 65):
        for dtype in FEATURES:
            case = f"{features}-{name(dtype)}"
            source = Source(f"dpc_knn-{case}")
            x = torch.cat([source.rows(features, dtype) for _ in range(3)], 1)
            yield Case(case, (x, None, 5, Amount(None, [7]), Slots(27, 7), 2))
    x = Source("dpc_knn-packed").floats(1, 60, 24, low=-8, high=0)
    x[:, 30:40] = x[:, 10:20]
    counts = Amount(int32(4, 99, 0), [0])
    yield Case("packed", (x, offsets_to(17, 50, 60), 3, counts, Slots(30, 9), 2))


def dpc_knn_bits() -> Cases:
    for dtype in FEATURES:
        for features, tokens, neighbours, clusters in ((1, 3, 2, 1), (24, 9, 3, 4), (65, 6, 9, 6)):
            x = special_rows(features, dtype, 1).repeat(1, 2, 1)[:, :tokens]
            args = (x, None, neighbours, Amount(None, [clusters]), Slots(tokens, clusters), 2)
            yield Case(f"{tokens}x{features}-{name(dtype)}", args)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 16, 8, generator=generator) * torch.tensor([0.3, 30.0]).view(2, 1, 1)
    x[:, 4:8] = x[:, 8:12]
    yield Case("counts", (x, None, 4, Amount(int32(3, 99), [0]), Slots(16, 6), 2))
    yield Case("no-clusters", (x, None, 4, Amount(None, [0]), Slots(16, 0), 2))
    yield Case("no-tokens", (x[:, :0], None, 4, Amount(None, [0]), Slots(0, 0), 2))
    yield Case("no-samples", (x[:0], None, 4, Amount(None, [3]), Slots(16, 3), 2))
    yield Case("all-equal", (x[:, :1].expand(2, 16, 8), None, 4, Amount(None, [5]), Slots(16, 5), 2))
    packed = x.view(1, 32, 8)
    for case, ends, longest in (("segments", (0, 4, 4, 20, 32), 32), ("short", (3, 14, 27), 9), ("none", (0,), 32)):
        capacity = min(longest, 5)
        yield Case(case, (packed, int32(*ends), 3, Amount(None, [3]), Slots(longest, capacity), 2))


def dpc_knn_ones() -> Iterator[Call]:
    one, bounds = torch.empty(1, 1, 1), torch.zeros(2, dtype=torch.int32)
    yield Call("dpc_knn", functools.partial(pyramid_ops.dpc_knn, one, 1, 1))
    yield Call("dpc_knn-packed", functools.partial(pyramid_ops.dpc_knn, one[0], 1, 1, cu_seqlens=bounds))


def dpc_knn_compiled() -> Iterator[Call]:
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.empty(2, 576, 1024, dtype=dtype)
        yield Call("dpc_knn, 576 × 1024", functools.partial(pyramid_ops.dpc_knn, x, 40, 7), dtype)


def cluster(so_far: Any) -> None:
    level = so_far.choice(*so_far.levels)
    x = level[..., : few_features(so_far, level)]
    k, clusters = so_far.choice(1, 2, 5), so_far.integer(0, 6)
    if so_far.choice(True, False) or not x.shape[0]:
        so_far.same(pyramid_ops.dpc_knn, x, clusters, k)
        return
    bounds = offsets(so_far, x.shape[1])
    most = so_far.choice(None, so_far.integer(0, 9))
    so_far.same(pyramid_ops.dpc_knn, x[0], clusters, k, cu_seqlens=bounds, max_seqlen=most)


DESCRIPTIONS = [
    Description(
        dpc_knn_op,
        dpc_knn_golden,
        dpc_knn_bits,
        dpc_knn_ones,
        dpc_knn_compiled,
        cluster,
        "test_dpc_knn",
        scattered=("_density_kernel",),
        dots=("_similarity_kernel",),
    ),
]
