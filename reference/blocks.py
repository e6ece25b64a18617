"""Blocks of rows that stay in cache, and the buffers they are computed in. No formula is here."""

from collections.abc import Callable

import torch
from torch import Tensor

# Float32 elements that a loop over blocks works on at a time, so that a few such buffers stay in cache; so many logits.
CACHE_ELEMENTS, LOGITS = 1 << 19, 1 << 19
# Features of keys that are unit rows at a time in attention, or those of one head.
HEAD_FEATURES = 1 << 20
# Blocks of a walk that are kept from step to step.
KEPT = 64
# Bytes of products that exist at a time in a search, and at most half as many of query rows; keys searched at a time.
PRODUCT_BYTES, SEARCHED = 1 << 22, 64
# Products of short segments that are computed together, those across segments in vain: the calls would cost more.
TOGETHER = 1 << 15


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
