"""Lengths of caches: the prompt's rows, which `generate` counts by, and the rows that a layer holds."""

import functools
import weakref
from typing import Any

__all__ = ["COPIES", "KEY", "Copies", "Held", "count_held", "count_prompt"]

#: Where a cache has its Prompt, and what follows its copies.
KEY = "_pyramid_ops"
COPIES = "_pyramid_ops_copies"


class Copies:
    """Puts deep copies of a cache into the set that it is in."""

    def __init__(self, cache: Any, caches: "weakref.WeakSet[Any]"):
        self._cache, self._caches = weakref.ref(cache), caches

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self._cache()))
        if copied is None:
            return None
        self._caches.add(copied)
        return Copies(copied, self._caches)

    def __reduce__(self) -> Any:  # a cache can still be pickled
        return type(None), ()


class Held:
    """A cache as a mask is made for it: by the rows that a layer holds."""

    def __init__(self, cache: Any):
        self._cache = cache
        self.is_compileable = getattr(cache, "is_compileable", False)

    def get_mask_sizes(self, rows: int, layer: int) -> tuple[int, int]:
        return self._cache.get_mask_sizes(rows, layer)

    def get_query_offset(self, layer: int) -> Any:
        layers = self._cache.layers
        return layers[layer].get_seq_length() if layer < len(layers) else 0


@functools.cache
def _counting(kind: type) -> type:
    def get_seq_length(self: Any, layer_idx: int = 0) -> Any:
        held = kind.get_seq_length(self, layer_idx)  # type: ignore[attr-defined]
        return held + getattr(self, KEY).missing * (held > 0)  # 0 after a reset

    return type(kind.__name__, (kind,), {"get_seq_length": get_seq_length, "_counts": kind})


def count_prompt(cache: Any) -> None:
    """From now on a cache counts rows that were dropped before the first layer too, until :func:`count_held`."""
    kind: Any = type(cache)
    if not hasattr(kind, "_counts"):
        cache.__class__ = _counting(kind)


def count_held(cache: Any) -> None:
    """Forget the cache's prompt."""
    cache.__class__ = getattr(cache, "_counts", type(cache))
    for name in (KEY, COPIES, "reorder_cache"):
        cache.__dict__.pop(name, None)
