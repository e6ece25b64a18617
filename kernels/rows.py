"""Rows of features in registers, and their reduction in the written order."""

from typing import NamedTuple

import triton
import triton.language as tl

from .arithmetic import widen


class Row(NamedTuple):
    """How a row of D features lies in tiles of a warp: what all row functions are compiled for.

    It is split into BLOCKS blocks, each held as a tile row, in CHUNKS chunks of WIDTH features, VECTOR to a thread, of
    which PARTS make the lanes of a block: tile row r · BLOCKS + b of chunk c holds the WIDTH features of row r from
    (b · CHUNKS + c) · WIDTH on. The sum of a row, and whatever is computed from it, is kept *spread*:
    [TILES, WIDTH // VECTOR], the same value in every element of a row.
    """

    D: int
    TILES: int
    BLOCKS: int
    PARTS: int
    CHUNKS: int
    WIDTH: int
    VECTOR: int


@triton.jit
def load_rows(x_ptr, stride, token, mask, ROW: tl.constexpr):
    """Rows `token` [TILES], a multiple of VECTOR elements apart, as CHUNKS float32 tiles [TILES, WIDTH]; +0 past D."""
    row_ptr = x_ptr + tl.multiple_of(token.to(tl.int64) * stride, ROW.VECTOR)[:, None]
    chunks = ()
    for c in tl.static_range(ROW.CHUNKS):
        feature = features(c, ROW)
        keep = mask[:, None]
        if (ROW.BLOCKS > 1 or (c + 1) * ROW.WIDTH > ROW.D) and ROW.D != ROW.BLOCKS * ROW.CHUNKS * ROW.WIDTH:
            keep = keep & (feature < ROW.D)
        chunks = chunks + (widen(tl.load(row_ptr + feature, mask=keep, other=0)),)
    return chunks


@triton.jit
def features(c: tl.constexpr, ROW: tl.constexpr):
    """Which features chunk `c` holds: [TILES, WIDTH]."""
    block = tl.arange(0, ROW.TILES) % ROW.BLOCKS
    return (block * (ROW.CHUNKS * ROW.WIDTH))[:, None] + (c * ROW.WIDTH + tl.arange(0, ROW.WIDTH))[None, :]


@triton.jit
def expand(x, ROW: tl.constexpr):
    """A spread value [TILES, WIDTH // VECTOR] as a tile [TILES, WIDTH]."""
    spread = tl.broadcast_to(x[:, :, None], (ROW.TILES, ROW.WIDTH // ROW.VECTOR, ROW.VECTOR))
    return tl.reshape(spread, (ROW.TILES, ROW.WIDTH))


@triton.jit
def _combine(a, b, OP: tl.constexpr):
    if OP == "sum":
        return a + b
    elif OP == "max":
        return tl.maximum(a, b)
    else:
        return a | b


@triton.jit
def row_reduce(parts, OP: tl.constexpr, ROW: tl.constexpr):
    """Tiles of lanes → the spread result: adjacent pairs, then adjacent pairs of the results, and so on.

    The pairs inside a thread come first, then the lanes of a warp (shuffles), then the parts of a block, then the
    blocks.
    """
    LANES: tl.constexpr = ROW.WIDTH // ROW.VECTOR
    totals = ()
    for part in tl.static_range(len(parts)):
        x = parts[part]
        for level in tl.static_range(ROW.VECTOR.bit_length() - 1):
            left, right = tl.split(tl.reshape(x, (ROW.TILES, ROW.WIDTH >> (level + 1), 2)))
            x = _combine(left, right, OP)
        lane = tl.broadcast_to(tl.arange(0, LANES)[None, :], (ROW.TILES, LANES))
        for level in tl.static_range(LANES.bit_length() - 1):
            x = _combine(x, tl.gather(x, lane ^ (1 << level), axis=1), OP)
        totals = totals + (x,)
    for _ in tl.static_range(len(parts).bit_length() - 1):
        pairs = ()
        for part in tl.static_range(0, len(totals), 2):
            pairs = pairs + (_combine(totals[part], totals[part + 1], OP),)
        totals = pairs
    total = totals[0]
    tile = tl.broadcast_to(tl.arange(0, ROW.TILES)[:, None], (ROW.TILES, LANES))
    for level in tl.static_range(ROW.BLOCKS.bit_length() - 1):
        total = _combine(total, tl.gather(total, tile ^ (1 << level), axis=0), OP)
    return total


@triton.jit
def row_sum(chunks, ROW: tl.constexpr):
    """Sum of rows in the written order, spread; a zero sum is +0."""
    parts = ()
    for part in tl.static_range(ROW.PARTS):
        lanes = chunks[part]
        for c in tl.static_range(part + ROW.PARTS, ROW.CHUNKS, ROW.PARTS):
            lanes = lanes + chunks[c]
        parts = parts + (lanes,)
    return row_reduce(parts, "sum", ROW) + 0.0


@triton.jit
def scaled_norm(chunks, ROW: tl.constexpr):
    """(power-of-two scale, L2 norm of the scaled row, 1 / scale), all spread."""
    largest = chunks[0].to(tl.int32, bitcast=True) & 0x7FFFFFFF
    for c in tl.static_range(1, ROW.CHUNKS):
        largest = tl.maximum(largest, chunks[c].to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    exponent = (row_reduce((largest,), "max", ROW) >> 23) - 127
    exponent = tl.minimum(tl.maximum(exponent, -126), 126)
    scale = ((127 - exponent) << 23).to(tl.float32, bitcast=True)
    unscale = ((127 + exponent) << 23).to(tl.float32, bitcast=True)
    factor = expand(scale, ROW)
    squares = ()
    for c in tl.static_range(ROW.CHUNKS):
        y = chunks[c] * factor
        squares = squares + (y * y,)
    return scale, tl.sqrt_rn(row_sum(squares, ROW)), unscale


@triton.jit
def store_rows(ptrs, x, mask, ROW: tl.constexpr):
    """Store a spread value once for each row, at `ptrs` [TILES, 1]."""
    lane = tl.arange(0, ROW.WIDTH // ROW.VECTOR)[None, :]
    first = (tl.arange(0, ROW.TILES) % ROW.BLOCKS == 0)[:, None] & (lane == 0)
    # A sum, since the interpreter of Triton 3.6 cannot store through broadcast pointers.
    tl.store(ptrs + tl.zeros_like(lane), x, mask=first & mask[:, None])
