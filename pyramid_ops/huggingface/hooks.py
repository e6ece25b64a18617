"""What a handle has put into a model, and its removal."""

import contextlib
import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Hooks", "check_free"]

_MADE: weakref.WeakSet["Hooks"] = weakref.WeakSet()


class Hooks:
    """`remove()` or the end of a ``with`` block takes everything away again, the last first."""

    def __init__(self, model: torch.nn.Module, method: str):
        self.model, self.method = model, method
        self.stats: dict[str, Any] = {}
        self._undo: list[Callable[[], None]] = []
        _MADE.add(self)

    def remove(self) -> None:
        """Leave the model as it was; what fails is raised once all else is undone."""
        with contextlib.ExitStack() as stack:
            for undo in self._undo:
                stack.callback(undo)
            self._undo.clear()

    @property
    def removed(self) -> bool:
        return not self._undo

    def __enter__(self) -> "Hooks":
        if self.removed:
            raise RuntimeError(f"{self.method}: expected a handle that is in a model, got one that was removed")
        return self

    def __exit__(self, *_: Any) -> None:
        self.remove()

    def override(self, module: torch.nn.Module, name: str, function: Callable[..., Any]) -> None:
        """``module.name(…)`` becomes ``function(original, …)``, on this instance alone."""
        original = getattr(module, name)
        object.__setattr__(module, name, functools.wraps(original)(functools.partial(function, original)))
        self._undo.append(lambda: object.__delattr__(module, name))


def check_free(model: torch.nn.Module) -> None:
    """Whether no handle is on the model, on a part of it or on what it is a part of; also of one that was copied."""
    parts = {*model.modules()}
    found = [getattr(hook, "__self__", None) for part in parts for hook in part._forward_pre_hooks.values()]
    found += [
        other for other in list(_MADE) if not other.removed and (other.model in parts or model in other.model.modules())
    ]
    for other in found:
        if isinstance(other, Hooks):
            raise ValueError(f"apply: model: expected one without a handle, got one with {other.method!r}: remove it")
