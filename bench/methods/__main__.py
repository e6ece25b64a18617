"""Each method against plain eager code: `python -m bench.methods` writes `results/methods.md`.

Options: names of methods, `--tokens 576 2880`, `--limit 10` (seconds that a call may be expected to take),
`--rounds 5`, `--out FILE`.
"""

import argparse
import datetime
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.__main__ import commit, device_name, version
from bench.conftest import CUDA, DEVICE, _milliseconds, _peak_bytes
from bench.methods import encoder, language, levels, video
from bench.methods.case import GRIDS, TEXT, WIDTH, Case, Inputs
from pyramid_ops import plans
from tests.launches import launched

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "methods.md"
FAMILIES = (encoder, language, levels, video)


class Measured(NamedTuple):
    milliseconds: tuple[float, float]
    peak: tuple[int, int]
    launches: tuple[int, int, int]
    same: str


def kept(result: Any) -> list[int] | None:
    """The tokens that stay of the first sample, where a result says which."""
    if isinstance(result, (plans.Keep, plans.Merge)):
        return result.indices[0, : result.counts[0]].tolist()
    if isinstance(result, Tensor):
        return None if result.is_floating_point() else result.flatten().tolist()
    if isinstance(result, list):
        starts = [0]
        for plan in result:
            starts.append(starts[-1] + plan.num_tokens)
        return [start + i for start, plan in zip(starts, result, strict=False) for i in kept(plan) or []]
    return next((found for part in result if (found := kept(part)) is not None), None)


def alike(ours: Any, eager: Any) -> str:
    """Which share of the tokens that stay both keep."""
    first, second = kept(ours), kept(eager)
    if isinstance(ours, plans.Keep) and ours.indices.shape[0] > 1:
        size = ours.num_tokens
        first = [b * size + i for b, row in enumerate(ours.indices.tolist()) for i in row if i >= 0]
    if isinstance(ours, Tensor) and ours.dtype == torch.bool and first is not None:
        first = ours.flatten()[-TEXT:].nonzero()[:, 0].tolist()
    if first is None or second is None:
        return ""
    return f"{len({*first} & {*second}) / max(len({*first}), len({*second}), 1):.3f}"


def measure(case: Case, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of both in turn, for little more than 20 seconds."""
    times: tuple[list[float], list[float]] = ([], [])
    begin = time.perf_counter()
    for _ in range(rounds):
        for call, into in zip((case.ours, case.eager), times, strict=True):
            into.append(_milliseconds(call))
        if time.perf_counter() - begin > 20:
            break
    return times


def families(tokens: int, names: list[str], device: torch.device) -> Iterator[Case]:
    given = Inputs(tokens, device)
    for family in FAMILIES:
        for case in family.cases(given):
            if not names or case.name in names:
                yield case


def launches(ours: Callable[[], object], eager: Callable[[], object]) -> tuple[int, int, int]:
    """(Triton launches, PyTorch kernels of ours, of eager)."""
    return *launched(ours), launched(eager)[1]


def compare(options: argparse.Namespace) -> dict[str, dict[int, Measured | None]]:
    """By name and tokens; None where one would take too long."""
    found: dict[str, dict[int, Measured | None]] = {}
    slowest: dict[str, tuple[int, float]] = {}
    for tokens in options.tokens:
        timed = list(families(tokens, options.names, DEVICE))
        on_cpu = {case.name: case for case in (families(tokens, options.names, torch.device("cpu")) if CUDA else timed)}
        for case in timed:
            row = found.setdefault(case.name, {})
            before = slowest.get(case.name)
            if before and before[1] * (tokens / before[0]) ** case.growth > options.limit * 1e3:
                row[tokens] = None
                continue
            case.ours(), case.eager()
            times = measure(case, options.rounds)
            slowest[case.name] = tokens, max(map(min, times))
            peaks = _peak_bytes(case.ours), _peak_bytes(case.eager)
            plain = on_cpu[case.name]
            row[tokens] = Measured(
                (statistics.median(times[0]), statistics.median(times[1])),
                peaks,
                launches(plain.ours, plain.eager),
                alike(case.ours(), case.eager()),
            )
            print(f"{case.name}, {tokens}: {row[tokens]}", flush=True)
    return found


def table(rows: dict[str, Measured | None]) -> str:
    lines = [
        "| method | ours, ms | eager, ms | ratio | MB | eager, MB | launches | eager's | same |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, each in rows.items():
        cells = ["–"] * 8
        if each:
            (ours, eager), (triton, torch_, theirs) = each.milliseconds, each.launches
            cells = [f"{ours:.3g}", f"{eager:.3g}", f"{eager / ours:.2f}×", *map(_megabytes, each.peak)]
            cells += [f"{triton} + {torch_}", str(theirs), each.same]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _megabytes(count: int) -> str:
    return f"{count / 2**20:.3g}"


def report(found: dict[str, dict[int, Measured | None]], options: argparse.Namespace) -> str:
    room = "the kernels" if CUDA else "the reference, not the kernels"
    parts = [
        f"# Methods against plain eager code\n\n{datetime.date.today().isoformat()}, commit {commit()}, "
        f"{device_name()}, torch {version('torch')}. Here run {room}.\n\n"
        f"One sample in float32, features of {WIDTH}, {TEXT} tokens of text; an eighth of the tokens stay, of videos a "
        "quarter or so. Medians of interleaved calls, with moving or merging where the table has no kept tokens alone; "
        "*ratio* is eager over ours; *MB* are held beyond the inputs at most; *same* is the share of kept tokens that "
        "both keep: shares of tiles are rounded differently, as docstrings say, and VisPruner's rounds turn on the "
        "last bits of similarities. – would take too long for one of them. Launches are Triton's + PyTorch's, counted "
        "for sm_90 as `tests/launches.py` does, beside the PyTorch kernels of eager code. Eager code is in "
        "`bench/methods/`: vectorised, as authors write it, waiting for the device where theirs does.\n"
    ]
    for tokens in options.tokens:
        rows = {name: row[tokens] for name, row in found.items() if tokens in row}
        parts.append(f"## {tokens} tokens\n\n{table(rows)}")
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.methods", description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--tokens", type=int, nargs="+", default=[*GRIDS], choices=[*GRIDS])
    parser.add_argument("--limit", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if not CUDA:
        torch.set_num_threads(2)
    with torch.no_grad():
        found = compare(options)
    options.out.write_text(report(found, options))
    print(options.out.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
