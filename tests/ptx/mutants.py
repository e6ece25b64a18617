"""Changes to single instructions of compiled kernels, and whether the executor or the bits notice.

`python -m tests.ptx.mutants` writes `bench/results/mutants.md`.
"""

import collections
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import triton

from bench.compile import RESULTS
from pyramid_ops._op import OPS
from pyramid_ops.verify.cases import DESCRIPTIONS
from tests.bits import assert_same_bits, poisoned, to
from tests.ptx import Run, Stopped, executing
from tests.ptx.link import link

SYNCHRONISATION = re.compile(r"^\s*(bar\.sync|(cp\.async|wgmma)\.wait_group|fence\.proxy|wgmma\.fence)[^;]*;", re.M)
Rules = dict[str, tuple[re.Pattern, str | Callable]]
OPERANDS: Rules = {
    "< becomes ≤": (re.compile(r"setp\.lt\.s32"), "setp.le.s32"),
    "≥ becomes >": (re.compile(r"setp\.ge\.s32"), "setp.gt.s32"),
    "a constant is one more": (re.compile(r"(add\.s32 \t%r\d+, %r\d+, )(\d+);"), lambda m: f"{m[1]}{int(m[2]) + 1};"),
    "a shift is one more": (re.compile(r"(shl\.b32 \t%r\d+, %r\d+, )(\d+);"), lambda m: f"{m[1]}{int(m[2]) + 1};"),
    "a sum becomes a difference": (re.compile(r"add\.rn\.f32"), "sub.rn.f32"),
    "a product becomes a sum": (re.compile(r"mul\.rn\.f32"), "add.rn.f32"),
}


class Mutant(NamedTuple):
    rule: str
    instruction: str
    source: str  # file:line of the kernel
    noticed: str  # how, or nothing


def case(op: str, name: str) -> tuple:
    return next(case.args for case in DESCRIPTIONS[op].bits() if case.id == name)


def swap(old: str, new: str) -> Callable[[str, str], str]:
    return lambda _, ptx: new if ptx == old else ptx


def attempt(target: str, op: str, args: tuple, change: Callable[[str, str], str]) -> tuple[str, Run]:
    """How a change is noticed on one case: "bits", kinds of faults, or nothing."""
    expected = OPS[op].reference(*args)
    given = [to(torch.device("cpu"), arg) for arg in args]
    with executing(target, change=change) as run:
        try:
            with poisoned():
                actual = OPS[op].kernel(*given)
            assert_same_bits(actual, expected)
        except Stopped:
            pass
        except AssertionError:
            return "bits", run
    return ", ".join(sorted(run.faults.kinds())), run


def changes(ptx: str, blocks: Iterable[int], rules: Rules) -> Iterator[tuple[Mutant, str]]:
    """What the rules make of the instructions in these blocks, one at a time."""
    code = link(ptx).code
    spans = [code.blocks[number] for number in blocks]
    executed = {at.line: at for first, end in spans for at in code.instructions[first:end]}
    for rule, (pattern, replacement) in rules.items():
        for match in pattern.finditer(ptx):
            at = executed.get(ptx[: match.end()].count("\n") + 1)
            if at:
                new = replacement if isinstance(replacement, str) else replacement(match)
                mutant = Mutant(rule, " ".join(match[0].split()), pathlib.Path(at.source).name, "")
                yield mutant, ptx[: match.start()] + new + ptx[match.end() :]


def mutants(target: str, op: str, args: tuple, kernel: str, rules: Rules) -> Iterator[Mutant]:
    """Each change that the rules find in what is executed of the first code compiled of a kernel."""
    noticed, run = attempt(target, op, args, lambda _, ptx: ptx)
    assert noticed == ""
    ptx = next(ptx for ptx in run.executed if run.names[ptx] == kernel)
    for mutant, changed in changes(ptx, run.executed[ptx], rules):
        yield mutant._replace(noticed=attempt(target, op, args, swap(ptx, changed))[0])


def survey(target: str, op: str, cases: int, most: int, seen: set[str]) -> Iterator[tuple[str, int, list[Mutant]]]:
    """Of each kernel of an op that was not `seen`: how often cases ran it, and what they notice of its mutants.

    A mutant is the change of a rule at a source line, the n-th there, in whatever code a case compiles of it.
    """
    every = [case.args for case in DESCRIPTIONS[op].bits() if not case.slow]
    found: dict[str, dict[tuple, list[tuple[tuple, Mutant, str, str]]]] = {}
    count: collections.Counter[str] = collections.Counter()
    for args in every[:: max(1, len(every) // cases)]:
        _, run = attempt(target, op, args, lambda _, ptx: ptx)
        for ptx, blocks in run.executed.items():
            of_kernel, places = found.setdefault(run.names[ptx], {}), collections.Counter()
            count[run.names[ptx]] += 1
            for mutant, changed in changes(ptx, blocks, OPERANDS):
                place = mutant.rule, mutant.source
                of_kernel.setdefault((*place, places[place]), []).append((args, mutant, ptx, changed))
                places[place] += 1
    for kernel, places in found.items():
        if kernel in seen:
            continue
        seen.add(kernel)
        tried = []
        for attempts in list(places.values())[:: -(-len(places) // most) or 1]:
            outcomes = (attempt(target, op, args, swap(ptx, changed))[0] for args, _, ptx, changed in attempts)
            tried.append(attempts[0][1]._replace(noticed=next(filter(None, outcomes), "")))
        yield kernel, count[kernel], tried


def main() -> None:
    torch.set_num_threads(1)
    lines = [
        "# Changed operands",
        "",
        f"Triton {triton.__version__}, sm_80: single operands of each kernel changed, at most 16 of those that a",
        "dozen cases of an op or more execute, and whether these notice. *Codes* are those they ran.",
        "What survives is listed by source line.",
        "",
        "| op | kernel | codes | changed | bits | faults | survive |",
        "|---|---|---|---|---|---|---|",
    ]
    seen: set[str] = set()
    for op in DESCRIPTIONS:
        for kernel, count, tried in survey("sm_80", op, 12, 16, seen):
            bits = sum(mutant.noticed == "bits" for mutant in tried)
            quiet = [f"{mutant.rule} ({mutant.source})" for mutant in tried if not mutant.noticed]
            numbers = f"{count} | {len(tried)} | {bits} | {len(tried) - bits - len(quiet)}"
            lines.append(f"| {op} | `{kernel}` | {numbers} | {', '.join(quiet)} |")
            print(lines[-1], flush=True)
    (RESULTS / "mutants.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
