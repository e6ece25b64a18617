"""Errors that name the op, the argument, what was expected and what came."""

import math
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
FEATURES = (*FLOATS, torch.uint8)
# What counts and lengths may be: `mask.sum(1)` is int64, `mask.any(1)` bool.
INTEGERS = (torch.int32, torch.int64, torch.bool)
MAX_FEATURES = 16384
FLOAT32_MAX = torch.finfo(torch.float32).max
# Sizes of packed tensors: what a kernel counts in int32 stays far from overflow.
MAX_PACKED = 1 << 30
_INTEGER_TYPES = (int, np.integer, torch.SymInt)


def describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"
    text = repr(value)
    return f"{text if len(text) <= 200 else text[:200] + '...'} ({type(value).__name__})"


def shape(*sizes: Any) -> str:
    """Sizes, or letters for any, as messages have them."""
    return f"[{', '.join(map(str, sizes))}]"


def _finite(value: float) -> bool:
    # Comparisons, since `torch.compile` traces them also where a number is symbolic.
    return value - value == 0


def tensor(op: str, name: str, x: Any, *layouts: str, dtypes: Sequence[torch.dtype] = FEATURES) -> Tensor:
    """`x` is a CPU or CUDA tensor with one of the `layouts` (such as "B N D") and `dtypes`, and needs no gradient."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name}: expected a tensor, got {describe(x)}")
    if x.layout is not torch.strided or x.is_nested or x.is_quantized:
        kind = "nested" if x.is_nested else "quantized" if x.is_quantized else str(x.layout).removeprefix("torch.")
        raise TypeError(f"{op}: {name}: expected a dense tensor, got a {kind} one of {x.dtype}")
    if x.dim() not in [layout.count(" ") + 1 for layout in layouts]:
        expected = " or ".join(f"[{', '.join(layout.split())}]" for layout in layouts)
        raise ValueError(f"{op}: {name}: expected shape {expected}, got {describe(x)}")
    if dtypes and x.dtype not in dtypes:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{op}: {name}: expected dtype {expected}, got {describe(x)}")
    if not (x.is_cpu or x.is_cuda):
        raise TypeError(f"{op}: {name}: expected a CPU or CUDA tensor, got {describe(x)}")
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{op}: {name}: expected no gradient (call under torch.no_grad(), gather with the returned indices where "
            f"gradients are wanted), got requires_grad=True, {describe(x)}"
        )
    return x


def tensors(
    op: str,
    name: str,
    xs: Any,
    *layouts: str,
    dtypes: Sequence[torch.dtype] = FEATURES,
    broadcast: bool = False,
    packed: bool = False,
) -> list[Tensor]:
    """A non-empty sequence of tensors that agree in device, dtype and all sizes but the second.

    With `broadcast`, a batch size of 1 agrees with any; `packed` tensors agree in all sizes but the first.
    """
    if not isinstance(xs, (list, tuple)):
        raise TypeError(f"{op}: {name}: expected a list or tuple of tensors, got {describe(xs)}")
    if not xs:
        raise ValueError(f"{op}: {name}: expected at least one tensor, got an empty {type(xs).__name__}")
    first = tensor(op, f"{name}[0]", xs[0], *layouts, dtypes=dtypes)
    batch, sizes = first.shape[0], first.shape[1 if packed else 2 :]
    for k, x in enumerate(xs[1:], 1):
        shape = tensor(op, f"{name}[{k}]", x, *layouts, dtypes=dtypes).shape
        same_batch = packed or shape[0] == batch or (broadcast and (shape[0] == 1 or batch == 1))
        same_sizes = shape[1 if packed else 2 :] == sizes
        if x.device != first.device or x.dtype != first.dtype or not (same_batch and same_sizes):
            what = "feature size" if packed else "batch size and feature size"
            raise ValueError(
                f"{op}: {name}[{k}]: expected the device, dtype, {what} of {name}[0] "
                f"({describe(first)}), got {describe(x)}"
            )
    return list(xs)


def integer(op: str, name: str, value: Any, minimum: Optional[int] = None) -> int:
    """An integer of 64 bits; a symbolic one, of a dynamic shape, stays symbolic."""
    if isinstance(value, bool) or not isinstance(value, _INTEGER_TYPES):
        raise TypeError(f"{op}: {name}: expected an integer, got {describe(value)}")
    if minimum is not None and value < minimum:
        raise ValueError(f"{op}: {name}: expected at least {minimum}, got {value}")
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"{op}: {name}: expected an integer of 64 bits, got {value}")
    return int(value)


def flag(op: str, name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name}: expected a bool, got {describe(value)}")
    return value


def longest(op: str, name: str, value: Any, rows: int) -> int:
    """Rows of the longest segment, at most all `rows`, which is the default."""
    return rows if value is None else min(integer(op, name, value, 0), rows)


def number(op: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{op}: {name}: expected a number, got {describe(value)}")
    try:
        value = float(value)
    except OverflowError as error:
        raise ValueError(f"{op}: {name}: expected a float64 number, got {value}") from error
    if not _finite(value):
        raise ValueError(f"{op}: {name}: expected a finite number, got {value}")
    return value


def share(op: str, name: str, value: Any) -> float:
    """A number from 0 to 1."""
    if not 0 <= number(op, name, value) <= 1:
        raise ValueError(f"{op}: {name}: expected a share from 0 to 1, got {value}")
    return float(value)


def float32(op: str, name: str, value: Any) -> float:
    """A number that float32 holds as a finite one, and not as 0 unless it is."""
    number(op, name, value)
    rounded = float(np.float32(value)) if abs(value) <= FLOAT32_MAX else math.inf
    if math.isinf(rounded) or (value and not rounded):
        raise ValueError(f"{op}: {name}: expected a finite number that float32 can hold, got {value}")
    return float(value)


def is_sequence(value: Any) -> bool:
    """Whether a value is meant as one for each, not one for all."""
    return isinstance(value, (list, tuple, range)) or (isinstance(value, np.ndarray) and value.ndim > 0)


def sequence(op: str, name: str, value: Any) -> list:
    """A Python or NumPy sequence (reading a tensor would synchronise with its device)."""
    if not is_sequence(value):
        raise TypeError(f"{op}: {name}: expected a list or tuple of numbers, got {describe(value)}")
    return value.tolist() if isinstance(value, np.ndarray) else list(value)


def pair(op: str, name: str, value: Any) -> tuple[int, int]:
    """(rows, columns), both at least 1."""
    sides = sequence(op, name, value)
    if len(sides) != 2:
        raise ValueError(f"{op}: {name}: expected (rows, columns), got {sides!r}")
    rows, columns = (integer(op, f"{name}[{k}]", side, 1) for k, side in enumerate(sides))
    return rows, columns


def choice(op: str, name: str, value: Any, *choices: str) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{op}: {name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def bits(dtype: torch.dtype) -> torch.dtype:
    """The integers as wide as `dtype`, in which rows are moved."""
    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]


def rows(x: Tensor) -> Tensor:
    """`x` with its last dimension contiguous and no pending negation or conjugation: a copy where it is not so."""
    x = x.resolve_neg().resolve_conj()
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def packed_size(op: str, name: str, size: int) -> int:
    if size > MAX_PACKED:
        raise ValueError(f"{op}: {name}: expected at most 2^30 rows in all, got {size}")
    return size


def device_integers(
    op: str, name: str, x: Any, like: Tensor, layout: str, *sizes: int, dtypes: Sequence[torch.dtype] = INTEGERS
) -> Tensor:
    """A tensor of that layout, and of the `sizes` if there are any, on the device of `like`: as contiguous int32.

    What int32 cannot hold becomes the nearest number that it can.
    """
    tensor(op, name, x, layout, dtypes=dtypes)
    if x.device != like.device or (sizes and tuple(x.shape) != sizes):
        expected = f"shape {list(sizes)} " if sizes else ""
        raise ValueError(f"{op}: {name}: expected {expected}on {like.device}, got {describe(x)}")
    x = x.resolve_neg()
    if x.dtype == torch.int64:
        x = x.clamp(-(1 << 31), (1 << 31) - 1)
    return x.to(torch.int32).contiguous()


def cu_seqlens(op: str, name: str, x: Any, like: Tensor, *segments: int) -> Tensor:
    """int32 `[S + 1]`, the bounds of S packed segments, where S may be given."""
    sizes = [count + 1 for count in segments]
    x = device_integers(op, name, x, like, "S+1", *sizes, dtypes=(torch.int32, torch.int64))
    if not x.shape[0]:
        raise ValueError(f"{op}: {name}: expected at least one element, got {describe(x)}")
    return x


def packed_grids(op: str, name: str, x: Any, like: Tensor, cu_seqlens: Tensor) -> Tensor:
    """int32 `[S, 2]`, height and width of each of the segments."""
    dtypes = (torch.int32, torch.int64)
    return device_integers(op, name, x, like, "S 2", cu_seqlens.shape[0] - 1, 2, dtypes=dtypes)


def feature_rows(op: str, name: str, x: Tensor) -> Tensor:
    """A checked feature tensor as `[B, N, D]` with contiguous rows; packed `[T, D]` becomes one sample."""
    features(op, name, tensor(op, name, x, "B N D", "T D"))
    return rows(x if x.dim() == 3 else x[None])


def level_rows(op: str, name: str, levels: Sequence[Tensor], layout: str) -> list[Tensor]:
    """Checked levels, `[B, N_k, D]` or packed `[T_k, D]` by their layout, with contiguous rows."""
    levels = tensors(op, name, levels, layout, packed=layout == "T D")
    features(op, f"{name}[0]", levels[0])
    return [rows(level) for level in levels]


def features(op: str, name: str, x: Tensor) -> None:
    """The last dimension is one that rows may have."""
    if not 1 <= x.shape[-1] <= MAX_FEATURES:
        raise ValueError(f"{op}: {name}: expected 1 to {MAX_FEATURES} features, got {describe(x)}")


def int_vector(op: str, name: str, values: Tensor, x: Tensor) -> Tensor:
    """A checked int32, int64 or bool tensor `[B]` beside `x`: contiguous, bool as int32."""
    tensor(op, name, values, "B", dtypes=INTEGERS)
    if values.shape[0] != x.shape[0] or values.device != x.device:
        raise ValueError(f"{op}: {name}: expected [{x.shape[0]}] on {x.device}, got {describe(values)}")
    return as_integers(values)


def as_integers(x: Tensor) -> Tensor:
    """int32 or int64 as they are, bool as int32; contiguous."""
    return (x.to(torch.int32) if x.dtype == torch.bool else x.resolve_neg()).contiguous()


def same_size(op: str, name: str, x: Tensor, shape: Sequence[int], device: torch.device) -> None:
    shape = list(shape)
    if list(x.shape) != shape or x.device != device:
        raise ValueError(f"{op}: {name}: expected {shape} on {device}, got {describe(x)}")


def limbs(op: str, precision: Optional[str], *xs: Tensor) -> int:
    """How many limbs a precision has."""
    if precision is None:
        precision = "high" if any(x.dtype == torch.float32 for x in xs) else "grid"
    return 2 if choice(op, "precision", precision, "grid", "high") == "high" else 1


def patch_grid(op: str, name: str, height: int, width: int, patch: int) -> tuple[int, int]:
    if height % patch or width % patch:
        raise ValueError(f"{op}: {name}: expected sides that are multiples of {patch}, got {height}×{width}")
    return height // patch, width // patch
