"""How a kernel is launched: fusion off, and Triton's search for compiled code done once for arguments of a kind."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.compiler import CompiledKernel

from .arithmetic import widen
from .dots import Dots
from .rows import Row

# Every launch takes these: a multiply and an add are two roundings.
LAUNCH = {"enable_fp_fusion": False}
INTERPRETED = not isinstance(widen, triton.JITFunction)
# What Triton found for launches so far: the compiled kernel and its constants in the order of the signature.
_compiled: dict[tuple, tuple[Any, tuple]] = {}


def launch(kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
    """Run `programs` programs of a kernel; `constants` are its constexpr arguments and the compiler's options.

    Triton's search for compiled code costs more host time than the launch: it is done once for arguments of a kind,
    and so is what else Triton asks for at a launch (hooks before it, debugging knobs; enter and exit hooks stay).
    """
    # On AMD the code depends on the bytes behind a pointer too.
    if INTERPRETED or torch.version.hip:
        kernel[(programs,)](*args, **constants, **LAUNCH)
        return
    device = triton.runtime.driver.active.get_current_device()
    key = kernel.fn, device, _kinds(args), *constants.items()
    found = _compiled.get(key)
    if found:
        found[0][programs, 1, 1](*args, *found[1])
        return
    code = kernel[(programs,)](*args, **_with_constant_fields(constants), **LAUNCH)
    if isinstance(code, CompiledKernel):
        _compiled[key] = code, tuple(constants[name] for name in kernel.arg_names[len(args) :])


def _with_constant_fields(constants: dict[str, Any]) -> dict[str, Any]:
    """The fields of NamedTuples as constexprs, which Tritons before 3.9 do not make of them."""
    return {
        name: type(value)(*map(tl.constexpr, value)) if isinstance(value, (Row, Dots)) else value
        for name, value in constants.items()
    }


def _kinds(args: Sequence) -> tuple:
    """All that compiled code depends on in arguments that are not constant; a tuple is of tensors or has none."""
    kinds: list = []
    for x in args:
        if type(x) is int:
            if -(1 << 31) <= x < 1 << 31:
                kinds.append((x == 1) - (x % 16 == 0))
            else:
                kinds.append(2 + (x % 16 == 0) + 2 * (x >= 1 << 63))
        elif isinstance(x, tuple):
            kinds.append(_kinds(x) if x and isinstance(x[0], Tensor) else _kinds_of_numbers(*x))
        elif isinstance(x, Tensor):
            kinds += x.dtype, x.data_ptr() % 16 == 0
        else:
            kinds.append(float if isinstance(x, float) else (type(x), x))
    return tuple(kinds)


@functools.lru_cache(4096, typed=True)
def _kinds_of_numbers(*args: Any) -> tuple:
    """`_kinds` of a tuple of sizes, strides or weights, which take as long as the tensors and repeat more often."""
    if any(isinstance(x, Tensor) for x in args):
        raise TypeError("a tensor beside numbers in a tuple of kernel arguments")
    return _kinds(args)


def target_arch() -> int | str:
    """The architecture that launches are compiled for: 90 for sm_90, or a name such as gfx942."""
    return 90 if INTERPRETED else triton.runtime.driver.active.get_current_target().arch
