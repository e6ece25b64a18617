"""Tokens that go because they are like others: all rounds by one program a sample, or two launches a round."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import Amount, Slots
from .arithmetic import NO_KEY, cdiv
from .dots import LOW_BITS
from .gram import gram
from .keeping import placed
from .launch import launch
from .picks import finish, packed_bounds, segment_bounds
from .ragged import budget_of, opaque
from .tiles import alone_limit, cover_tiles, flat_tiles, gram_limit, rounds_tiles
from .units import unit_rows


@triton.jit
def _goal(k_ptr, k, segment, length, capacity):
    """How many tokens shall be left of a segment."""
    return tl.minimum(tl.minimum(tl.maximum(budget_of(k_ptr, k, segment), 0), length), capacity)


@triton.jit
def _gone(left, goal, step):
    """How many tokens the next round takes of those that are left."""
    return tl.minimum(tl.minimum(step, left - goal), tl.maximum(left // 2, 1))


@triton.jit
def _token(orders_ptr, t, longest, place, mask):
    """Tokens at places of the order before round t; before the first one they are in their own."""
    later = tl.zeros_like(place) + t > 0
    token = tl.load(orders_ptr + t % 2 * longest + place, mask=mask & later, other=0)
    return tl.where(later, token, place)


@triton.jit
def _match(
    gram_ptr, norms_ptr, orders_ptr, like_ptr, t, start, longest, left, first, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """How like the second set ROWS tokens of the first are."""
    i = first + tl.arange(0, ROWS)  # [ROWS]
    mask = i < (left + 1) // 2
    token = _token(orders_ptr, t, longest, 2 * i, mask)
    norm = tl.load(norms_ptr + start + token, mask=mask, other=float("inf"))
    rows = gram_ptr + token.to(tl.int64)[:, None] * longest
    most = tl.full((ROWS, BLOCK), NO_KEY, tl.int32)
    for m in range(0, left // 2, BLOCK):
        j = m + tl.arange(0, BLOCK)  # [BLOCK]
        other = _token(orders_ptr, t, longest, 2 * j + 1, j < left // 2)
        usable = tl.load(norms_ptr + start + other, mask=j < left // 2, other=float("inf")) < float("inf")
        dots = tl.load(rows + other[None, :], mask=mask[:, None] & usable[None, :], other=NO_KEY)
        most = tl.maximum(most, dots)
    like = tl.where(norm < float("inf"), tl.max(most, axis=1), NO_KEY)
    tl.store(like_ptr + i, like, mask=mask)


@triton.jit
def _place(
    orders_ptr, like_ptr, t, longest, left, gone, first, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The places of ROWS tokens of each set in the order after the round."""
    evens = (left + 1) // 2
    i = first + tl.arange(0, ROWS)  # [ROWS]
    mask = i < evens
    like = tl.load(like_ptr + i, mask=mask, other=0)
    rank = tl.zeros((ROWS,), tl.int32)
    for m in range(0, evens, BLOCK):
        j = m + tl.arange(0, BLOCK)  # [BLOCK]
        other = tl.load(like_ptr + j, mask=j < evens, other=NO_KEY)[None, :]
        ahead = (other > like[:, None]) | ((other == like[:, None]) & (j[None, :] < i[:, None]))
        rank += tl.sum((ahead & (j < evens)[None, :]).to(tl.int32), axis=1)
    after = orders_ptr + (t + 1) % 2 * longest
    token = _token(orders_ptr, t, longest, 2 * i, mask)
    tl.store(after + rank - gone, token, mask=mask & (rank >= gone))
    inside = i < left // 2
    token = _token(orders_ptr, t, longest, 2 * i + 1, inside)
    tl.store(after + evens - gone + i, token, mask=inside)


@triton.jit
def _kept(
    orders_ptr, tokens_ptr, keys_ptr, counts_ptr, segment, t, longest, left, capacity, BLOCK: tl.constexpr
):  # fmt: skip
    """The tokens that are left, keys by which they ascend, and how many they are."""
    slots = segment.to(tl.int64) * capacity
    for m in range(0, left, BLOCK):
        slot = m + tl.arange(0, BLOCK)
        token = _token(orders_ptr, t, longest, slot, slot < left)
        tl.store(tokens_ptr + slots + slot, token.to(tl.int64), mask=slot < left)
        tl.store(keys_ptr + slots + slot, ~token, mask=slot < left)
    finish(tokens_ptr + slots, counts_ptr, segment, left, capacity, BLOCK)


