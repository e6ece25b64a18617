"""Compile what a launcher launches for any GPU, without one, and read the machine code.

`compiled(target, launch)` runs `launch()` on CPU tensors with every Triton launch replaced by a compilation for
`target`, so that signatures, alignment hints and arguments equal to 1 are those of a real launch.
"""

import collections
import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Largest shared memory of one program, in bytes.
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
_BIN = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")


class _NoGPU:
    """The part of a Triton driver that a compilation asks for."""

    def __init__(self, target: GPUTarget):
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> GPUTarget:
        return self.target

    def get_current_stream(self, device: object) -> int:
        return 0


@contextlib.contextmanager
def _recording(target: GPUTarget) -> Iterator[list]:
    kernels: list = []

    def launcher(kernel: JITFunction, grid: tuple) -> Callable:
        def launch(*args, **kwargs):
            kernels.append((kernel.fn.__name__, kernel.run(*args, grid=grid, warmup=True, **kwargs)))

        return launch

    active = driver._active
    driver.set_active(_NoGPU(target))  # type: ignore[arg-type]
    try:
        with mock.patch.object(JITFunction, "__getitem__", launcher):
            yield kernels
    finally:
        driver._active = active


def compiled(target: str, launch: Callable[[], object]) -> list:
    """(kernel name, compiled kernel) for every launch inside `launch()`."""
    with _recording(TARGETS[target]) as kernels:
        launch()
    return kernels


def _tool(name: str, *args: str) -> str:
    return subprocess.run([os.path.join(_BIN, name), *args], capture_output=True, text=True, check=True).stdout


def report(kernel) -> dict:
    """What the machine code of a CUDA kernel uses: registers, stack, shared memory and instruction counts."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        sass = _tool("nvdisasm", "-c", file.name)
    names = re.findall(r"^\s+(?:/\*[0-9a-f]+\*/\s+)?(?:@!?U?P\d+ )?([A-Z][A-Z0-9_.]+)", sass, re.M)
    ops = collections.Counter(name.split(".")[0] for name in names)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()  # type: ignore[union-attr]
    return {
        "registers": int(registers),
        "stack": int(stack),
        "shared": kernel.metadata.shared,
        "loads": dict(collections.Counter(name for name in names if name.startswith("LDG"))),
        "stores": dict(collections.Counter(name for name in names if name.startswith("STG"))),
        "barriers": ops["BAR"],
        "shuffles": ops["SHFL"],
        "lds": ops["LDS"],
        "spills": ops["LDL"] + ops["STL"],
        "instructions": len(names),
    }
