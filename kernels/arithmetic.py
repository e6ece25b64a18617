"""Device arithmetic that all kernels share: the roundings of `reference/arithmetic.py`, in the same order."""

import triton
import triton.language as tl

# Below the ordered key of every float, and below its complement.
NO_KEY = tl.constexpr(-(1 << 31))


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


@triton.jit
def below_one(largest):
    """Powers of two (s, 1/s) that bring numbers below 1, from the bits of the largest, which is at most 2⁶⁰."""
    exponent = largest >> 23
    return ((253 - exponent) << 23).to(tl.float32, bitcast=True), ((exponent + 1) << 23).to(tl.float32, bitcast=True)


@triton.jit
def bounds(cu_ptr, segment, size):
    """(start, length) of a packed segment, clamped to [0, size]."""
    first = tl.minimum(tl.maximum(tl.load(cu_ptr + segment), 0), size)
    last = tl.minimum(tl.maximum(tl.load(cu_ptr + segment + 1), 0), size)
    return first, tl.maximum(last - first, 0)


@triton.jit
def packed_grid(cu_ptr, grids_ptr, segment, size):
    """(start, height, width) of a packed grid; of one that is too large for its segment, the rows that there are."""
    start, length = bounds(cu_ptr, segment, size)
    width = tl.maximum(tl.minimum(tl.load(grids_ptr + 2 * segment + 1), length), 0)
    height = tl.minimum(tl.load(grids_ptr + 2 * segment), length // tl.maximum(width, 1))
    return start, tl.maximum(height, 0), width


@triton.jit
def segment_of(cu_ptr, place, segments, top_bit):
    """The last segment that does not begin after a place, found bit by bit from `top_bit`; −1 if all do."""
    segment = tl.full(place.shape, -1, tl.int32)
    bit = tl.zeros((), tl.int32) + top_bit
    while bit > 0:
        candidate = segment + bit
        begin = tl.load(cu_ptr + candidate, mask=candidate <= segments, other=0x7FFFFFFF)
        segment = tl.where(begin <= place, candidate, segment)
        bit = bit >> 1
    return segment


def highest_bit(segments: int) -> int:
    """The largest power of two that an index from −1 to `segments` can rise by."""
    return 1 << ((segments + 1).bit_length() - 1)


def cdiv(a: int, b: int) -> int:
    """Quotient rounded up. Triton's own of this name costs microseconds a call on the host."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of two that is not below n ≥ 1."""
    return 1 << (n - 1).bit_length()
