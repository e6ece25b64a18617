"""Compile what an op launches for any GPU, without one, and read the machine code.

`compiled(target, call)` runs `call()` on CPU tensors with every Triton launch replaced by a compilation for `target`,
so that signatures, alignment hints and arguments equal to 1 are those of a real launch.

`python -m bench.compile` writes `results/compile.md` and `compile.json`: the machine code of every shipped
configuration. `python -m bench.compile TEXT …` compiles anew only those whose names have one of the texts.
"""

import collections
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

import pyramid_ops
from pyramid_ops import _op
from pyramid_ops.kernels import launch as launching
from pyramid_ops.verify.cases import DESCRIPTIONS
from pyramid_ops.verify.describe import Call
from pyramid_ops.verify.inputs import name

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Largest shared memory of one program, in bytes.
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
RESULTS = pathlib.Path(__file__).parent / "results"
_BIN = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")


class _NoGPU:
    """The part of a Triton driver that a compilation asks for."""

    def __init__(self, target: GPUTarget, device: object):
        self.target, self.device = target, device

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> object:
        return self.device

    def get_current_stream(self, device: object) -> int:
        return 0


def _yes() -> bool:
    return True


@contextlib.contextmanager
def compiling(target: str, device: object = None) -> Iterator[None]:
    """Inside, ops on CPU tensors run their kernels' launchers, and Triton compiles for `target`.

    What it compiled for one `device`, the target if it is not given, is not taken for another.
    """
    active = driver._active
    driver.set_active(_NoGPU(TARGETS[target], device or target))  # type: ignore[arg-type]
    try:
        with (
            mock.patch.object(_op, "interpreted", _yes),
            mock.patch.dict(launching._compiled, clear=True),
            pyramid_ops.use_backend("kernel"),
        ):
            yield
    finally:
        driver._active = active


def compiled(target: str, call: Callable[[], object]) -> list:
    """(kernel name, compiled kernel) for every launch inside `call()`."""
    kernels: list = []

    def launcher(kernel: JITFunction, grid: tuple) -> Callable:
        def launch(*args, **kwargs):
            kernels.append((kernel.fn.__name__, kernel.run(*args, grid=grid, warmup=True, **kwargs)))

        return launch

    with compiling(target), mock.patch.object(JITFunction, "__getitem__", launcher):
        call()
    return kernels


def _tool(name: str, *args: str) -> str:
    return subprocess.run([os.path.join(_BIN, name), *args], capture_output=True, text=True, check=True).stdout


def report(kernel) -> dict:
    """What the machine code of a kernel uses: registers, stack, shared memory and static counts of instructions.

    Loads and stores are of global memory, counted by their width in bytes; "tensor" are tensor-core instructions.
    """
    return _amd(kernel) if "amdgcn" in kernel.asm else _nvidia(kernel)


def _loops(lines: list[str], instruction: re.Pattern) -> list[int]:
    """Static instructions of each loop that the code has, outer ones first: what lies before a branch back."""
    labels, branches, count = {}, [], 0
    for line in lines:
        if match := re.match(r"^\s*(\.L\w+):", line):
            labels[match[1]] = count
        elif instruction.match(line):
            count += 1
            target = re.search(r"\b(?:BRA|s_c?branch\w*)\b.*?(\.L\w+)", line)
            if target and target[1] in labels:
                branches.append((labels[target[1]], count))
    # Several branches may lead back to one start; an instruction that branches to itself ends the code.
    ends = {start: max(end for other, end in branches if other == start) for start, _ in branches}
    return [end - start for start, end in sorted(ends.items()) if end - start > 1]


def _nvidia(kernel) -> dict:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        sass = _tool("nvdisasm", "-c", file.name)
    instruction = re.compile(r"^\s+(?:/\*[0-9a-f]+\*/\s+)?(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]+)", re.M)
    names = instruction.findall(sass)
    ops = collections.Counter(name.split(".")[0] for name in names)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()  # type: ignore[union-attr]
    widths = {"256": "32", "128": "16", "64": "8", "U16": "2", "S16": "2", "U8": "1", "S8": "1"}

    def accesses(prefix: str) -> dict:
        parts = [name.split(".") for name in names if name.startswith(prefix)]
        return _by_width(next((widths[part] for part in name if part in widths), "4") for name in parts)

    return {
        "registers": int(registers),
        "spills": ops["LDL"] + ops["STL"],
        "stack": int(stack),
        "shared": kernel.metadata.shared,
        "loads": accesses("LDG"),
        "stores": accesses("STG"),
        "barriers": ops["BAR"],
        "shuffles": ops["SHFL"],
        "lds": ops["LDS"],
        "tensor": {op: ops[op] for op in sorted(ops) if op.endswith("MMA")},
        "instructions": len(names),
        "loops": _loops(sass.splitlines(), instruction),
    }


