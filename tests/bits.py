"""Comparison of bits, and memory that shows what was not written and what was written out of bounds."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

GUARD = 256
POISON = 0xFF  # NaN as float, −1 as integer
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def assert_same_bits(actual: object, expected: object, name: str = "result") -> None:
    """Equal as integers, every NaN equal to every NaN, in tensors or nested sequences of them."""
    if not isinstance(expected, (Tensor, list, tuple)):
        assert actual == expected, f"{name}: {actual!r}, expected {expected!r}"
        return
    if not isinstance(expected, Tensor):
        assert len(actual) == len(expected)
        for k, (a, e) in enumerate(zip(actual, expected, strict=True)):
            assert_same_bits(a, e, f"{name}[{k}]")
        return
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype}, expected {expected.dtype}"
    integers = _INTEGERS[expected.element_size()]
    a, e = (x.detach().cpu().contiguous().reshape(-1) for x in (actual, expected))
    differs = a.view(integers) != e.view(integers)
    if expected.dtype.is_floating_point:
        differs &= ~(a.isnan() & e.isnan())
    if differs.any():
        first = int(differs.nonzero()[0])
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(first), expected.shape))
        mask = (1 << (8 * expected.element_size())) - 1
        bits = [f"{x[first].item()} (0x{int(x.view(integers)[first]) & mask:x})" for x in (a, e)]
        raise AssertionError(
            f"{name}: {int(differs.sum())} of {len(e)} elements differ, the first at {index}: {bits[0]}, "
            f"expected {bits[1]}"
        )


def to(device: torch.device, value: Any) -> Any:
    """A copy on `device` with the same strides and storage offset."""
    if isinstance(value, Tensor):
        storage = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage()).to(device, copy=True)
        return storage.as_strided(value.shape, value.stride(), value.storage_offset())
    if hasattr(value, "_fields"):
        return type(value)(*[to(device, x) for x in value])
    return [to(device, x) for x in value] if isinstance(value, (list, tuple)) else value


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Inside, `torch.empty` returns poisoned memory between guard bands, which must be intact at the end."""
    buffers = []
    empty = torch.empty

    def guarded(*size, dtype=torch.float32, device=None):
        size = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        count = math.prod(size) * dtype.itemsize
        buffer = empty(count + 2 * GUARD, dtype=torch.uint8, device=device).fill_(POISON)
        buffers.append((buffer, count))
        return buffer[GUARD : GUARD + count].view(dtype).view(*size)

    with mock.patch.object(torch, "empty", guarded):
        yield
    for buffer, count in buffers:
        assert (buffer[:GUARD] == POISON).all(), "a write before the start of an output"
        assert (buffer[GUARD + count :] == POISON).all(), "a write past the end of an output"
