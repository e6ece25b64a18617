"""Host time of an eager call up to its launches, without a GPU, and what each public call launches.

`python -m bench.host` writes `results/host.md`; `python -m bench.host launches` only its table of launches. Triton
compiles for sm_90 and is called as for a launch; the call into the driver is left out.
"""

import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from unittest import mock

import torch
import triton
from triton.compiler.compiler import CompiledKernel

import pyramid_ops
from bench import compile as aot
from bench.__main__ import commit, device_name
from bench.compile import RESULTS
from tests.launch_table import TABLE

ROUNDS = 500
LAUNCHES = "## Launches"


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """One image, bfloat16."""
    ops = pyramid_ops
    levels = [torch.empty(1, size, 1024, dtype=torch.bfloat16) for size in (4096, 1024, 256, 64)]
    yield "token_variance, 4096 × 1024", functools.partial(ops.token_variance, levels[0])
    yield "select_topk_levels, 273 of 4 levels", functools.partial(ops.select_topk_levels, levels)
    image = torch.empty(1, 3, 1024, 1024, dtype=torch.bfloat16)
    yield "gaussian_pyramid, 4 levels", functools.partial(ops.gaussian_pyramid, image, 4)
    yield "best_match, 2048 × 2048", functools.partial(ops.best_match, levels[0][:, ::2], levels[0][:, 1::2])
    query, key = (torch.empty(1, 16, count, 128, dtype=torch.bfloat16) for count in (1, 4096))
    last = functools.partial(ops.attention_importance, query, key, query_indices=[-1], causal=True)
    yield "attention_importance, last query", last
    key = key[:, :, :576]
    yield "attention_importance, all queries", functools.partial(ops.attention_importance, key, key)


def measure(call: Callable[[], object]) -> tuple[int, list[float]]:
    """(launches, µs of each call)."""
    launches = 0

    def nothing(*args: object) -> None:
        pass

    def launch(*args: object) -> None:
        nonlocal launches
        launches += 1

    # Not mocks, which take longer than what is measured.
    with (
        aot.compiling("sm_90"),
        mock.patch.object(CompiledKernel, "_init_handles", nothing),
        mock.patch.object(CompiledKernel, "launch_metadata", nothing),
        mock.patch.object(CompiledKernel, "run", launch),
    ):
        for _ in range(10):
            call()
        launches = 0
        call()
        count, times = launches, []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            call()
            times.append(1e6 * (time.perf_counter() - start))
    return count, times


def times() -> list[str]:
    torch.set_num_threads(1)
    lines = [
        f"# Host time, {device_name()}",
        "",
        f"Commit {commit()}, torch {torch.__version__}, triton {triton.__version__}.",
        f"Medians of {ROUNDS} eager calls up to the launches, without the driver's part of them: checks,",
        "allocations on the CPU, and the search for the compiled kernel.",
        "",
        "| call | launches | µs | p20 to p80 |",
        "|---|---|---|---|",
    ]
    for name, call in cases():
        count, measured = measure(call)
        p20, *_, p80 = statistics.quantiles(measured, n=5)
        lines.append(f"| {name} | {count} | {statistics.median(measured):.0f} | {p20:.0f} to {p80:.0f} |")
    return lines


def launches() -> list[str]:
    lines = [
        LAUNCHES,
        "",
        "Kernels of one eager call on sm_90; views and allocations are none. Counted by `tests/code/test_launches.py`.",
        "",
        "| op | call | Triton | PyTorch |",
        "|---|---|---|---|",
    ]
    return lines + [f"| {op} | {what} | {triton} | {pytorch} |" for op, what, _, (triton, pytorch) in TABLE]


def main(what: list[str]) -> None:
    path = RESULTS / "host.md"
    head = path.read_text().partition(LAUNCHES)[0].rstrip().splitlines() if what == ["launches"] else times()
    text = "\n".join([*head, "", *launches()]) + "\n"
    path.write_text(text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
