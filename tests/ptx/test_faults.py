"""What the sanitiser finds, where it says it is, and what is refused."""

import itertools
import os
import re

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels decorated for the interpreter cannot be compiled", allow_module_level=True)

from tests.ptx import Unsupported, machine
from tests.ptx.arithmetic import PURE
from tests.ptx.handwritten import MMA, clean, faulty, launch, wgmma, words

OUTSIDE = "an access outside the tensors"


@pytest.mark.parametrize(
    ("access", "thread", "detail"),
    [
        ("ld.global.b8 %h0, [%own0+4]; // fault", 31, r"1 bytes at byte 128 of .* 0, \[128\] uint8, which has 128"),
        ("ld.global.b8 %h0, [%own0+-1]; // fault", 0, r"1 bytes at byte -1 of argument 0, .*"),
        ("st.global.b32 [%own0+4], %t0; // fault", 31, r"4 bytes at byte 128 of argument 0, .*"),
        ("atom.global.gpu.relaxed.add.u32 %r0, [%own0+8], 1; // fault", 30, r"4 bytes at byte 128 of argument 0, .*"),
        (
            "cp.async.ca.shared.global [global_smem], [%own0+4], 4; // fault",
            31,
            r"4 bytes at byte 128 of argument 0, .*",
        ),
        ("mov.b64 %rd0, 0;\nld.global.b8 %h0, [%rd0]; // fault", 0, r".*"),
    ],
)
def test_outside_the_tensors(access, thread, detail):
    faulty(OUTSIDE, access, words(32), thread=thread, detail=detail, shared=16)


@pytest.mark.parametrize("together", [32, 16384])
def test_faults_name_the_program_and_the_thread(together):
    body = """setp.eq.u32 %p0, %t2, 69;
        @!%p0 bra $L_end;
        st.global.b32 [%arg0+384], %t0; // fault
        $L_end:"""
    faulty(OUTSIDE, body, words(96), program=2, thread=5, programs=3, together=together, detail=".*")


def test_the_last_byte_is_inside():
    clean("ld.global.b8 %h0, [%own0+3];\nst.global.b8 [%own0+3], %h0;", words(32))


@pytest.mark.parametrize(
    "access",
    [
        "ld.global.b32 %r0, [%own0+2]; // fault",
        "st.global.v2.b32 [%own0+4], {%t0, %t0}; // fault",
        "st.shared.b32 [global_smem+2], %t0; // fault",
        "st.shared.v4.b32 [global_smem+8], {%t0, %t0, %t0, %t0}; // fault",
        "cp.async.cg.shared.global [global_smem+8], [%own0], 16; // fault",
        "stmatrix.sync.aligned.m8n8.x1.shared.b16 [global_smem+8], {%t0}; // fault",
    ],
)
def test_misaligned(access):
    faulty("a misaligned access", access, words(32, 8), detail=r"\d+ bytes at 0x[0-9a-f]+", shared=64)


@pytest.mark.parametrize(
    ("access", "thread", "detail"),
    [
        ("st.shared.b32 [%r0], %t0; // fault", 31, "4 bytes at byte 124 of 124"),
        ("ld.shared.b8 %h0, [%r0]; // fault", 31, "1 bytes at byte 124 of 124"),
        ("st.shared.b32 [%r0+-4], %t0; // fault", 0, "4 bytes at byte 4294967292 of 124"),
    ],
)
def test_outside_shared_memory(access, thread, detail):
    body = f"shl.b32 %r0, %t0, 2;\n{access}"
    faulty("an access outside shared memory", body, thread=thread, detail=detail, shared=124)


@pytest.mark.parametrize(
    ("kind", "access"),
    [
        ("shared memory is read that nothing wrote", "ld.shared.b32 %r1, [%r0];"),
        ("shared memory is read that nothing wrote", "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [global_smem];"),
        ("shared memory is added to that nothing wrote", "atom.shared.cta.relaxed.add.u32 %r1, [%r0], 1;"),
    ],
)
def test_uninitialised_shared_memory(kind, access):
    faulty(kind, f"shl.b32 %r0, %t0, 2;\n{access} // fault", shared=128)


READ, WRITTEN = "ld.shared.b32 %r2, [{}];", "st.shared.b32 [{}], %t0;"
ADDED = "atom.shared.cta.relaxed.add.u32 %r3, [{}], 1;"


