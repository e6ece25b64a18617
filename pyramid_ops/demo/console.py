"""What the commands print."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import Progress
from rich.table import Table


def say(text: str) -> None:
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def show_table(table: Table) -> None:
    Console().print(table)


@contextlib.contextmanager
def progress(steps: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, gone in the end; what is yielded is called after each step."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=steps)
        yield lambda: bar.advance(task)
