"""Registers, parameters, loads and stores, branches and barriers."""

import itertools
import os
import struct

import numpy as np
import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels decorated for the interpreter cannot be compiled", allow_module_level=True)

from tests.ptx import Run
from tests.ptx.handwritten import clean, kernel, listed, pointer, words


@pytest.mark.parametrize(("whole", "parts"), [(64, 2), (64, 4), (32, 2)])
def test_mov_packs_and_unpacks(whole, parts):
    part = whole // parts
    x = words(32, kind=f"u{whole // 8}")
    split, turned = np.zeros((32, parts), f"u{part // 8}"), np.zeros_like(x)
    file = {16: "%h", 32: "%r"}[part]
    names = [f"{file}{k}" for k in range(1, parts + 1)]
    stores = "\n".join(f"st.global.b{part} [%own1+{part // 8 * k}], {name};" for k, name in enumerate(names))
    clean(
        f""".reg .b{whole} %x, %y;
        ld.global.b{whole} %x, [%own0];
        mov.b{whole} {{{", ".join(names)}}}, %x;
        {stores}
        mov.b{whole} %y, {{{", ".join(names[::-1])}}};
        st.global.b{whole} [%own2], %y;""",
        x,
        split,
        turned,
    )
    expected = [[int(v) >> part * k & (1 << part) - 1 for k in range(parts)] for v in x]
    assert split.tolist() == expected
    assert turned.tolist() == [sum(v << part * k for k, v in enumerate(row[::-1])) for row in expected]


def test_mov_unpacks_into_nothing():
    x, out = words(32), np.zeros(32, np.uint16)
    clean("ld.global.b32 %r0, [%own0];\nmov.b32 {_, %h0}, %r0;\nst.global.b16 [%own1], %h0;", x, out)
    assert (out == x >> 16).all()


def test_registers_in_braces_are_others():
    out = np.zeros((32, 3), np.int32)
    clean(
        """.reg .b32 %x;
        mov.b32 %x, 1;
        mov.b32 %r5, 10;
        { .reg .b32 %x; .reg .b32 %r5; mov.b32 %x, 2; mov.b32 %r5, 20; st.global.b32 [%own0], %x; }
        { .reg .b32 %x; mov.b32 %x, 3; add.s32 %r5, %r5, %x; }
        st.global.b32 [%own0+4], %x;
        st.global.b32 [%own0+8], %r5;""",
        out,
    )
    assert (out == [2, 1, 13]).all()


def test_counted_registers_in_braces_are_others():
    out = np.zeros((32, 2), np.int32)
    clean(
        """mov.b32 %r1, 10;
        { .reg .b32 %r<2>; mov.b32 %r1, 20; st.global.b32 [%own0], %r1; }
        st.global.b32 [%own0+4], %r1;""",
        out,
    )
    assert (out == [20, 10]).all()


def test_constants():
    out = np.zeros((32, 6), np.int64)
    clean(
        """mov.b32 %r0, 0f3FC00000;
        add.rn.f32 %r0, %r0, 0f80000000;
        mul.rn.f32 %r0, %r0, 0fC0000000;
        cvt.u64.u32 %rd0, %r0;
        mov.b64 %rd1, -2;
        and.b64 %rd2, %rd1, 0xFFFF0000FFFF;
        cvt.u16.u32 %h0, %t0;
        sub.s16 %h0, %h0, -1;
        cvt.s64.s16 %rd3, %h0;
        mov.u64 %rd4, 0xFFFFFFFFU;
        setp.lt.s32 %p0, %t0, -1;
        setp.lt.u32 %p1, %t0, -1;
        selp.b64 %rd5, 1, 2, %p0;
        @%p1 add.s64 %rd5, %rd5, 0x10;
        st.global.v2.b64 [%own0], {%rd0, %rd1};
        st.global.v2.b64 [%own0+16], {%rd2, %rd3};
        st.global.v2.b64 [%own0+32], {%rd4, %rd5};""",
        out,
    )
    bits = struct.unpack("<I", struct.pack("<f", -3.0))[0]
    for thread, row in enumerate(out.tolist()):
        assert row == [bits, -2, 0xFFFF0000FFFE, thread + 1, 0xFFFFFFFF, 18]


