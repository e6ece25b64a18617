"""Instructions as steps of a machine: what is not in a table here or in `arithmetic` is refused, by name."""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import numpy as np

from .arithmetic import PURE, Array
from .parse import DTYPES, SIZE, Code, Instruction, Unsupported, members, parse

Lanes = Optional[Array]  # numbers of threads in rising order; None for all
Step = Callable[[Any, Lanes], None]
# Opcode patterns of what has effects, and who makes a step of it.
EFFECTS: list[tuple[re.Pattern, Callable]] = []
_ADDRESS = re.compile(r"\[\s*([%\w$@]+)\s*(?:\+\s*(-?\w+))?\s*\]")


class Block(NamedTuple):
    first: int
    end: int
    waits: bool  # for a barrier
    steps: tuple[Step, ...]
    leave: Callable[[Any, Lanes], list]  # to (block, lanes); block None ends


class Linked(NamedTuple):
    code: Code
    slots: tuple[tuple[Any, str, int], ...]  # register or constant, type, and step of the view
    blocks: tuple[Block, ...]
    grain: int  # the smallest access to shared memory, in bytes


def effect(pattern: str) -> Callable[[Callable], Callable]:
    """`build(linker, instruction)` gives the step of opcodes that match."""

    def add(build: Callable) -> Callable:
        EFFECTS.append((re.compile(pattern), build))
        return build

    return add