def two_uses(first, second, other, between=""):
    """Of a thread's word, and of one `other` bytes away from it."""
    return f"""shl.b32 %r0, %t0, 2;
        xor.b32 %r1, %r0, {other};
        st.shared.b32 [%r0], 0;
        bar.sync 0;
        {first.format("%r0")}
        {between}
        {second.format("%r1")} // fault"""


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        (WRITTEN, READ, "shared memory is read that another warp wrote, with no barrier between"),
        (READ, WRITTEN, "shared memory is written that another warp read, with no barrier between"),
        (WRITTEN, WRITTEN, "shared memory is written that another warp wrote, with no barrier between"),
        (ADDED, READ, "shared memory is read that another warp wrote, with no barrier between"),
        (ADDED, WRITTEN, "shared memory is written that another warp wrote, with no barrier between"),
        (READ, ADDED, "shared memory is added to that another warp uses, with no barrier between"),
        (WRITTEN, ADDED, "shared memory is added to that another warp uses, with no barrier between"),
        (READ, READ, None),
        (ADDED, ADDED, None),
    ],
)
def test_races_between_warps(first, second, kind):
    clean(two_uses(first, second, 128, "bar.sync 0;"), threads=64, shared=256)
    body = two_uses(first, second, 128)
    if kind:
        faulty(kind, body, threads=64, shared=256)
        clean(body, threads=64, shared=256, sanitize=False)
    else:
        clean(body, threads=64, shared=256)


@pytest.mark.parametrize(("first", "second"), list(itertools.product((READ, WRITTEN, ADDED), repeat=2)))
def test_a_thread_does_not_race_with_itself(first, second):
    clean(two_uses(first, second, 0), threads=64, shared=256)


def test_barriers_are_of_a_program():
    body = """shl.b32 %r0, %t0, 2;
        st.shared.b32 [%r0], %t0;
        setp.eq.u32 %p0, %t1, 1;
        @%p0 bra $L_join;
        bar.sync 0;
        $L_join:
        xor.b32 %r0, %r0, 128;
        ld.shared.b32 %r1, [%r0]; // fault"""
    kind = "shared memory is read that another warp wrote, with no barrier between"
    faulty(kind, body, threads=64, programs=3, program=1, shared=256)


def test_all_readers_count():
    body = """mov.b32 %r0, 0;
        st.shared.b32 [%r0], %r0;
        bar.sync 0;
        setp.lt.u32 %p0, %t0, 32;
        @%p0 ld.shared.b32 %r1, [%r0];
        @!%p0 ld.shared.b32 %r1, [%r0];
        @!%p0 st.shared.b32 [%r0], %r0; // fault"""
    kind = "shared memory is written that another warp read, with no barrier between"
    faulty(kind, body, threads=64, thread=32, shared=4)


def test_races_are_found_between_bytes_of_a_word():
    body = """st.shared.b8 [%t0], %t0;
        xor.b32 %r1, %t0, 32;
        ld.shared.b8 %h0, [%r1]; // fault"""
    faulty("shared memory is read that another warp wrote, with no barrier between", body, threads=64, shared=64)
    # Each warp has every other byte.
    clean(
        """and.b32 %r0, %t0, 31;
        shr.u32 %r1, %t0, 5;
        mad.lo.s32 %r0, %r0, 2, %r1;
        st.shared.b8 [%r0], %t0;
        ld.shared.b8 %h0, [%r0];""",
        threads=64,
        shared=64,
    )


def test_warps_may_store_one_value_at_one_address():
    clean("mov.b32 %r0, 7;\nst.shared.b32 [global_smem], %r0;", threads=64, shared=4)
    kind = "threads store different values at one address of shared memory"
    faulty(kind, "shr.u32 %r0, %t0, 5;\nst.shared.b32 [global_smem], %r0; // fault", threads=64, shared=4)
    faulty(kind, "st.shared.b32 [global_smem], %t0; // fault", threads=32, shared=4)


def test_threads_may_store_one_value_at_one_address():
    clean("mov.b32 %r0, 7;\nst.global.b32 [%arg0], %r0;", words(1), threads=64, programs=2)
    kind = "threads store different values at one address"
    faulty(kind, "st.global.b32 [%arg0], %t0; // fault", words(1), thread=1)
    faulty(kind, "st.global.v2.b32 [%arg0], {0, %t1}; // fault", words(2), program=1, programs=2)


def test_different_barriers():
    body = """setp.lt.u32 %p0, %t0, 32;
        @%p0 bra $L_low;
        bar.sync 0; // fault
        bra.uni $L_end;
        $L_low:
        bar.sync 0;
        $L_end:
        mov.b32 %r0, 0;"""
    kind = "threads of a program wait at different barriers"
    faulty(kind, body, threads=64, thread=32, detail=r"PTX lines \[\d+, \d+\]")


def test_a_barrier_that_not_all_threads_reach():
    body = "setp.lt.u32 %p0, %t2, 96;\n@!%p0 ret;\nbar.sync 0; // fault"
    faulty("a barrier that some threads of the program do not reach", body, threads=64, programs=2, program=1)


def test_no_end(monkeypatch):
    monkeypatch.setattr(machine, "STEPS", 50)
    body = """setp.lt.u32 %p0, %t0, 7;
        @%p0 bra $L_end;
        $L_loop:
        add.s32 %r0, %r0, 1; // fault
        bra.uni $L_loop;
        $L_end:
        mov.b32 %r0, 0;"""
    faulty("no end", body, thread=7)


