"""Descriptions of the ops in `ops/gathering.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import pyramid_ops

from ...ops.gathering import compact_op, gather_levels_op
from ..describe import Call, Case, Cases, Description
from ..inputs import BITS, FEATURES, Source, int32, name, offsets, offsets_to


def gather_levels_golden() -> Cases:
    source = Source("indices")
    indices = torch.stack((source.integers(-1, 4, 2, 17), source.integers(-2, 9, 2, 17)), 2)
    indices[0, 0] = torch.tensor([1 << 40, -(1 << 40)])
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        for width in (1, 33, 1100):
            case = f"{width}-{name(dtype)}"
            source = Source(case)
            yield Case(case, ([source.integers(0, 255, 2, size, width, dtype=dtype) for size in (7, 0, 3)], indices))
    yield Case("one-batch", ([Source("one-batch").integers(0, 255, 1, size, 3) for size in (6, 4)], indices))


def compact_golden() -> Cases:
    source = Source("compact")
    offsets, counts = offsets_to(20, 20, 50), torch.tensor([3, 9, -1], dtype=torch.int32)
    indices = source.integers(-2, 35, 3, 8)
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        tensors = [source.integers(0, 255, *shape, dtype=dtype) for shape in ((1, 50, 33), (3, 50, 1), (4, 50, 16))]
        yield Case(name(dtype), (tensors, indices, counts, offsets))
        yield Case(f"{name(dtype)}-all", (tensors[:1], indices, None, offsets))
    source = Source("dense")
    dense = [source.integers(0, 255, *shape) for shape in ((3, 1, 33, 17), (3, 4, 33, 8))]
    yield Case("dense", (dense, source.integers(-2, 35, 3, 8), counts, None))


def gather_levels_bits() -> Cases:
    generator = torch.Generator().manual_seed(0)
    indices = torch.stack(
        (torch.randint(-1, 4, (2, 17), generator=generator), torch.randint(-2, 9, (2, 17), generator=generator)), 2
    )
    indices[0, 0] = torch.tensor([1 << 40, -(1 << 40)])
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        for width in (1, 3, 33, 1100):
            made = [
                torch.randint(0, 99, (batch, size, width), generator=generator).to(dtype)
                for size, batch in ((7, 2), (0, 2), (3, 2))
            ]
            yield Case(f"{width}-{name(dtype)}", (made, indices))
    shared = [torch.randint(0, 99, (1, size, 3), generator=generator) for size in (6, 4)]
    yield Case("one-batch", (shared, indices))
    yield Case("no-indices", (shared, indices[:, :0]))
    yield Case("strided-indices", (shared, indices.transpose(0, 1).contiguous().transpose(0, 1)))


def compact_bits() -> Cases:
    generator = torch.Generator().manual_seed(0)
    bounds, counts = int32(0, 30, 30, 31, 97, 80), int32(20, -5, 1 << 30, 17, 3)
    indices = torch.randint(-2, 70, (5, 33), generator=generator)
    indices[0, 3], indices[3, 5] = 1 << 40, -(1 << 40)

    def made(outer: int, width: int, dtype: torch.dtype, size: int = 97) -> Tensor:
        return torch.randint(0, 99, (outer, size, width), generator=generator).to(dtype)

    for i, dtype in enumerate((torch.uint8, torch.int16, torch.int32, torch.int64)):
        tensors = [made(1, (1, 3, 24, 1100)[i], dtype), made(3, 1, torch.int64), made(2, 16, torch.int16)]
        for case, taken in (("counts", counts), ("all", None)):
            yield Case(f"{case}-{name(dtype)}", (tensors, indices, taken, bounds))
    x = made(97, 40, torch.int32, 4)
    yield Case("heads-inside", ([x.transpose(0, 1)], indices, counts, bounds))
    yield Case("unaligned", ([made(2, 40, torch.int16)[..., 1:8]], indices, counts, bounds))
    yield Case("no-tokens", ([made(2, 4, torch.int16, 0)], indices, counts, bounds))
    yield Case("no-heads", ([made(0, 4, torch.int16)], indices, counts, bounds))
    yield Case("no-indices", ([made(2, 4, torch.int16)], indices[:, :0], counts, bounds))
    yield Case("no-segments", ([made(2, 4, torch.int16)], indices[:0], None, bounds[:1]))
    for case, taken in (("counts", counts), ("all", None)):
        dense = [made(5 * outer, width, torch.int16, 60).unflatten(0, (5, outer)) for outer, width in ((1, 24), (3, 7))]
        yield Case(f"dense-{case}", (dense, indices, taken, None))
    shared = made(1, 8, torch.int32, 60)[None].expand(5, 1, 60, 8)
    heads_inside = made(5 * 60, 16, torch.int16, 2).unflatten(0, (5, 60)).transpose(1, 2)[..., 1:9]
    yield Case("dense-shared-and-strided", ([shared, heads_inside], indices, counts, None))
    many = torch.randint(0, 3, (258, 2), generator=generator)
    args = ([made(1, 1, torch.int16)], many, many[:, 0].int(), torch.arange(0, 259, dtype=torch.int32) // 4)
    yield Case("many-segments", args, True)


def gather_levels_ones() -> Iterator[Call]:
    indices = torch.empty(1, 1, 2, dtype=torch.int64)
    yield Call("gather_levels", lambda: pyramid_ops.gather_levels([torch.empty(1, 1, 1)], indices))


def gather_levels_compiled() -> Iterator[Call]:
    indices = torch.empty(2, 273, 2, dtype=torch.int64)
    for dtype in (torch.float32, torch.bfloat16):
        levels = [torch.empty(2, size, 1024, dtype=dtype) for size in (4096, 1024, 256, 64)]
        yield Call("gather_levels, D = 1024", functools.partial(pyramid_ops.gather_levels, levels, indices), dtype)


def compact_ones() -> Iterator[Call]:
    bounds, indices = torch.empty(2, dtype=torch.int32), torch.empty(1, 1, dtype=torch.int64)
    tensors = [torch.empty(1, 1), torch.empty(1, dtype=torch.bool), torch.empty(1, dtype=torch.int64)]
    for counts in (None, bounds[:1]):
        move = functools.partial(pyramid_ops.compact, tensors, indices, counts, cu_seqlens=bounds)
        yield Call(f"compact-{counts is None}", move)
        dense = functools.partial(pyramid_ops.compact, [torch.empty(1, 1, 1), torch.empty(1, 1)], indices, counts)
        yield Call(f"compact-dense-{counts is None}", dense)


def compact_compiled() -> Iterator[Call]:
    bounds = torch.empty(5, dtype=torch.int32)
    kept, taken = torch.empty(4, 273, dtype=torch.int64), torch.empty(4, dtype=torch.int32)
    for dtype in (torch.float32, torch.bfloat16):
        tensors = [torch.empty(40960, 1024, dtype=dtype), torch.empty(8, 40960, 128, dtype=dtype)]
        move = functools.partial(pyramid_ops.compact, tensors, kept, taken, cu_seqlens=bounds, token_dims=(0, 1))
        yield Call("compact, D = 1024, 8 heads of 128", move, dtype)
        tensors = [torch.empty(4, 1024, 1024, dtype=dtype), torch.empty(4, 8, 1024, 128, dtype=dtype)]
        move = functools.partial(pyramid_ops.compact, tensors, kept, taken, token_dims=(1, 2))
        yield Call("compact, dense, D = 1024, 8 heads of 128", move, dtype)


def gather(so_far: Any) -> None:
    batch = so_far.levels[0].shape[0]
    indices = so_far.indices
    if indices is None:
        generator = torch.Generator().manual_seed(so_far.integer(0, 2**32 - 1))
        indices = torch.randint(-2, 6, (batch, so_far.integer(0, 9), 2), generator=generator)
    so_far.same(pyramid_ops.gather_levels, so_far.levels, so_far.strided(indices))


def move(so_far: Any) -> None:
    """Rows, of any layout and of two dtypes, moved by indices of any value."""
    tokens, segments, capacity = so_far.integer(0, 40), so_far.integer(0, 3), so_far.integer(0, 9)
    bounds = offsets(so_far, tokens)[: segments + 1]
    generator = torch.Generator().manual_seed(so_far.integer(0, 2**32 - 1))
    indices = torch.randint(-2, 20, (len(bounds) - 1, capacity), generator=generator)
    counts = so_far.choice(None, torch.tensor([so_far.integer(-1, 9) for _ in bounds[1:]], dtype=torch.int32))
    tensors = [so_far.tensor(tokens, so_far.choice(1, 3, 33), dtype=so_far.choice(*FEATURES)) for _ in range(2)]
    so_far.same(pyramid_ops.compact, tensors, indices, counts, cu_seqlens=bounds)


DESCRIPTIONS = [
    Description(
        gather_levels_op,
        gather_levels_golden,
        gather_levels_bits,
        gather_levels_ones,
        gather_levels_compiled,
        gather,
        "test_gather_levels",
        dtypes=BITS,
    ),
    Description(
        compact_op,
        compact_golden,
        compact_bits,
        compact_ones,
        compact_compiled,
        move,
        "test_compact",
        dtypes=BITS,
        scattered=("_locate_rows_kernel",),
    ),
]
