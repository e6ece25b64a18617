"""What greedy picks and rounds of pruning share: segments, what can be picked, and the best of what is offered."""

from collections.abc import Callable
from typing import NamedTuple, Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .keeping import ascending_bounds
from .launch import launch
from .tiles import flat_tiles
from .units import NONE


@triton.jit(do_not_specialize=["segments", "size"])
def _bounds_kernel(cu_ptr, bounds_ptr, segments, size):
    segment = tl.program_id(0)
    start, end = ascending_bounds(cu_ptr, segment, segments, size)
    tl.store(bounds_ptr + segment, start)
    if segment == segments - 1:
        tl.store(bounds_ptr + segments, end)


def packed_bounds(cu_seqlens: Optional[Tensor], size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(zeros, ascending offsets within so many tokens), int32 `[S + 1]`; both empty where nothing is packed."""
    shape = (0,) if cu_seqlens is None else cu_seqlens.shape
    offsets, bounds = (torch.zeros(shape, dtype=torch.int32, device=device) for _ in range(2))
    if cu_seqlens is not None and len(cu_seqlens) > 1:
        launch(_bounds_kernel, len(cu_seqlens) - 1, cu_seqlens, bounds, len(cu_seqlens) - 1, size)
    return offsets, bounds


@triton.jit
def segment_bounds(bounds_ptr, segment, size, longest):
    """(start, length) of a sample, or of a packed segment by ascending offsets within the tensor."""
    start = segment.to(tl.int64) * size
    length = longest
    if bounds_ptr is not None:
        first = tl.load(bounds_ptr + segment)
        start = tl.zeros((), tl.int64) + first
        length = tl.minimum(tl.load(bounds_ptr + segment + 1) - first, longest)
    return start, length


@triton.jit
def usable_tokens(norms_ptr, candidates_ptr, token, inside):
    """Tokens that can be picked."""
    usable = inside & (tl.load(norms_ptr + token, mask=inside, other=float("inf")) < float("inf"))
    if candidates_ptr is not None:
        usable = usable & (tl.load(candidates_ptr + token, mask=inside, other=0) != 0)
    return usable


@triton.jit
def offered(key, n):
    """Keys with inverted index: the greatest is the greatest key's, of the least index."""
    return (key.to(tl.int64) << 32) | (0xFFFFFFFF - n.to(tl.int64))


@triton.jit
def picked(best):
    return (0xFFFFFFFF - (best & 0xFFFFFFFF)).to(tl.int32)


@triton.jit
def store_pick(tokens_ptr, keys_ptr, at, pick):
    tl.store(tokens_ptr + at, pick.to(tl.int64))
    if keys_ptr is not None:
        tl.store(keys_ptr + at, ~pick)


@triton.jit
def finish(tokens_ptr, counts_ptr, segment, count, capacity, BLOCK: tl.constexpr):
    """No token in the slots that are not used, and how many are."""
    for t in range(0, capacity, BLOCK):
        slot = t + tl.arange(0, BLOCK)
        empty = tl.full((BLOCK,), -1, tl.int64)
        tl.store(tokens_ptr + slot, empty, mask=(slot >= count) & (slot < capacity))
    tl.store(counts_ptr + segment, count)


@triton.jit(do_not_specialize=["capacity"])
def _picks_kernel(offers_ptr, tokens_ptr, keys_ptr, counts_ptr, capacity, BLOCK: tl.constexpr):
    segment = tl.program_id(0)
    slots = segment.to(tl.int64) * capacity
    several = tl.zeros((BLOCK,), tl.int32)
    for t in range(0, capacity, BLOCK):
        slot = t + tl.arange(0, BLOCK)
        inside = slot < capacity
        best = tl.load(offers_ptr + slots + slot, mask=inside, other=NONE)
        pick = picked(best)
        tl.store(tokens_ptr + slots + slot, tl.where(best > NONE, pick.to(tl.int64), -1), mask=inside)
        if keys_ptr is not None:
            tl.store(keys_ptr + slots + slot, ~pick, mask=inside)
        several += (best > NONE).to(tl.int32)
    tl.store(counts_ptr + segment, tl.sum(several))


class Tokens(NamedTuple):
    """Samples or segments, and how many of each to pick, as kernels take them."""

    units: Tensor
    norms: Tensor
    relevance: Optional[Tensor]
    candidates: Optional[Tensor]
    bounds: Optional[Tensor]
    k: Optional[Tensor]
    numbers: tuple[int, ...]
    parts: int
    longest: int

    @property
    def given(self) -> tuple:
        """Norms, relevance, candidates, bounds, and how many to pick."""
        return self[1:7]


class Picks(NamedTuple):
    """Tokens `[S, capacity]`, keys by which they ascend, and counts."""

    tokens: Tensor
    keys: Optional[Tensor]
    counts: Tensor


def by_steps(parts: int, step: Callable[[Tensor, int], None], into: Picks) -> None:
    """Call `step` for each pick t: programs offer keys with inverted indices to `offers[:, t]`."""
    capacity = into.tokens.shape[1]
    offers = torch.full(into.tokens.shape, NONE.value, dtype=torch.int64, device=into.tokens.device)
    for t in range(capacity):
        step(offers, t)
    launch(_picks_kernel, parts, offers, *into, capacity, **flat_tiles())
