"""The text of one PTX kernel as registers, parameters, instructions and basic blocks."""

import functools
import re
from typing import NamedTuple, Optional

import numpy as np

DTYPES: dict[str, type] = {
    **{f"s{n}": getattr(np, f"int{n}") for n in (8, 16, 32, 64)},
    **{f"{kind}{n}": getattr(np, f"uint{n}") for n in (8, 16, 32, 64) for kind in "ub"},
    "f16": np.float16,
    "f32": np.float32,
    "f64": np.float64,
    "pred": np.bool_,
}
SIZE = {name: np.dtype(dtype).itemsize for name, dtype in DTYPES.items()}
# Registers that each thread finds filled; what is not among them is refused.
SPECIAL = ("%tid.x", "%tid.y", "%tid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%nctaid.x")
_WORD = re.compile(r"%?[\w@]+(?:\.[xyz])?")


class Unsupported(Exception):
    """What the executor has no rule for: it refuses, by name, before anything runs."""


class Instruction(NamedTuple):
    opcode: str
    operands: tuple[str, ...]
    guard: Optional[str]  # register of its predicate
    negated: bool
    number: int
    line: int  # in the PTX, from 1
    text: str
    source: str  # file:line of the kernel


class Code(NamedTuple):
    name: str
    threads: int
    registers: dict[str, tuple[int, str]]  # name → (index, type)
    parameters: dict[str, tuple[int, str]]  # name → (offset, type)
    parameter_bytes: int
    symbols: frozenset[str]  # shared memory
    instructions: tuple[Instruction, ...]
    blocks: tuple[tuple[int, int], ...]  # instructions of each, from and to
    labels: dict[str, int]  # label → block


def operands(text: str) -> tuple[str, ...]:
    """Split at the commas that no bracket holds."""
    return tuple(part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text) if part.strip())


def members(operand: str) -> tuple[str, ...]:
    """The parts of `{a, b}`, or the operand alone."""
    return operands(operand[1:-1]) if operand.startswith("{") else (operand,)


def _parameters(text: str) -> tuple[dict[str, tuple[int, str]], int]:
    """Offset and type of each, and the bytes of all."""
    parameters, size = {}, 0
    for kind, parameter in re.findall(r"\.param \.(\w+)[^,)]*?(\w+_param_\d+)", text[: text.index(")")]):
        size = -(-size // SIZE[kind]) * SIZE[kind]
        parameters[parameter] = size, kind
        size += SIZE[kind]
    return parameters, -(-size // 16) * 16


class _Reader:
    """Statements of a body, line by line."""

    def __init__(self, kernel: str, files: dict[str, str]):
        self.kernel, self.files, self.source = kernel, files, ""
        self.registers: dict[str, tuple[int, str]] = {special: (k, "b32") for k, special in enumerate(SPECIAL)}
        self.scopes: list[dict[str, str]] = [{}]
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}

    def read(self, text: str, line: int) -> None:
        text = re.sub(r"//.*|/\*.*?\*/", "", text).strip()
        while text:
            if label := re.match(r"(\$\w+):\s*", text):
                self.labels[label[1]] = len(self.instructions)
                text = text[label.end() :]
            elif text[0] in "{}":
                self.scopes.append({}) if text[0] == "{" else self.scopes.pop()
                text = text[1:].strip()
            else:
                statement, _, text = (part.strip() for part in text.partition(";"))
                self._statement(statement, line)

    def _statement(self, statement: str, line: int) -> None:
        if statement.startswith(".reg"):
            self._declare(statement)
        elif statement.startswith((".loc ", ".loc\t")):
            file, at = statement.split()[1:3]
            self.source = f"{self.files.get(file, file)}:{at}"
        # Local memory may be declared where nothing uses it; its uses are refused.
        elif statement and not statement.startswith((".pragma", ".file", ".local")):
            if statement[0] == ".":
                raise Unsupported(f"{self.kernel}, PTX line {line}: {statement}: no rule for this\n  {self.source}")
            guard, negation, register, opcode, given = re.match(  # type: ignore[union-attr]
                r"(@(!?)(%?\w+)\s+)?(\S+)\s*(.*)", statement
            ).groups()
            self.instructions.append(
                Instruction(
                    opcode,
                    operands(self._renamed(given)),
                    self._renamed(register) if guard else None,
                    bool(negation),
                    len(self.instructions),
                    line,
                    statement,
                    self.source,
                )
            )

    def _declare(self, text: str) -> None:
        kind, names = re.match(r"\.reg\s+\.(\w+)\s+(.*)", text).groups()  # type: ignore[union-attr]
        for item in map(str.strip, names.split(",")):
            many = re.match(r"(%?\w+)<(\d+)>", item)
            for register in [f"{many[1]}{k}" for k in range(int(many[2]))] if many else [item]:
                if len(self.scopes) > 1:  # inside braces: another register than one of this name elsewhere
                    self.scopes[-1][register] = f"{register}@{len(self.registers)}"
                    register = self.scopes[-1][register]
                self.registers[register] = len(self.registers), kind

    def _renamed(self, text: str) -> str:
        names = {key: value for scope in self.scopes for key, value in scope.items()}
        return _WORD.sub(lambda word: names.get(word[0], word[0]), text) if names else text


@functools.lru_cache(None)
def parse(ptx: str) -> Code:
    head, _, rest = ptx.partition(".entry ")
    body_at = ptx.index("{", ptx.index(".reqntid"))
    name = re.match(r"\w+", rest)[0]  # type: ignore[index]
    reader = _Reader(name, dict(re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', ptx)))
    first = ptx[: body_at + 1].count("\n") + 1
    for line, text in enumerate(ptx[body_at + 1 : ptx.index("\n}", body_at)].split("\n"), first):
        reader.read(text, line)
    cuts, targets = {0}, {}
    for instruction in reader.instructions:
        if instruction.opcode.startswith("bra"):
            targets[instruction.operands[0]] = reader.labels[instruction.operands[0]]
        if instruction.opcode.split(".")[0] in ("bra", "ret"):
            cuts.add(instruction.number + 1)
        elif instruction.opcode == "bar.sync":
            cuts.add(instruction.number)
    cuts.update(targets.values())
    starts = sorted(cut for cut in cuts if cut < len(reader.instructions))
    parameters, size = _parameters(rest)
    return Code(
        name,
        int(re.search(r"\.reqntid (\d+)", rest)[1]),  # type: ignore[index]
        reader.registers,
        parameters,
        size,
        frozenset(re.findall(r"\.extern \.shared[^;]*?(\w+)\[\];", head)),
        tuple(reader.instructions),
        tuple(zip(starts, [*starts[1:], len(reader.instructions)], strict=True)),
        {label: starts.index(at) for label, at in targets.items()},
    )
