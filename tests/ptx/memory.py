"""Global and shared memory, and the sanitiser that watches both."""

from collections.abc import Callable, Sequence
from typing import ClassVar, Optional

import numpy as np

from .arithmetic import Array

POISON = 0xFF
# In place of a warp's number; atomics of one warp alone are below ATOMIC by it and one more.
NOBODY, SEVERAL, ATOMIC = -1, -2, -3
_OFFSET = 64


class _Everything:
    """All memory of this process, for NumPy."""

    __array_interface__: ClassVar[dict] = {
        "shape": ((1 << 47) - 4096,),
        "typestr": "|u1",
        "data": (_OFFSET, False),
        "version": 3,
    }


class Global:
    """The tensors of a launch: nothing else may be touched."""

    def __init__(self, extents: Sequence[tuple[int, int, str]]):
        merged: list[tuple[int, int, str]] = []  # views of one tensor overlap
        for start, end, name in sorted(extent for extent in extents if extent[0] < extent[1]):
            if merged and start < merged[-1][1]:
                first, last, names = merged.pop()
                start, end, name = first, max(last, end), f"{names} and {name}"
            merged.append((start, end, name))
        self.names = [name for _, _, name in merged]
        self.starts = np.array([start for start, _, _ in merged], np.uint64)
        self.ends = np.array([end for _, end, _ in merged], np.uint64)
        self._bytes = np.asarray(_Everything())

    def outside(self, addresses: Array, size: int) -> Optional[tuple[int, str]]:
        """Which access is the first to leave the tensors, and where it goes."""
        if not len(addresses):
            return None
        if not len(self.starts):
            return 0, "no tensor has elements"
        low, high = addresses.min(), addresses.max()
        k = int(np.searchsorted(self.starts, low, "right")) - 1
        if k >= 0 and int(high) + size <= int(self.ends[k]):
            return None
        tensors = np.maximum(np.searchsorted(self.starts, addresses, "right").astype(np.int64) - 1, 0)
        bad = (addresses < self.starts[tensors]) | (addresses + np.uint64(size) > self.ends[tensors])
        if not bad.any():
            return None
        first = int(np.flatnonzero(bad)[0])
        at, k = int(addresses[first]), int(tensors[first])
        inside = int(self.ends[k]) - int(self.starts[k])
        return first, f"{size} bytes at byte {at - int(self.starts[k])} of {self.names[k]}, which has {inside}"

    def array(self, dtype: type) -> Array:
        return self._bytes.view(dtype)

    @staticmethod
    def index(addresses: Array, dtype: type) -> Array:
        return ((addresses - np.uint64(_OFFSET)) // np.uint64(np.dtype(dtype).itemsize)).astype(np.int64)


class Shared:
    """Shared memory of several programs, poisoned at the start. With `grain` it is watched, so many bytes at a time.

    A word has a last writer and reader, the barriers that their program had passed by then, and whether a fence for
    asynchronous readers followed the write. `lanes` are numbers of threads, counted on over the programs.
    """

    def __init__(self, programs: int, size: int, threads: int, grain: int):
        self.size, self.threads, self.grain = size, threads, grain
        self.stride = -(-size // 1024) * 1024
        self.bytes = np.full(programs * self.stride, POISON, np.uint8)
        self.passed = np.zeros(programs, np.int32)  # barriers
        if not size:
            self.grain = 0
        if self.grain:
            words = len(self.bytes) // grain
            self.written, self.fenced = np.zeros(words, bool), np.ones(words, bool)
            self.products_reading = np.zeros(words, np.int32)
            self.last = np.zeros(words, np.int64)
            self.writer, self.reader = (np.full(words, NOBODY, np.int32) for _ in range(2))
            self.write_time, self.read_time, self.product_time = (np.full(words, -1, np.int32) for _ in range(3))

    def flat(self, addresses: Array, lanes: Array) -> Array:
        return lanes // self.threads * self.stride + addresses

    def array(self, dtype: type) -> Array:
        return self.bytes.view(dtype)

    def _words(self, at: Array, size: int, lanes: Array) -> tuple[Array, Array, Array]:
        """Watched words of accesses, with the warp and the time of each."""
        count = max(1, size // self.grain)
        words = at // self.grain
        warps, times = (lanes >> 5).astype(np.int32), self.passed[lanes // self.threads]
        if count > 1:
            words = (words[:, None] + np.arange(count)).reshape(-1)
            warps, times = np.repeat(warps, count), np.repeat(times, count)
        return words, warps, times

    def watch(
        self, kind: str, at: Array, size: int, lanes: Array, report: Callable, values: Optional[Array] = None
    ) -> None:
        if kind == "store":
            self.stores(at, size, lanes, report, values)
        else:
            {"load": self.loads, "atomic": self.atomics}[kind](at, size, lanes, report)

    def loads(self, at: Array, size: int, lanes: Array, report: Callable) -> None:
        words, warps, times = self._words(at, size, lanes)
        count = len(words) // len(lanes)
        report("shared memory is read that nothing wrote", ~self.written[words], count)
        late = self._written_by_others(words, warps, times)
        report("shared memory is read that another warp wrote, with no barrier between", late, count)
        others = (self.read_time[words] == times) & (self.reader[words] != warps)
        self.reader[words] = np.where(others, SEVERAL, warps)
        self.read_time[words] = times
        self.reader[words[self.reader[words] != warps]] = SEVERAL

    def stores(self, at: Array, size: int, lanes: Array, report: Callable, values: Optional[Array] = None) -> None:
        """Without `values` [lanes, …], a copy that is under way."""
        words, warps, times = self._words(at, size, lanes)
        count = len(words) // len(lanes)
        late = self._written_by_others(words, warps, times)
        report("shared memory is written that another warp wrote, with no barrier between", late, count)
        late = (self.read_time[words] == times) & (self.reader[words] != warps)
        report("shared memory is written that another warp read, with no barrier between", late, count)
        late = self.product_time[words] == times  # another warp may not have waited for its part yet
        report("shared memory is written that a product read, with no barrier between", late, count)
        report("shared memory is written that a product still reads", self.products_reading[words] > 0, count)
        self.written[words] = values is not None
        self.fenced[words] = False
        self.writer[words], self.write_time[words] = warps, times
        order = np.arange(len(words))
        self.last[words] = order
        last = self.last[words]
        if values is not None and (last != order).any():  # several threads store here: one value is harmless
            mine = np.ascontiguousarray(values).view(np.uint8).reshape(-1, self.grain)
            differ = (mine != mine[last]).any(1)
            report("threads store different values at one address of shared memory", differ, count)

    def atomics(self, at: Array, size: int, lanes: Array, report: Callable) -> None:
        words, warps, times = self._words(at, size, lanes)
        count = len(words) // len(lanes)
        report("shared memory is added to that nothing wrote", ~self.written[words], count)
        now = self.write_time[words] == times
        before = self.writer[words]
        added = before <= ATOMIC  # by one warp, or by several
        late = (now & ~added & (before != warps)) | ((self.read_time[words] == times) & (self.reader[words] != warps))
        report("shared memory is added to that another warp uses, with no barrier between", late, count)
        own = ATOMIC - 1 - warps
        self.writer[words] = np.where(now & added & (before != own), ATOMIC, own)
        self.writer[words[self.writer[words] != own]] = ATOMIC
        self.write_time[words] = times

    def _written_by_others(self, words: Array, warps: Array, times: Array) -> Array:
        """Whether another warp than this one has written since the last barrier; an atomic counts as a write."""
        writer = self.writer[words]
        return (self.write_time[words] == times) & (writer != warps) & (writer != ATOMIC - 1 - warps)

    def copied(self, at: Array, size: int, lanes: Array) -> None:
        """Asynchronous copies of these lanes have arrived."""
        words, warps, times = self._words(at, size, lanes)
        self.written[words], self.fenced[words] = True, False
        self.writer[words], self.write_time[words] = warps, times

    def products(self, at: Array, lanes: Array, report: Callable) -> Array:
        """Halves at `at` [groups, …] are read by an asynchronous product of the warpgroups that start at `lanes`.

        Returns the words [groups, …], which `products_reading` counts until it is done.
        """
        times = np.repeat(self.passed[lanes // self.threads], at[0].size)
        words = at.reshape(-1) // self.grain
        count = at[0].size
        report("a product reads shared memory that nothing wrote", ~self.written[words], count)
        report("a product reads shared memory that no fence.proxy.async followed", ~self.fenced[words], count)
        report("a product reads what was written with no barrier between", self.write_time[words] == times, count)
        np.add.at(self.products_reading, words, 1)
        return words.reshape(len(lanes), -1)

    def products_done(self, words: Array, lanes: Array) -> None:
        """Warpgroups that start at `lanes` have waited for products that read `words` [groups, …]."""
        np.subtract.at(self.products_reading, words.reshape(-1), 1)
        self.product_time[words] = self.passed[lanes // self.threads][:, None]

    def fence(self, lanes: Array) -> None:
        """Asynchronous readers see what the warps of these lanes wrote."""
        programs = np.unique(lanes // self.threads)
        shape = (len(self.passed), -1)
        own = np.isin(self.writer.reshape(shape)[programs], np.unique(lanes >> 5))
        self.fenced.reshape(shape)[programs] |= own
