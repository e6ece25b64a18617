"""The page that says whether this machine computes the bits that every other computes."""

import contextlib
import pathlib
import platform
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from .._op import OPS, interpreted, use_backend
from .digests import Result, run


def _backends() -> Iterator[tuple[str, str, str]]:
    """(label, backend, device) of all that can run here."""
    yield "reference, CPU", "reference", "cpu"
    try:
        in_interpreter = interpreted()
    except ImportError:
        return
    if in_interpreter:
        yield "kernels, Triton's interpreter", "kernel", "cpu"
    elif torch.cuda.is_available():
        yield f"kernels, {torch.cuda.get_device_name()}", "kernel", "cuda"


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(module: str) -> str:
    try:
        return __import__(module).__version__
    except ImportError:
        return "not installed"


#: What shows how far it is: of so many steps, a context whose value is called after each.
Progress = Callable[[int], contextlib.AbstractContextManager[Callable[[], None]]]


def _silent(steps: int) -> contextlib.AbstractContextManager[Callable[[], None]]:
    return contextlib.nullcontext(lambda: None)


def main(progress: Progress = _silent) -> int:
    """Print a page; 0 where all digests are equal, else 1."""
    from .. import __version__

    print(f"pyramid_ops {__version__}: does this machine compute the same bits?\n")
    print(f"processor  {_processor()}")
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        print(f"GPU        {torch.cuda.get_device_name()}, sm_{major}{minor}")
    versions = ", ".join(f"{module} {_version(module)}" for module in ("torch", "triton", "numpy"))
    print(f"versions   Python {platform.python_version()}, {versions}\n")
    failed = False
    for label, backend, device in _backends():
        started = time.perf_counter()
        # The interpreter's NumPy would warn where a kernel computes inf − inf.
        results: list[Result] = []
        with use_backend(backend), np.errstate(all="ignore"), progress(len(OPS)) as advance:  # type: ignore[arg-type]
            for op in sorted(OPS):
                results += run([op], device)
                advance()
        wrong = [result for result in results if result.problem]
        failed |= bool(wrong)
        for op in sorted(OPS):
            equal = sum(result.op == op and not result.problem for result in results)
            count = sum(result.op == op for result in results)
            print(f"  {op:22} {equal:4} of {count:4} digests equal")
        print(f"{label}: {len(results) - len(wrong)} of {len(results)} in {time.perf_counter() - started:.1f} s")
        for result in wrong[:20]:
            print(f"  DIFFERS: {result.op}, case {result.case}: {result.problem}")
        if len(wrong) > 20:
            print(f"  and {len(wrong) - 20} more")
        print()
    print("NO: not the same bits" if failed else "yes: the same bits")
    return int(failed)
