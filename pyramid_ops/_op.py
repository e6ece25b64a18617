"""An op: one function in two rooms, and the custom op that stands for both."""

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Literal, Optional, get_type_hints

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


class Flat:
    """The arguments of a function one after another, fields of its NamedTuples too: what a custom op can take."""

    def __init__(self, function: Callable):
        hints = get_type_hints(function)
        self.groups: list[tuple[Any, int]] = []
        parameters = []
        for name in inspect.signature(function).parameters:
            group = hints[name] if hasattr(hints[name], "_fields") else None
            fields = {f"{name}_{field}": kind for field, kind in get_type_hints(group).items()} if group else {}
            self.groups.append((group, len(fields)))
            parameters += [
                inspect.Parameter(field, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind)
                for field, kind in (fields or {name: hints[name]}).items()
            ]

        def signed() -> None: ...

        self.names = [parameter.name for parameter in parameters]
        signed.__signature__ = inspect.Signature(parameters, return_annotation=hints["return"])  # type: ignore[attr-defined]
        self.schema = torch.library.infer_schema(signed, mutates_args=())

    def flatten(self, args: Sequence[Any]) -> list[Any]:
        flat: list[Any] = []
        for arg, (group, _) in zip(args, self.groups, strict=True):
            if group:
                flat.extend(arg)
            else:
                flat.append(arg)
        return flat

    def unflatten(self, flat: Sequence[Any]) -> list[Any]:
        args, start = [], 0
        for group, count in self.groups:
            args.append(group(*flat[start : start + count]) if group else flat[start])
            start += count or 1
        return args


class Op:
    """One op: a function of the reference, `kernels.<module>.<name>`, and the custom op that stands for both.

    Eager calls go straight to the backend. Under `torch.compile`, and for fake and other wrapped tensors, the custom op
    keeps the kernels opaque. `fake` gives tensors of the result's shapes and dtypes.
    """

    def __init__(self, reference: Callable, fake: Callable):
        self.reference, self.fake, self.name = reference, fake, reference.__name__
        self.module = reference.__module__.rpartition(".")[2]
        self.flat = Flat(reference)
        self.custom = torch.library.custom_op(
            f"pyramid_ops::{self.name}",
            lambda *args: self._run(*self.flat.unflatten(args)),
            mutates_args=(),
            schema=self.flat.schema,
        )
        self.custom.register_fake(lambda *args: fake(*self.flat.unflatten(args)))
        OPS[self.name] = self

    @functools.cached_property
    def kernel(self) -> Callable:
        return getattr(importlib.import_module(f".kernels.{self.module}", __package__), self.name)

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or type(_first(args)) not in _PLAIN:
            return self.custom(*self.flat.flatten(args))
        return self._run(*args)

    def _run(self, *args: Any) -> Any:
        device = _first(args).device
        backend = _backend.get() or ("kernel" if device.type == "cuda" else "reference")
        if backend == "reference":
            return self.reference(*args)
        if device.type == "cpu" and not interpreted():
            raise RuntimeError(
                f"{self.name}: kernels on CPU tensors need TRITON_INTERPRET=1 in the environment before the first "
                "kernel is imported; got CPU tensors and compiled kernels"
            )
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                return self.kernel(*args)
        return self.kernel(*args)


_PLAIN = (Tensor, torch.nn.Parameter)


def _first(args: Sequence[Any]) -> Tensor:
    return args[0] if isinstance(args[0], Tensor) else args[0][0]


def interpreted() -> bool:
    return importlib.import_module(".kernels.launch", __package__).INTERPRETED
