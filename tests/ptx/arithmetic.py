"""Instructions without effects: opcode → (types of the results, types of the operands, function of arrays)."""

import operator
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .parse import DTYPES

Array = NDArray
Pure = tuple[tuple[str, ...], tuple[str, ...], Callable]

INTEGERS = tuple(f"{kind}{bits}" for bits in (16, 32, 64) for kind in "su")
NAN = np.uint32(0x7FFFFFFF)  # of every float32 operation that gives one
PURE: dict[str, Pure] = {}


def canonical(x: Array) -> Array:
    nan = x != x
    if nan.any():
        x.view(np.uint32)[nan] = NAN
    return x


def float32(function: Callable) -> Callable:
    return lambda *args: canonical(function(*args))


def smaller(a: Array, b: Array) -> Array:
    """min.f32: the number beside a NaN, −0 below +0."""
    return np.where(a == b, (a.view(np.uint32) | b.view(np.uint32)).view(np.float32), np.fmin(a, b))


def larger(a: Array, b: Array) -> Array:
    return np.where(a == b, (a.view(np.uint32) & b.view(np.uint32)).view(np.float32), np.fmax(a, b))


def quotient(a: Array, b: Array) -> Array:
    """Integers, towards zero; the linker sees to it that none is divided by 0."""
    q = a // b
    return q + ((q * b != a) & ((a < 0) != (b < 0)))


def remainder(a: Array, b: Array) -> Array:
    return a - quotient(a, b) * b


def high(a: Array, b: Array) -> Array:
    """The upper half of a product."""
    bits = 8 * a.itemsize
    if bits < 64:
        wide = DTYPES[f"{a.dtype.kind.replace('i', 's')}{2 * bits}"]
        return (a.astype(wide) * b.astype(wide) >> bits).astype(a.dtype)
    return np.frompyfunc(lambda x, y: int(x) * int(y) >> 64, 2, 1)(a, b).astype(a.dtype)


def to_integer(x: Array, dtype: type) -> Array:
    """Towards zero, at the limits where it is beyond them; of NaN the highest bit alone, 0 of float32 to 32 bits."""
    bits = 8 * np.dtype(dtype).itemsize
    nan = dtype(0) if bits < 64 and x.dtype == np.float32 else np.uint64(1 << bits - 1).astype(dtype)
    low, top = np.iinfo(dtype).min, np.iinfo(dtype).max
    d = np.trunc(x.astype(np.float64))
    inside = (d > low) & (d < top)
    limit = np.where(d >= top, dtype(top), np.where(d <= low, dtype(low), nan))
    return np.where(inside, np.where(inside, d, 0).astype(dtype), limit)


def to_half(x: Array) -> Array:
    """float32 → the bits of float16, nearest even; every NaN becomes 0x7FFF."""
    return np.where(x != x, np.uint16(0x7FFF), x.astype(np.float16).view(np.uint16))


def permuted(a: Array, b: Array, selector: Array) -> Array:
    """prmt: each nibble of the selector takes a byte of b:a, or its sign eight times."""
    both = b.astype(np.uint64) << np.uint64(32) | a
    out = np.uint32(0)
    for k in range(4):
        nibble = (selector >> np.uint32(4 * k)).astype(np.uint64)
        byte = both >> ((nibble & np.uint64(7)) * np.uint64(8)) & np.uint64(255)
        sign = np.where(byte >> np.uint64(7), np.uint64(255), np.uint64(0))
        out = out | np.where(nibble & np.uint64(8), sign, byte).astype(np.uint32) << np.uint32(8 * k)
    return out


def field(a: Array, position: Array, length: Array) -> Array:
    """bfe: a bit field, extended by its sign where the type has one."""
    bits = a.dtype.type(8 * a.itemsize)
    position, length = (x.astype(a.dtype) & a.dtype.type(255) for x in (position, length))
    up = np.maximum(bits - position - length, 0) if a.dtype.kind == "i" else bits - np.minimum(position + length, bits)
    return np.where(length == 0, 0, (a << up) >> np.minimum(up + position, bits)).astype(a.dtype)


