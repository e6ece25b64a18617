"""Inputs that no library's rounding or random distribution is in: raw Philox bits, made into floats by integers."""

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


FEATURES = (*FLOATS, torch.uint8)


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
