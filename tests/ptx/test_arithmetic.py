"""Each instruction without effects against what the PTX ISA says of it, in Python's numbers."""

import itertools
import math
import operator
import os
import re
import zlib
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels decorated for the interpreter cannot be compiled", allow_module_level=True)

from tests.ptx.arithmetic import PURE
from tests.ptx.handwritten import F16, F32, F64, FORMS, clean, decode, encode, packed, size

NAN, INF = float("nan"), float("inf")
LANES = 1024


COUNTS = [0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 257, 1 << 31, (1 << 32) - 1]


def special(kind):
    if kind == "f32":
        return [packed(x, "<f") for x in F32] + [0xFFC00001, 0x7F800001]
    if kind == "f16":
        return [packed(x, "<e") for x in F16] + [0xFE01]
    if kind == "f64":
        return [packed(x, "<d") for x in F64] + [0xFFF8 << 48 | 1, 0x7FF0 << 48 | 1]
    if kind == "count":
        return COUNTS
    if kind == "pred":
        return [0, 1]
    if kind == "f16x2":
        return [a | b << 16 for a, b in itertools.product(special("f16")[:8], special("f16"))]
    top = 1 << size(kind) - 1
    return [0, 1, 2, 3, 7, 8, top - 1, top, top + 1, 2 * top - 1, 2 * top - 2, 2 * top // 3, top // 3]


def column(rng, kind, count):
    """Special bits, any bits, and those of moderate numbers."""
    width = 32 if kind == "count" else max(16, size(kind))
    if kind == "pred":
        return rng.integers(0, 2, count, np.uint64)
    anything = (
        rng.integers(0, 1 << width, count, np.uint64, endpoint=False)
        if width < 64
        else rng.bit_generator.random_raw(count)
    )
    if kind == "f32":
        moderate = (rng.integers(-4000, 4000, count) / 8).astype(np.float32).view(np.uint32).astype(np.uint64)
    elif kind == "f64":
        moderate = (rng.integers(-4000, 4000, count) / 8).view(np.uint64)
    elif kind in ("f16", "f16x2"):
        moderate = anything
    else:
        low = 0 if kind[0] in "ubc" else -40
        moderate = rng.integers(low, 90, count).astype(np.uint64) & np.uint64((1 << width) - 1)
    chosen = np.array(special(kind), np.uint64)[rng.integers(0, len(special(kind)), count)]
    return np.choose(rng.integers(0, 3, count), [chosen, anything, moderate])


def operands(opcode, kinds):
    """Bits [operands, LANES]: all pairs of special values as far as there is room, then random ones."""
    rng = np.random.default_rng(zlib.crc32(opcode.encode()))
    pairs = list(itertools.product(*(special(kind) for kind in kinds))) if len(kinds) < 3 else []
    pairs = [pairs[k] for k in rng.permutation(len(pairs))[: LANES * 2 // 3]]
    found = [column(rng, kind, LANES - len(pairs)) for kind in kinds]
    if len(kinds) > 1 and kinds[0] == kinds[1]:
        found[1] = np.where(rng.integers(0, 8, LANES - len(pairs)) == 0, found[0], found[1])
    return [np.concatenate([np.array([p[k] for p in pairs], np.uint64), x]) for k, x in enumerate(found)]


def quotient(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def divided(a, b):
    if b:
        return a / b
    return NAN if a == 0 or a != a else math.copysign(INF, a) * math.copysign(1, b)


def root(x):
    return NAN if x < 0 else math.sqrt(x)


def least(a, b):
    if a != a or b != b:
        return b if a != a else a
    return min(a, b, key=lambda x: (x, math.copysign(1, x)))


def most(a, b):
    return -least(-a, -b)


def rounded(function):
    return lambda x: math.copysign(float(function(x)), x) if math.isfinite(x) else x


def nearest(n, bits=24):
    """The float of so many bits nearest to an integer."""
    unit = 1 << max(0, abs(n).bit_length() - bits)
    return float(round(Fraction(n, unit)) * unit)


def truncated(kind, source):
    low, top = (-(1 << size(kind) - 1), (1 << size(kind) - 1) - 1) if kind[0] == "s" else (0, (1 << size(kind)) - 1)

    def convert(x):
        if x != x:
            return 1 << size(kind) - 1 if size(kind) == 64 or source == "f64" else 0
        return max(low, min(top, math.trunc(x))) if math.isfinite(x) else (top if x > 0 else low)

    return convert


def field(kind):
    def extract(a, position, length):
        msb, position, length = size(kind) - 1, position & 255, length & 255
        bits = [a >> k & 1 for k in range(msb + 1)]
        sign = 0 if kind[0] == "u" or length == 0 else bits[min(position + length - 1, msb)]
        return sum((bits[position + k] if k < length and position + k <= msb else sign) << k for k in range(msb + 1))

    return extract


def permuted(a, b, selector):
    both = [(b << 32 | a) >> 8 * k & 255 for k in range(8)]
    out = 0
    for k in range(4):
        control = selector >> 4 * k & 15
        byte = both[control & 7]
        out |= ((255 if byte & 128 else 0) if control & 8 else byte) << 8 * k
    return out


def funnel(a, b, count):
    count &= 31
    return (b << count | a >> 32 - count) & 0xFFFFFFFF


def halves(function):
    return lambda a, b: sum((function(a >> s & 0xFFFF, b >> s & 0xFFFF) & 0xFFFF) << s for s in (0, 16))


INTEGER = {
    "add": operator.add,
    "sub": operator.sub,
    "min": min,
    "max": max,
    "mul.lo": operator.mul,
    "div": quotient,
    "rem": lambda a, b: a - quotient(a, b) * b,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "min.relu": lambda a, b: max(min(a, b), 0),
    "max.relu": lambda a, b: max(a, b, 0),
}
UNARY = {"abs": abs, "neg": operator.neg, "not": operator.invert, "mov": lambda x: x}
FLOAT = {
    "add.rn": operator.add,
    "sub.rn": operator.sub,
    "mul.rn": operator.mul,
    "div.rn": divided,
    "min": least,
    "max": most,
}
FLOAT_UNARY = {"sqrt.rn": root, "abs": abs, "neg": operator.neg}
ROUNDING = {"rzi": math.trunc, "rni": round, "rmi": math.floor, "rpi": math.ceil}
COMPARISONS = {
    **{test: getattr(operator, test) for test in ("eq", "ne", "lt", "le", "gt", "ge")},
    "lo": operator.lt,
    "ls": operator.le,
    "hi": operator.gt,
    "hs": operator.ge,
}
# Of these the ISA leaves open which NaN they give.
ANY_NAN = re.compile(r".*\.f64|(abs|neg)\.f32|cvt\.f32\.f16|cvt\.r[znmp]i\.f32\.f32")


def comparison(test, kind):
    if kind[0] != "f":
        return COMPARISONS[test]

    def compare(a, b):
        unordered = a != a or b != b
        if test in ("num", "nan"):
            return unordered == (test == "nan")
        return test.endswith("u") if unordered else COMPARISONS[test[:2]](a, b)

    return compare


def conversion(modes, to, source):
    """Result, operands and function of a cvt."""
    if to == "f16x2":
        return "b32", ["f32", "f32"], lambda a, b: packed(a, "<e") << 16 | packed(b, "<e")
    if to == "f16":
        return "b16", [source], lambda x: packed(float(x), "<e")
    if to == source == "f32":
        return "f32", ["f32"], rounded(ROUNDING[modes[0]])
    if source in ("f32", "f64"):
        return to, [source], truncated(to, source)
    if to == "f64":
        return "f64", [source], lambda n: nearest(n, 53)
    if to == "f32" and source != "f16":
        return "f32", [source], nearest
    return to, [source], lambda x: x


def rule(opcode):
    """Types of the results and the operands of an opcode, and a function of Python's numbers."""
    *names, kind = opcode.split(".")
    name = ".".join(names)
    bits = f"b{size(kind)}" if kind != "pred" else "pred"
    wide = f"{kind[0]}{2 * size(kind)}"
    if names[0] == "cvt":
        result, kinds, function = conversion(names[1:-1], names[-1], kind)
        return [result], kinds, function
    if names[0] == "setp":
        if kind != "f16x2":
            return ["pred"], [kind, kind], comparison(names[1], kind)
        compare = comparison(names[1], "f16")
        return (
            ["pred", "pred"],
            [kind, kind],
            lambda a, b: [compare(decode(a >> s, "f16"), decode(b >> s, "f16")) for s in (0, 16)],
        )
    if name == "mov":
        return [bits], [bits], UNARY["mov"]
    if name == "selp":
        return [bits], [bits, bits, "pred"], lambda a, b, p: a if p else b
    if name == "popc":
        return ["u32"], [kind], lambda x: x.bit_count()
    if name == "prmt":
        return [kind], [kind] * 3, permuted
    if name == "shf.l.wrap":
        return [kind], [kind, kind, "count"], funnel
    if name == "shl":
        return [kind], [kind, "count"], lambda a, n: a << min(n, size(kind))
    if name == "shr":
        return [kind], [kind, "count"], lambda a, n: a >> min(n, size(kind))
    if name == "bfe":
        return [kind], [kind, "count", "count"], field(kind)
    if name == "mul.hi":
        return [kind], [kind, kind], lambda a, b: a * b >> size(kind)
    if name == "mul.wide":
        return [wide], [kind, kind], operator.mul
    if name == "mad.wide":
        return [wide], [kind, kind, wide], lambda a, b, c: a * b + c
    if name == "mad.lo":
        return [kind], [kind] * 3, lambda a, b, c: a * b + c
    if name == "abs" and kind in ("f16", "f16x2"):
        return [bits], [bits], lambda x: x & (0x7FFF if kind == "f16" else 0x7FFF7FFF)
    if kind.endswith("x2"):
        return ["b32"], ["b32", "b32"], halves(INTEGER[name])
    binary, unary = (FLOAT, FLOAT_UNARY) if kind in FORMS else (INTEGER, UNARY)
    if name in binary:
        return [kind], [kind, kind], binary[name]
    return [kind], [kind], unary[name]


def register(kind):
    return 32 if kind == "count" else max(16, size(kind))


def each(opcode, results, inputs, widths, result_widths):
    """Results of an instruction for all threads, and those where a guard takes every other thread out."""
    names = [f"%a{k}" for k in range(len(inputs))]
    lines = []
    for k, (name, width) in enumerate(zip(names, widths, strict=True)):
        if width == 1:
            lines += [f".reg .pred {name};", f"ld.global.b8 %h0, [%own{k}];", f"setp.ne.b16 {name}, %h0, 0;"]
        else:
            lines += [f".reg .b{width} {name};", f"ld.global.b{width} {name}, [%own{k}];"]
    lines += ["and.b32 %r0, %t0, 1;", "setp.eq.b32 %p0, %r0, 1;", "setp.ne.b32 %p1, %r0, %r0;"]
    outputs = []
    for guard in ("", "@%p0 ", "@!%p0 "):
        given = [f"%d{len(outputs) + k}" for k in range(len(results))]
        for name, width in zip(given, result_widths, strict=True):
            lines += [f".reg .{'pred' if width == 1 else f'b{width}'} {name};"]
            lines += ["mov.pred " + name + ", %p1;" if width == 1 else f"mov.b{width} {name}, 0;"]
        lines.append(f"{guard}{opcode} {'|'.join(given)}, {', '.join(names)};")
        for name, width in zip(given, result_widths, strict=True):
            k = len(inputs) + len(outputs)
            if width == 1:
                lines += [f"selp.b16 %h0, 1, 0, {name};", f"st.global.b8 [%own{k}], %h0;"]
            else:
                lines.append(f"st.global.b{width} [%own{k}], {name};")
            outputs.append(np.full(LANES, 0xA5, f"u{max(8, width) // 8}"))
    arrays = [x.astype(f"u{max(8, width) // 8}") for x, width in zip(inputs, widths, strict=True)]
    clean("\n".join(lines), *arrays, *outputs, threads=128, programs=LANES // 128)
    count = len(results)
    odd = np.arange(LANES) % 2 == 1
    for k in range(count):
        assert (outputs[count + k] == np.where(odd, outputs[k], 0)).all()
        assert (outputs[2 * count + k] == np.where(odd, 0, outputs[k])).all()
    return outputs[:count]


def compare(opcode, widest=False):
    results, kinds, function = rule(opcode)
    inputs = operands(opcode, kinds)
    if opcode.startswith(("div.s", "div.u", "rem")):
        inputs[1] = np.where(inputs[1] & np.uint64((1 << size(kinds[1])) - 1) == 0, 1, inputs[1]).astype(np.uint64)
    if widest:
        rng = np.random.default_rng(0)
        inputs = [
            x | rng.bit_generator.random_raw(LANES) << np.uint64(size(k)) for x, k in zip(inputs, kinds, strict=True)
        ]
    widths, result_widths = (
        [1 if kind == "pred" else 64 if widest and kind != "f32" else register(kind) for kind in part]
        for part in (kinds, results)
    )
    found = each(opcode, results, inputs, widths, result_widths)
    kinds = ["u32" if kind == "count" else kind for kind in kinds]
    wrong = []
    for n in range(LANES):
        values = [decode(int(x[n]), kind) for x, kind in zip(inputs, kinds, strict=True)]
        expected = function(*values)
        for out, value, kind, width in zip(
            found, expected if len(results) > 1 else [expected], results, result_widths, strict=True
        ):
            got, want = int(out[n]), encode(value, kind, width)
            if got != want and not (
                ANY_NAN.fullmatch(opcode) and value != value and decode(got, kind) != decode(got, kind)
            ):
                wrong.append(f"{[hex(int(x[n])) for x in inputs]} = {values}: expected {want:#x}, got {got:#x}")
    assert not wrong, f"{len(wrong)} of {LANES}\n" + "\n".join(wrong[:5])


@pytest.mark.parametrize("opcode", PURE)
def test_pure(opcode):
    compare(opcode)


@pytest.mark.parametrize("opcode", [x for x in PURE if re.fullmatch(r"cvt\.(rn\.f32|[su]\d+)\.[su]\d+", x)])
def test_conversions_in_wider_registers(opcode):
    compare(opcode, widest=True)


# Registers, parameters and memory
