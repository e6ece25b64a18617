"""The arithmetic that all ops share: one rounding per line, in a written order.

`kernels/arithmetic.py` performs the same roundings in the same order.
"""

import torch
from torch import Tensor

# Below the ordered key of every float, and below its complement.
NO_KEY = -1 << 31


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def widen(x: Tensor) -> Tensor:
    """Exact conversion of uint8, float16, bfloat16 or float32 to float32."""
    return x.to(torch.float32)


def narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 to `dtype`: nearest even; for uint8 half up, saturating, NaN to 0."""
    if dtype is not torch.uint8:
        return x.to(dtype)
    return (x + 0.5).nan_to_num_(0.0).clamp_(0.0, 255.0).to(torch.uint8)


def ordered_key(x: Tensor) -> Tensor:
    """int32 keys in the order of float32 values: −0 equals +0, every NaN is above +inf."""
    bits = x.contiguous().view(torch.int32)
    bits = torch.where((bits << 1) == 0, 0, bits)
    bits = torch.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FFFFFFF, bits)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def sqrt(x: Tensor) -> Tensor:
    """IEEE float32 square root (`torch.sqrt` of float32 is not correctly rounded on the CPU)."""
    return x.double().sqrt().float()


def round_to_integer(x: Tensor) -> Tensor:
    """Nearest integer, ties to even, for |x| < 2^22; a zero is +0. A buffer of its own."""
    return (x + 12582912.0).sub_(12582912.0)


# Coefficients of r, r², … in 2^r = 1 + …, |r| ≤ 1/2: within 1.0e-4 and 1.1e-7 of it.
EXP2 = {
    3: (0.693282961845398, 0.2422109842300415, 0.05500887334346771),
    5: (0.6931470036506653, 0.24022242426872253, 0.05550733581185341, 0.009671512991189957, 0.001326472032815218),
}
# The degree that goes with so many limbs.
EXP2_DEGREE = {1: 3, 2: 5}


def exp2(t: Tensor, degree: int, exponent: int, shifted: Tensor | None = None, power: Tensor | None = None) -> Tensor:
    """2^(t + exponent) by a polynomial, exactly a power of two where t is an integer.

    t + exponent has to stay within the exponents of normal float32. `t` is overwritten, as are two buffers of its
    shape where they are given; `power` is the result.
    """
    shifted = torch.add(t, 12582912.0 + exponent, out=shifted)
    power = torch.sub(shifted, 12582912.0 + exponent, out=power)
    t -= power
    *rest, last = EXP2[degree]
    power = torch.mul(t, last, out=power)
    for coefficient in reversed(rest):
        power += coefficient
        power *= t
    power += 1.0
    bits, exponents = power.view(torch.int32), shifted.view(torch.int32)
    bits += exponents.bitwise_left_shift_(23)
    return power


def fixed(x: Tensor) -> Tensor:
    """Integers, as float64, nearest to the float32 numbers `x`, halves up."""
    return (x + 0.5).double().floor_()


def below_one(largest: Tensor) -> tuple[Tensor, Tensor]:
    """Powers of two (s, 1/s) that bring numbers, of which the largest is at most 2⁶⁰, below 1."""
    exponent = largest.view(torch.int32) >> 23
    return ((253 - exponent) << 23).view(torch.float32), ((exponent + 1) << 23).view(torch.float32)
