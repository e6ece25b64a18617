"""The machine code of every shipped configuration, compiled ahead of time for GPUs that need not be there."""

import os
import pathlib
import re
import zlib

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels decorated for the interpreter cannot be compiled", allow_module_level=True)

import triton
from triton._C.libtriton import native_specialize_impl
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler.compiler import CompiledKernel

from bench import compile as aot
from bench import host, tiles
from pyramid_ops.kernels.choosers import put
from pyramid_ops.kernels.launch import _kinds
from pyramid_ops.verify.cases import DESCRIPTIONS
from pyramid_ops.verify.inputs import name
from tests.dots import GRID_TILES, grid_dots_kernel, grid_dots_plus_one_kernel

SCATTERED = {kernel for description in DESCRIPTIONS.values() for kernel in description.scattered}
DOTS = {kernel for description in DESCRIPTIONS.values() for kernel in description.dots}
# Where logits are kept, these read them.
READ_LOGITS = ("_column_kernel", "_row_kernel")


def compiled(part, *marks):
    """Calls of a part of all descriptions, under the name of their op."""
    for op, description in DESCRIPTIONS.items():
        for case, call, dtype in (getattr(description, part) or tuple)():
            label = f"{case.replace(', ', '-').replace(' ', '')}-{name(dtype)}"
            table = case if part == "compiled" else None
            yield pytest.param(table, dtype, call, id=label, marks=[pytest.mark.op(op), *marks])


SHIPPED = list(compiled("compiled"))
# Sizes, strides and counts equal to 1, which Triton turns into constants.
ONES = list(compiled("ones"))
# Rows of other lengths than those that are shipped, in the options that take most registers.
SIZES = list(compiled("sizes", pytest.mark.slow))
COMMITTED = aot.committed()


def compare_with_committed(case, dtype, target, codes):
    if case is None or COMMITTED["triton"] != triton.__version__:
        return
    found = aot.regressions(codes, COMMITTED["code"][aot.key(case, dtype, target)])
    assert not found, (
        f"{'; '.join(found)}. If this is meant: python -m bench.compile, and commit bench/results/compile.*"
    )


def nvidia():
    """In `make test` what is shipped in 16 bits or 8 on sm_90, and a third of the rest, whatever names select.

    That is float32 and arguments of 1 on sm_90, and bfloat16 of what is shipped on the others.
    """
    for target in ("sm_90", "sm_80", "sm_100"):
        for param in SHIPPED + ONES + SIZES:
            narrow = param in SHIPPED and param.values[1] != torch.float32
            rest = param not in SIZES if target == "sm_90" else narrow
            fast = (target == "sm_90" and narrow) or (rest and zlib.crc32(f"{param.id}-{target}".encode()) % 3 == 0)
            marks = param.marks if fast else [*param.marks, pytest.mark.slow]
            yield pytest.param(target, *param.values, id=f"{param.id}-{target}", marks=marks)


@pytest.mark.parametrize(("target", "case", "dtype", "call"), list(nvidia()))
def test_nvidia_code(target, case, dtype, call):
    kernels = aot.distinct(aot.compiled(target, call))
    assert kernels
    codes = aot.reports(kernels)
    scattered, dots = set(SCATTERED), set(DOTS)
    if "_logits_kernel" in dict(kernels):
        scattered.update(READ_LOGITS)
        dots.difference_update(READ_LOGITS)
    for (kernel_name, kernel), code in zip(kernels, codes, strict=True):
        ptx = kernel.asm["ptx"]
        assert code["spills"] == 0, code
        assert code["stack"] == 0, code
        assert code["shared"] <= aot.SHARED_LIMIT[target], code
        assert not re.search(r"\bfma\.rn", ptx), f"{kernel_name}: fused multiply and add"
        assert not re.search(r"\b(div|sqrt|ex2)\.(approx|full)|\.ftz\.f32", ptx), f"{kernel_name}: inexact arithmetic"
        has_dots = "tt.dot" in kernel.asm["ttir"]
        assert has_dots == bool(code["tensor"]) == (kernel_name in dots), code
        if has_dots:
            assert clean_accumulators(kernel.asm["ttir"]), f"{kernel_name}: a product that starts from another value"
        # Asynchronous products read shared memory, behind a fence: ptxas 12.9 reuses registers that they still read.
        assert not re.search(r"wgmma\.mma_async\S+\s+\{[^}]*\}, \{", ptx), f"{kernel_name}: operands in registers"
        if re.search(r"\b(wgmma\.mma_async|tcgen05\.mma)", ptx):
            assert "fence.proxy.async" in ptx, f"{kernel_name}: asynchronous products and no fence"
        if case is not None and kernel_name not in scattered:
            assert ("8" if dtype == torch.uint8 else "16") in code["loads"], code
    compare_with_committed(case, dtype, target, codes)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "dtype", "call"), SHIPPED + ONES)
def test_amd_code(case, dtype, call):
    """gfx942: compiles, within shared memory, nothing spilled to memory."""
    codes = aot.reports(aot.compiled("gfx942", call))
    for code in codes:
        assert code["shared"] <= aot.SHARED_LIMIT["gfx942"], code
        assert code["stack"] == 0, code
    compare_with_committed(case, dtype, "gfx942", codes)


