"""Descriptions of the ops in `ops/walk.py`."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch

import pyramid_ops

from ...ops.walk import attention_walk_op
from ...reference.arguments import Softmax
from ..describe import Call, Case, Cases, Description
from ..inputs import FLOATS, Source, few_features, int32, name, offsets, offsets_to, special_rows

# Offsets of 70 tokens, and the longest that counts.
PACKED = (
    ("segments", (0, 9, 9, 10, 43, 65), 70),
    ("clamped", (-3, 20, 50, 999), 70),
    ("short", (3, 30, 31, 70), 12),
    ("one-segment", (0, 70), 70),
    ("no-segments", (5,), 70),
    ("none-count", (0, 70), 0),
)


def attention_walk_golden() -> Cases:
    for heads in ("rms", "mean", "sum", "max"):
        for limbs in (1, 2):
            dtype = FLOATS[(len(heads) + limbs) % 3]
            case = f"{heads}-{name(dtype)}-limbs{limbs}"
            source = Source(case)
            q = torch.stack([source.rows(24, dtype) for _ in range(4)], 1)
            k = torch.stack([source.rows(24, dtype) for _ in range(2)], 1)
            yield Case(case, (q, k, Softmax(False, 0.5, 0.0, limbs), 3, heads, None, 9))
    source = Source("packed")
    q, k = source.floats(1, 4, 60, 24), source.floats(1, 2, 60, 24)
    for limbs in (1, 2):
        softmax = Softmax(False, 0.02, 0.0, limbs)
        yield Case(f"packed-limbs{limbs}", (q, k, softmax, 3, "rms", offsets_to(7, 7, 40, 59), 30))


def attention_walk_bits() -> Cases:
    reductions = ("rms", "mean", "sum", "max")
    k = 0
    for dtype in FLOATS:
        shapes = (
            (1, 1, 1, 1),
            (3, 9, 2, 1),
            (24, 70, 4, 2),
            (130, 33, 3, 3),
            (3, 9, 4, 2),
            (24, 70, 2, 1),
            (130, 33, 1, 1),
        )
        for features, tokens, heads, kv_heads in shapes:
            slow = heads > 2 and tokens > 9
            for limbs in (1, 2):
                q, key = (special_rows(features, dtype, seed) for seed in (1, 2))
                q, key = (x.repeat(1, -(-tokens * heads // 9), 1) for x in (q, key))
                q = q[:, : tokens * heads].view(2, heads, tokens, features)
                key = key[:, : tokens * kv_heads].view(2, kv_heads, tokens, features)
                reduction, k = reductions[k % 4], k + 1
                case = f"{heads}:{kv_heads}x{tokens}x{features}-{reduction}-{name(dtype)}-limbs{limbs}"
                yield Case(case, (q, key, Softmax(False, 3.0, 0.0, limbs), k % 4, reduction, None, tokens), slow)
    generator = torch.Generator().manual_seed(6)
    for limbs, batch, heads in ((1, 1, 2), (2, 1, 2), (1, 2, 4), (2, 2, 4)):
        q, key = (torch.randn(batch, n, 70, 40, generator=generator) for n in (heads, heads // 2))
        unusable = torch.full_like(key, torch.nan)
        for case, tensors, steps, scale in (
            ("sharp", (q, key), 5, 20.0),
            ("flat", (q, key), 3, 1e-6),
            ("no-steps", (q, key), 0, 1.0),
            ("huge", (q * 1e30, key * 1e30), 2, 1e20),
            ("no-key", (q, unusable), 2, 1.0),
            ("strided", (q.transpose(1, 2)[:, :4, :, 1:], q.transpose(1, 2)[:, 4:6, :, 1:]), 2, 1.0),
            ("no-tokens", (q[:, :, :0], key[:, :, :0]), 2, 1.0),
            ("no-samples", (q[:0], key[:0]), 2, 1.0),
        ):
            args = (*tensors, Softmax(False, scale, 0.0, limbs), steps, reductions[steps % 4])
            slow = batch > 1
            yield Case(f"{case}-{batch}x{heads}-limbs{limbs}", (*args, None, tensors[0].shape[2]), slow)
    for limbs, (case, bounds, most) in itertools.product((1, 2), PACKED):
        q, key = (torch.randn(1, heads, 70, 40, generator=generator) for heads in (2, 1))
        q[0, :, 12], key[0, :, 33] = torch.nan, torch.inf
        steps, softmax = (0, 2, 3)[(len(case) + limbs) % 3], Softmax(False, 0.5, 0.0, limbs)
        yield Case(f"{case}-limbs{limbs}", (q, key, softmax, steps, reductions[most % 4], int32(*bounds), most))


def attention_walk_ones() -> Iterator[Call]:
    head = torch.empty(1, 1, 1, 1)
    yield Call("attention_walk", lambda: pyramid_ops.attention_walk(head, head, steps=1, precision="grid"))
    options = {"cu_seqlens": torch.zeros(2, dtype=torch.int32), "steps": 1, "precision": "grid"}
    yield Call("attention_walk-packed", lambda: pyramid_ops.attention_walk(head[0], head[0], **options))


def attention_walk_compiled() -> Iterator[Call]:
    heads = [torch.empty(2, count, 2048, 64, dtype=torch.bfloat16) for count in (16, 4)]
    walk = functools.partial(pyramid_ops.attention_walk, *heads, precision="high")
    yield Call("attention_walk, high, D = 64", walk, torch.bfloat16)
    packed = [x[0].transpose(0, 1) for x in heads]
    options = {"cu_seqlens": torch.zeros(5, dtype=torch.int32), "max_seqlen": 1024, "precision": "grid"}
    walk = functools.partial(pyramid_ops.attention_walk, *packed, **options)
    yield Call("attention_walk, grid, packed, D = 64", walk, torch.bfloat16)


def walk(so_far: Any) -> None:
    """Steps along attention of tokens."""
    level = so_far.choice(*so_far.levels)
    batch, features = level.shape[0], few_features(so_far, level)
    dtype, (heads, shared) = so_far.choice(*FLOATS), so_far.choice((1, 1), (2, 1), (2, 2))
    count = so_far.integer(0, 20)
    options = {"steps": so_far.integer(0, 3), "head_reduction": so_far.choice("mean", "sum", "max", "rms")}
    if so_far.choice(True, False):
        q, k = (so_far.tensor(batch, h, count, features, dtype=dtype) for h in (heads, shared))
    else:
        q, k = (so_far.tensor(count, h, features, dtype=dtype) for h in (heads, shared))
        options |= {"cu_seqlens": offsets(so_far, count), "max_seqlen": so_far.choice(None, so_far.integer(0, 20))}
    so_far.same(pyramid_ops.attention_walk, q, k, precision=so_far.choice("grid", "high"), **options)


DESCRIPTIONS = [
    Description(
        attention_walk_op,
        attention_walk_golden,
        attention_walk_bits,
        attention_walk_ones,
        attention_walk_compiled,
        walk,
        "test_attention_walk",
        dtypes=FLOATS,
        scattered=("_start_kernel", "_step_kernel"),
    ),
]