@triton.jit(do_not_specialize=["size", "longest", "step", "capacity"])
def _rounds_kernel(
    gram_ptr, norms_ptr, bounds_ptr, k_ptr, k, orders_ptr, like_ptr, tokens_ptr, keys_ptr, counts_ptr, size, longest,
    step, capacity, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    segment = tl.program_id(0)
    start, length = segment_bounds(bounds_ptr, segment, size, longest)
    gram_ptr += segment.to(tl.int64) * longest * longest
    orders_ptr += segment.to(tl.int64) * 2 * longest
    like_ptr += segment.to(tl.int64) * longest
    goal = _goal(k_ptr, k, segment, length, capacity)
    left = length
    t = tl.zeros((), tl.int32)
    while left > goal:
        # Other threads have stored the order, and now how alike tokens are.
        tl.debug_barrier()
        for first in range(0, (left + 1) // 2, ROWS):
            _match(gram_ptr, norms_ptr, orders_ptr, like_ptr, t, start, longest, left, first, ROWS, BLOCK)
        tl.debug_barrier()
        gone = _gone(left, goal, step)
        for first in range(0, (left + 1) // 2, ROWS):
            _place(orders_ptr, like_ptr, t, longest, left, gone, first, ROWS, BLOCK)
        left -= gone
        t += 1
    tl.debug_barrier()
    _kept(orders_ptr, tokens_ptr, keys_ptr, counts_ptr, segment, t, longest, left, capacity, BLOCK)


@triton.jit
def _before(length, goal, step, t):
    """(tokens left before round t, or after the last one; how many rounds there were)."""
    left = length
    rounds = tl.zeros((), tl.int32)
    while (left > goal) & (rounds < t):
        left -= _gone(left, goal, step)
        rounds += 1
    return left, rounds


@triton.jit(do_not_specialize=["size", "longest", "step", "capacity", "t"])
def _round_kernel(
    gram_ptr, norms_ptr, bounds_ptr, k_ptr, k, orders_ptr, like_ptr, size, longest, step, capacity, t,
    PLACE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Half of a round, by a program for ROWS tokens of the first set: how alike they are, or their places after it."""
    tiles = tl.cdiv((longest + 1) // 2, ROWS)
    segment = tl.program_id(0) // tiles
    first = tl.program_id(0) % tiles * ROWS
    start, length = segment_bounds(bounds_ptr, segment, size, longest)
    goal = _goal(k_ptr, k, segment, length, capacity)
    left, _ = _before(length, goal, step, t)
    if (left > goal) & (first < (left + 1) // 2):
        orders_ptr += segment.to(tl.int64) * 2 * longest
        like_ptr += segment.to(tl.int64) * longest
        if PLACE:
            _place(orders_ptr, like_ptr, t, longest, left, _gone(left, goal, step), first, ROWS, BLOCK)
        else:
            gram_ptr += segment.to(tl.int64) * longest * longest
            _match(gram_ptr, norms_ptr, orders_ptr, like_ptr, t, start, longest, left, first, ROWS, BLOCK)


@triton.jit(do_not_specialize=["size", "longest", "step", "capacity"])
def _left_kernel(
    bounds_ptr, k_ptr, k, orders_ptr, tokens_ptr, keys_ptr, counts_ptr, size, longest, step, capacity,
    BLOCK: tl.constexpr,
):  # fmt: skip
    segment = tl.program_id(0)
    _, length = segment_bounds(bounds_ptr, segment, size, longest)
    left, rounds = _before(length, _goal(k_ptr, k, segment, length, capacity), step, length)
    orders_ptr += segment.to(tl.int64) * 2 * longest
    _kept(orders_ptr, tokens_ptr, keys_ptr, counts_ptr, segment, rounds, longest, left, capacity, BLOCK)


def _rounds(length: int, goal: int, step: int) -> int:
    """How many rounds there are."""
    rounds = 0
    while length > goal:
        length -= min(step, length - goal, max(length // 2, 1))
        rounds += 1
    return rounds


def bipartite_prune(
    x: Tensor, cu_seqlens: Optional[Tensor], k: Amount, slots: Slots, step: int, limbs: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    device, size, (longest, capacity) = x.device, x.shape[1], slots
    packed = cu_seqlens is not None
    parts = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    offsets, bounds = packed_bounds(cu_seqlens, size, device)
    chosen = torch.empty(parts, capacity, dtype=torch.int64, device=device)
    keys = torch.empty(parts, capacity, dtype=torch.int32, device=device)
    counts = torch.empty(parts, dtype=torch.int32, device=device)
    if not chosen.numel() or not longest:
        chosen.fill_(-1)
        return chosen.view(1, -1) if packed else chosen, counts.zero_(), offsets, bounds
    units, norms = unit_rows(x, limbs, LOW_BITS)
    most = max(1, gram_limit() // longest**2)
    for first in range(0, parts, most):
        part = slice(first, min(first + most, parts))
        rows = slice(None) if packed else part
        within = bounds[part.start : part.stop + 1] if packed else None
        turn = first % len(k.numbers)
        numbers = [min(number, capacity) for number in (*k.numbers[turn:], *k.numbers[:turn])]
        wanted = within, None if k.tensor is None else k.tensor[part], opaque(numbers)
        into = chosen[part], keys[part], counts[part]
        _pruned(units[rows], norms[rows], wanted, into, longest, step, 0 if k.tensor is not None else min(numbers))
    tokens = torch.empty_like(chosen.view(1, -1) if packed else chosen)
    rows_at = offsets if packed else torch.empty(parts + 1, dtype=torch.int32, device=device)
    placed(chosen, keys, counts, bounds, (tokens, rows_at), packed)
    return tokens, counts, offsets, bounds


def _pruned(units: Tensor, norms: Tensor, wanted: tuple, into: tuple, longest: int, step: int, least: int) -> None:
    """Samples or segments of one table of similarities, at least so many tokens of each left."""
    (parts, capacity), size = into[0].shape, norms.shape[1]
    dots, _ = gram(units, wanted[0], parts, longest)
    orders = torch.empty(parts, 2, longest, dtype=torch.int32, device=norms.device)
    like = torch.empty(parts, longest, dtype=torch.int32, device=norms.device)
    given, sizes = (dots, norms, *wanted, orders, like), (size, longest, step, capacity)
    if cdiv(longest, 2) ** 2 <= alone_limit():
        launch(_rounds_kernel, parts, *given, *into, *sizes, **rounds_tiles())
        return
    tiles = cover_tiles()
    programs = parts * cdiv((longest + 1) // 2, tiles["ROWS"])
    for t in range(_rounds(longest, least, step)):
        for place in (False, True):
            launch(_round_kernel, programs, *given, *sizes, t, PLACE=place, **tiles)
    launch(_left_kernel, parts, *wanted, orders, *into, *sizes, **flat_tiles())
