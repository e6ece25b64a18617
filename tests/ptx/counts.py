"""What executed code asked of memory, for each kernel: exact counts, no time."""

import collections

import numpy as np

from .arithmetic import Array

SECTOR = 32  # bytes of global memory that come at once
BANKS = 32  # words of shared memory that come at once


class Counts:
    def __init__(self) -> None:
        # (kernel, what) → number; "requested" are sectors that each warp's instruction touches, "needed" what the
        # distinct bytes of an instruction would fill, "distinct" the sectors of a whole launch; "repeats" are lanes
        # whose atomic goes where that of a lane before them in the warp goes.
        self.numbers: collections.Counter[tuple[str, str]] = collections.Counter()
        self._touched: dict[tuple[str, str], list[Array]] = collections.defaultdict(list)

    def access(self, kernel: str, space: str, kind: str, where: Array, size: int, lanes: Array) -> None:
        if len(where):
            if kind == "atomic":
                addresses = np.unique((lanes >> 5) << 48 | where.astype(np.int64))
                self.numbers[kernel, f"{space} atomic: repeats"] += len(where) - len(addresses)
            (self._sectors if space == "global" else self._banks)(kernel, f"{space} {kind}", where, size, lanes)

    def _sectors(self, kernel: str, kind: str, where: Array, size: int, lanes: Array) -> None:
        sectors = np.stack((where, where + np.uint64(size - 1))).astype(np.int64) // SECTOR
        touched = np.unique((lanes >> 5) << 44 | sectors)
        bytes_ = len(np.unique((lanes >> 5) << 48 | where.astype(np.int64))) * size
        self.numbers[kernel, f"{kind}: instructions"] += len(np.unique(lanes >> 5))
        self.numbers[kernel, f"{kind}: sectors requested"] += len(touched)
        self.numbers[kernel, f"{kind}: bytes needed"] += bytes_
        self._touched[kernel, kind].append(np.unique(touched & (1 << 44) - 1))

    def _banks(self, kernel: str, kind: str, where: Array, size: int, lanes: Array) -> None:
        """Accesses of 32 lanes of up to four bytes, 16 of eight or 8 of sixteen take a wavefront each, or several."""
        together = 32 * 4 // max(4, size)
        words = (where[:, None] // 4 + np.arange(max(1, size // 4))).reshape(-1)
        groups = np.repeat(lanes // together, max(1, size // 4))
        distinct = np.unique(groups << 20 | words)
        of_bank, times = np.unique(distinct >> 20 << 5 | distinct % BANKS, return_counts=True)
        _, starts = np.unique(of_bank >> 5, return_index=True)
        self.numbers[kernel, f"{kind}: wavefronts"] += int(np.maximum.reduceat(times, starts).sum())
        self.numbers[kernel, f"{kind}: conflicts"] += int(np.maximum.reduceat(times, starts).sum()) - len(starts)

    def launched(self, kernel: str) -> None:
        """Distinct sectors are those of one launch."""
        for (name, kind), touched in self._touched.items():
            if touched:
                self.numbers[name, f"{kind}: sectors distinct"] += len(np.unique(np.concatenate(touched)))
        self._touched.clear()
