"""Where an op runs: CUDA tensors on the kernels, CPU tensors on the reference."""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Literal, Optional

import torch
from torch import Tensor

_backend: ContextVar[Optional[str]] = ContextVar("pyramid_ops_backend", default=None)

#: Every op of the library by name.
OPS: dict[str, "Op"] = {}


@contextlib.contextmanager
def use_backend(backend: Literal["kernel", "reference"]) -> Iterator[None]:
    """Run every op on one backend, whatever the device of its tensors: a debugging aid.

    Parameters
    ----------
    backend : "kernel" or "reference"
        The Triton kernels, or their specification in PyTorch. Both give the same bits.

    Raises
    ------
    ValueError
        For any other name.
    RuntimeError
        By an op, for kernels on CPU tensors without ``TRITON_INTERPRET=1`` in the environment when the first kernel
        is imported.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> x = torch.rand(1, 8, 16)
    >>> with pyramid_ops.use_backend("reference"):
    ...     scores = pyramid_ops.token_variance(x)
    """
    if backend not in ("kernel", "reference"):
        raise ValueError(f"use_backend: backend: expected 'kernel' or 'reference', got {backend!r}")
    token = _backend.set(backend)
    try:
        yield
    finally:
        _backend.reset(token)


class Op:
    """One op: `reference.<module>.<name>`, `kernels.<module>.<name>` and the custom op that stands for both.

    Eager calls go straight to the backend; under `torch.compile` the custom op keeps the kernels opaque.
    """

    def __init__(self, module: str, name: str, fake: Callable):
        self.module, self.name = module, name
        self.reference = getattr(importlib.import_module(f".reference.{module}", __package__), name)
        self.custom = torch.library.custom_op(
            f"pyramid_ops::{name}",
            self._run,
            mutates_args=(),
            schema=torch.library.infer_schema(self.reference, mutates_args=()),
        )
        self.custom.register_fake(fake)
        OPS[name] = self

    @functools.cached_property
    def kernel(self) -> Callable:
        return getattr(importlib.import_module(f".kernels.{self.module}", __package__), self.name)

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.custom(*args)
        return self._run(*args)

    def _run(self, *args: Any) -> Any:
        tensor: Tensor = args[0] if isinstance(args[0], Tensor) else args[0][0]
        device = tensor.device
        backend = _backend.get() or ("kernel" if device.type == "cuda" else "reference")
        if backend == "reference":
            return self.reference(*args)
        if device.type == "cpu" and not _interpreted():
            raise RuntimeError(
                f"{self.name}: kernels on CPU tensors need TRITON_INTERPRET=1 in the environment before the first "
                "kernel is imported; got CPU tensors and compiled kernels"
            )
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                return self.kernel(*args)
        return self.kernel(*args)


def _interpreted() -> bool:
    return importlib.import_module(".kernels.numerics", __package__).INTERPRETED
