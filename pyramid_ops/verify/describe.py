"""What every op is tested, compiled, composed and timed with: one description each."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Optional

import torch

from .._op import Op
from .inputs import FEATURES


class Case(NamedTuple):
    """Arguments as the two rooms take them; a slow one is left to `make test-all`."""

    id: str
    args: tuple
    slow: bool = False


Cases = Iterator[Case]


class Call(NamedTuple):
    """A public call on inputs of any content, for what it launches."""

    id: str
    call: Callable[[], object]
    dtype: torch.dtype = torch.float32


class Description(NamedTuple):
    """One op, and what it meets.

    `golden`: cases that depend on no version, for digests. `bits`: cases for kernel against reference. `ones`: calls
    whose sizes, strides and counts are 1, which Triton makes constants. `compiled`: calls of all shipped
    configurations, kept in the table of compiled code; `sizes`: others that must not spill. `compose`: a step in random
    compositions. `benchmark`: the function under `bench/` that times it. `dtypes` are those that golden cases have;
    Other kernels run where choosers give the numbers of `limits`: cases are executed with these too. `scattered`
    kernels read single values that lie apart, so that their loads are narrow; `dots` run on tensor cores.
    """

    op: Op
    golden: Callable[[], Cases]
    bits: Callable[[], Cases]
    ones: Callable[[], Iterator[Call]]
    compiled: Callable[[], Iterator[Call]]
    compose: Callable[[Any], None]
    benchmark: str
    sizes: Optional[Callable[[], Iterator[Call]]] = None
    dtypes: tuple[torch.dtype, ...] = FEATURES
    scattered: tuple[str, ...] = ()
    dots: tuple[str, ...] = ()
    limits: Optional[dict[str, int]] = None
