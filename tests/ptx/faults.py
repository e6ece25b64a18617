"""What the executor finds wrong with a kernel."""

import collections
from typing import NamedTuple

from .parse import Instruction


class Fault(NamedTuple):
    """One kind of fault at one instruction, as first met."""

    kind: str
    kernel: str
    program: int
    thread: int
    instruction: Instruction
    detail: str = ""

    def __str__(self) -> str:
        at = self.instruction
        text = " ".join(at.text.split())
        text = text if len(text) <= 120 else f"{text[:60]} … {text[-57:]}"
        return (
            f"{self.kind}{': ' + self.detail if self.detail else ''}\n"
            f"  {self.kernel}, program {self.program}, thread {self.thread}\n"
            f"  PTX line {at.line}: {text}\n"
            f"  {at.source}"
        )


class Stopped(Exception):
    """A fault after which nothing sensible can follow."""

    def __init__(self, fault: Fault):
        super().__init__(str(fault))
        self.fault = fault


class Faults:
    """Faults of a run, one for each kind and instruction, with how often it was met."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str, int], Fault] = {}
        self.times: collections.Counter[tuple[str, str, int]] = collections.Counter()

    def add(self, fault: Fault, stop: bool = False) -> None:
        key = fault.kind, fault.kernel, fault.instruction.line
        self.found.setdefault(key, fault)
        self.times[key] += 1
        if stop:
            raise Stopped(fault)

    def kinds(self) -> set[str]:
        return {kind for kind, _, _ in self.found}

    def __len__(self) -> int:
        return len(self.found)

    def __str__(self) -> str:
        return "\n".join(f"{self.times[key]} × {fault}" for key, fault in self.found.items())
