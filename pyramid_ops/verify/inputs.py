"""Tensors that cases are made of.

Those of `Source` have no library's rounding or random distribution in them: raw Philox bits, made into floats by
integers. Golden digests take no others.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FEATURES = (*FLOATS, torch.uint8)
# What ops that only move bits see: an integer of each size.
BITS = (torch.uint8, torch.int16, torch.int32, torch.int64)
# Of each dtype: an integer dtype of its size, bits of the mantissa, exponent bias, the one pattern for all NaNs.
FORMATS = {
    torch.float32: (torch.int32, 23, 127, 0x7FC00000),
    torch.bfloat16: (torch.int16, 7, 127, 0x7FC0),
    torch.float16: (torch.int16, 10, 15, 0x7E00),
}


class Source:
    """Random tensors of a case, from the Philox stream that its name selects: no case depends on another."""

    def __init__(self, case: str):
        self._stream = np.random.Philox(key=int.from_bytes(hashlib.sha256(case.encode()).digest()[:16], "little"))

    def bits(self, *shape: int) -> Tensor:
        """int64 in [0, 2³²)."""
        raw = self._stream.random_raw(math.prod(shape)).astype(np.uint64)
        return torch.from_numpy((raw >> np.uint64(32)).astype(np.int64)).view(shape)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Of [low, high)."""
        return (low + self.bits(*shape) % (high - low)).to(dtype)

    def floats(
        self, *shape: int, dtype: torch.dtype = torch.float32, low: int = -4, high: int = 4, signed: bool = True
    ) -> Tensor:
        """Every bit of the mantissa random, magnitudes in [2^low, 2^high); all bytes for uint8."""
        bits = self.bits(*shape)
        if dtype == torch.uint8:
            return (bits & 0xFF).to(dtype)
        _, mantissa, bias, _ = FORMATS[dtype]
        exponent = bias + low + (bits >> 24) % (high - low)
        sign = bits >> 31 if signed else 0
        return from_bits(sign << (8 * dtype.itemsize - 1) | exponent << mantissa | bits & ((1 << mantissa) - 1), dtype)

    def rows(self, features: int, dtype: torch.dtype) -> Tensor:
        """`[2, 9, D]`: ordinary rows, large means, constants, ±0, subnormals, huge values, infinities, NaN."""
        x = self.floats(2, 9, features, dtype=dtype)
        if dtype == torch.uint8:
            x[0, 1], x[0, 2] = 0, 255
            return x
        _, mantissa, bias, _ = FORMATS[dtype]
        sign = 1 << (8 * dtype.itemsize - 1)
        bits = self.bits(features)
        infinity = (2 * bias + 1) << mantissa
        x[0, 1] = x[0, 1, 0].clone()
        x[0, 2] = self.floats(features, dtype=dtype, low=13, high=14, signed=False)
        x[0, 3] = from_bits((bits >> 31) * sign | bits & ((1 << mantissa) - 1), dtype)
        x[0, 4] = self.floats(features, dtype=dtype, low=bias - 3, high=bias + 1)
        x[0, 5] = from_bits(torch.tensor(infinity - 1), dtype)
        x[0, 6] = 0.0
        x[0, 7] = -0.0
        x[0, 8] = from_bits((bits >> 30 & 1) * sign, dtype)
        x[1, 0] = self.floats(features, dtype=dtype, low=3 - bias, high=5 - bias)
        x[1, 1, features // 2] = from_bits(torch.tensor(infinity), dtype)
        x[1, 2, features // 3] = from_bits(torch.tensor(infinity | sign), dtype)
        x[1, 3, 0] = from_bits(torch.tensor(infinity | 1), dtype)
        x[1, 4, -1] = from_bits(torch.tensor(infinity | sign | 1), dtype)
        x[1, 5] = from_bits(torch.tensor(infinity), dtype)
        x[1, 6] = from_bits(torch.tensor(1 << mantissa), dtype)
        x[1, 7, -1:] = self.floats(1, dtype=dtype, low=bias - 2, high=bias - 1)
        return x

    def scores(self, batch: int, tokens: int, dtype: torch.dtype) -> Tensor:
        """Few distinct values and many ties: ±0, ±inf, NaN of both signs, subnormals."""
        _, mantissa, bias, nan = FORMATS[dtype]
        one, infinity = bias << mantissa, (2 * bias + 1) << mantissa
        positive = torch.tensor([0, 1, one, one + 1, one + (1 << mantissa), infinity, nan])
        values = from_bits(torch.cat((positive, positive | 1 << (8 * dtype.itemsize - 1))), dtype)
        return values[self.bits(batch, tokens) % len(values)]

    def image(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """`[B, C, H, W]`, with a few special pixels where it is large enough to leave others."""
        x = self.floats(*shape, dtype=dtype, low=-6, high=7)
        if dtype != torch.uint8 and x.numel() > 100:
            special = self.scores(1, 9, dtype)[0]
            x.view(-1)[self.bits(9) % x.numel()] = special
        return x


def from_bits(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """int64 bit patterns as floats."""
    integer, *_ = FORMATS[dtype]
    half = 1 << (8 * dtype.itemsize - 1)
    return ((bits ^ half) - half).to(integer).view(dtype)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


SIZES = (1, 2, 3, 7, 8, 31, 64, 65, 127, 128, 129, 255, 256, 257, 588, 768, 1000, 1023, 1024, 1152, 1536, 1537, 3072)
LARGE_SIZES = (3584, 4096, 4097, 5120, 16383, 16384)


def special_rows(features: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """`[2, 9, D]`: ordinary rows, large means, constants, ±0, subnormals, huge values, infinities, NaN."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        x = torch.randint(0, 256, (2, 9, features), generator=generator, dtype=torch.uint8)
        x[0, 1], x[0, 2] = 0, 255
        return x
    x = torch.randn(2, 9, features, generator=generator)
    x[0, 1] = 3.1
    x[0, 2] += 1e4
    x[0, 3] *= 1e-40
    x[0, 4] *= 1e37
    x[0, 5] = torch.finfo(dtype).max
    x[0, 6] = 0.0
    x[0, 7] = -0.0
    x[0, 8] = torch.where(x[0, 8] > 0, 0.0, -0.0)
    x[1, 0] *= 1e-20
    x[1, 1, features // 2] = torch.inf
    x[1, 2, features // 3] = -torch.inf
    x[1, 3, 0] = torch.nan
    x[1, 4, -1] = -torch.nan
    x[1, 5] = torch.inf
    x[1, 6] = torch.finfo(dtype).smallest_normal
    x[1, 7, -1] = 1e30
    return x.to(dtype)


def special_scores(batch: int, tokens: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Few distinct values and many ties: −0, 0, ±inf, NaN of both signs, subnormals, all-equal samples."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([0.0, -0.0, 1.5, -1.5, torch.inf, -torch.inf, torch.nan, -torch.nan, 1e-42, -1e-42, 3.0, 2.0])
    scores = values[torch.randint(0, len(values), (batch, tokens), generator=generator)]
    if seed % 2 and batch:
        scores[0] = 1.0
    return scores.to(dtype)


def special_inputs(sizes: Sequence[int] = SIZES) -> Iterator[tuple[str, Tensor, bool]]:
    """(name, `[B, N, D]`, whether it is slow): special rows of so many features, and layouts."""
    for features in sizes:
        for dtype in FEATURES:
            slow = features in LARGE_SIZES and (features, dtype) not in ((4097, torch.bfloat16), (16384, torch.float32))
            yield f"{features}-{name(dtype)}", special_rows(features, dtype), slow
    x = special_rows(128, torch.float32)
    yield "batch-stride", x.transpose(0, 1), False
    yield "sliced", x[:, 1:, 8:40], False
    yield "unaligned", x[:, ::2, 1:], False
    yield "no-tokens", x[:, :0], False
    yield "no-samples", x[:0], False
    yield "expanded", x[:1, :1].expand(3, 5, 128), False


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


BOUNDS = {
    "no-segments": (0,),
    "empty": (0, 0, 0),
    "one": (0, 1),
    "small": (0, 0, 1, 3, 10, 41, 41),
    "powers": (0, 255, 511, 768, 768, 769),
    "primes": (3, 14, 311, 824),
    "several-tiles": (0, 2047, 4095, 6144),
    "backwards": (9, 4, -7, 60, 1000, 30, 45),
}


def golden_rows(few: bool = False) -> Iterator[tuple[str, Tensor]]:
    # Each size and dtype is a kernel of its own, which a GPU has to compile.
    pairs = [(features, dtype) for features in ((65,) if few else (1, 65, 1024, 1537)) for dtype in FEATURES]
    if not few:
        pairs += zip((2, 3, 257, 588, 768, 1152, 3072, 4097, 16384), FLOATS * 3, strict=True)
    for features, dtype in pairs:
        case = f"{features}-{name(dtype)}"
        yield case, Source(case).rows(features, dtype)
    x = Source("strided").rows(130, torch.float32)
    yield "strided", x.transpose(0, 1)
    yield "unaligned", x[:, ::2, 1:]
    yield "no-tokens", x[:, :0]


def golden_levels(case: str, sizes: Sequence[int], features: int, dtype: torch.dtype) -> list[Tensor]:
    source = Source(case)
    levels = [source.floats(2, size, features, dtype=dtype) for size in sizes]
    for level in levels:
        level[:, 1::3] = level[:, :1].clone()  # ties
        if level.shape[1] > 4 and dtype != torch.uint8:
            level[:, 2, 0], level[:, 4, -1] = math.nan, math.inf
    return levels


def offsets_to(*ends: int) -> Tensor:
    return torch.tensor([0, *ends], dtype=torch.int32)


def offsets(so_far: Any, tokens: Any) -> Any:
    """int32 offsets of up to four segments, now and then out of range or descending."""
    ends = [so_far.integer(0, tokens) for _ in range(so_far.integer(0, 4))]
    if so_far.choice(*[True] * 5, False):
        ends = sorted(ends)
        return torch.tensor([so_far.choice(0, 0, -3), *ends, so_far.choice(tokens, tokens + 9)], dtype=torch.int32)
    return torch.tensor([*ends, 0], dtype=torch.int32)


#: Offsets and (height, width) of packed grids: some fit, some are too large or too small, some are no grids.
GRIDS = {
    "fitting": (int32(0, 12, 12, 19, 49, 50), int32(3, 4, 0, 5, 1, 7, 5, 6, 1, 1).view(-1, 2)),
    "other": (int32(3, 15, 15, 20, 50, 49), int32(2, 5, 3, 3, 9, 2, 99, 7, 2, 2).view(-1, 2)),
    "hostile": (
        int32(-9, 40, 4, 1 << 30, 0, 50, 50),
        int32(-1, 4, 1 << 30, 1 << 30, 2, (1 << 31) - 1, -(1 << 31), -3, 0, 0, 7, 1).view(-1, 2),
    ),
    "one": (int32(0, 50), int32(5, 10).view(-1, 2)),
    "none": (int32(0), torch.empty(0, 2, dtype=torch.int32)),
}


def grids(so_far: Any, tokens: int) -> tuple[Tensor, Tensor]:
    """Offsets of a few grids and their sides, which mostly fit into so many tokens."""
    sides = [[so_far.integer(0, 6), so_far.integer(0, 6)] for _ in range(so_far.integer(0, 5))]
    if so_far.choice(*[True] * 4, False):
        ends = torch.tensor([0, *[height * width for height, width in sides]]).cumsum(0)
        return ends.to(torch.int32), torch.tensor(sides, dtype=torch.int32).view(-1, 2)
    cu_seqlens = offsets(so_far, tokens)
    sides = [so_far.choice(-1, 0, 1, 3, 9, 1 << 30) for _ in range(2 * len(cu_seqlens) - 2)]
    return cu_seqlens, torch.tensor(sides, dtype=torch.int32).view(-1, 2)


def few_features(so_far: Any, level: Any) -> Any:
    """At most 70 mostly, for the time that interpreted tiles of 16 features take."""
    return level.shape[2] if so_far.choice(*[False] * 7, True) else min(level.shape[2], 70)
