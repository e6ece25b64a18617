"""Products on tensor cores, and copies under way."""

import itertools
import os

import numpy as np
import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels decorated for the interpreter cannot be compiled", allow_module_level=True)

from tests.ptx import machine
from tests.ptx.handwritten import MMA, clean, faulty, listed, packed, wgmma, words


def fragment(x, places):
    """The 32-bit registers [32, n] of a warp; `places(lane, register, part)` gives indices of the two halves."""
    rows = [[[x[places(lane, k, part)] for part in (0, 1)] for k in range(x.size // 64)] for lane in range(32)]
    return np.array(rows, x.dtype).view(np.uint32)[..., 0]


def in_a(lane, k, part):
    return lane // 4 + 8 * (k % 2), lane % 4 * 2 + part + 8 * (k // 2)


def in_b(lane, k, part):
    return lane % 4 * 2 + part + 8 * k, lane // 4


def in_d(lane, k):
    """Of 16 rows and 8 columns for each four registers."""
    return lane // 4 + 8 * (k % 4 // 2), k // 4 * 8 + lane % 4 * 2 + k % 2


def fragments(a, b, c):
    """Registers of warps' factors and sums."""
    sums = [[[tile[in_d(lane, k)] for k in range(4)] for lane in range(32)] for tile in c]
    return (
        np.stack([fragment(tile, in_a) for tile in a]),
        np.stack([fragment(tile, in_b) for tile in b]),
        np.array(sums, np.float32),
        np.zeros((len(a), 32, 4), np.float32),
    )


def test_mma():
    rng = np.random.default_rng(0)
    a = (rng.integers(-64, 65, (6, 16, 16)) / 8).astype(np.float16)
    b = (rng.integers(-64, 65, (6, 16, 8)) / 16).astype(np.float16)
    c = (rng.integers(-999, 999, (6, 16, 8)) / 4).astype(np.float32)
    a[5, 3, 4], b[5, 4, 5] = np.inf, 1
    arrays = fragments(a, b, c)
    clean(MMA, *arrays, threads=96, programs=2)
    expected = np.matmul(a.astype(np.float64), b.astype(np.float64)) + c
    for tile, lane, k in itertools.product(range(6), range(32), range(4)):
        got, want = arrays[3][tile, lane, k], expected[tile][in_d(lane, k)]
        assert got == want or (got != got and want != want)


def test_sums_that_need_more_than_24_bits_are_noticed():
    for least, fits in ((2.0**-11, True), (2.0**-12, False)):
        a, b = np.zeros((2, 16, 16), np.float16), np.zeros((2, 16, 8), np.float16)
        a[1, 9, 3], a[1, 9, 4], b[1, 3, 2], b[1, 4, 2] = 1, 2.0**-12, 1, least
        arrays = fragments(a, b, np.zeros((2, 16, 8), np.float32))
        if fits:
            clean(MMA, *arrays, threads=64)
            assert arrays[3].max() == np.float32(1 + 2.0**-23)
        else:
            faulty("a product whose partial sums need more than 24 bits", MMA, *arrays, threads=64, thread=32)


# wgmma: 64 × 16 · 16 × n, of images of shared memory that the test lays out by 16 bytes.


def image(x, swizzle, transposed):
    """Bytes of a matrix [rows, k] in shared memory, with its leading and stride offsets.

    A core is eight lines, of k where `transposed` and else of rows, `swizzle` bytes each.
    """
    lines = x.T if transposed else x
    width = max(swizzle, 16) // 2
    groups, across = lines.shape[0] // 8, lines.shape[1] // width
    cores = lines.reshape(groups, 8, across, width // 8, 8).transpose(0, 2, 1, 3, 4)  # group, across, line, chunk
    placed = np.empty_like(cores)
    for line, chunk in itertools.product(range(8), range(width // 8)):
        moved = chunk ^ {0: 0, 32: line // 4 % 2, 64: line // 2 % 4, 128: line}[swizzle]
        placed[:, :, line, moved] = cores[:, :, line, chunk]
    core = 8 * width * 2
    return placed.reshape(-1).view(np.uint8), core, core * across


def descriptor(start, leading, stride, swizzle):
    code = {0: 0, 128: 1, 64: 2, 32: 3}[swizzle]
    return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | code << 62


def filled(total, threads):
    """Copy argument 0 of a program to shared memory."""
    lines = ["shl.b32 %r0, %t0, 4;", "mad.wide.u32 %rd0, %t1, " + str(total) + ", %arg0;", "cvt.u64.u32 %rd20, %r0;"]
    lines.append("add.s64 %rd0, %rd0, %rd20;")
    for start in range(0, total, 16 * threads):
        lines.append(f"ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%rd0+{start}];")
        lines.append(f"st.shared.v4.b32 [%r0+{start}], {{%r1, %r2, %r3, %r4}};")
    return lines


FENCED = ["fence.proxy.async.shared::cta;", "bar.sync 0;", "wgmma.fence.sync.aligned;"]
ENDED = ["wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned 0;"]


def kept(columns, first=100, argument=1):
    return [f"st.global.b32 [%own{argument}+{4 * k}], %r{first + k};" for k in range(columns // 2)]


def sums_of(out, columns):
    """[groups, 64, columns] of registers [groups · 128, columns / 2]."""
    registers = out.reshape(-1, 4, 32, columns // 2)
    tiles = np.zeros((len(registers), 64, columns), np.float32)
    for warp, lane, k in itertools.product(range(4), range(32), range(columns // 2)):
        row, column = in_d(lane, k)
        tiles[:, 16 * warp + row, column] = registers[:, warp, lane, k]
    return tiles


def grid(*shape, seed=0):
    return (np.random.default_rng(seed).integers(-16, 17, shape) / 4).astype(np.float16)


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
@pytest.mark.parametrize("columns", [8, 16, 64])
@pytest.mark.parametrize("threads", [128, 256])
def test_wgmma(swizzle, columns, threads):
    """Products chained along all k of a core, of two programs; each warpgroup has its own factor on the left."""
    depth, groups = max(32, swizzle // 2), threads // 128
    a, b = grid(2, groups, 64, depth), grid(2, columns, depth, seed=1)
    parts = [[image(x, swizzle, False) for x in (*a[program], b[program])] for program in range(2)]
    leading, stride, right = parts[0][0][1], parts[0][0][2], groups * 64 * depth * 2
    total = -(-(right + columns * depth * 2) // (16 * threads)) * 16 * threads
    data = np.zeros((2, total), np.uint8)
    for row, part in zip(data, parts, strict=True):
        whole = np.concatenate([x for x, _, _ in part])
        row[: len(whole)] = whole
    out = np.zeros((2 * threads, columns // 2), np.float32)
    body = [f"mov.b32 %r{100 + k}, 0f40000000;" for k in range(columns // 2)]
    body += [*filled(total, threads), *FENCED, "setp.ne.s32 %p0, %t0, %t0;", "not.pred %p1, %p0;"]
    body += ["shr.u32 %r9, %t0, 7;", f"mul.wide.u32 %rd9, %r9, {64 * depth * 2 >> 4};"]
    for k in range(0, depth, 16):
        core, inside = divmod(k * 2, max(swizzle, 16))
        start = core * leading + inside
        body += [f"add.s64 %rd1, %rd9, {descriptor(start, leading, stride, swizzle)};"]
        body += [f"mov.b64 %rd2, {descriptor(right + start, leading, stride, swizzle)};"]
        body += [wgmma(columns, "%p1" if k else "%p0")]
    clean("\n".join(body + ENDED + kept(columns)), data, out, threads=threads, programs=2, shared=total)
    expected = np.matmul(a.astype(np.float64), b.astype(np.float64).swapaxes(1, 2)[:, None])
    assert (sums_of(out, columns) == expected.reshape(-1, 64, columns)).all()


@pytest.mark.parametrize("swizzle", [32, 64, 128])
@pytest.mark.parametrize("which", ["1, 0", "0, 1", "1, 1"])
def test_wgmma_of_transposed_factors(swizzle, which):
    columns, start = 64, 0
    a, b = grid(64, 16), grid(columns, 16, seed=1)
    parts, descriptors = [], []
    for x, transposed in zip((a, b), which.split(", "), strict=True):
        mode = swizzle if transposed == "1" else 32
        part, leading, stride = image(x, mode, transposed == "1")
        descriptors.append(descriptor(start, leading, stride, mode))
        parts.append(part)
        start += len(part)
    data, out = np.concatenate(parts), np.zeros((128, columns // 2), np.float32)
    body = filled(len(data), 128) + FENCED + ["setp.ne.s32 %p0, %t0, %t0;"]
    body += [f"mov.b64 %rd1, {descriptors[0]};", f"mov.b64 %rd2, {descriptors[1]};"]
    body += [wgmma(columns, "%p0", tail=f"1, 1, {which}"), *ENDED, *kept(columns)]
    clean("\n".join(body), data, out, threads=128, shared=len(data))
    assert (sums_of(out, columns)[0] == a.astype(np.float64) @ b.astype(np.float64).T).all()


def product(*changes, columns=8, a=None, b=None):
    """A product of a warpgroup. `changes` give the start of a line and what stands for it, {} being the line."""
    a = grid(64, 16) if a is None else a
    b = grid(columns, 16, seed=1) if b is None else b
    parts = [image(x, 32, False)[0] for x in (a, b)]
    total = -(-sum(map(len, parts)) // 2048) * 2048
    data = np.zeros(total, np.uint8)
    data[: sum(map(len, parts))] = np.concatenate(parts)
    body = filled(total, 128) + FENCED + ["setp.ne.s32 %p0, %t0, %t0;"]
    body += [f"mov.b64 %rd1, {descriptor(0, 0, 256, 32)};", f"mov.b64 %rd2, {descriptor(2048, 0, 256, 32)};"]
    body += [wgmma(columns, "%p0"), *ENDED, *kept(columns)]
    for start, put in changes:
        at = next(k for k, line in enumerate(body) if line.startswith(start))
        body[at : at + 1] = [line.replace("{}", body[at]) for line in put]
    out = np.zeros((128, columns // 2), np.float32)
    return "\n".join(body), data, out, a.astype(np.float64) @ b.astype(np.float64).T


def test_sums_are_poison_until_the_wait():
    early = kept(8, argument=2)
    body, data, out, expected = product(("wgmma.wait", [*early, "{}"]))
    seen = np.zeros_like(out)
    clean(body, data, out, seen, threads=128, shared=len(data))
    assert (seen.view(np.uint32) == machine.POISON).all()
    assert (sums_of(out, 8)[0] == expected).all()


def test_products_are_added_to_sums():
    given = [f"mov.b32 %r{100 + k}, 0f{packed(1.5 * k, '<f'):08X};" for k in range(4)]
    body, data, out, expected = product(("wgmma.fence", [*given, "{}", "not.pred %p0, %p0;"]), ("setp", []))
    clean("setp.ne.s32 %p0, %t0, %t0;\n" + body, data, out, threads=128, shared=len(data))
    sums = sums_of(np.broadcast_to(np.arange(4) * 1.5, out.shape), 8)
    assert (sums_of(out, 8)[0] == expected + sums[0]).all()


def test_a_wait_may_leave_groups():
    second = ["{}", "wgmma.fence.sync.aligned;", wgmma(8, "%p0", first=140), "{}"]
    first_ended = ["wgmma.wait_group.sync.aligned 1;", *kept(8), *kept(8, 140, argument=2)]
    changes = ("wgmma.commit", second), ("wgmma.wait", [*first_ended, "{}", *kept(8, 140, argument=3)])
    body, data, out, expected = product(*changes)
    unfinished, finished = np.zeros_like(out), np.zeros_like(out)
    clean(body, data, out, unfinished, finished, threads=128, shared=len(data))
    assert (sums_of(out, 8)[0] == expected).all()
    assert (unfinished.view(np.uint32) == machine.POISON).all()
    assert (finished == out).all()


FAULT = ["{} // fault"]
WRITE = "st.shared.b32 [%r0], %r1; // fault"


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("a product reads shared memory that no fence.proxy.async followed", [("fence.proxy", [])]),
        (
            "a product reads shared memory that no fence.proxy.async followed",
            [("fence.proxy", ["setp.lt.u32 %p5, %t0, 32;", "@%p5 {}"])],
        ),
        ("a product reads what was written with no barrier between", [("bar.sync", [])]),
        ("a product with no wgmma.fence before it", [("wgmma.fence", [])]),
        ("a product reads shared memory that nothing wrote", [("st.shared.v4.b32 [%r0+2048]", [])]),
    ],
)
def test_products_that_are_not_synchronised(kind, changes):
    body, data, out, _ = product(*changes, ("wgmma.mma", FAULT), b=np.ones((8, 16), np.float16))
    faulty(kind, body, data, out, threads=128, shared=len(data))


@pytest.mark.parametrize(
    ("kind", "before", "change"),
    [
        ("shared memory is written that a product still reads", "wgmma.commit", ["{}", WRITE]),
        ("shared memory is written that a product read, with no barrier between", "wgmma.wait", ["{}", WRITE]),
        (None, "wgmma.wait", ["{}", "bar.sync 0;", WRITE]),
    ],
)
def test_what_a_product_reads_is_not_overwritten(kind, before, change):
    body, data, out, _ = product((before, change))
    options = {"threads": 128, "shared": len(data)}
    faulty(kind, body, data, out, **options) if kind else clean(body, data, out, **options)


def test_products_in_parts_of_a_warpgroup_or_outside_shared_memory():
    body, data, out, _ = product(("wgmma.mma", ["setp.lt.u32 %p5, %t0, 64;", "@!%p5 bra $L_end;", *FAULT, "$L_end:"]))
    faulty("a part of a warpgroup", body, data, out, threads=128, shared=len(data))
    faulty("a part of a warpgroup", "wgmma.fence.sync.aligned; // fault", threads=64, programs=2)
    beyond = f"mov.b64 %rd2, {descriptor(4096, 0, 256, 32)};"
    body, data, out, _ = product(("mov.b64 %rd2", [beyond]), ("wgmma.mma", FAULT))
    kind = "an access outside shared memory"
    faulty(kind, body, data, out, threads=128, shared=len(data), detail=r"byte \d+ of 4096")


def test_products_that_need_more_than_24_bits_are_noticed():
    a, b = np.zeros((64, 16), np.float16), np.zeros((8, 16), np.float16)
    a[40, 3], a[40, 4], b[5, 3], b[5, 4] = 1, 2.0**-12, 1, 2.0**-12
    body, data, out, _ = product(("wgmma.mma", FAULT), a=a, b=b)
    faulty("a product whose partial sums need more than 24 bits", body, data, out, threads=128, shared=len(data))


@pytest.mark.parametrize(("cache", "bytes_"), [("ca", 4), ("ca", 8), ("ca", 16), ("cg", 16)])
def test_copies_arrive_at_the_wait_for_their_group(cache, bytes_):
    x, out = words(128, 2, bytes_ // 4), np.zeros((128, 4, bytes_ // 4), np.uint32)
    many = {4: "", 8: ".v2", 16: ".v4"}[bytes_]
    regs = listed(bytes_ // 4, 10, "%r")
    body = f"""mul.lo.s32 %r0, %t0, {2 * bytes_};
        cp.async.{cache}.shared.global [%r0+0], [%own0+0], {bytes_:#x};
        cp.async.commit_group;
        and.b32 %r1, %t0, 1;
        mul.lo.s32 %r1, %r1, {bytes_};
        cp.async.{cache}.shared.global [%r0+{bytes_}], [%own0+{bytes_}], {bytes_}, %r1;
        cp.async.commit_group;
        BEFORE
        cp.async.wait_group 1;
        ld.shared{many}.b32 {regs}, [%r0];
        st.global{many}.b32 [%own1], {regs};
        BETWEEN
        cp.async.wait_group 0;
        ld.shared{many}.b32 {regs}, [%r0+{bytes_}];
        st.global{many}.b32 [%own1+{bytes_}], {regs};"""
    given = np.arange(128) % 2 == 1

    def check():
        assert (out[:, 0] == x[:, 0]).all()
        assert (out[:, 1] == np.where(given[:, None], x[:, 1], 0)).all()

    options = {"threads": 64, "programs": 2, "shared": 64 * 2 * bytes_}
    clean(body.replace("BEFORE", "").replace("BETWEEN", ""), x, out, **options)
    check()
    early = [f"ld.shared{many}.b32 {regs}, [%r0+{k * bytes_}]; // fault" for k in range(2)]
    late = [f"\nst.global{many}.b32 [%own1+{k * bytes_}], {regs};" for k in (2, 3)]
    seen = body.replace("BEFORE", early[0] + late[0]).replace("BETWEEN", early[1] + late[1])
    clean(seen, x, out, sanitize=False, **options)
    check()
    assert (out[:, 2:] == 0xFFFFFFFF).all()
    kind = "shared memory is read that nothing wrote"
    faulty(kind, body.replace("BEFORE", early[0]).replace("BETWEEN", ""), x, out, **options)
    faulty(kind, body.replace("BEFORE", "").replace("BETWEEN", early[1]), x, out, **options)


def test_copies_that_were_not_committed_do_not_arrive():
    x = words(32)
    body = """shl.b32 %r0, %t0, 2;
        cp.async.ca.shared.global [%r0], [%own0], 4;
        cp.async.wait_group 0;
        ld.shared.b32 %r1, [%r0]; // fault"""
    faulty("shared memory is read that nothing wrote", body, x, shared=128)


@pytest.mark.parametrize("barrier", [False, True])
def test_copies_are_for_others_after_a_barrier(barrier):
    x, out = words(64), np.zeros(64, np.uint32)
    body = f"""shl.b32 %r0, %t0, 2;
        cp.async.ca.shared.global [%r0], [%own0], 4;
        cp.async.commit_group;
        cp.async.wait_group 0;
        {"bar.sync 0;" if barrier else ""}
        xor.b32 %r0, %r0, 128;
        ld.shared.b32 %r1, [%r0]; // fault
        st.global.b32 [%own1], %r1;"""
    if barrier:
        clean(body, x, out, threads=64, shared=256)
        assert (out == np.roll(x, 32)).all()
    else:
        kind = "shared memory is read that another warp wrote, with no barrier between"
        faulty(kind, body, x, out, threads=64, shared=256)


def test_copies_of_a_part():
    body = "shl.b32 %r0, %t0, 4;\nmov.b32 %r1, 8;\ncp.async.cg.shared.global [%r0], [%own0], 16, %r1; // fault"
    faulty("an asynchronous copy of a part", body, words(128), shared=512)


# Faults