def test_special_registers():
    names = ("tid.x", "tid.y", "tid.z", "ctaid.x", "ctaid.y", "ctaid.z", "nctaid.x")
    out = np.full((3, 64, 7), -1, np.int32)
    body = "\n".join(f"mov.u32 %r0, %{x};\nst.global.b32 [%own0+{4 * k}], %r0;" for k, x in enumerate(names))
    clean(body, out, threads=64, programs=3, together=128)
    assert (out == [[[t, 0, 0, p, 0, 0, 3] for t in range(64)] for p in range(3)]).all()


def test_parameters():
    out = np.zeros((32, 5), np.int64)
    kinds = [".u64 .ptr .global .align 1", ".u32", ".u64", ".f32", ".u32"]
    ptx = kernel(
        """ld.param.b64 %rd1, [k_param_0];
        ld.param.u32 %r1, [k_param_1];
        ld.param.s32 %rd2, [k_param_1];
        ld.param.u32 %rd3, [k_param_1];
        ld.param.b64 %rd4, [k_param_2];
        ld.param.b32 %rd5, [k_param_3];
        ld.param.b32 %rd6, [k_param_4];
        ld.param.b32 %r2, [k_param_2+4];
        mad.wide.u32 %rd1, %t0, 40, %rd1;
        st.global.b64 [%rd1], %rd2;
        st.global.b64 [%rd1+8], %rd3;
        st.global.b64 [%rd1+16], %rd4;
        st.global.b64 [%rd1+24], %rd5;
        st.global.b32 [%rd1+32], %rd6;
        st.global.b32 [%rd1+36], %r2;""",
        parameters=kinds,
    )
    run = Run(True, 16384, None)
    run.launch("k", ptx, 0, 1, [pointer(out), ("i32", -5), ("i64", -(7 << 40) - 1), ("fp32", 0.1), ("i32", 77)])
    assert not run.faults
    large = -(7 << 40) - 1
    tail = 77 | (large >> 32) << 32
    assert (out == [-5, 2**32 - 5, large, struct.unpack("<I", struct.pack("<f", 0.1))[0], tail]).all()


ACCESSES = [
    (kind, bits, count)
    for kind, bits, count in itertools.product("bus", (8, 16, 32, 64), (1, 2, 4))
    if bits * count <= 128
]


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize(("kind", "bits", "count"), ACCESSES)
def test_loads_and_stores(space, kind, bits, count):
    each, many = bits * count // 8, f".v{count}" if count > 1 else ""
    x = words(128, 2, count, kind=f"u{bits // 8}")
    out, copied = np.full((128, 2, count), 0xA5, np.uint64), np.zeros_like(x)
    body = f"""ld.global{many}.{kind}{bits} {listed(count)}, [%own0];
        add.s64 %rd20, %own0, {2 * each};
        ld.global{many}.{kind}{bits} {listed(count, 4)}, [%rd20+-{each}];"""
    if space == "shared":
        body += f"""
        mov.b32 %r0, global_smem;
        mad.lo.s32 %r0, %t0, {2 * each}, %r0;
        add.s32 %r1, %r0, {2 * each};
        st.shared{many}.b{bits} [%r0], {listed(count)};
        st.shared::cta{many}.b{bits} [%r1+-{each}], {listed(count, 4)};
        ld.shared{many}.{kind}{bits} {listed(count)}, [%r1+-{2 * each}];
        ld.shared{many}.{kind}{bits} {listed(count, 4)}, [%r0+{each}];"""
    for k in range(2 * count):
        body += f"\nst.global.b64 [%own1+{8 * k}], %rd{k if k < count else 4 + k - count};"
    body += f"\nst.global{many}.b{bits} [%own2], {listed(count)};"
    body += f"\nst.global{many}.b{bits} [%own2+{each}], {listed(count, 4)};"
    clean(body, x, out, copied, threads=64, programs=2, shared=64 * 2 * each)
    assert (copied == x).all()
    signed = x.view(f"i{bits // 8}").astype(np.int64).view(np.uint64)
    assert (out == (signed if kind == "s" else x)).all()