def test_committed_table_has_every_shipped_configuration():
    shipped = [aot.key(case, dtype, target) for case, _, dtype in aot.shipped() for target in aot.TARGETS]
    assert len(shipped) == len(set(shipped))
    assert set(COMMITTED["code"]) == set(shipped), "python -m bench.compile, and commit bench/results/compile.*"


@pytest.mark.skipif(
    COMMITTED["triton"] != triton.__version__,
    reason=f"the committed table is of Triton {COMMITTED['triton']}, here is {triton.__version__}",
)
def test_worse_code_is_found():
    """Code differs from the table that is committed where one number of the table is changed."""
    entry = "token_variance, D = 1024 | bfloat16 | sm_90"
    (old,) = COMMITTED["code"][entry]
    assert aot.regressions([old], [old]) == []
    for what, value in {
        "kernel": "_other_kernel",
        "spills": 1,
        "stack": 8,
        "shared": old["shared"] + 16,
        "loads": {"4": 16},
        "stores": {"16": 1},
        "barriers": old["barriers"] + 1,
        "tensor": {"HGMMA": 1},
        "registers": int(1.05 * old["registers"]) + 1,
        "instructions": int(1.05 * old["instructions"]) + 1,
    }.items():
        assert len(aot.regressions([{**old, what: value}], [old])) == 1, what
        assert what in aot.regressions([{**old, what: value}], [old])[0]
    assert aot.regressions([{**old, "registers": old["registers"] - 1}], [old]) == []
    assert aot.regressions([old, old], [old]) == ["2 kernels, committed 1"]


def clean_accumulators(ttir: str) -> bool:
    """Whether every `tt.dot` adds to zero or to a sum of nothing but dots (a dot + x becomes a dot that adds to x)."""
    dots = dict(re.findall(r"(%[\w#]+) = tt\.dot [^,]+, [^,]+, (%[\w#]+)", ttir))
    zeros = set(re.findall(r"(%\w+) = arith\.constant dense<0\.0+e\+00>", ttir))
    carried = {}  # loop variable and loop result: (initial, yielded)
    loops = []
    for line in ttir.splitlines():
        if "scf.for" in line:
            results = re.match(r"\s*(%\w+)(?::(\d+))? = ", line)
            loops.append((results, re.findall(r"(%\w+) = (%[\w#]+)", line.partition("iter_args(")[2])))
        elif "scf.yield" in line and loops:
            results, variables = loops.pop()
            yielded = re.findall(r"%[\w#]+", line.partition("scf.yield")[2].partition(":")[0])
            for k, ((variable, initial), value) in enumerate(zip(variables, yielded, strict=True)):
                carried[variable] = (initial, value)
                carried[f"{results[1]}#{k}" if results[2] else results[1]] = (initial, value)
    assumed: set = set()

    def clean(value: str) -> bool:
        if value in zeros or value in assumed:
            return True
        assumed.add(value)
        if value in dots:
            return clean(dots[value])
        return value in carried and all(map(clean, carried[value]))

    return all(clean(accumulator) for accumulator in dots.values())


def compiled_dots(kernel, target, m, n, k, warps):
    a, out = torch.empty(128, 1024, dtype=torch.float16), torch.empty(128, 128)
    tile = {"M": m, "N": n, "K": k, "num_warps": warps, "enable_fp_fusion": False}
    ((_, code),) = aot.compiled(target, lambda: kernel[(1, 1)](a, a, out, 128, D=1024, **tile))
    assert "tt.dot" in code.asm["ttir"]
    return code


@pytest.mark.parametrize("target", list(aot.TARGETS))
@pytest.mark.parametrize("tile", GRID_TILES)
def test_grid_dots_run_on_tensor_cores_and_add_to_nothing_else(target, tile):
    code = compiled_dots(grid_dots_kernel, target, *tile)
    assert aot.report(code)["tensor"]
    assert clean_accumulators(code.asm["ttir"])


def test_a_sum_that_triton_starts_at_something_else_is_found():
    assert not clean_accumulators(compiled_dots(grid_dots_plus_one_kernel, "sm_90", 64, 64, 64, 4).asm["ttir"])


def test_host_time_is_of_calls_that_launch(monkeypatch):
    """The selection pipeline has three launches, one token score one; nothing runs."""
    monkeypatch.setattr(host, "ROUNDS", 2)
    measured = {name.partition(",")[0]: host.measure(call) for name, call in list(host.cases())[:2]}
    assert {name: launches for name, (launches, _) in measured.items()} == {
        "token_variance": 1,
        "select_topk_levels": 3,
    }
    assert all(len(times) == 2 for _, times in measured.values())


