"""One seam through which tests and searches force other tiles than `tiles.py` chooses."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

#: Every chooser by name.
CHOOSERS: dict[str, Callable] = {}
_forced: dict[str, Callable] = {}
Choose = TypeVar("Choose", bound=Callable)


def chooser(choose: Choose) -> Choose:
    """Mark a function that chooses tiles, which `forcing` replaces by name."""

    @functools.wraps(choose)
    def chosen(*args: Any) -> Any:
        force = _forced.get(choose.__name__)
        return choose(*args) if force is None else force(choose, *args)

    CHOOSERS[choose.__name__] = choose
    return chosen  # type: ignore[return-value]


@contextlib.contextmanager
def forcing(**choices: Any) -> Iterator[None]:
    """Inside, choosers give other tiles: for tests, which demand the same bits, and for the search over tiles.

    A choice is a number, a dict of what to replace in the chooser's own tiles (fields of its `ROW` or `DOT` too), or a
    function of the chooser and its arguments.
    """
    unknown = sorted({*choices} - {*CHOOSERS})
    if unknown:
        raise ValueError(f"forcing: expected choosers ({', '.join(CHOOSERS)}), got {', '.join(unknown)}")

    def force(choice: Any) -> Callable:
        if callable(choice):
            return choice
        return lambda choose, *args: put(choose(*args), choice) if isinstance(choice, dict) else choice

    before = dict(_forced)
    _forced.update({name: force(choice) for name, choice in choices.items()})
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


def put(tiles: Any, values: dict) -> Any:
    """`tiles`, or each of a pair of them, with `values` in place of their own; None stays None."""
    if tiles is None:
        return None
    if isinstance(tiles, tuple):
        return tuple(put(part, values) for part in tiles)
    made = dict(tiles)
    for group in ("ROW", "DOT"):
        if group in made:
            fields = made[group]._fields
            made[group] = made[group]._replace(**{name: value for name, value in values.items() if name in fields})
            values = {name: value for name, value in values.items() if name not in fields}
    return {**made, **values}
