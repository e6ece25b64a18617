"""Device arithmetic all kernels share: the roundings of `reference/numerics.py`, in the same order."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.compiler import CompiledKernel

# Every launch takes these: a multiply and an add are two roundings.
LAUNCH = {"enable_fp_fusion": False}
# Fraction bits of the second limb of unit rows that are multiplied. Its products are exact over 64 features at a time,
# whatever these are.
LOW_BITS = 10


@triton.jit
def widen(x):
    """Exact conversion of uint8, float16, bfloat16 or float32 to float32."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """Round float32 to `dtype`: nearest even; for uint8 half up, saturating, NaN to 0."""
    if dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    if dtype == tl.uint8:
        y = x + 0.5
        y = tl.where(y >= 1.0, y, 0.0)
        y = tl.where(y < 256.0, y, 255.0)
        return y.to(tl.int32).to(tl.uint8)
    return x.to(dtype)


@triton.jit
def ordered_key(x):
    """int32 keys in the order of float32 values: −0 equals +0, every NaN is above +inf."""
    bits = x.to(tl.int32, bitcast=True)
    bits = tl.where((bits << 1) == 0, 0, bits)
    bits = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FFFFFFF, bits)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def key_value(key):
    """The number that an ordered key stands for; NaN for the least integer."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def bounds(cu_ptr, segment, size):
    """(start, length) of a packed segment, clamped to [0, size]."""
    first = tl.minimum(tl.maximum(tl.load(cu_ptr + segment), 0), size)
    last = tl.minimum(tl.maximum(tl.load(cu_ptr + segment + 1), 0), size)
    return first, tl.maximum(last - first, 0)


# A row of D features is split into BLOCKS blocks, each held as a tile row of a warp, in CHUNKS chunks of WIDTH
# features: tile row r * BLOCKS + b of chunk c holds the WIDTH features of row r from (b * CHUNKS + c) * WIDTH on. The
# sum of a row, and whatever is computed from it, is kept *spread*: [TILES, WIDTH // VECTOR], the same value in every
# element of a row.