def funnel(a: Array, b: Array, count: Array) -> Array:
    """shf.l.wrap: the upper word of b:a moved up."""
    both = b.astype(np.uint64) << np.uint64(32) | a
    return (both << (count & np.uint32(31)).astype(np.uint64) >> np.uint64(32)).astype(np.uint32)


def pairs(function: Callable) -> Callable:
    """On each half of 32 bits."""

    def halves(*words: Array) -> Array:
        low, top = (function(*((word >> np.uint32(s)).astype(np.uint16) for word in words)) for s in (0, 16))
        return low.astype(np.uint32) | top.astype(np.uint32) << np.uint32(16)

    return halves


for kind in INTEGERS:
    bits, wide = int(kind[1:]), f"{kind[0]}{2 * int(kind[1:])}"
    for name, function in {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum}.items():
        PURE[f"{name}.{kind}"] = (kind,), (kind, kind), function
    PURE[f"mul.lo.{kind}"] = (kind,), (kind, kind), np.multiply
    PURE[f"mul.hi.{kind}"] = (kind,), (kind, kind), high
    PURE[f"mad.lo.{kind}"] = (kind,), (kind,) * 3, lambda a, b, c: a * b + c
    if bits < 64:
        dtype = DTYPES[wide]
        PURE[f"mul.wide.{kind}"] = (wide,), (kind, kind), lambda a, b, t=dtype: a.astype(t) * b.astype(t)
        PURE[f"mad.wide.{kind}"] = (wide,), (kind, kind, wide), lambda a, b, c, t=dtype: a.astype(t) * b.astype(t) + c
    PURE[f"div.{kind}"] = (kind,), (kind, kind), quotient
    PURE[f"rem.{kind}"] = (kind,), (kind, kind), remainder
    PURE[f"shr.{kind}"] = (kind,), (kind, "u32"), lambda a, n, b=bits: a >> np.minimum(n, b).astype(a.dtype)
    if kind[0] == "s":
        PURE[f"abs.{kind}"] = (kind,), (kind,), np.abs
        PURE[f"neg.{kind}"] = (kind,), (kind,), np.negative
    if bits > 16:
        PURE[f"bfe.{kind}"] = (kind,), (kind, "u32", "u32"), field
    PURE[f"cvt.rzi.{kind}.f32"] = (kind,), ("f32",), lambda x, t=DTYPES[kind]: to_integer(x, t)

for kind in (*INTEGERS, "s8", "u8"):
    PURE[f"cvt.rn.f32.{kind}"] = ("f32",), (kind,), lambda x: x.astype(np.float32)
    for other in (*INTEGERS, "s8", "u8"):
        PURE[f"cvt.{kind}.{other}"] = (kind,), (other,), lambda x, t=DTYPES[kind]: x.astype(t)

for bits in ("b16", "b32", "b64"):
    for name, function in {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}.items():
        PURE[f"{name}.{bits}"] = (bits,), (bits, bits), function
        PURE[f"{name}.pred"] = ("pred",), ("pred", "pred"), function
    PURE[f"not.{bits}"] = (bits,), (bits,), np.invert
    PURE[f"shl.{bits}"] = (bits,), (bits, "u32"), lambda a, n: a << np.minimum(n, 8 * a.itemsize).astype(a.dtype)
    for kind in (bits, "f32") if bits == "b32" else (bits,):
        PURE[f"selp.{kind}"] = (bits,), (bits, bits, "pred"), lambda a, b, p: np.where(p, a, b)
for kind in ("b16", "b32", "b64", "u16", "u32", "u64", "s32", "s64", "f32", "pred"):
    PURE[f"mov.{kind}"] = (kind,), (kind,), lambda x: x
PURE["not.pred"] = ("pred",), ("pred",), np.invert
for bits in ("b32", "b64"):
    PURE[f"popc.{bits}"] = ("u32",), (bits,), lambda x: np.bitwise_count(x).astype(np.uint32)
