"""Changes to single instructions of compiled kernels, and whether the executor or the bits notice."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from pyramid_ops._op import OPS
from pyramid_ops.verify.cases import DESCRIPTIONS
from tests.bits import assert_same_bits, poisoned, to
from tests.ptx import Run, Stopped, executing
from tests.ptx.link import link

SYNCHRONISATION = re.compile(r"^\s*(bar\.sync|(cp\.async|wgmma)\.wait_group|fence\.proxy|wgmma\.fence)[^;]*;", re.M)
OPERANDS: dict[str, tuple[re.Pattern, str | Callable]] = {
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


def _source(ptx: str, at: int) -> str:
    files = dict(re.findall(r'\.file\s+(\d+)\s+"[^"]*?([^"/]*)"', ptx))
    where = re.findall(r"\.loc\s+(\d+) (\d+)", ptx[:at])[-1]
    return f"{files[where[0]]}:{where[1]}"


def mutants(
    target: str, op: str, args: tuple, kernel: str, rules: dict[str, tuple[re.Pattern, str | Callable]], every: int = 1
) -> Iterator[Mutant]:
    """Each `every`-th change that the rules find in what is executed of the first code compiled of a kernel."""
    expected = OPS[op].reference(*args)

    def run(change: Callable[[str, str], str]) -> tuple[str, Run]:
        given = [to(torch.device("cpu"), arg) for arg in args]
        with executing(target, change=change) as ran:
            try:
                with poisoned():
                    actual = OPS[op].kernel(*given)
                assert_same_bits(actual, expected)
            except Stopped:
                pass
            except AssertionError:
                return "bits", ran
        return ", ".join(sorted(ran.faults.kinds())), ran

    noticed, ran = run(lambda _, ptx: ptx)
    assert noticed == ""
    ptx = next(ptx for ptx in ran.executed if ran.names[ptx] == kernel)
    code = link(ptx).code
    blocks = [code.blocks[number] for number in ran.executed[ptx]]
    executed = {at.line for first, end in blocks for at in code.instructions[first:end]}
    number = 0
    for rule, (pattern, replacement) in rules.items():
        for match in pattern.finditer(ptx):
            if ptx[: match.end()].count("\n") + 1 not in executed:
                continue
            number += 1
            if number % every == 0:
                new = replacement if isinstance(replacement, str) else replacement(match)
                noticed, _ = run(swap(ptx, ptx[: match.start()] + new + ptx[match.end() :]))
                yield Mutant(rule, " ".join(match[0].split()), _source(ptx, match.start()), noticed)
