"""Descriptions of the ops in `ops/centering.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...ops.centering import center_keys_op, center_logits_op
from ..describe import Call, Case, Cases, Description
from ..inputs import BOUNDS, FLOATS, Source, int32, name, special_rows


def special_keys(size: int, width: int, dtype: torch.dtype) -> Tensor:
    """`[2, 2, N, D]`: ordinary rows, now and then special ones."""
    generator = torch.Generator().manual_seed(size + width)
    x = torch.randn(2, 2, size, width, generator=generator).to(dtype)
    special = special_rows(width, dtype)
    x[0, :, 1::13] = special[:, :1]
    for k in range(9):
        x[1, 0, 3 * k : 3 * k + 1] = special[1, k]
        x[1, 1, 5 * k : 5 * k + 1] = special[0, k]
    return x


def center_keys_golden() -> Cases:
    for dtype in FLOATS:
        source = Source(f"center-{name(dtype)}")
        x = torch.stack([torch.cat([source.rows(33, dtype) for _ in range(9)], 1) for _ in range(2)], 1)
        yield Case(name(dtype), (x, source.integers(0, 3, 2, 81) > 0, None, 81))
        yield Case(f"{name(dtype)}-packed", (x[:1], None, int32(0, 0, 1, 33, 75, 80), 40))


def center_keys_bits() -> Cases:
    for dtype in FLOATS:
        for size, width in ((1, 1), (31, 33), (32, 64), (97, 80), (70, 257), (33, 600)):
            x = special_keys(size, width, dtype)
            case = f"{size}x{width}-{name(dtype)}"
            yield Case(case, (x, None, None, size))
            mask = torch.rand(2, size, generator=torch.Generator().manual_seed(size)) < 0.7
            yield Case(f"{case}-masked", (x, mask, None, size))
            bounds = int32(0, 0, size // 3, size // 3 + 1, size)
            yield Case(f"{case}-packed", (x[:1], mask[:1], bounds, size))
    for case, values in BOUNDS.items():
        ends = int32(*values).cummax(0).values
        x = special_keys(min(150, max(1, *values)) + 3, 24, torch.bfloat16)[:1]
        for longest in (1 << 30, 40):
            yield Case(f"{case}-{longest}", (x, None, ends, min(longest, x.shape[2])))
    yield Case("apart", (x[:, :, ::2, 3:20], None, None, len(x[0, 0, ::2])))
    yield Case("swapped", (special_keys(40, 16, torch.float16).transpose(1, 2), None, None, 2))
    none = special_keys(0, 16, torch.float32)
    yield Case("no-keys", (none, None, None, 0))
    yield Case("no-keys-packed", (none[:1], None, int32(0, 0, 0), 0))
    yield Case("no-heads", (x[:, :0], None, None, x.shape[2]))


def center_logits_golden() -> Cases:
    for dtype in FLOATS:
        source = Source(f"center-logits-{name(dtype)}")
        x, means = source.floats(1, 4, 40, 65, dtype=dtype), source.floats(1, 2, 3, 65)
        yield Case(name(dtype), (source.floats(1, 4, 40), x, means, int32(0, 9, 9, 38), 0.125))


def center_logits_bits() -> Cases:
    for dtype in FLOATS:
        for size, width, heads in ((1, 1, 1), (33, 64, 2), (9, 80, 4), (5, 600, 2), (3, 1537, 2)):
            x = special_keys(size, width, dtype).repeat(1, heads, 1, 1)
            generator = torch.Generator().manual_seed(width)
            lse, means = (torch.randn(2, *shape, generator=generator) for shape in ((2 * heads, size), (2, 1, width)))
            yield Case(f"{size}x{width}-{name(dtype)}", (lse, x, means, None, 0.3))
            packed = torch.randn(1, 2, 4, width, generator=generator)
            bounds = int32(0, size // 3, size // 3, size // 3 + 1, size - 1)
            yield Case(f"{size}x{width}-{name(dtype)}-packed", (lse[:1], x[:1], packed, bounds, 1e-3))
    yield Case("no-queries", (lse[:, :, :0], x[:, :, :0], means, None, 1.0))
    yield Case("no-segments", (lse[:1], x[:1], packed[:, :, :0], int32(3), 1.0))


def _keys(batch: int, heads: int, size: int, width: int, dtype: torch.dtype = torch.float32, **options: Any) -> object:
    key = torch.empty(batch, heads, size, width, dtype=dtype)
    mask = torch.ones(batch, size, dtype=torch.bool) if options.get("masked") else None
    return center_keys_op(key, mask, options.get("cu_seqlens"), size)


def center_keys_ones() -> Iterator[Call]:
    yield Call("center_keys", functools.partial(_keys, 1, 1, 1, 1))
    yield Call("center_keys-packed", functools.partial(_keys, 1, 1, 1, 1, cu_seqlens=int32(0, 1), masked=True))


def center_keys_compiled() -> Iterator[Call]:
    bounds = torch.zeros(65, dtype=torch.int32)
    for dtype in (torch.float32, torch.bfloat16):
        for width in (64, 128):
            keys = functools.partial(_keys, 1, 8, 4096, width, dtype)
            yield Call(f"center_keys, D = {width}", keys, dtype)
            yield Call(f"center_keys, D = {width}, packed", functools.partial(keys, cu_seqlens=bounds), dtype)


def _logits(batch: int, heads: int, size: int, width: int, dtype: torch.dtype = torch.float32) -> object:
    query = torch.empty(batch, heads, size, width, dtype=dtype)
    lse, means = torch.empty(batch, heads, size), torch.empty(batch, max(1, heads // 4), 1, width)
    return center_logits_op(lse, query, means, None, 0.5)


def center_logits_ones() -> Iterator[Call]:
    yield Call("center_logits", functools.partial(_logits, 1, 1, 1, 1))
    args = torch.empty(1, 1, 1), torch.empty(1, 1, 1, 1), torch.empty(1, 1, 1, 1), int32(0, 1), 1.0
    yield Call("center_logits-packed", functools.partial(center_logits_op, *args))


def center_logits_compiled() -> Iterator[Call]:
    for dtype in (torch.float32, torch.bfloat16):
        for width in (64, 128):
            yield Call(f"center_logits, D = {width}", functools.partial(_logits, 1, 16, 4096, width, dtype), dtype)


def centering(so_far: Any) -> None:
    """Keys of heads less their mean, and log-sum-exps that go with it."""
    level = so_far.choice(*so_far.levels)
    key = level.flatten(0, 1).to(torch.float32)[None, None]
    key = key if key.stride(3) == 1 else key.contiguous()
    bounds = torch.tensor(sorted(so_far.integer(0, key.shape[2]) for _ in range(3)), dtype=torch.int32)
    cu_seqlens = so_far.choice(None, bounds)
    _, means = so_far.same(center_keys_op, key, None, cu_seqlens, key.shape[2])
    so_far.same(center_logits_op, key[..., 0].contiguous(), key, means, cu_seqlens, 0.25)


DESCRIPTIONS = [
    Description(
        center_keys_op,
        center_keys_golden,
        center_keys_bits,
        center_keys_ones,
        center_keys_compiled,
        centering,
        "test_column_mean",
        dtypes=FLOATS,
    ),
    Description(
        center_logits_op,
        center_logits_golden,
        center_logits_bits,
        center_logits_ones,
        center_logits_compiled,
        centering,
        "test_column_mean",
        dtypes=FLOATS,
    ),
]
