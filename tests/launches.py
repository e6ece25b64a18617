"""What a call launches on a GPU, counted without one."""

from collections.abc import Callable
from typing import Any
from unittest import mock

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import JITFunction

from bench.compile import compiling

ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
# Views, though their schemas do not say so.
VIEWS = {"_unsafe_view"}


def launched(call: Callable[[], object]) -> tuple[int, int]:
    """(Triton launches, PyTorch kernels) of `call()` on CPU tensors, with the launchers of sm_90.

    A PyTorch kernel is a dispatched operation that writes at least one element: no view, no allocation. Kernels do not
    run, so that their results are 0. What is done once, at a first call, is left out.
    """
    launches = 0

    def launcher(kernel: JITFunction, grid: tuple) -> Callable:
        def launch(*args: object, **constants: object) -> None:
            nonlocal launches
            launches += 1

        return launch

    with compiling("sm_90"), mock.patch.object(JITFunction, "__getitem__", launcher):
        call()
        launches = 0
        with _Kernels() as kernels:
            call()
    return launches, kernels.count


class _Kernels(TorchDispatchMode):
    """Counts dispatched operations that launch a kernel; what is allocated is 0, so that it can be an index."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ALLOCATIONS:
            return out.zero_()
        if (
            not func.is_view
            and name not in VIEWS
            and any(isinstance(x, Tensor) and x.numel() for x in tree_leaves(out))
        ):
            self.count += 1
        return out
