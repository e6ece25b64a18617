"""Blocks of rows that stay in cache, and the buffers they are computed in. No formula is here."""

from collections.abc import Callable

import torch
from torch import Tensor

# Float32 elements that a loop over blocks works on at a time, so that a few such buffers stay in cache.
CACHE_ELEMENTS = 1 << 19


def work_rows(x: Tensor, count: int, elements: int) -> Tensor:
    """Float32 `[count, R, D]` for blocks of rows of `x`: fresh pages for each block cost more than its arithmetic."""
    most = min(x.shape[:-1].numel(), max(1, elements // x.shape[-1]))
    return torch.empty(count, most, x.shape[-1], dtype=torch.float32, device=x.device)


def each_block(function: Callable[..., None], elements: int, x: Tensor, *outs: Tensor) -> None:
    """Call `function` with the same rows of `x` `[B, N, D]` and of each of `outs`, in blocks of so many elements."""
    if all(tensor.is_contiguous() for tensor in (x, *outs)):
        x, *outs = (tensor.view(1, -1, *tensor.shape[2:]) for tensor in (x, *outs))  # type: ignore[assignment]
    step = max(1, elements // x.shape[2])
    for sample in range(x.shape[0]):
        for start in range(0, x.shape[1], step):
            function(*[tensor[sample, start : start + step] for tensor in (x, *outs)])


class Work:
    """Buffers of a block of logits, made once: fresh pages cost more than the arithmetic on them."""

    def __init__(self, elements: int, device: torch.device):
        self.floats = torch.empty(3, elements, dtype=torch.float32, device=device)
        self.doubles = torch.empty(elements, dtype=torch.float64, device=device)

    def take(self, rows: int, columns: int) -> tuple[Tensor, ...]:
        return *self.floats[:, : rows * columns].view(3, rows, columns), self.double(rows, columns)

    def double(self, rows: int, columns: int) -> Tensor:
        return self.doubles[: rows * columns].view(rows, columns)
