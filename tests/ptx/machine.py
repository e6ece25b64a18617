"""A machine that runs some programs of a launch at once: an array holds a register of all their threads.

The threads that wait lowest in the code go first, so that branches join again where they can; those at a barrier wait
until all of their program are there.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple, NoReturn, Optional

import numpy as np

from . import (
    effects,  # noqa: F401 (fills the table of instructions)
    tensor,
)
from .arithmetic import Array
from .counts import Counts
from .faults import Fault, Faults
from .link import Lanes, Linked
from .memory import Global, Shared
from .parse import DTYPES, SPECIAL, Instruction

STEPS = 2_000_000  # blocks, after which a run is taken for endless
POISON = np.uint32(0x7FC0DEAD)  # a sum that a product under way has not given yet


class Launch(NamedTuple):
    """What all programs of a launch share."""

    kernel: str
    linked: Linked
    programs: int
    parameters: Array  # bytes
    shared: int
    memory: Global
    faults: Faults
    sanitize: bool
    executed: dict[int, list[int]]  # block → threads and warps that ran it
    counts: Optional[Counts] = None


class Machine:
    def __init__(self, launch: Launch, first: int, programs: int):
        self.launch, self.first, self.programs = launch, first, programs
        self.code = launch.linked.code
        self.threads = self.code.threads
        self.parameters, self.counts = launch.parameters, launch.counts
        self.all = np.arange(programs * self.threads)
        self.live = np.full(programs, self.threads)
        self.shared = Shared(programs, launch.shared, self.threads, launch.linked.grain if launch.sanitize else 0)
        self.copies, self.products = Copies(self), Products(self)
        self.views = self._views()

    def _views(self) -> list[Array]:
        count = len(self.all)
        kinds = [kind for _, kind in self.code.registers.values()]
        banks = {kind: np.zeros((kinds.count(kind), count), DTYPES[kind]) for kind in set(kinds)}
        rows = {kind: itertools.count() for kind in banks}
        registers = [banks[kind][next(rows[kind])] for kind in kinds]
        special = dict(zip(SPECIAL, registers, strict=False))
        special["%tid.x"][:] = self.all % self.threads
        special["%ctaid.x"][:] = self.first + self.all // self.threads
        special["%nctaid.x"][:] = self.launch.programs

        def view(what: object, kind: str, step: int) -> Array:
            dtype = DTYPES[kind]
            if what == "nothing":
                return np.zeros(count, dtype)
            if what == "constant":
                if kind == "pred":
                    return np.broadcast_to(np.bool_(step), (count,))
                bits = np.array([step & (1 << 64) - 1], np.uint64)
                return np.broadcast_to(bits.view(dtype)[:1], (count,))
            return registers[what].view(dtype)[::step]  # type: ignore[call-overload]

        return [view(*slot) for slot in self.launch.linked.slots]

    def get(self, slot: int, i: Lanes) -> Array:
        return self.views[slot] if i is None else self.views[slot][i]

    def put(self, slot: int, i: Lanes, value: Array) -> None:
        self.views[slot][... if i is None else i] = value

    def lanes(self, i: Lanes) -> Array:
        return self.all if i is None else i

    # Control

    def run(self) -> None:
        todo: dict[int, Lanes] = {0: None}
        blocks = self.launch.linked.blocks
        for _ in range(STEPS):
            if not todo:
                return
            number, i = self._next(todo)
            block = blocks[number]
            for step in block.steps:
                step(self, i)
            lanes = self.lanes(i)
            ran = self.launch.executed.setdefault(number, [0, 0])
            ran[0] += len(lanes)
            ran[1] += 1 + int(np.count_nonzero(np.diff(lanes >> 5)))
            for to, j in block.leave(self, i):
                if to is None:
                    self.live -= np.bincount(self.lanes(j) // self.threads, minlength=self.programs)
                elif to in todo:
                    joined = np.sort(np.concatenate((self.lanes(todo[to]), j)))
                    todo[to] = None if len(joined) == len(self.all) else joined
                else:
                    todo[to] = j
        self.stop("no end", self.code.instructions[block.first], lanes)

    def _next(self, todo: dict[int, Lanes]) -> tuple[int, Lanes]:
        for number in sorted(todo):
            i = todo.pop(number)
            if not self.launch.linked.blocks[number].waits:
                return number, i
            lanes = self.lanes(i)
            program = lanes // self.threads
            complete = np.bincount(program, minlength=self.programs) == self.live
            if complete[program].all():
                return number, i
            if complete[program].any():
                todo[number] = lanes[~complete[program]]
                return number, lanes[complete[program]]
            todo[number] = i
        number = min(todo)
        where = [self.code.instructions[self.launch.linked.blocks[k].first].line for k in sorted(todo)]
        at = self.code.instructions[self.launch.linked.blocks[number].first]
        self.stop("threads of a program wait at different barriers", at, self.lanes(todo[number]), f"PTX lines {where}")

    def barrier(self, at: Instruction, i: Lanes) -> None:
        programs = np.unique(self.lanes(i) // self.threads)
        if (self.live[programs] < self.threads).any():
            ended = programs[self.live[programs] < self.threads]
            self.fault("a barrier that some threads of the program do not reach", at, ended * self.threads)
        self.shared.passed[programs] += 1

    def warps(self, at: Instruction, i: Lanes, size: int = 32) -> int:
        """How many warps these lanes are."""
        lanes = self.lanes(i)
        first, last = lanes[::size], lanes[size - 1 :: size]
        part = self.threads % size or len(first) != len(last)
        if part or (i is not None and ((first % size).any() or (last - first != size - 1).any())):
            self.stop("a part of a warp" if size == 32 else "a part of a warpgroup", at, lanes)
        return len(first)

    def warpgroups(self, at: Instruction, i: Lanes) -> Array:
        """The first lanes of these warpgroups."""
        self.warps(at, i, 128)
        return self.lanes(i)[::128]

    # Faults

    def fault(self, kind: str, at: Instruction, lanes: Array, detail: str = "", stop: bool = False) -> None:
        lane = int(lanes[0])
        program, thread = self.first + lane // self.threads, lane % self.threads
        self.launch.faults.add(Fault(kind, self.launch.kernel, program, thread, at, detail), stop)

    def stop(self, kind: str, at: Instruction, lanes: Array, detail: str = "") -> NoReturn:
        self.fault(kind, at, lanes, detail, stop=True)
        raise AssertionError

    def reporter(self, at: Instruction, lanes: Array) -> Callable[[str, Array, int], None]:
        def report(kind: str, bad: Array, count: int) -> None:
            if bad.any():
                self.fault(kind, at, lanes[np.flatnonzero(bad) // count])

        return report

    # Memory

    def address(self, base: int, offset: int, i: Lanes) -> Array:
        return np.broadcast_to(self.get(base, i) + self.get(offset, i), self.lanes(i).shape)

    def access(
        self,
        at: Instruction,
        space: str,
        kind: str,
        where: Array,
        size: int,
        lanes: Array,
        dtype: type,
        values: Optional[Array] = None,
    ) -> tuple[Array, Array]:
        """Memory, and where in it each of these lanes loads, stores `values` [lanes, …] or adds so many bytes."""
        if space == "global":
            if found := self.launch.memory.outside(where, size):
                self.stop("an access outside the tensors", at, lanes[found[0] :], found[1])
        else:
            where = where.astype(np.int64)
            outside = where + size > self.launch.shared
            if outside.any():
                detail = f"{size} bytes at byte {int(where[outside][0])} of {self.launch.shared}"
                self.stop("an access outside shared memory", at, lanes[outside], detail)
        odd = where % where.dtype.type(size) != 0
        if odd.any():
            self.stop("a misaligned access", at, lanes[odd], f"{size} bytes at {int(where[odd][0]):#x}")
        if self.counts:
            self.counts.access(self.launch.kernel, space, kind, where, size, lanes)
        if space == "global":
            if values is not None and self.launch.sanitize:
                _, first, inverse = np.unique(where, return_index=True, return_inverse=True)
                differ = (values != values[first[inverse]]).any(1)
                if differ.any():
                    self.fault("threads store different values at one address", at, lanes[differ])
            return self.launch.memory.array(dtype), Global.index(where, dtype)
        flat = self.shared.flat(where, lanes)
        if self.shared.grain:
            self.shared.watch(kind, flat, size, lanes, self.reporter(at, lanes), values)
        return self.shared.array(dtype), flat // np.dtype(dtype).itemsize


class Copies:
    """cp.async: what a thread copies arrives when it waits for the group that it committed."""

    def __init__(self, machine: Machine):
        self.machine = machine
        self.committed = np.zeros(len(machine.all), np.int32)
        self.pending: list[tuple[Array, ...]] = []

    def start(self, at: Instruction, to: Array, source: Array, size: int, given: Array, i: Lanes) -> None:
        m = self.machine
        lanes, given = m.lanes(i), np.broadcast_to(given, to.shape)
        part = (given != 0) & (given != size)
        if part.any():
            m.stop("an asynchronous copy of a part", at, lanes[part])
        m.access(at, "global", "load", source[given > 0], size, lanes[given > 0], np.uint32)
        _, words = m.access(at, "shared", "store", to, size, lanes, np.uint32)
        sizes = np.full(len(lanes), size)
        self.pending.append((lanes, words, np.array(source), given > 0, sizes, self.committed[lanes]))

    def commit(self, i: Lanes) -> None:
        self.committed[self.machine.lanes(i)] += 1

    def wait(self, left: int, i: Lanes) -> None:
        waits = np.zeros(len(self.committed), bool)
        waits[self.machine.lanes(i)] = True
        later = []
        for copy in self.pending:
            lanes, group = copy[0], copy[-1]
            done = waits[lanes] & (group < self.committed[lanes] - left)
            if done.any():
                self._arrive(*(x[done] for x in copy[:-1]))
            if not done.all():
                later.append(tuple(x[~done] for x in copy))
        self.pending = later

    def _arrive(self, lanes: Array, words: Array, source: Array, given: Array, sizes: Array) -> None:
        m, size = self.machine, int(sizes[0])
        memory, shared = m.launch.memory.array(np.uint32), m.shared.array(np.uint32)
        index = Global.index(source[given], np.uint32)
        for k in range(size // 4):
            shared[words + k] = 0
            shared[words[given] + k] = memory[index + k]
        if m.shared.grain:
            m.shared.copied(words * 4, size, lanes)


class Products:
    """wgmma: sums are poison until a warpgroup waits for the group that it committed; then shared memory is free."""

    def __init__(self, machine: Machine):
        self.machine = machine
        groups = len(machine.all) // 128 + 1
        self.fenced, self.committed = np.zeros(groups, bool), np.zeros(groups, np.int32)
        # For each product: warpgroups, their commits at its start, slots and values of the sums, words that it reads.
        self.pending: list[tuple[Array, Array, list[int], Array, Array]] = []

    def fence(self, first: Array) -> None:
        self.fenced[first >> 7] = True

    def commit(self, first: Array) -> None:
        self.committed[first >> 7] += 1
        self.fenced[first >> 7] = False

    def start(
        self,
        at: Instruction,
        slots: list[int],
        descriptors: tuple[Array, Array],
        keep: Array,
        columns: int,
        along_rows: list[bool],
        i: Lanes,
    ) -> None:
        m = self.machine
        first = m.warpgroups(at, i)
        groups, lanes = first >> 7, m.lanes(i)
        if not self.fenced[groups].all():
            m.fault("a product with no wgmma.fence before it", at, first[~self.fenced[groups]])
        factors, reading = [], []
        for descriptor, rows, transposed in zip(descriptors, (64, columns), along_rows, strict=True):
            given = np.broadcast_to(descriptor, lanes.shape).reshape(-1, 128)
            if (given != given[:, :1]).any():
                m.stop("threads of a warpgroup give different matrices", at, first)
            where = tensor.descriptor_addresses(given[:, 0], rows, transposed)
            if int(where.max()) + 2 > m.launch.shared:
                m.stop("an access outside shared memory", at, first, f"byte {int(where.max())} of {m.launch.shared}")
            flat = m.shared.flat(where, first[:, None, None])
            if m.shared.grain:
                reading.append(m.shared.products(flat, first, m.reporter(at, first)))
            factors.append(m.shared.array(np.float16)[flat // 2])
        start = self._under_way(groups, slots, lanes)
        start[:, ~np.broadcast_to(keep, lanes.shape)] = 0
        sums = tensor.sums(list(start)).reshape(len(groups), 64, columns)
        result, inexact = tensor.product(factors[0], factors[1].swapaxes(1, 2), sums)
        if inexact.any():
            m.fault("a product whose partial sums need more than 24 bits", at, first[inexact.any((1, 2))])
        values = np.stack(tensor.registers_of(result.reshape(-1, 16, columns))).reshape(len(slots), len(groups), 128)
        words = np.concatenate(reading, 1) if reading else np.zeros((len(groups), 0), np.int64)
        self.pending.append((groups, self.committed[groups], slots, values, words))
        for slot in slots:
            m.put(slot, i, POISON)

    def _under_way(self, groups: Array, slots: list[int], lanes: Array) -> Array:
        """The sums [slots, lanes] that a product starts from: those of one before it, where that has not ended."""
        start = np.stack([self.machine.views[slot][lanes] for slot in slots]).view(np.uint32)
        for before, _, same, values, _ in self.pending:
            if same == slots:
                found = np.isin(groups, before)
                start.reshape(len(slots), -1, 128)[:, found] = values[:, np.searchsorted(before, groups[found])]
        return start

    def wait(self, left: int, first: Array) -> None:
        m, waits = self.machine, np.zeros(len(self.committed), bool)
        waits[first >> 7] = True
        later = []
        for groups, commits, slots, values, words in self.pending:
            done = waits[groups] & (commits < self.committed[groups] - left)
            lanes = (groups[done][:, None] * 128 + np.arange(128)).reshape(-1)
            for slot, value in zip(slots, values[:, done], strict=True):
                m.views[slot][lanes] = value.reshape(-1)
            if m.shared.grain:
                m.shared.products_done(words[done], groups[done] * 128)
            if not done.all():
                later.append((groups[~done], commits[~done], slots, values[:, ~done], words[~done]))
        self.pending = later
