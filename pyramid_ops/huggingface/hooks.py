"""What a handle has put into a model, and its removal."""

import functools
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Hooks"]


class Hooks:
    """`remove()` or the end of a ``with`` block takes everything away again, the last first."""

    def __init__(self, model: torch.nn.Module, method: str):
        self.model, self.method = model, method
        self.stats: dict[str, Any] = {}
        self._undo: list[Callable[[], None]] = []

    def remove(self) -> None:
        """Leave the model as it was."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> "Hooks":
        return self

    def __exit__(self, *_: Any) -> None:
        self.remove()

    def override(self, module: torch.nn.Module, name: str, function: Callable[..., Any]) -> None:
        """``module.name(…)`` becomes ``function(original, …)``, on this instance alone."""
        original = getattr(module, name)
        object.__setattr__(module, name, functools.wraps(original)(functools.partial(function, original)))
        self._undo.append(lambda: object.__delattr__(module, name))
