"""Instructions of whole warps, atomics, and matrices between registers and shared memory."""

import functools
import itertools
import operator
import os

import numpy as np
import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels decorated for the interpreter cannot be compiled", allow_module_level=True)

from tests.ptx.handwritten import clean, decode, listed, size, words


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("segment", [32, 16, 8, 4])
@pytest.mark.parametrize("clamp", [0, 5, 31])
def test_shfl(mode, segment, clamp):
    x = words(128)
    by = np.random.default_rng(1).integers(0, 40, 128, np.uint32)
    c = 32 - segment << 8 | clamp
    out = np.zeros((128, 3), np.uint32)
    clean(
        f"""ld.global.b32 %r0, [%own0];
        ld.global.b32 %r1, [%own1];
        shfl.sync.{mode}.b32 %r2|%p0, %r0, %r1, {c}, 0xffffffff;
        selp.b32 %r3, 1, 0, %p0;
        mov.b32 %r5, -1;
        shfl.sync.{mode}.b32 %r4, %r0, 3, {c}, %r5;
        st.global.b32 [%own2], %r2;
        st.global.b32 [%own2+4], %r3;
        st.global.b32 [%own2+8], %r4;""",
        x,
        by,
        out,
        threads=64,
        programs=2,
    )

    def source(lane, b):
        mask = 32 - segment
        top = lane & mask | clamp & ~mask
        b &= 31
        j = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": lane & mask | b & ~mask}[mode]
        inside = j >= top if mode == "up" else j <= top
        return (j if inside else lane), inside

    for n in range(128):
        j, inside = source(n % 32, int(by[n]))
        assert tuple(out[n, :2]) == (x[n // 32 * 32 + j], inside)
        assert out[n, 2] == x[n // 32 * 32 + source(n % 32, 3)[0]]


def test_vote():
    x = words(8, 32, kind=np.uint8) & 1
    x[1], x[2] = 0, 1
    out = np.zeros((8, 32, 4), np.uint32)
    clean(
        """ld.global.b8 %h0, [%own0];
        setp.ne.b16 %p0, %h0, 0;
        vote.sync.ballot.b32 %r0, %p0, 0xffffffff;
        vote.sync.all.pred %p1, %p0, -1;
        vote.sync.any.pred %p2, %p0, -1;
        vote.sync.uni.pred %p3, %p0, -1;
        selp.b32 %r1, 1, 0, %p1;
        selp.b32 %r2, 1, 0, %p2;
        selp.b32 %r3, 1, 0, %p3;
        st.global.v4.b32 [%own1], {%r0, %r1, %r2, %r3};""",
        x,
        out,
        threads=64,
        programs=4,
    )
    for bits, row in zip(x.tolist(), out.tolist(), strict=True):
        ballot = sum(bit << k for k, bit in enumerate(bits))
        assert row == [[ballot, all(bits), any(bits), len(set(bits)) == 1]] * 32


@pytest.mark.parametrize(
    ("name", "kind"),
    [*itertools.product(("add", "min", "max"), ("s32", "u32")), ("and", "b32"), ("or", "b32")],
)
def test_redux(name, kind):
    x, out = words(8, 32), np.zeros((8, 32), np.uint32)
    body = f"ld.global.b32 %r0, [%own0];\nredux.sync.{name}.{kind} %r1, %r0, -1;\nst.global.b32 [%own1], %r1;"
    clean(body, x, out, threads=128, programs=2)
    for row, found in zip(x.tolist(), out.tolist(), strict=True):
        combine = {"add": operator.add, "min": min, "max": max, "and": operator.and_, "or": operator.or_}[name]
        result = functools.reduce(combine, (decode(v, kind) for v in row))
        assert set(found) == {result & 0xFFFFFFFF}


ATOMICS = [
    f"atom.{space}.{scope}.relaxed.{name}" for space in ("global", "shared") for scope in ("gpu", "cta")
    for name in ("add.u32", "max.s32", "min.s32", "max.u32", "min.u32", "add.u64")
] + ["atom.relaxed.gpu.global.add.u32", "atom.relaxed.cta.shared.max.u64"]  # fmt: skip


@pytest.mark.parametrize("opcode", ATOMICS)
@pytest.mark.parametrize("together", [64, 16384])
def test_atomics_take_turns(opcode, together):
    """Each sees what the one before it left, in some order."""
    kind, shared = opcode.split(".")[-1], "shared" in opcode
    bits, programs = size(kind), 3
    file = "%r" if bits == 32 else "%rd"
    x = words(programs * 64, kind=f"u{bits // 8}", seed=3)
    before, after = np.zeros_like(x), np.full(3, 0x7FFFFFF0, x.dtype)
    where = "%r20" if shared else "%arg2"
    start = f"""mov.b32 %r20, global_smem;
        ld.global.b{bits} {file}0, [%own0];
        setp.eq.s32 %p0, %t0, 0;"""
    if shared:
        start += f"""
        mov.b{bits} {file}1, 0x7ffffff0;
        @%p0 st.shared.b{bits} [%r20], {file}1;
        bar.sync 0;"""
    end = f"\nbar.sync 0;\nmad.wide.u32 %rd9, %t1, {bits // 8}, %arg2;\n" if shared else ""
    end += f"ld.shared.b{bits} {file}3, [%r20];\n@%p0 st.global.b{bits} [%rd9], {file}3;" if shared else ""
    clean(
        f"{start}\n{opcode} {file}2, [{where}], {file}0;\nst.global.b{bits} [%own1], {file}2;{end}",
        x,
        before,
        after,
        threads=64,
        programs=programs,
        together=together,
        shared=8 if shared else 0,
    )
    name = opcode.split(".")[-2]
    step = {"add": operator.add, "max": max, "min": min}[name]
    for k in range(programs if shared else 1):
        mine = slice(64 * k, 64 * k + 64) if shared else slice(None)
        turns = [(decode(int(b), kind), decode(int(v), kind)) for b, v in zip(before[mine], x[mine], strict=True)]
        now = 0x7FFFFFF0
        if name == "add":
            follows = dict(turns)
            assert len(follows) == len(turns)
            for _ in turns:
                now = (now + follows[now]) & (1 << bits) - 1
        else:
            for seen, value in sorted(turns, reverse=name == "min"):
                assert seen == now
                now = step(now, value)
        assert decode(int(after[k]), kind) == now


@pytest.mark.parametrize("space", ["global", "shared"])
def test_reductions_without_result(space):
    x, out = words(64), np.zeros(1, np.uint32)
    clean(
        f"""mov.b32 %r20, global_smem;
        ld.global.b32 %r0, [%own0];
        setp.eq.s32 %p0, %t0, 0;
        @%p0 st.shared.b32 [%r20], 0;
        bar.sync 0;
        red.{space}.gpu.relaxed.add.u32 [{"%r20" if space == "shared" else "%arg1"}], %r0;
        bar.sync 0;
        ld.shared.b32 %r1, [%r20];
        {"@%p0 st.global.b32 [%arg1], %r1;" if space == "shared" else ""}""",
        x,
        out,
        threads=64,
        shared=4,
    )
    assert out[0] == sum(x.tolist()) & 0xFFFFFFFF


def test_the_result_of_an_atomic_may_be_but_an_address():
    out = np.zeros(32, np.int32)
    head = np.zeros(1, np.uint64)
    clean(
        """setp.eq.s32 %p0, %t0, 0;
        @%p0 st.global.b64 [%arg1], %arg0;
        bar.sync 0;
        mov.b64 %rd0, 4;
        atom.global.gpu.relaxed.add.u64 %rd1, [%arg1], %rd0;
        st.global.b32 [%rd1], %t0;""",
        out,
        head,
    )
    assert sorted(out.tolist()) == list(range(32))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
def test_ldmatrix(count, trans):
    """Lane 8·m + r gives row r of matrix m; lane 4·r + c takes halves 2·c and 2·c + 1 of row r."""
    x, matrices = words(2, 2, 32, 8, kind=np.uint16), f"{{{', '.join(f'%r{10 + k}' for k in range(count))}}}"
    out = np.zeros((2, 2, 32, count), np.uint32)
    clean(
        f"""shl.b32 %r0, %t0, 4;
        ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%own0];
        st.shared.v4.b32 [%r0], {{%r1, %r2, %r3, %r4}};
        bar.warp.sync -1;
        xor.b32 %r0, %r0, 16;
        ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {matrices}, [%r0];
        st.global{f".v{count}" if count > 1 else ""}.b32 [%own1], {listed(count, 10, "%r")};""",
        x,
        out,
        threads=64,
        programs=2,
        shared=1024,
    )
    for program, warp, m, lane in itertools.product(range(2), range(2), range(count), range(32)):
        matrix = [x[program, warp, (8 * m + r) ^ 1] for r in range(8)]
        r, c = lane // 4, lane % 4 * 2
        pair = (matrix[c][r], matrix[c + 1][r]) if trans else (matrix[r][c], matrix[r][c + 1])
        assert out[program, warp, lane, m] == int(pair[0]) | int(pair[1]) << 16


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
def test_stmatrix(count, trans):
    x, matrices = words(2, 2, 32, count), f"{{{', '.join(f'%r{10 + k}' for k in range(count))}}}"
    out = np.zeros((2, 2, 32, 8), np.uint16)
    clean(
        f"""shl.b32 %r0, %t0, 4;
        mov.b32 %r5, 0;
        st.shared.v4.b32 [%r0], {{%r5, %r5, %r5, %r5}};
        bar.warp.sync -1;
        ld.global{f".v{count}" if count > 1 else ""}.b32 {listed(count, 10, "%r")}, [%own0];
        xor.b32 %r1, %r0, 16;
        stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r1], {matrices};
        bar.warp.sync -1;
        ld.shared.v4.b32 {{%r1, %r2, %r3, %r4}}, [%r0];
        st.global.v4.b32 [%own1], {{%r1, %r2, %r3, %r4}};""",
        x,
        out,
        threads=64,
        programs=2,
        shared=1024,
    )
    expected = np.zeros_like(out)
    for program, warp, m, lane, part in itertools.product(range(2), range(2), range(count), range(32), range(2)):
        r, c = lane // 4, lane % 4 * 2 + part
        row, col = (c, r) if trans else (r, c)
        expected[program, warp, (8 * m + row) ^ 1, col] = int(x[program, warp, lane, m]) >> 16 * part & 0xFFFF
    assert (out == expected).all()