class Linker:
    def __init__(self, code: Code):
        self.code = code
        self.slots: dict[tuple[Any, str, int], int] = {}
        self.grain = 4

    def _slot(self, *key: Any) -> int:
        return self.slots.setdefault(key, len(self.slots))

    def read(self, operand: str, kind: str) -> int:
        """Slot of a register, read as `kind`, or of a constant."""
        if operand in self.code.registers:
            index, own = self.code.registers[operand]
            if (own == "pred") != (kind == "pred") or SIZE[kind] > SIZE[own]:
                raise Unsupported(f"{operand} as {kind}")
            return self._slot(index, kind, SIZE[own] // SIZE[kind])
        if operand in self.code.symbols:
            return self._slot("constant", kind, 0)
        if operand in self.code.parameters:
            return self._slot("constant", kind, self.code.parameters[operand][0])
        if match := re.fullmatch(r"0([fF][0-9a-fA-F]{8}|[dD][0-9a-fA-F]{16})", operand):
            return self._slot("constant", kind, int(match[1][1:], 16))
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", operand):
            return self._slot("constant", kind, int(operand.rstrip("U"), 0))
        raise Unsupported(f"{operand} as {kind}")

    def write(self, operand: str, kind: str) -> int:
        """Slot of a register that takes `kind`, extended by its sign or zeros to the width of the register."""
        if operand == "_":
            return self._slot("nothing", kind, 1)
        index, own = self.code.registers[operand]
        if (own == "pred") != (kind == "pred") or SIZE[kind] > SIZE[own]:
            raise Unsupported(f"{kind} into {operand}")
        wide = kind if SIZE[kind] == SIZE[own] else f"{'s' if kind[0] == 's' else 'u'}{8 * SIZE[own]}"
        return self._slot(index, wide, 1)

    def address(self, operand: str, kind: str) -> tuple[int, int]:
        """Slot of the base, and the offset."""
        match = _ADDRESS.fullmatch(operand)
        if not match:
            raise Unsupported(operand)
        return self.read(match[1], kind), self.read(match[2] or "0", kind)

    def shares(self, size: int) -> None:
        self.grain = min(self.grain, size)

    def step(self, at: Instruction) -> Step:
        if at.opcode in PURE:
            return self.pure(at)
        for pattern, build in EFFECTS:
            if pattern.fullmatch(at.opcode):
                return build(self, at)
        raise Unsupported("no rule for this instruction")

    def pure(self, at: Instruction) -> Step:
        results, kinds, function = PURE[at.opcode]
        given = at.operands[0].split("|")
        if at.opcode.startswith("mov.b") and "{" in at.operands[0] + at.operands[1]:
            return self.packed(at)
        if len(at.operands) != 1 + len(kinds) or len(given) != len(results):
            raise Unsupported(f"{len(at.operands)} operands")
        if at.opcode.startswith("mov") and at.operands[1] in self.code.registers:
            results = kinds = (self.code.registers[at.operands[1]][1],)
        reads = tuple(self.read(x, kind) for x, kind in zip(at.operands[1:], kinds, strict=True))
        if len(results) == 2:
            writes = tuple(self.write(x, kind) for x, kind in zip(given, results, strict=True))

            def two(m: Any, i: Lanes) -> None:
                for d, x in zip(writes, function(*(m.get(s, i) for s in reads)), strict=True):
                    m.put(d, i, x)

            return two
        d, v = self.write(given[0], results[0]), "m.views"
        if at.opcode.startswith(("div.s", "div.u", "rem")):
            return self.division(at, function, reads, d)
        # Written out, since most steps are these.
        whole, part = (", ".join(f"{v}[{s}]{sub}" for s in reads) for sub in ("", "[i]"))
        scope: dict[str, Any] = {"f": function}
        source = f"def step(m, i):\n if i is None: {v}[{d}][...] = f({whole})\n else: {v}[{d}][i] = f({part})"
        exec(_bytecode(source), scope)
        return scope["step"]

    def division(self, at: Instruction, function: Callable, reads: tuple, d: int) -> Step:
        def step(m: Any, i: Lanes) -> None:
            a, b = (m.get(s, i) for s in reads)
            zero = np.broadcast_to(b == 0, a.shape)
            if zero.any():
                m.stop("integer division by zero", at, m.lanes(i)[zero])
            m.put(d, i, function(a, b))

        return step

    def packed(self, at: Instruction) -> Step:
        """mov between a register and its parts."""
        to, source = members(at.operands[0]), members(at.operands[1])
        kind = at.opcode[4:]
        bits = 8 * SIZE[kind] // max(len(to), len(source))
        if len(to) > 1:
            whole, parts = self.read(source[0], kind), [self.write(x, f"b{bits}") for x in to]

            def unpack(m: Any, i: Lanes) -> None:
                x = m.get(whole, i)
                for k, part in enumerate(parts):
                    m.put(part, i, x >> x.dtype.type(k * bits))

            return unpack
        whole, parts = self.write(to[0], kind), [self.read(x, f"b{bits}") for x in source]

        def pack(m: Any, i: Lanes) -> None:
            dtype = DTYPES[kind]
            shifted = [m.get(part, i).astype(dtype) << dtype(k * bits) for k, part in enumerate(parts)]
            m.put(whole, i, functools.reduce(np.bitwise_or, shifted))

        return pack

    def guarded(self, at: Instruction) -> Step:
        step = self.step(at)
        if at.guard is None:
            return step
        guard, negated = self.read(at.guard, "pred"), at.negated

        def guarded(m: Any, i: Lanes) -> None:
            on = m.get(guard, i) ^ negated
            if on.all():
                step(m, i)
            elif on.any():
                step(m, np.flatnonzero(on) if i is None else i[on])

        return guarded

    def block(self, number: int) -> Block:
        code = self.code
        first, end = code.blocks[number]
        instructions = code.instructions[first:end]
        last = instructions[-1]
        following = number + 1 if number + 1 < len(code.blocks) else None
        leaves = bool(re.fullmatch(r"bra(\.uni)?|ret", last.opcode))
        steps = [self.refusing(at, self.guarded) for at in (instructions[:-1] if leaves else instructions)]
        leave = self.refusing(last, lambda at: self.leaving(at if leaves else None, following))
        return Block(first, end, instructions[0].opcode == "bar.sync", tuple(steps), leave)

    def leaving(self, at: Optional[Instruction], following: Optional[int]) -> Callable[[Any, Lanes], list]:
        if at is None:
            return lambda m, i: [(following, i)]
        to = self.code.labels[at.operands[0]] if at.operands else None
        if at.guard is None:
            return lambda m, i: [(to, i)]
        guard, negated = self.read(at.guard, "pred"), at.negated

        def leave(m: Any, i: Lanes) -> list:
            on = m.get(guard, i) ^ negated
            if on.all():
                return [(to, i)]
            if not on.any():
                return [(following, i)]
            lanes = m.lanes(i)
            return [(to, lanes[on]), (following, lanes[~on])]

        return leave

    def refusing(self, at: Instruction, build: Callable) -> Any:
        try:
            return build(at)
        except (Unsupported, KeyError, ValueError) as error:
            text = f"{self.code.name}, PTX line {at.line}: {' '.join(at.text.split())}: {error}\n  {at.source}"
            raise Unsupported(text) from error


@functools.lru_cache(None)
def _bytecode(source: str) -> Any:
    return compile(source, "<step>", "exec")


@functools.lru_cache(256)
def link(ptx: str) -> Linked:
    code = parse(ptx)
    linker = Linker(code)
    blocks = tuple(linker.block(number) for number in range(len(code.blocks)))
    return Linked(code, tuple(linker.slots), blocks, linker.grain)
