"""What is timed: a method of the library beside plain eager code of the same rule, for one sample."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

#: Tokens of an image, and the rows and columns of their grid.
GRIDS = {576: (24, 24), 2880: (48, 60), 16384: (128, 128)}
WIDTH, HEADS, GROUPS, HEAD, TEXT = 1024, 8, 2, 64, 64


class Case(NamedTuple):
    """A name, ours and eager on the same inputs, and with which power of the tokens eager's time grows."""

    name: str
    ours: Callable[[], object]
    eager: Callable[[], object]
    growth: int = 1


class Inputs:
    """Tensors of one sample, made once each from a seed, on a device."""

    def __init__(self, tokens: int, device: torch.device):
        self.tokens, self.device, self.grid = tokens, device, GRIDS[tokens]
        self.keep = tokens // 8

    def rand(self, *shape: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(*shape, generator=generator).to(self.device)

    def randn(self, *shape: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, generator=generator).to(self.device)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of `[B, N, D]` by `[B, K]`."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def best(scores: Tensor, k: int) -> Tensor:
    """The k best of the last dimension, in order."""
    return scores.topk(k, -1).indices.sort(-1).values


def flags(index: Tensor, size: int) -> Tensor:
    """Which of so many tokens an index `[B, K]` names."""
    return torch.zeros(index.shape[0], size, dtype=torch.bool, device=index.device).scatter_(1, index, True)


def others(index: Tensor, size: int) -> Tensor:
    """Those of so many that an index `[1, K]` does not name."""
    return (~flags(index, size)).nonzero()[:, 1][None]