def test_shared_memory_is_of_a_program():
    out = np.zeros(128, np.int32)
    clean(
        """shl.b32 %r0, %t0, 2;
        st.shared.b32 [%r0], %t2;
        bar.sync 0;
        xor.b32 %r1, %r0, 124;
        ld.shared.b32 %r2, [%r1];
        st.global.b32 [%own0], %r2;""",
        out,
        programs=4,
        shared=128,
    )
    assert (out == np.arange(128).reshape(4, 32)[:, ::-1].ravel()).all()


@pytest.mark.parametrize("together", [32, 16384])
def test_loops_of_different_lengths_join(together):
    out = np.zeros((96, 2), np.int32)
    clean(
        """mov.b32 %r0, 0;
        mov.b32 %r1, 0;
        $L_head:
        setp.ge.s32 %p0, %r0, %t2;
        @%p0 bra $L_done;
        add.s32 %r1, %r1, %r0;
        add.s32 %r0, %r0, 1;
        bra.uni $L_head;
        $L_done:
        shfl.sync.idx.b32 %r2, %r1, 31, 31, -1;
        st.global.v2.b32 [%own0], {%r1, %r2};""",
        out,
        programs=3,
        together=together,
    )
    n = np.arange(96)
    assert (out[:, 0] == n * (n - 1) // 2).all()
    assert (out[:, 1] == out[n | 31, 0]).all()


def test_branches_join_and_threads_return():
    out = np.full((64, 2), -1, np.int32)
    clean(
        """and.b32 %r0, %t0, 1;
        setp.eq.s32 %p0, %r0, 1;
        and.b32 %r1, %t0, 2;
        setp.eq.s32 %p1, %r1, 2;
        mov.b32 %r2, 5;
        @!%p0 bra $L_even;
        @%p1 bra $L_three;
        mov.b32 %r2, 1;
        bra $L_join;
        $L_three:
        mov.b32 %r2, 3;
        bra $L_join;
        $L_even:
        @%p1 add.s32 %r2, %r2, %r1;
        @!%p1 sub.s32 %r2, %r2, 5;
        $L_join:
        vote.sync.ballot.b32 %r3, %p0, -1;
        st.global.b32 [%own0], %r2;
        setp.ge.s32 %p2, %t0, 32;
        @%p2 ret;
        st.global.b32 [%own0+4], %r3;""",
        out,
        threads=64,
    )
    n = np.arange(64)
    assert (out[:, 0] == np.select([n % 4 == 1, n % 4 == 3, n % 4 == 2], [1, 3, 7], 0)).all()
    assert (out[:, 1] == np.where(n < 32, np.int32(-1431655766), -1)).all()


def test_a_warp_joins_in_order_where_others_are_gone():
    out = np.full(64, -1, np.int32)
    clean(
        """setp.ge.s32 %p0, %t0, 32;
        @%p0 ret;
        setp.lt.s32 %p1, %t0, 16;
        @%p1 bra $L_later;
        add.s32 %r0, %t0, 100;
        bra $L_join;
        $L_later:
        add.s32 %r0, %t0, 200;
        $L_join:
        shfl.sync.bfly.b32 %r1, %r0, 16, 31, -1;
        st.global.b32 [%own0], %r1;""",
        out,
        threads=64,
    )
    n = np.arange(32)
    assert (out[:32] == (n ^ 16) + np.where(n < 16, 100, 200)).all()
    assert (out[32:] == -1).all()


def test_threads_wait_for_each_other_where_they_came_different_ways():
    out = np.zeros(64, np.int32)
    clean(
        """shl.b32 %r0, %t0, 2;
        setp.lt.s32 %p0, %t0, 40;
        @%p0 bra $L_low;
        st.shared.b32 [%r0], 7;
        bra $L_join;
        $L_low:
        st.shared.b32 [%r0], %t0;
        $L_join:
        bar.sync 0;
        xor.b32 %r1, %r0, 252;
        ld.shared.b32 %r2, [%r1];
        st.global.b32 [%own0], %r2;""",
        out,
        threads=64,
        shared=256,
    )
    n = np.arange(64)[::-1]
    assert (out == np.where(n < 40, n, 7)).all()


# Warps
