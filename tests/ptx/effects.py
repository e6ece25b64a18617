"""Instructions with effects: memory, warps, barriers, products."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from . import tensor
from .link import Lanes, Linker, Step, effect
from .parse import DTYPES, SIZE, Instruction, Unsupported, members

WIDTHS = r"(\.v[24])?\.[bsu](8|16|32|64)"
ADDRESS = {"global": "u64", "shared": "u32"}
ATOMIC = {"add": np.add, "max": np.maximum, "min": np.minimum}
REDUCED = {**ATOMIC, "and": np.bitwise_and, "or": np.bitwise_or}


@effect(r"ld\.param\.[bsu](32|64)")
def parameter(linker: Linker, at: Instruction) -> Step:
    kind = at.opcode.split(".")[-1]
    base, offset = linker.address(at.operands[1], "u32")
    d, size = linker.write(at.operands[0], kind), SIZE[kind]

    def step(m: Any, i: Lanes) -> None:
        where = np.broadcast_to(m.get(base, i) + m.get(offset, i), m.lanes(i).shape)
        outside = (where + np.uint32(size) > len(m.parameters)) | (where % np.uint32(size) != 0)
        if outside.any():
            m.stop("a parameter is read that the kernel does not have", at, m.lanes(i)[outside])
        m.put(d, i, m.parameters.view(DTYPES[kind])[where // np.uint32(size)])

    return step


@effect(rf"ld\.(global|shared){WIDTHS}")
def load(linker: Linker, at: Instruction) -> Step:
    space, kind = at.opcode.split(".")[1], at.opcode.split(".")[-1]
    base, offset = linker.address(at.operands[1], ADDRESS[space])
    targets = [linker.write(x, kind) for x in members(at.operands[0])]
    dtype, size = DTYPES[kind], SIZE[kind] * len(targets)
    linker.shares(SIZE[kind] if space == "shared" else 4)

    def step(m: Any, i: Lanes) -> None:
        memory, index = m.access(at, space, "load", m.address(base, offset, i), size, m.lanes(i), dtype)
        for k, target in enumerate(targets):
            m.put(target, i, memory[index + k])

    return step


@effect(rf"st\.(global|shared(::cta)?){WIDTHS}")
def store(linker: Linker, at: Instruction) -> Step:
    space = "global" if ".global" in at.opcode else "shared"
    kind = "b" + re.sub(r".*\D", "", at.opcode)
    base, offset = linker.address(at.operands[0], ADDRESS[space])
    sources = [linker.read(x, kind) for x in members(at.operands[1])]
    dtype, size = DTYPES[kind], SIZE[kind] * len(sources)
    linker.shares(SIZE[kind] if space == "shared" else 4)

    def step(m: Any, i: Lanes) -> None:
        where = m.address(base, offset, i)
        values = np.stack([np.broadcast_to(m.get(source, i), where.shape) for source in sources], 1)
        memory, index = m.access(at, space, "store", where, size, m.lanes(i), dtype, values)
        for k in range(len(sources)):
            memory[index + k] = values[:, k]

    return step


@effect(r"(atom|red)\.(global|shared)\.(gpu|cta)\.relaxed\.(add|max|min)\.[su](32|64)")
@effect(r"atom\.(global|shared)\.(add|max|min)\.[su](32|64)")
@effect(r"atom\.relaxed\.(sys|gpu|cta)\.(global|shared)\.(add|max|min)\.[su](32|64)")
def atomic(linker: Linker, at: Instruction) -> Step:
    parts = at.opcode.split(".")
    space, kind, function = ("global" if "global" in parts else "shared"), parts[-1], ATOMIC[parts[-2]]
    *target, where_, value = at.operands
    base, offset = linker.address(where_, ADDRESS[space])
    source, dtype, size = linker.read(value, kind), DTYPES[kind], SIZE[kind]
    linker.shares(size if space == "shared" else 4)
    name = target[0] if target else "_"
    others = (x for other in linker.code.instructions if other is not at for x in (*other.operands, str(other.guard)))
    used = any(re.search(rf"{re.escape(name)}\b", x) for x in others)
    d = linker.write(name, kind) if used else None

    def step(m: Any, i: Lanes) -> None:
        where = m.address(base, offset, i)
        values = np.broadcast_to(m.get(source, i), where.shape)
        memory, index = m.access(at, space, "atomic", where, size, m.lanes(i), dtype)
        if len(index) == 0:
            return
        first = index.min()  # ufunc.at does not take an array of all memory
        window = memory[first : index.max() + 1]
        if d is None:
            function.at(window, index - first, values)
            return
        before = np.empty_like(values)
        for k, (at_, value) in enumerate(zip(index - first, values, strict=True)):
            before[k] = window[at_]
            window[at_] = function(window[at_], value)
        m.put(d, i, before)

    return step


@effect(r"cp\.async\.c[ag]\.shared\.global")
def copy(linker: Linker, at: Instruction) -> Step:
    to, source, size = at.operands[:3]
    shared, there, count = linker.address(to, "u32"), linker.address(source, "u64"), int(size, 0)
    given = linker.read(at.operands[3] if len(at.operands) > 3 else size, "u32")
    if count not in (4, 8, 16):
        raise Unsupported(f"{count} bytes")

    def step(m: Any, i: Lanes) -> None:
        m.copies.start(at, m.address(*shared, i), m.address(*there, i), count, m.get(given, i), i)

    return step


@effect(r"cp\.async\.commit_group")
def commit(linker: Linker, at: Instruction) -> Step:
    return lambda m, i: m.copies.commit(i)


@effect(r"cp\.async\.wait_group")
def wait(linker: Linker, at: Instruction) -> Step:
    left = int(at.operands[0], 0)
    return lambda m, i: m.copies.wait(left, i)


@effect(r"bar\.sync")
def barrier(linker: Linker, at: Instruction) -> Step:
    if at.operands != ("0",) or at.guard:
        raise Unsupported("another barrier than that of all threads")
    return lambda m, i: m.barrier(at, i)


@effect(r"bar\.warp\.sync")
def warp_barrier(linker: Linker, at: Instruction) -> Step:
    warps = whole_warps(linker, at, at.operands[0])
    return lambda m, i: warps(m, i) and None


@effect(r"fence\.proxy\.async\.shared::cta")
def fence(linker: Linker, at: Instruction) -> Step:
    return lambda m, i: m.shared.grain and m.shared.fence(m.lanes(i))


WHOLE = np.uint32(0xFFFFFFFF)


def whole_warps(linker: Linker, at: Instruction, mask: str) -> Callable[[Any, Lanes], int]:
    """How many warps run an instruction whose mask must name all their threads."""
    if mask not in linker.code.registers and int(mask, 0) & int(WHOLE) != WHOLE:
        raise Unsupported("a part of a warp")
    slot = linker.read(mask, "u32")

    def warps(m: Any, i: Lanes) -> int:
        part = m.get(slot, i) != WHOLE
        if part.any():
            m.stop("a part of a warp", at, m.lanes(i)[part])
        return m.warps(at, i)

    return warps


@effect(r"shfl\.sync\.(up|down|bfly|idx)\.b32")
def shuffle(linker: Linker, at: Instruction) -> Step:
    whole = whole_warps(linker, at, at.operands[4])
    mode = at.opcode.split(".")[2]
    targets = at.operands[0].split("|")
    d, inside = linker.write(targets[0], "b32"), linker.write(targets[1], "pred") if len(targets) > 1 else None
    value, lane_, bounds = linker.read(at.operands[1], "b32"), *(linker.read(x, "s32") for x in at.operands[2:4])

    def step(m: Any, i: Lanes) -> None:
        warps = whole(m, i)
        x, b, c = (np.broadcast_to(m.get(s, i), (warps * 32,)).reshape(warps, 32) for s in (value, lane_, bounds))
        lane, b, clamp, segment = np.arange(32), b & 31, c & 31, c >> 8 & 31
        limit = lane & segment | clamp & ~segment
        j = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": lane & segment | b & ~segment}[mode]
        ok = j >= limit if mode == "up" else j <= limit
        m.put(d, i, np.take_along_axis(x, np.where(ok, j, lane), 1).reshape(-1))
        if inside is not None:
            m.put(inside, i, ok.reshape(-1))

    return step


@effect(r"vote\.sync\.(ballot\.b32|(all|any|uni)\.pred)")
def vote(linker: Linker, at: Instruction) -> Step:
    whole = whole_warps(linker, at, at.operands[2])
    what, kind = at.opcode.split(".")[2:]
    d, predicate = linker.write(at.operands[0], kind), linker.read(at.operands[1], "pred")

    def step(m: Any, i: Lanes) -> None:
        p = np.broadcast_to(m.get(predicate, i), (whole(m, i) * 32,)).reshape(-1, 32)
        if what == "ballot":
            v = (p << np.arange(32, dtype=np.uint64)).sum(1, dtype=np.uint64)
        else:
            v = {"all": p.all(1), "any": p.any(1), "uni": p.all(1) | ~p.any(1)}[what]
        m.put(d, i, np.repeat(v, 32))

    return step


@effect(r"redux\.sync\.((add|max|min)\.[su]32|(and|or)\.b32)")
def reduce(linker: Linker, at: Instruction) -> Step:
    whole = whole_warps(linker, at, at.operands[2])
    what, kind = at.opcode.split(".")[2:]
    d, source = linker.write(at.operands[0], kind), linker.read(at.operands[1], kind)

    def step(m: Any, i: Lanes) -> None:
        x = np.broadcast_to(m.get(source, i), (whole(m, i) * 32,)).reshape(-1, 32)
        m.put(d, i, np.repeat(REDUCED[what].reduce(x, 1, dtype=x.dtype), 32))

    return step


@effect(r"(ld|st)matrix\.sync\.aligned\.m8n8\.x[124](\.trans)?\.shared\.b16")
def move_matrix(linker: Linker, at: Instruction) -> Step:
    """Eight lanes give the rows of each 8 × 8 matrix; a lane holds two halves of a row of each."""
    loads, transposed = at.opcode.startswith("ld"), ".trans" in at.opcode
    where, registers = at.operands[::-1] if loads else at.operands
    names, (base, offset) = members(registers), linker.address(where, "u32")
    slots = [linker.write(x, "b32") if loads else linker.read(x, "b32") for x in names]
    count = len(names)

    def step(m: Any, i: Lanes) -> None:
        warps = m.warps(at, i)
        gives = np.arange(warps * 32) % 32 < 8 * count
        lanes, rows = m.lanes(i)[gives], m.address(base, offset, i)[gives]
        if loads:
            memory, index = m.access(at, "shared", "load", rows, 16, lanes, np.uint16)
            x = memory[index[:, None] + np.arange(8)].reshape(warps, count, 8, 8)
            x = tensor.words(x.swapaxes(2, 3) if transposed else x).reshape(warps, count, 32)
            for k, slot in enumerate(slots):
                m.put(slot, i, x[:, k].reshape(-1))
            return
        x = np.stack([np.broadcast_to(m.get(slot, i), (warps * 32,)).reshape(warps, 32) for slot in slots], 1)
        x = np.ascontiguousarray(x).view(np.uint16).reshape(warps, count, 8, 8)
        values = np.ascontiguousarray(x.swapaxes(2, 3) if transposed else x).reshape(-1, 8)
        memory, index = m.access(at, "shared", "store", rows, 16, lanes, np.uint16, values)
        memory[index[:, None] + np.arange(8)] = values

    return step


@effect(r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.f16\.f16\.f32")
def product(linker: Linker, at: Instruction) -> Step:
    a, b, c = ([linker.read(x, "b32") for x in members(operand)] for operand in at.operands[1:])
    d = [linker.write(x, "b32") for x in members(at.operands[0])]

    def step(m: Any, i: Lanes) -> None:
        shape = (m.warps(at, i) * 32,)
        x, y, z = ([np.broadcast_to(m.get(s, i), shape) for s in slots] for slots in (a, b, c))
        result, inexact = tensor.product(tensor.left(x), tensor.right(y), tensor.sums(z))
        if inexact.any():
            m.fault("a product whose partial sums need more than 24 bits", at, m.lanes(i)[::32][inexact.any((1, 2))])
        for slot, value in zip(d, tensor.registers_of(result), strict=True):
            m.put(slot, i, value)

    return step


@effect(r"wgmma\.(fence|commit_group|wait_group)\.sync\.aligned")
def control_products(linker: Linker, at: Instruction) -> Step:
    what = at.opcode.split(".")[1]
    if what == "wait_group":
        left = int(at.operands[0], 0)
        return lambda m, i: m.products.wait(left, m.warpgroups(at, i))
    return lambda m, i: getattr(m.products, what.removesuffix("_group"))(m.warpgroups(at, i))


@effect(r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k16\.f32\.f16\.f16")
def asynchronous_product(linker: Linker, at: Instruction) -> Step:
    columns = int(at.opcode.split("m64n")[1].split("k16")[0])
    d = [linker.read(x, "b32") for x in members(at.operands[0])]
    if at.operands[1].startswith("{"):
        raise Unsupported("an operand in registers, which ptxas 12.9 reuses before they are read")
    a, b, keep = (
        linker.read(at.operands[1], "u64"),
        linker.read(at.operands[2], "u64"),
        linker.read(at.operands[3], "pred"),
    )
    sign_a, sign_b, *transposed = map(int, at.operands[4:])
    if (sign_a, sign_b) != (1, 1) or len(d) != columns // 2 or at.guard:
        raise Unsupported("operands")
    along_rows = [bool(x) for x in transposed] or [False, False]

    def step(m: Any, i: Lanes) -> None:
        m.products.start(at, d, (m.get(a, i), m.get(b, i)), m.get(keep, i), columns, along_rows, i)

    return step
