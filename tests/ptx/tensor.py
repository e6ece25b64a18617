"""Matrices in registers and shared memory, and products of them."""

import numpy as np

from .arithmetic import Array, canonical
from .parse import Unsupported

# Where the four registers of a 16 × 16 tile of halves lie, and where those of sums do.
QUARTERS = ((0, 0), (8, 0), (0, 8), (8, 8))
MANTISSA = 24  # bits of a float32


def words(x: Array) -> Array:
    return np.ascontiguousarray(x).reshape(-1).view(np.uint32)


def left(registers: list[Array]) -> Array:
    """Four registers [W·32] as tiles of halves [W, 16, 16]."""
    tiles = np.empty((len(registers[0]) // 32, 16, 16), np.float16)
    for register, (row, column) in zip(registers, QUARTERS, strict=True):
        tiles[:, row : row + 8, column : column + 8] = np.ascontiguousarray(register).view(np.float16).reshape(-1, 8, 8)
    return tiles


def right(registers: list[Array]) -> Array:
    """Two registers [W·32] as tiles of halves [W, 16, 8]."""
    tiles = [np.ascontiguousarray(x).view(np.float16).reshape(-1, 8, 8).swapaxes(1, 2) for x in registers]
    return np.concatenate(tiles, 1)


def sums(registers: list[Array]) -> Array:
    """n / 2 registers [W·32] as tiles of sums [W, 16, n]."""
    tiles = np.empty((len(registers[0]) // 32, 16, 2 * len(registers)), np.float32)
    for k, register in enumerate(registers):
        row, column = k % 4 // 2 * 8, k // 4 * 8 + k % 2
        part = np.ascontiguousarray(register).view(np.float32).reshape(-1, 8, 4)
        tiles[:, row : row + 8, column : column + 8 : 2] = part
    return tiles


def registers_of(tiles: Array) -> list[Array]:
    """The registers that `sums` takes."""
    return [
        words(tiles[:, k % 4 // 2 * 8 :][:, :8, k // 4 * 8 + k % 2 : k // 4 * 8 + 8 : 2])
        for k in range(tiles.shape[2] // 2)
    ]


def lowest_bit(x: Array) -> Array:
    """Exponent of the lowest bit that is set; large for 0 and what is not finite."""
    mantissa, exponent = np.frexp(np.where(np.isfinite(x), x, 0))
    integer = (mantissa * 2.0**53).astype(np.int64)
    power = np.frexp((integer & -integer).astype(np.float64))[1] - 1
    return np.where(integer == 0, 10_000, power + exponent - 53)


def product(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """a·b + c of halves and float32, and where a float32 could not hold some partial sum, whatever the order."""
    x, y, z = (v.astype(np.float64) for v in (a, b, c))
    exact = x @ y + z
    result = exact.astype(np.float32)
    magnitude = np.abs(x) @ np.abs(y) + np.abs(z)

    def beyond(low: Array) -> Array:
        return np.isfinite(magnitude) & (magnitude > np.ldexp(1.0, MANTISSA + np.minimum(low, lowest_bit(z))))

    i, j = lowest_bit(x), lowest_bit(y)
    inexact = beyond(i.min(2)[:, :, None] + j.min(1)[:, None, :])  # a lower bound that is mostly good enough
    if inexact.any():
        inexact = beyond((i[:, :, :, None] + j[:, None, :, :]).min(2))
    return canonical(result), inexact


def descriptor_addresses(descriptors: Array, rows: int, along_rows: bool) -> Array:
    """Bytes [groups, rows, 16] of the halves of a matrix in shared memory that wgmma descriptors give.

    PTX ISA, "Matrix descriptor": the start, the two strides and the swizzle that xors address bits 4 to 6 with 7 to 9.
    """

    def part(low: int, bits: int) -> Array:
        return (descriptors >> np.uint64(low) & np.uint64((1 << bits) - 1)).astype(np.int64)

    start, leading, stride = (part(low, 14)[:, None, None] * 16 for low in (0, 16, 32))
    swizzle = part(62, 2)
    if (swizzle != swizzle[0]).any() or part(49, 3).any():
        raise Unsupported("wgmma: descriptors with a base offset, or of several kinds")
    width = (16, 128, 64, 32)[int(swizzle[0])]
    row, k = np.meshgrid(np.arange(rows), np.arange(16), indexing="ij")
    if along_rows:
        if width == 16:
            raise Unsupported("wgmma: a transposed matrix that is not swizzled")
        halves = width // 2
        at = start + row % halves * 2 + row // halves * leading + k % 8 * width + k // 8 * stride
    elif width == 16:
        at = start + row % 8 * 16 + row // 8 * stride + k % 8 * 2 + k // 8 * leading
    else:
        at = start + row % 8 * width + row // 8 * stride + k * 2
    return at ^ (at >> 7 & {128: 7, 64: 3, 32: 1, 16: 0}[width]) << 4
