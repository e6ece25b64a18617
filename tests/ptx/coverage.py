"""Which instructions of each kernel's compiled code no case executes: `python -m tests.ptx.coverage [OP …]`.

Writes `bench/results/coverage.md`. With names of ops only their cases run, and only the rows of the kernels in their
files are written anew; with `OP:TEXT` only cases whose names have the text, and only rows are added.
"""

import collections
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence

import torch
import triton

from bench.compile import RESULTS
from bench.executed import kernels_by_module
from pyramid_ops import kernels as _kernels
from pyramid_ops._op import OPS
from pyramid_ops.kernels.choosers import forcing
from pyramid_ops.verify.cases import DESCRIPTIONS
from pyramid_ops.verify.describe import Case
from tests.bits import to
from tests.ptx import TARGETS, executing
from tests.ptx.link import link

ENOUGH = 98.0  # per cent
# What idles elsewhere.
LONG = "64-bit divisions of numbers above 2³²"
ONE = "what follows a pick, in codes that only cases with one or none compile"
NONE = "the loops, in a code that only cases without tokens compile"
BLOCK = "the loops over other blocks of keys, in codes of segments with one"
REASONS = {
    "_blur_downsample_kernel": "the path without padding, which only images of several tiles take: those of each "
    "dtype, padding and filter length do",
    "_broadcast_regions_kernel": LONG,
    "_channel_moments_kernel": NONE,
    "_channel_variance_kernel": NONE,
    "_dpp_kernel": ONE,
    "_dpp_step_kernel": ONE,
    "_finish_kernel": "the loop over a second head and more, in codes for heads that were reduced before",
    "_gather_best_kernel": BLOCK,
    "_key_means_kernel": LONG,
    "_mark_tokens_kernel": LONG,
    "_maxmin_kernel": ONE,
    "_nearest_kernel": "the loop over groups of keys, where it is unrolled for more of them than cases have",
    "_pool_tokens_kernel": LONG,
    "_rank_segment_kernel": BLOCK,
    "_share_kernel": LONG,
}


class Coverage:
    """Blocks that ran of every code compiled, over the cases of all ops."""

    def __init__(self) -> None:
        self.ran: dict[str, set[int]] = collections.defaultdict(set)
        self.kernels: dict[str, str] = {}

    def run(self, target: str, op: str, args: tuple) -> None:
        given = [to(torch.device("cpu"), arg) for arg in args]
        with executing(target, sanitize=False) as run:
            OPS[op].kernel(*given)
        self.kernels.update(run.names)
        for ptx, blocks in run.executed.items():
            self.ran[ptx].update(blocks)

    def table(self) -> dict[str, tuple[int, int, int, dict[str, int]]]:
        """Of each kernel: codes, executed and all instructions, and how many lie idle at which source lines."""
        found: dict[str, tuple[int, int, int, dict[str, int]]] = {}
        for ptx, ran in self.ran.items():
            code = link(ptx).code
            codes, executed, total, idle = found.get(self.kernels[ptx], (0, 0, 0, {}))
            for number, (first, end) in enumerate(code.blocks):
                total += end - first
                if number in ran:
                    executed += end - first
                    continue
                for at in code.instructions[first:end]:
                    line = pathlib.Path(at.source).name
                    idle[line] = idle.get(line, 0) + 1
            found[self.kernels[ptx]] = codes + 1, executed, total, idle
        return dict(sorted(found.items()))


def cases(ops: Sequence[str]) -> Iterator[tuple[str, Case, dict[str, int]]]:
    """(op, case, limits) of what is executed."""
    for what in ops:
        op, _, text = what.partition(":")
        others = DESCRIPTIONS[op].limits
        for limits in ({}, others) if others else ({},):
            yield from ((op, case, limits) for case in DESCRIPTIONS[op].bits() if text in case.id)


def rows(ops: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """(target, kernel, line of the table) of all kernels that cases of these ops launch."""
    for target in TARGETS:
        coverage = Coverage()
        for op, case, limits in cases(ops):
            with forcing(**limits):
                coverage.run(target, op, case.args)
        for kernel, (codes, executed, total, idle) in coverage.table().items():
            most = sorted(idle.items(), key=lambda item: -item[1])[:4]
            where = ", ".join(f"{line} ({count})" for line, count in most)
            share = f"{100 * executed / total:.1f} %"
            line = f"| {target} | `{kernel}` | {codes} | {total} | {share} | {where} |"
            print(line, flush=True)
            yield target, kernel, line


def committed() -> dict[tuple[str, str], str]:
    """Lines of the table by target and kernel."""
    found = {}
    for line in (RESULTS / "coverage.md").read_text().splitlines():
        if match := re.match(r"\| (\w+) \| `(\w+)` \|", line):
            found[match[1], match[2]] = line
    return found


def main(*ops: str) -> None:
    torch.set_num_threads(1)
    own = {f"{_kernels.__name__}.{OPS[op].module}" for op in ops if ":" not in op}
    found = list(rows(ops or tuple(DESCRIPTIONS)))
    table = committed() if ops else {}
    for target, kernel, line in found:
        modules = {module for module, names in kernels_by_module().items() if kernel in names}
        if not ops or modules & own or (target, kernel) not in table:
            table[target, kernel] = line
    lines = [
        "# Executed instructions",
        "",
        f"Triton {triton.__version__}: instructions of compiled PTX that the cases of `tests/code/test_executed.py`",
        "execute, over all codes that they compile of a kernel. *Idle* are the source lines of the others. Rows",
        "of some kernels may be of a later run.",
        "",
        f"Below {ENOUGH:.0f} %, and why:",
        "",
        *(f"- `{kernel}`: {reason}." for kernel, reason in REASONS.items()),
        "",
        "| target | kernel | codes | instructions | executed | idle |",
        "|---|---|---|---|---|---|",
        *(table[key] for key in sorted(table, key=lambda key: (list(TARGETS).index(key[0]), key[1]))),
    ]
    (RESULTS / "coverage.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
