"""Which instructions of each kernel's compiled code no case executes: `python -m tests.ptx.coverage [EVERY]`.

Writes `bench/results/coverage.md`. With a number, only every so many cases run, and nothing is written.
"""

import collections
import pathlib
import sys

import torch
import triton

from bench.compile import RESULTS
from pyramid_ops._op import OPS
from pyramid_ops.verify.cases import DESCRIPTIONS
from tests.bits import to
from tests.ptx import TARGETS, executing
from tests.ptx.link import link

ENOUGH = 98.0  # per cent
# What idles elsewhere.
REASONS = {
    "_blur_downsample_kernel": "the path without padding, which only images of several tiles take: those of each "
    "dtype, padding and filter length do",
    "_broadcast_regions_kernel": "64-bit divisions of numbers above 2³²",
    "_finish_kernel": "the loop over a second head and more, in codes for heads that were reduced before",
    "_mark_tokens_kernel": "64-bit divisions of numbers above 2³²",
    "_share_kernel": "64-bit divisions of numbers above 2³²",
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


def cases(every: int = 1):
    for op, description in DESCRIPTIONS.items():
        for number, case in enumerate(description.bits()):
            if number % every == 0:
                yield op, case


def main(every: int) -> None:
    torch.set_num_threads(1)
    lines = [
        "# Executed instructions",
        "",
        f"Triton {triton.__version__}: instructions of compiled PTX that the cases of `tests/code/test_executed.py`",
        "execute, over all codes that they compile of a kernel. *Idle* are the source lines of the others.",
        "",
        f"Below {ENOUGH:.0f} %, and why:",
        "",
        *(f"- `{kernel}`: {reason}." for kernel, reason in REASONS.items()),
        "",
        "| target | kernel | codes | instructions | executed | idle |",
        "|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        coverage = Coverage()
        for op, case in cases(every):
            coverage.run(target, op, case.args)
        for kernel, (codes, executed, total, idle) in coverage.table().items():
            most = sorted(idle.items(), key=lambda item: -item[1])[:4]
            where = ", ".join(f"{line} ({count})" for line, count in most)
            share = f"{100 * executed / total:.1f} %"
            lines.append(f"| {target} | `{kernel}` | {codes} | {total} | {share} | {where} |")
            print(lines[-1], flush=True)
    if every == 1:
        (RESULTS / "coverage.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 1)
