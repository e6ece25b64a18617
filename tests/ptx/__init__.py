"""The PTX that Triton compiles for a launch, executed in NumPy on CPU tensors, and sanitised.

    with executing("sm_90") as run:
        pyramid_ops.token_norm(x)
    assert not run.faults, run.faults

Inside, kernels compile for the target (without the assembler) and run: one lane to a thread, all programs of a launch
at once or `together` so many threads. What lies beyond: the assembler, time, and the order of memory accesses between
programs, but for the two orders that this can try.
"""

import collections
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Optional
from unittest import mock

import numpy as np
import triton
from torch import Tensor
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import JITFunction

from bench import compile as aot

from .arithmetic import Array
from .counts import Counts
from .faults import Fault, Faults, Stopped
from .link import link
from .machine import Launch, Machine
from .memory import Global
from .parse import DTYPES, SIZE, Code, Unsupported

__all__ = ["Fault", "Run", "Stopped", "Unsupported", "executing"]

TARGETS = ("sm_80", "sm_90")
THREADS = 16384  # that one machine holds at most, by default


class Run:
    """What a run met: faults, counts where they are asked for, and the instructions that it executed."""

    def __init__(self, sanitize: bool, together: int, counts: Optional[Counts]):
        self.sanitize, self.together, self.counts = sanitize, together, counts
        self.faults = Faults()
        self.launches: list[tuple[str, int, int]] = []  # kernel, programs, shared bytes
        # PTX → block → threads and warps that ran it, over all launches.
        self.executed: dict[str, dict[int, list[int]]] = collections.defaultdict(dict)
        self.names: dict[str, str] = {}

    def launch(self, name: str, ptx: str, shared: int, programs: int, args: list[tuple[str, Any]]) -> None:
        linked = link(ptx)
        self.launches.append((name, programs, shared))
        self.names[ptx] = name
        memory = Global([(*_extent(x), f"argument {k}, {_shape(x)}") for k, (_, x) in enumerate(args) if _is(x)])
        launch = Launch(
            name,
            linked,
            programs,
            _parameters(linked.code, args),
            shared,
            memory,
            self.faults,
            self.sanitize,
            self.executed[ptx],
            self.counts,
        )
        at_once = max(1, self.together // linked.code.threads)
        with np.errstate(all="ignore"):
            for first in range(0, programs, at_once):
                Machine(launch, first, min(at_once, programs - first)).run()
        if self.counts:
            self.counts.launched(name)


def _is(x: Any) -> bool:
    return isinstance(x, Tensor)


def _shape(x: Tensor) -> str:
    return f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')}"


def _extent(x: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) + 1 if x.numel() else 0
    return x.data_ptr(), x.data_ptr() + last * x.element_size()


def _parameters(code: Code, args: list[tuple[str, Any]]) -> Array:
    """Bytes of the parameters; those after the last argument are Triton's scratch pointers, which stay 0."""
    values = np.zeros(code.parameter_bytes, np.uint8)
    for (offset, kind), (given, x) in zip(code.parameters.values(), args, strict=False):
        if isinstance(x, float):
            bits = np.float32(x).view(np.uint32)
            assert given == "fp32", given
        else:
            bits = np.uint64((x.data_ptr() if _is(x) else int(x or 0)) & (1 << 64) - 1)
        values[offset : offset + SIZE[kind]] = np.array([bits]).astype(DTYPES[f"u{8 * SIZE[kind]}"]).view(np.uint8)
    return values


def _flat(signature: Any, value: Any) -> Iterator[tuple[str, Any]]:
    """Arguments that are not constant, those in tuples one by one."""
    if isinstance(signature, tuple):
        for part, of_part in zip(signature, value, strict=True):
            yield from _flat(part, of_part)
    elif signature != "constexpr":
        yield signature, value


@contextlib.contextmanager
def executing(
    target: str,
    *,
    sanitize: bool = True,
    together: int = THREADS,
    count: bool = False,
    change: Callable[[str, str], str] = lambda kernel, ptx: ptx,
) -> Iterator[Run]:
    """Inside, launches on CPU tensors execute what Triton compiles for `target`, "sm_80" or "sm_90".

    `together` threads at most run at once, a program at least: 1 gives one program after the other. `change` gets
    the kernel's name and PTX, and returns other PTX: a mutant.
    """
    run = Run(sanitize, together, Counts() if count else None)

    def launcher(kernel: JITFunction, grid: tuple) -> Callable:
        def launch(*args: Any, **options: Any) -> None:
            code = kernel.run(*args, grid=grid, warmup=True, **options)
            bound = {**dict(zip(kernel.arg_names, args, strict=False)), **options}
            flat = [x for name, part in code.src.signature.items() for x in _flat(part, bound[name])]
            name = kernel.fn.__name__
            run.launch(name, change(name, code.asm["ptx"]), code.metadata.shared, grid[0], flat)

        return launch

    # What is compiled here has no machine code: it must not meet the cache of code that has.
    cache = os.path.join(triton.knobs.cache.dir, "executed")
    with (
        triton.knobs.cache.scope(),
        mock.patch.object(CUDABackend, "make_cubin", return_value=b"not assembled"),
        mock.patch.object(JITFunction, "__getitem__", launcher),
        aot.compiling(target, device=f"{target}, executed"),
    ):
        triton.knobs.cache.dir = cache
        yield run
