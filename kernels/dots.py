"""Exact dot products of unit rows on tensor cores."""

from typing import NamedTuple

import triton
import triton.language as tl

# Fraction bits of the second limb of unit rows that are multiplied. Its products are exact over 64 features at a time,
# whatever these are.
LOW_BITS = 10


class Dots(NamedTuple):
    """Tiles of dot products of rows of D features in so many limbs: BLOCK_M rows with BLOCK_N, BLOCK_K at a time."""

    D: int
    LIMBS: int
    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int


@triton.jit
def to_limbs(u, LOW_BITS: tl.constexpr):
    """Components of unit rows, in units of 2⁻¹¹, as (integers, the rest in so many bits)."""
    high = (u + 12582912.0) - 12582912.0
    low = ((u - high) * (1 << LOW_BITS) + 12582912.0) - 12582912.0
    return high, low * (1.0 / (1 << LOW_BITS))


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
def exact_dots(a_ptr, a_row, a_mask, b_ptr, b_row, b_mask, DOT: tl.constexpr):
    """Dot products [BLOCK_M, BLOCK_N] of unit rows: exact, float32; of two limbs int32 in units of 2⁻³⁰, halves up."""
    D: tl.constexpr = DOT.D
    LIMBS: tl.constexpr = DOT.LIMBS
    BLOCK_K: tl.constexpr = DOT.BLOCK_K
    high = tl.zeros((DOT.BLOCK_M, DOT.BLOCK_N), tl.float32)
    if LIMBS == 2:
        cross = tl.zeros((DOT.BLOCK_M, DOT.BLOCK_N), tl.int32)
        low = tl.zeros((DOT.BLOCK_M, DOT.BLOCK_N), tl.int32 if D <= 4096 else tl.int64)
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
def own_dots(units_ptr, row, mask, D: tl.constexpr, LIMBS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Products of unit rows with themselves, in units of 2⁻³⁰, halves up."""
    total = tl.zeros((ROWS, BLOCK), tl.int64)
    for k in range(0, D, BLOCK):
        feature = k + tl.arange(0, BLOCK)[None, :]
        inside = mask[:, None] & (feature < D)
        at = units_ptr + (row * (LIMBS * D))[:, None] + feature
        component = (tl.load(at, mask=inside, other=0.0).to(tl.float32) * 2097152.0).to(tl.int32)
        if LIMBS == 2:
            component += (tl.load(at + D, mask=inside, other=0.0).to(tl.float32) * 1024.0).to(tl.int32)
        total += component.to(tl.int64) * component.to(tl.int64)
    return ((tl.sum(total, axis=1) + 2048) >> 12).to(tl.int32)