@pytest.mark.parametrize("opcode", [x for x in PURE if re.fullmatch(r"(div|rem)\.[su]\d+", x)])
def test_division_by_zero(opcode):
    file = {"16": "%h", "32": "%r", "64": "%rd"}[opcode[5:]]
    body = f"sub.s32 %r9, %t0, 3;\ncvt.s{opcode[5:]}.s32 {file}1, %r9;\n{opcode} {file}2, {file}1, {file}1; // fault"
    faulty("integer division by zero", body, thread=3)


@pytest.mark.parametrize(
    "instruction",
    [
        "shfl.sync.idx.b32 %r0, %r1, 0, 31, -1;",
        "vote.sync.any.pred %p1, %p0, -1;",
        "redux.sync.add.u32 %r0, %r1, -1;",
        "bar.warp.sync -1;",
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r0}, [global_smem];",
        MMA.split("\n")[3].partition(" // ")[0].strip(),
    ],
)
def test_parts_of_a_warp(instruction):
    body = f"setp.ne.u32 %p0, %t0, 40;\n@!%p0 bra $L_end;\n{instruction} // fault\n$L_end:\nmov.b32 %r0, 0;"
    faulty("a part of a warp", body, threads=64, shared=512)


def test_masks_of_a_part_of_a_warp():
    body = "setp.lt.u32 %p0, %t0, 9;\nselp.b32 %r1, -1, 65535, %p0;\nshfl.sync.idx.b32 %r0, %r1, 0, 31, %r1; // fault"
    faulty("a part of a warp", body, thread=9)


def test_parameters_that_are_not_there():
    faulty("a parameter is read that the kernel does not have", "ld.param.b64 %rd0, [k_param_0+16]; // fault", words(1))


@pytest.mark.parametrize(
    "instruction",
    [
        "add.rn.ftz.f32 %r0, %r1, %r2;",
        "mul.ftz.f32 %r0, %r1, %r2;",
        "add.f32 %r0, %r1, %r2;",
        "add.rz.f32 %r0, %r1, %r2;",
        "ex2.approx.f32 %r0, %r1;",
        "sqrt.approx.f32 %r0, %r1;",
        "div.full.f32 %r0, %r1, %r2;",
        "rcp.approx.ftz.f32 %r0, %r1;",
        "fma.rn.f32 %r0, %r1, %r2, %r3;",
        "min.NaN.f32 %r0, %r1, %r2;",
        "add.sat.s32 %r0, %r1, %r2;",
        "cvt.rn.bf16.f32 %h0, %r0;",
        "cvt.rz.f32.s32 %r0, %r1;",
        "call.uni (retval0), helper, (param0);",
        "mov.b64 %rd0, depot;",
        ".param .b32 param0;",
        "ld.local.b32 %r0, [%rd0];",
        "st.local.b32 [%rd0], %r0;",
        "ld.volatile.global.b32 %r0, [%rd0];",
        "ld.global.nc.b32 %r0, [%rd0];",
        "ld.global.v8.b32 {%r0, %r1, %r2, %r3, %r4, %r5, %r6, %r7}, [%rd0];",
        "bar.red.popc.u32 %r0, 0, %p0;",
        "barrier.cta.sync 0;",
        "bar.sync 1;",
        "bar.sync 0, 64;",
        "@%p0 bar.sync 0;",
        "bar.warp.sync 255;",
        "membar.gl;",
        "mbarrier.init.shared::cta.b64 [%r0], 1;",
        "shfl.sync.idx.b32 %r0, %r1, 0, 31, 65535;",
        "vote.sync.all.pred %p0, %p1, 1;",
        "mov.u32 %r0, %laneid;",
        "mov.u32 %r0, %clock;",
        "mov.b32 %r0, nothing;",
        "add.s32 %r0, %r1, %nothing;",
        "add.s64 %rd0, %rd1, %r0;",
        "atom.global.gpu.acq_rel.add.u32 %r0, [%rd0], %r1;",
        "atom.global.gpu.relaxed.add.f32 %r0, [%rd0], %r1;",
        "atom.global.gpu.relaxed.cas.b32 %r0, [%rd0], %r1, %r2;",
        "cp.async.ca.shared.global [%r0], [%rd0], 12;",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r0], [%rd0], 16, [%r1];",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%r0}, {%r1}, {%r2}, {%r3};",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r0}, {%r1}, {%r2}, {%r3};",
        wgmma(8, "%p0", a="{%r0, %r1, %r2, %r3}", tail="1, 1, 0"),
        wgmma(8, "%p0", tail="-1, 1, 0, 0"),
        wgmma(8, "%p0").replace("f16.f16", "bf16.bf16"),
    ],
)
def test_refusals(instruction):
    named = instruction.partition(";")[0]
    with pytest.raises(Unsupported, match=rf"PTX line \d+: {re.escape(named)}(:|$)"):
        launch(instruction, words(1))