@pytest.mark.parametrize("case", [name for name, _ in host.cases()])
def test_later_launches_pass_what_triton_passes(case, monkeypatch):
    """The first call goes through Triton's own launcher, the second past it."""
    launches = []

    def record(*args):
        launches.append(args)

    def describe(x, seen):
        if isinstance(x, tuple):
            return tuple(describe(part, seen) for part in x)
        # Tensors by the order in which a call passes them; `launches` keeps them, so addresses are not used again.
        return (seen.setdefault(x.data_ptr(), len(seen)), x.shape, x.dtype) if isinstance(x, torch.Tensor) else x

    def described(calls):
        seen = {}
        return [describe(args, seen) for args in calls]

    call = dict(host.cases())[case]
    monkeypatch.setattr(CompiledKernel, "_init_handles", lambda self: None)
    monkeypatch.setattr(CompiledKernel, "launch_metadata", lambda *args: None)
    monkeypatch.setattr(CompiledKernel, "run", record)
    with aot.compiling("sm_90"):
        call()
        first = len(launches)
        searches = []
        monkeypatch.setattr(triton.JITFunction, "run", lambda self, *args, **kwargs: searches.append(self))
        call()
    assert first
    assert described(launches[first:]) == described(launches[:first])
    assert not searches


class Whole(int):
    """An integer of another type."""


def test_launches_of_unlike_arguments_are_not_taken_for_alike():
    """Whatever Triton compiles apart is apart for `launch`."""
    x = torch.empty(64)
    numbers = [
        -(1 << 40),
        -(1 << 31) - 1,
        -(1 << 31),
        -16,
        -1,
        0,
        1,
        2,
        15,
        16,
        17,
        (1 << 31) - 1,
        1 << 31,
        1 << 40,
        1 << 63,
    ]
    tensors = [x, x[1:], x[4:], x.half(), x.half()[1:], x.bfloat16(), x.int(), x.long(), x.to(torch.uint8)]
    numbers += [Whole(1), Whole(16), Whole(17), Whole(1 << 40)]
    arguments = [*numbers, *tensors, True, False, 1.0, 0.5, None, (), (1,), (1, 2), (1.0,), (x,), (x, x[1:])]
    arguments += [(True,), (False, 1), (16,), (Whole(1),), (17,), (1 << 40,), (0.5, 1)]
    found = [(native_specialize_impl(CUDABackend, x, False, True, True), _kinds((x,))) for x in arguments]
    for triton_kind, kind in found:
        assert {str(other) for other, own in found if own == kind} == {str(triton_kind)}
    with pytest.raises(TypeError, match="a tensor beside numbers"):
        _kinds(((1, x),))


def test_loops_are_counted():
    """Outer ones first; a jump ahead and one to itself are none."""
    outer, inner, own = ".L_x_0:", ".L_x_1:", ".L_x_2:"
    step = " /*0010*/ FADD R0, R0, R1 ;"
    back = " /*0020*/ @!P0 BRA `(.L_x_%d) ;"
    lines = [step, outer, step, inner, step, step, back % 1, step, back % 2, back % 0, step, own, back % 2]
    instruction = re.compile(r"^\s+(?:/\*[0-9a-f]+\*/\s+)?(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]+)")
    assert aot._loops(lines, instruction) == [7, 3]


TILE_CASES = {case.name: case for case in tiles.cases()}


def test_warps_that_an_sm_holds():
    small = {"registers": 32, "shared": 0}
    assert tiles.resident_warps("sm_90", small, 4) == 64
    assert tiles.resident_warps("sm_90", small, 1) == 32
    assert tiles.resident_warps("sm_90", {"registers": 255, "shared": 0}, 8) == 8
    assert tiles.resident_warps("sm_90", {"registers": 32, "shared": 113 << 10}, 4) == 8
    assert tiles.resident_warps("sm_80", {"registers": 32, "shared": 113 << 10}, 4) == 4


def test_the_shipped_tile_is_read_and_another_one_in_its_place():
    case = TILE_CASES["best_match, grid, D = 64"]
    (shipped,) = tiles.read(case, "sm_90", None)
    (other,) = tiles.read(case, "sm_90", case.candidates[0])
    assert (shipped["tiles"]["DOT"].BLOCK_M, shipped["tiles"]["num_warps"]) == (128, 4)
    assert other["tiles"] == put(shipped["tiles"], case.candidates[0])
    assert shipped["spills"] == other["spills"] == 0
    assert shipped["each"] < other["each"]


@pytest.mark.skipif(COMMITTED["triton"] != triton.__version__, reason="the table is of another Triton")
@pytest.mark.slow
def test_committed_search_begins_with_what_is_shipped():
    """Each case and target, the shipped tile first, and none that spills."""
    text = (pathlib.Path(tiles.__file__).parent / "results" / "tiles.md").read_text()
    sections = dict(re.findall(r"^## (.*?)\n\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    assert list(sections) == [f"{case.name}, `{kernel}`" for case in TILE_CASES.values() for kernel in case.kernels]
    for case in TILE_CASES.values():
        for target in tiles.SHARED:
            for number, row in enumerate(tiles.read(case, target, None)):
                rows = re.findall(
                    rf"^\| {target} \| (.*?) \| \d+ \| (\d+) ", sections[f"{case.name}, `{case.kernels[number]}`"], re.M
                )
                assert rows[0] == (tiles._describe(row["tiles"]), "0")
                assert row["spills"] == 0
                assert len(rows) >= len(case.candidates)