@triton.jit
def load_rows(
    x_ptr, stride, token, mask, D: tl.constexpr, TILES: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Rows `token` [TILES], a multiple of VECTOR elements apart, as CHUNKS float32 tiles [TILES, WIDTH]; +0 past D."""
    row_ptr = x_ptr + tl.multiple_of(token.to(tl.int64) * stride, VECTOR)[:, None]
    chunks = ()
    for c in tl.static_range(CHUNKS):
        feature = features(c, TILES, BLOCKS, CHUNKS, WIDTH)
        keep = mask[:, None]
        if (BLOCKS > 1 or (c + 1) * WIDTH > D) and D != BLOCKS * CHUNKS * WIDTH:
            keep = keep & (feature < D)
        chunks = chunks + (widen(tl.load(row_ptr + feature, mask=keep, other=0)),)
    return chunks


@triton.jit
def features(
    c: tl.constexpr, TILES: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Which features chunk `c` holds: [TILES, WIDTH]."""
    block = tl.arange(0, TILES) % BLOCKS
    return (block * (CHUNKS * WIDTH))[:, None] + (c * WIDTH + tl.arange(0, WIDTH))[None, :]


@triton.jit
def expand(x, TILES: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr):
    """A spread value [TILES, WIDTH // VECTOR] as a tile [TILES, WIDTH]."""
    return tl.reshape(tl.broadcast_to(x[:, :, None], (TILES, WIDTH // VECTOR, VECTOR)), (TILES, WIDTH))


@triton.jit
def _combine(a, b, OP: tl.constexpr):
    if OP == "sum":
        return a + b
    elif OP == "max":
        return tl.maximum(a, b)
    else:
        return a | b


@triton.jit
def row_reduce(
    parts, OP: tl.constexpr, TILES: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr
):
    """Tiles of lanes → the spread result: adjacent pairs, then adjacent pairs of the results, and so on.

    The pairs inside a thread come first, then the lanes of a warp (shuffles), then the parts of a block, then the
    blocks.
    """
    LANES: tl.constexpr = WIDTH // VECTOR
    totals = ()
    for part in tl.static_range(len(parts)):
        x = parts[part]
        for level in tl.static_range(VECTOR.bit_length() - 1):
            left, right = tl.split(tl.reshape(x, (TILES, WIDTH >> (level + 1), 2)))
            x = _combine(left, right, OP)
        lane = tl.broadcast_to(tl.arange(0, LANES)[None, :], (TILES, LANES))
        for level in tl.static_range(LANES.bit_length() - 1):
            x = _combine(x, tl.gather(x, lane ^ (1 << level), axis=1), OP)
        totals = totals + (x,)
    for _ in tl.static_range(len(parts).bit_length() - 1):
        pairs = ()
        for part in tl.static_range(0, len(totals), 2):
            pairs = pairs + (_combine(totals[part], totals[part + 1], OP),)
        totals = pairs
    total = totals[0]
    tile = tl.broadcast_to(tl.arange(0, TILES)[:, None], (TILES, LANES))
    for level in tl.static_range(BLOCKS.bit_length() - 1):
        total = _combine(total, tl.gather(total, tile ^ (1 << level), axis=0), OP)
    return total


@triton.jit
def row_sum(
    chunks, PARTS: tl.constexpr, CHUNKS: tl.constexpr, TILES: tl.constexpr, BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Sum of rows in the written order, spread; a zero sum is +0."""
    parts = ()
    for part in tl.static_range(PARTS):
        lanes = chunks[part]
        for c in tl.static_range(part + PARTS, CHUNKS, PARTS):
            lanes = lanes + chunks[c]
        parts = parts + (lanes,)
    return row_reduce(parts, "sum", TILES, BLOCKS, WIDTH, VECTOR) + 0.0


@triton.jit
def scaled_norm(
    chunks, PARTS: tl.constexpr, CHUNKS: tl.constexpr, TILES: tl.constexpr, BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """(power-of-two scale, L2 norm of the scaled row, 1 / scale), all spread."""
    largest = chunks[0].to(tl.int32, bitcast=True) & 0x7FFFFFFF
    for c in tl.static_range(1, CHUNKS):
        largest = tl.maximum(largest, chunks[c].to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    exponent = (row_reduce((largest,), "max", TILES, BLOCKS, WIDTH, VECTOR) >> 23) - 127
    exponent = tl.minimum(tl.maximum(exponent, -126), 126)
    scale = ((127 - exponent) << 23).to(tl.float32, bitcast=True)
    unscale = ((127 + exponent) << 23).to(tl.float32, bitcast=True)
    factor = expand(scale, TILES, WIDTH, VECTOR)
    squares = ()
    for c in tl.static_range(CHUNKS):
        y = chunks[c] * factor
        squares = squares + (y * y,)
    return scale, tl.sqrt_rn(row_sum(squares, PARTS, CHUNKS, TILES, BLOCKS, WIDTH, VECTOR)), unscale


def cdiv(a: int, b: int) -> int:
    """Quotient rounded up. Triton's own of this name costs microseconds a call on the host."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of two that is not below n ≥ 1."""
    return 1 << (n - 1).bit_length()


def row_tiles(rows: Sequence[Tensor], warps: int = 0, load_bytes: int = 16) -> dict:
    """Constexpr arguments of the row functions for tensors `[B, N, D]`.

    VECTOR elements (`load_bytes` where the strides allow) to a thread, a tile row no wider than a warp.
    """
    features = rows[0].shape[-1]
    lanes = min(256, next_power_of_2(features))
    vector = min(max(1, load_bytes // rows[0].element_size()), lanes)
    for x in rows:
        vector = math.gcd(vector, *x.stride()[:-1], x.data_ptr() // x.element_size())
    width = min(lanes, 32 * vector)
    blocks = next_power_of_2(cdiv(features, 1536))
    warps = max(warps or (4 if features <= 1024 else 8), blocks)
    return {
        "TILES": warps * 32 * vector // width,
        "BLOCKS": blocks,
        "PARTS": lanes // width,
        "CHUNKS": cdiv(features, blocks * lanes) * lanes // width,
        "WIDTH": width,
        "VECTOR": vector,
        "num_warps": warps,
    }


@triton.jit
def _unit_rows_kernel(
    x_ptr, units_ptr, norms_ptr, stride_b, stride_h, stride_n, heads, tokens,
    D: tl.constexpr, LIMBS: tl.constexpr, LOW_BITS: tl.constexpr, TILES: tl.constexpr, BLOCKS: tl.constexpr,
    PARTS: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    programs = tl.cdiv(tokens, TILES // BLOCKS)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    token = (tl.program_id(0) % programs) * (TILES // BLOCKS) + tl.arange(0, TILES) // BLOCKS  # [TILES]
    mask = token < tokens
    x_ptr += tl.multiple_of(sample // heads * stride_b + sample % heads * stride_h, VECTOR)
    chunks = load_rows(x_ptr, stride_n, token, mask, D, TILES, BLOCKS, CHUNKS, WIDTH, VECTOR)
    scale, length, unscale = scaled_norm(chunks, PARTS, CHUNKS, TILES, BLOCKS, WIDTH, VECTOR)
    norm = length * unscale
    row = (sample * tokens + token)[:, None]
    store_rows(norms_ptr + row, norm, mask, TILES, BLOCKS, WIDTH, VECTOR)

    usable = expand((norm > 0) & (norm < float("inf")), TILES, WIDTH, VECTOR)
    factor = expand(scale, TILES, WIDTH, VECTOR)
    inverse = expand(tl.div_rn(tl.zeros_like(length) + 2048.0, length), TILES, WIDTH, VECTOR)
    for c in tl.static_range(CHUNKS):
        feature = features(c, TILES, BLOCKS, CHUNKS, WIDTH)
        keep = mask[:, None] & (feature < D)
        high, low = to_limbs(tl.where(usable, chunks[c] * factor * inverse, 0.0), LOW_BITS)
        tl.store(units_ptr + row * (LIMBS * D) + feature, (high * (1.0 / 2048.0)).to(tl.float16), mask=keep)
        if LIMBS == 2:
            tl.store(units_ptr + row * (LIMBS * D) + D + feature, low.to(tl.float16), mask=keep)


@triton.jit
def to_limbs(u, LOW_BITS: tl.constexpr):
    """Components of unit rows, in units of 2⁻¹¹, as (integers, the rest in so many bits)."""
    high = (u + 12582912.0) - 12582912.0
    low = ((u - high) * (1 << LOW_BITS) + 12582912.0) - 12582912.0
    return high, low * (1.0 / (1 << LOW_BITS))


@triton.jit
def store_rows(
    ptrs, x, mask, TILES: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr
):  # fmt: skip
    """Store a spread value once for each row, at `ptrs` [TILES, 1]."""
    lane = tl.arange(0, WIDTH // VECTOR)[None, :]
    first = (tl.arange(0, TILES) % BLOCKS == 0)[:, None] & (lane == 0)
    # A sum, since the interpreter of Triton 3.6 cannot store through broadcast pointers.
    tl.store(ptrs + tl.zeros_like(lane), x, mask=first & mask[:, None])


def unit_rows(x: Tensor, limbs: int, bits: int) -> tuple[Tensor, Tensor]:
    """Unit rows and norms of `[B, N, D]`, or of `[B, H, N, D]` as of B · H samples."""
    heads, tokens, features = x.shape[1] if x.dim() == 4 else 1, *x.shape[-2:]
    samples = x.shape[0] * heads
    units = torch.empty(samples, tokens, limbs, features, dtype=torch.float16, device=x.device)
    norms = torch.empty(samples, tokens, dtype=torch.float32, device=x.device)
    if norms.numel():
        tiles = row_tiles([x])
        programs = samples * cdiv(tokens, tiles["TILES"] // tiles["BLOCKS"])
        launch(
            _unit_rows_kernel, programs,
            x, units, norms, x.stride(0), x.stride(1) if x.dim() == 4 else 0, x.stride(-2), heads, tokens,
            D=features, LIMBS=limbs, LOW_BITS=bits, **tiles,
        )  # fmt: skip
    return units, norms


@triton.jit
def load_units(units_ptr, row, mask, k, D: tl.constexpr, LIMBS: tl.constexpr, LIMB: tl.constexpr, BLOCK: tl.constexpr):
    """Features k … k + BLOCK − 1 of one limb of unit rows: [rows, BLOCK]."""
    feature = k + tl.arange(0, BLOCK)
    keep = mask[:, None]
    if D % BLOCK:
        keep = keep & (feature < D)[None, :]
    return tl.load(units_ptr + (row * (LIMBS * D) + LIMB * D)[:, None] + feature[None, :], mask=keep, other=0.0)


@triton.jit
def low_dots(a, a_low, b, b_low):
    """(high times low, low times low) of up to 64 features: int32 in units of 2⁻³² and 2⁻⁴²."""
    cross = (tl.dot(a, tl.trans(b_low)) * 2097152.0).to(tl.int32)
    cross += (tl.dot(a_low, tl.trans(b)) * 2097152.0).to(tl.int32)
    return cross, (tl.dot(a_low, tl.trans(b_low)) * 1048576.0).to(tl.int32)


@triton.jit
def fixed_point(high, cross, low):
    """high + 2⁻³² cross + 2⁻⁴² low in units of 2⁻³⁰, halves rounded up: int32."""
    rest = cross & 3
    return ((high * 4194304.0).to(tl.int32) << 8) + (cross >> 2) + (((rest << 10) + low + 2048) >> 12).to(tl.int32)


@triton.jit
def exact_dots(
    a_ptr, a_row, a_mask, b_ptr, b_row, b_mask, D: tl.constexpr, LIMBS: tl.constexpr, BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Dot products [BLOCK_A, BLOCK_B] of unit rows: exact, float32; of two limbs int32 in units of 2⁻³⁰, halves up."""
    high = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
    if LIMBS == 2:
        cross = tl.zeros((BLOCK_A, BLOCK_B), tl.int32)
        low = tl.zeros((BLOCK_A, BLOCK_B), tl.int32 if D <= 4096 else tl.int64)
    for k in range(0, D, BLOCK_K):
        a = load_units(a_ptr, a_row, a_mask, k, D, LIMBS, 0, BLOCK_K)
        b = load_units(b_ptr, b_row, b_mask, k, D, LIMBS, 0, BLOCK_K)
        high = tl.dot(a, tl.trans(b), high)
        if LIMBS == 2:
            a_low = load_units(a_ptr, a_row, a_mask, k, D, LIMBS, 1, BLOCK_K)
            b_low = load_units(b_ptr, b_row, b_mask, k, D, LIMBS, 1, BLOCK_K)
            cross_products, low_products = low_dots(a, a_low, b, b_low)
            cross += cross_products
            low += low_products
    if LIMBS == 2:
        return fixed_point(high, cross, low)
    else:
        return high


@triton.jit
def exp2(t, DEGREE: tl.constexpr, EXPONENT: tl.constexpr):
    """2^(t + EXPONENT) by a polynomial, exactly a power of two where t is an integer."""
    shifted = t + (12582912.0 + EXPONENT)
    r = t - (shifted - (12582912.0 + EXPONENT))
    if DEGREE == 3:
        power = r * 0.05500887334346771 + 0.2422109842300415
        power = power * r + 0.693282961845398
    else:
        power = r * 0.001326472032815218 + 0.009671512991189957
        power = power * r + 0.05550733581185341
        power = power * r + 0.24022242426872253
        power = power * r + 0.6931470036506653
    power = power * r + 1.0
    bits = power.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)
    return bits.to(tl.float32, bitcast=True)


INTERPRETED = not isinstance(widen, triton.JITFunction)


# What Triton found for launches so far: the compiled kernel and its constants in the order of the signature.
_compiled: dict[tuple, tuple[Any, tuple]] = {}


def launch(kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
    """Run `programs` programs of a kernel; `constants` are its constexpr arguments and the compiler's options.

    Triton's search for compiled code costs more host time than the launch: it is done once for arguments of a kind,
    and so is what else Triton asks for at a launch (hooks before it, debugging knobs; enter and exit hooks stay).
    """
    # On AMD the code depends on the bytes behind a pointer too.
    if INTERPRETED or torch.version.hip:
        kernel[(programs,)](*args, **constants, **LAUNCH)
        return
    device = triton.runtime.driver.active.get_current_device()
    key = kernel.fn, device, _kinds(args), *constants.items()
    found = _compiled.get(key)
    if found:
        found[0][programs, 1, 1](*args, *found[1])
        return
    code = kernel[(programs,)](*args, **constants, **LAUNCH)
    if isinstance(code, CompiledKernel):
        _compiled[key] = code, tuple(constants[name] for name in kernel.arg_names[len(args) :])


def _kinds(args: Sequence) -> tuple:
    """All that compiled code depends on in arguments that are not constant; a tuple is of tensors or has none."""
    kinds: list = []
    for x in args:
        if type(x) is int:
            if -(1 << 31) <= x < 1 << 31:
                kinds.append((x == 1) - (x % 16 == 0))
            else:
                kinds.append(2 + (x % 16 == 0) + 2 * (x >= 1 << 63))
        elif isinstance(x, tuple):
            kinds.append(_kinds(x) if x and isinstance(x[0], Tensor) else _kinds_of_numbers(*x))
        elif isinstance(x, Tensor):
            kinds += x.dtype, x.data_ptr() % 16 == 0
        else:
            kinds.append(float if isinstance(x, float) else (type(x), x))
    return tuple(kinds)


@functools.lru_cache(4096, typed=True)
def _kinds_of_numbers(*args: Any) -> tuple:
    """`_kinds` of a tuple of sizes, strides or weights, which take as long as the tensors and repeat more often."""
    if any(isinstance(x, Tensor) for x in args):
        raise TypeError("a tensor beside numbers in a tuple of kernel arguments")
    return _kinds(args)


def target_arch() -> int | str:
    """The architecture that launches are compiled for: 90 for sm_90, or a name such as gfx942."""
    return 90 if INTERPRETED else triton.runtime.driver.active.get_current_target().arch
