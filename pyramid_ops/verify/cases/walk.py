"""Descriptions of the ops in `ops/walk.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

import pyramid_ops

from ...ops.walk import attention_walk_op
from ...reference.arguments import Softmax
from ..describe import Call, Case, Cases, Description
from ..inputs import FLOATS, Source, few_features, name, special_rows


def attention_walk_golden() -> Cases:
    for heads in ("rms", "mean", "sum", "max"):
        for limbs in (1, 2):
            dtype = FLOATS[(len(heads) + limbs) % 3]
            case = f"{heads}-{name(dtype)}-limbs{limbs}"
            source = Source(case)
            q = torch.stack([source.rows(24, dtype) for _ in range(4)], 1)
            k = torch.stack([source.rows(24, dtype) for _ in range(2)], 1)
            yield Case(case, (q, k, Softmax(False, 0.5, 0.0, limbs), 3, heads))


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
                yield Case(case, (q, key, Softmax(False, 3.0, 0.0, limbs), k % 4, reduction), slow)
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
            yield Case(f"{case}-{batch}x{heads}-limbs{limbs}", args, slow)


def attention_walk_ones() -> Iterator[Call]:
    head = torch.empty(1, 1, 1, 1)
    yield Call("attention_walk", lambda: pyramid_ops.attention_walk(head, head, steps=1, precision="grid"))


def attention_walk_compiled() -> Iterator[Call]:
    heads = [torch.empty(2, count, 2048, 64, dtype=torch.bfloat16) for count in (16, 4)]
    walk = functools.partial(pyramid_ops.attention_walk, *heads, precision="high")
    yield Call("attention_walk, high, D = 64", walk, torch.bfloat16)


def walk(so_far: Any) -> None:
    """Steps along attention of tokens."""
    level = so_far.choice(*so_far.levels)
    batch, features = level.shape[0], few_features(so_far, level)
    dtype, (heads, shared) = so_far.choice(*FLOATS), so_far.choice((1, 1), (2, 1), (2, 2))
    count = so_far.integer(0, 20)
    q, k = (so_far.tensor(batch, h, count, features, dtype=dtype) for h in (heads, shared))
    options = {"steps": so_far.integer(0, 3), "head_reduction": so_far.choice("mean", "sum", "max", "rms")}
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
        scattered=("_step_kernel",),
    ),
]