def _amd(kernel) -> dict:
    text = kernel.asm["amdgcn"]
    instruction = re.compile(r"^\s+((?:v|s|ds|global|buffer|flat|scratch)_\w+)", re.M)
    names = instruction.findall(text)
    ops = collections.Counter(names)

    def used(what: str) -> int:
        return int(re.search(rf"\.{what}:\s+(\d+)", text)[1])  # type: ignore[index]

    def count(pattern: str) -> int:
        return sum(times for op, times in ops.items() if re.match(pattern, op))

    def accesses(kind: str) -> dict:
        found = [re.match(rf"(?:global|buffer|flat)_{kind}_(\w+)", name) for name in names]
        widths = {"dwordx4": "16", "dwordx3": "12", "dwordx2": "8", "dword": "4", "short": "2", "byte": "1"}
        return _by_width(next(width for key, width in widths.items() if key in match[1]) for match in found if match)

    return {
        "registers": used("vgpr_count"),
        "spills": used("vgpr_spill_count") + count("scratch_"),
        "stack": used("private_segment_fixed_size"),
        "shared": kernel.metadata.shared,
        "loads": accesses("load"),
        "stores": accesses("store"),
        "barriers": ops["s_barrier"],
        "shuffles": count(r"ds_b?permute|ds_swizzle|v_permlane|v_\w+_dpp"),
        "lds": count("ds_read"),
        "tensor": {op: ops[op] for op in sorted(ops) if op.startswith("v_mfma")},
        "instructions": len(names),
        "loops": _loops(text.splitlines(), instruction),
    }


def _by_width(widths: Iterator[str]) -> dict[str, int]:
    return dict(sorted(collections.Counter(widths).items(), key=lambda entry: -int(entry[0])))


def shipped() -> Iterator[Call]:
    """The sizes, dtypes and options that choose a configuration, of every op."""
    for description in DESCRIPTIONS.values():
        yield from description.compiled()


# What may not change at all, and by how much the rest may rise, before the committed table is out of date.
EQUAL = ("kernel", "spills", "stack", "shared", "loads", "stores", "barriers", "tensor")
MAY_RISE = {"registers": 1.05, "instructions": 1.05}


def key(case: str, dtype: torch.dtype, target: str) -> str:
    return f"{case} | {name(dtype)} | {target}"


_reported: dict[str, dict] = {}


def distinct(kernels: list) -> list:
    """Each code of a call once, however many of its launches run it."""
    return list({kernel.hash: (kernel_name, kernel) for kernel_name, kernel in kernels}.values())


def reports(kernels: list) -> list[dict]:
    for kernel_name, kernel in kernels:
        if kernel.hash not in _reported:
            _reported[kernel.hash] = {"kernel": kernel_name, **report(kernel)}
    return [_reported[kernel.hash] for _, kernel in distinct(kernels)]


def committed() -> dict:
    """`results/compile.json`: the Triton version, and the reports of the kernels of each case, dtype and target."""
    return json.loads((RESULTS / "compile.json").read_text())


def regressions(new: list[dict], old: list[dict]) -> list[str]:
    """Where the code of a case is worse than, or other than, what is committed."""
    if len(new) != len(old):
        return [f"{len(new)} kernels, committed {len(old)}"]
    found = []
    for now, before in zip(new, old, strict=True):
        for what in EQUAL:
            if now[what] != before[what]:
                found.append(f"{before['kernel']}: {what} {now[what]}, committed {before[what]}")
        for what, share in MAY_RISE.items():
            if now[what] > share * before[what]:
                found.append(f"{before['kernel']}: {now[what]} {what}, committed {before[what]}, more than × {share}")
    return found


def main(texts: list[str]) -> None:
    old = committed() if texts else {"triton": None}
    if texts and old["triton"] != triton.__version__:
        raise SystemExit(f"the table is of Triton {old['triton']}, here is {triton.__version__}: compile everything")
    table = {}
    for case, call, dtype in shipped():
        for target in TARGETS:
            entry = key(case, dtype, target)
            kept = texts and not any(text in case for text in texts)
            table[entry] = old["code"][entry] if kept else reports(compiled(target, call))
    entries = ",\n".join(f"{json.dumps(name)}: {json.dumps(codes)}" for name, codes in table.items())
    (RESULTS / "compile.json").write_text(f'{{"triton": "{triton.__version__}", "code": {{\n{entries}\n}}}}\n')

    def counts(numbers: dict) -> str:
        return ", ".join(f"{times} × {what}" for what, times in numbers.items())

    lines = [
        "# Machine code of the shipped configurations",
        "",
        f"Triton {triton.__version__}, compiled ahead of time; nothing was run. *loads* and *stores* count the static",
        "instructions of each width in bytes; *barriers*, *shuffles*, *shared* (loads from shared memory) and *tensor*",
        "(tensor-core instructions) likewise. *loops* are the instructions of each loop, outer ones first, slow paths",
        "included.",
        "`compile.json` beside this file has the same and more; `tests/code/test_aot.py` compares new code with it.",
        "",
        "| op | dtype | kernel | target | registers | spills | bytes | loads | stores | barriers | shuffles | shared "
        "| tensor | instructions | loops |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry, codes in table.items():
        case, dtype_name, target = entry.split(" | ")
        lines += [
            f"| {case} | {dtype_name} | `{code['kernel']}` | {target} | {code['registers']} | {code['spills']} | "
            f"{code['shared']} | {counts(code['loads'])} | {counts(code['stores'])} | {code['barriers']} | "
            f"{code['shuffles']} | {code['lds']} | {counts(code['tensor'])} | {code['instructions']} | "
            f"{', '.join(map(str, code['loops']))} |"
            for code in codes
        ]
    (RESULTS / "compile.md").write_text("\n".join(lines) + "\n")
    print(f"{len(table)} rows in {RESULTS}")


if __name__ == "__main__":
    main(sys.argv[1:])