PURE["prmt.b32"] = ("b32",), ("b32",) * 3, permuted
PURE["shf.l.wrap.b32"] = ("b32",), ("b32", "b32", "u32"), funnel
PURE["min.relu.s32"] = ("s32",), ("s32", "s32"), lambda a, b: np.maximum(np.minimum(a, b), 0)
PURE["max.relu.s32"] = ("s32",), ("s32", "s32"), lambda a, b: np.maximum(np.maximum(a, b), 0)
PURE["add.s16x2"] = ("b32",), ("b32", "b32"), pairs(np.add)

for name, function in {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}.items():
    PURE[f"{name}.rn.f32"] = ("f32",), ("f32", "f32"), float32(function)
    PURE[f"{name}.rn.f64"] = ("f64",), ("f64", "f64"), function
PURE["sqrt.rn.f64"] = ("f64",), ("f64",), np.sqrt
PURE["cvt.rzi.s64.f64"] = ("s64",), ("f64",), lambda x: to_integer(x, np.int64)
for kind in ("s32", "u32"):
    PURE[f"cvt.rn.f16.{kind}"] = ("b16",), (kind,), lambda x: x.astype(np.float64).astype(np.float16).view(np.uint16)
for kind in ("s64", "u64"):
    PURE[f"cvt.rn.f64.{kind}"] = ("f64",), (kind,), lambda x: x.astype(np.float64)
PURE["sqrt.rn.f32"] = ("f32",), ("f32",), float32(np.sqrt)
PURE["abs.f32"] = ("f32",), ("f32",), float32(np.abs)
PURE["mul.rn.f16"] = ("b16",), ("f16", "f16"), lambda a, b: to_half(a.astype(np.float32) * b.astype(np.float32))
PURE["abs.f16"] = ("b16",), ("b16",), lambda x: x & np.uint16(0x7FFF)
PURE["abs.f16x2"] = ("b32",), ("b32",), lambda x: x & np.uint32(0x7FFF7FFF)
PURE["neg.f32"] = ("f32",), ("f32",), float32(np.negative)
PURE["min.f32"] = ("f32",), ("f32", "f32"), float32(smaller)
PURE["max.f32"] = ("f32",), ("f32", "f32"), float32(larger)
for mode, function in {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}.items():
    PURE[f"cvt.{mode}.f32.f32"] = ("f32",), ("f32",), float32(function)
PURE["cvt.rn.f16.f32"] = ("b16",), ("f32",), to_half
PURE["cvt.rn.f16x2.f32"] = ("b32",), ("f32", "f32"), lambda a, b: to_half(a).astype(np.uint32) << 16 | to_half(b)
PURE["cvt.f32.f16"] = ("f32",), ("f16",), lambda x: canonical(x.astype(np.float32))

ORDERED = {"eq": "eq", "ne": "ne", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge"}
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def comparison(kind: str, test: str) -> Callable:
    if kind[0] != "f":
        return getattr(operator, {**ORDERED, **UNSIGNED}[test])
    if test in ("num", "nan"):
        return lambda a, b: ((a == a) & (b == b)) == (test == "num")
    compare = getattr(operator, test[:2])
    if test[2:] == "u":  # or unordered
        return lambda a, b: compare(a, b) | (a != a) | (b != b)
    return lambda a, b: compare(a, b) & (a == a) & (b == b)


for kind in (*INTEGERS, "b16", "b32", "b64", "f32", "f16"):
    tests = ("eq", "ne") if kind[0] == "b" else tuple(ORDERED)
    if kind[0] == "u":
        tests += tuple(UNSIGNED)
    if kind[0] == "f":
        tests += ("num", "nan", *(f"{test}u" for test in ORDERED))
    for test in tests:
        compare = comparison(kind, test)
        PURE[f"setp.{test}.{kind}"] = ("pred",), (kind, kind), compare
        if kind == "f16":
            PURE[f"setp.{test}.f16x2"] = (
                ("pred", "pred"),
                ("b32", "b32"),
                lambda a, b, compare=compare: tuple(
                    compare(*((x >> np.uint32(s)).astype(np.uint16).view(np.float16) for x in (a, b))) for s in (0, 16)
                ),
            )
