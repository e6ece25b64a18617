"""Tokens picked one after another from their similarities: by one program a sample, or one launch a pick."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import Amount, Slots
from .arithmetic import cdiv, ordered_key, widen
from .dots import LOW_BITS
from .farthest import FAR, maxmin
from .gram import gram
from .keeping import placed
from .launch import launch
from .picks import (
    Picks,
    Tokens,
    by_steps,
    finish,
    offered,
    packed_bounds,
    picked,
    segment_bounds,
    store_pick,
    usable_tokens,
)
from .ragged import budget_of, opaque
from .tiles import alone_limit, cover_tiles, factor_tiles, gram_limit, step_tiles
from .units import NONE, unit_rows

# What is left of a token that counts as nothing, and of one that is not to be picked: both in units of 2⁻⁶⁰.
FLOOR = tl.constexpr(1 << 36)
GONE = tl.constexpr(-(1 << 63))


@triton.jit
def _dpp_offer(left, own, relevance_ptr, token, n, inside):
    """What each token would add to the determinant, with its index; NONE where it is not to be picked."""
    gain = tl.div_rn(left.to(tl.float32) * (1.0 / 1073741824.0), own.to(tl.float32))
    if relevance_ptr is not None:
        weight = widen(tl.load(relevance_ptr + token, mask=inside, other=0.0))
        gain = gain * (weight * weight)
    gain = tl.where(left > FLOOR, gain, 0.0)
    return tl.where(left > GONE, offered(ordered_key(gain), n), NONE)


@triton.jit
def _dpp_start(own_ptr, norms_ptr, relevance_ptr, candidates_ptr, left_ptr, start, n, length):
    """All of tokens n is left: what they offer."""
    inside = n < length
    own = tl.maximum(tl.load(own_ptr + n, mask=inside, other=1), 1)
    usable = usable_tokens(norms_ptr, candidates_ptr, start + n, inside)
    left = tl.where(usable, own.to(tl.int64) << 30, GONE)
    tl.store(left_ptr + n, left, mask=inside)
    return _dpp_offer(left, own, relevance_ptr, start + n, n, inside)


@triton.jit
def _dpp_tile(
    gram_ptr, own_ptr, relevance_ptr, factor_ptr, old_ptr, new_ptr, pick, t, start, n, length, longest,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Column t of the factor, that of the pick, at tokens n; what is left of them, and what they offer."""
    inside = n < length
    left = tl.load(old_ptr + n, mask=inside, other=GONE)
    own = tl.maximum(tl.load(own_ptr + n, mask=inside, other=1), 1)
    left_pick = tl.load(old_ptr + pick)
    column = tl.zeros((BLOCK,), tl.int32)
    if left_pick > FLOOR:
        sums = tl.zeros((ROWS, BLOCK), tl.int64)
        for s in range(0, t, ROWS):
            before = s + tl.arange(0, ROWS)
            rows = factor_ptr + before.to(tl.int64) * longest
            of_pick = tl.load(rows + pick, mask=before < t, other=0)
            of_tokens = tl.load(
                rows[:, None] + n[None, :], mask=(before < t)[:, None] & inside[None, :], other=0
            )  # fmt: skip
            sums += of_pick.to(tl.int64)[:, None] * of_tokens.to(tl.int64)
        dot = tl.load(gram_ptr + pick.to(tl.int64) * longest + n, mask=inside, other=0)
        rest = (dot.to(tl.int64) << 30) - tl.sum(sums, axis=0)
        root = tl.sqrt(left_pick.to(tl.float64))
        rounded = rest.to(tl.float64) * (1.0 / root)
        wide = ((rounded + 6755399441055744.0) - 6755399441055744.0).to(tl.int64)
        column = tl.where(left > FLOOR, tl.minimum(tl.maximum(wide, -FAR), FAR), 0).to(tl.int32)
    tl.store(factor_ptr + (tl.zeros((), tl.int64) + t) * longest + n, column, mask=inside)
    left = tl.where(n == pick, GONE, left - column.to(tl.int64) * column.to(tl.int64))
    tl.store(new_ptr + n, left, mask=inside)
    return _dpp_offer(left, own, relevance_ptr, start + n, n, inside)


@triton.jit(do_not_specialize=["size", "capacity"])
def _dpp_kernel(
    gram_ptr, own_ptr, norms_ptr, relevance_ptr, candidates_ptr, bounds_ptr, k_ptr, k, left_ptr, factor_ptr,
    tokens_ptr, keys_ptr, counts_ptr, size, longest, capacity, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    segment = tl.program_id(0)
    start, length = segment_bounds(bounds_ptr, segment, size, longest)
    gram_ptr += segment.to(tl.int64) * longest * longest
    own_ptr += segment.to(tl.int64) * longest
    left_ptr += segment.to(tl.int64) * 2 * longest
    factor_ptr += segment.to(tl.int64) * capacity * longest
    slots = segment.to(tl.int64) * capacity
    bests = tl.full((BLOCK,), NONE, tl.int64)
    several = tl.zeros((BLOCK,), tl.int32)
    for i in range(0, length, BLOCK):
        n = i + tl.arange(0, BLOCK)
        offer = _dpp_start(own_ptr, norms_ptr, relevance_ptr, candidates_ptr, left_ptr, start, n, length)
        several += (offer > NONE).to(tl.int32)
        bests = tl.maximum(bests, offer)
    count = tl.minimum(tl.minimum(tl.maximum(budget_of(k_ptr, k, segment), 0), tl.sum(several)), capacity)
    for t in range(count):
        pick = picked(tl.max(bests, axis=0))
        store_pick(tokens_ptr, keys_ptr, slots + t, pick)
        # What is left of the pick, and its earlier columns, other threads have stored.
        tl.debug_barrier()
        bests = tl.full((BLOCK,), NONE, tl.int64)
        old = left_ptr + t % 2 * longest
        new = left_ptr + (t + 1) % 2 * longest
        for i in range(0, tl.where(t + 1 < count, length, 0), BLOCK):
            n = i + tl.arange(0, BLOCK)
            offer = _dpp_tile(
                gram_ptr, own_ptr, relevance_ptr, factor_ptr, old, new, pick, t, start, n, length, longest, ROWS, BLOCK
            )  # fmt: skip
            bests = tl.maximum(bests, offer)
    finish(tokens_ptr + slots, counts_ptr, segment, count, capacity, BLOCK)


@triton.jit(do_not_specialize=["size", "capacity", "t"])
def _dpp_step_kernel(
    gram_ptr, own_ptr, norms_ptr, relevance_ptr, candidates_ptr, bounds_ptr, k_ptr, k, left_ptr, factor_ptr,
    offers_ptr, t, size, longest, capacity, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The factor's column of pick t − 1, if there is one, and the best that a tile offers for pick t."""
    tiles = tl.cdiv(longest, BLOCK)
    segment = tl.program_id(0) // tiles
    n = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    start, length = segment_bounds(bounds_ptr, segment, size, longest)
    gram_ptr += segment.to(tl.int64) * longest * longest
    own_ptr += segment.to(tl.int64) * longest
    left_ptr += segment.to(tl.int64) * 2 * longest
    factor_ptr += segment.to(tl.int64) * capacity * longest
    offers_ptr += segment.to(tl.int64) * capacity + t
    if t < budget_of(k_ptr, k, segment):
        if t == 0:
            offer = _dpp_start(own_ptr, norms_ptr, relevance_ptr, candidates_ptr, left_ptr, start, n, length)
            tl.atomic_max(offers_ptr, tl.max(offer, axis=0), sem="relaxed")
        else:
            best = tl.load(offers_ptr - 1)
            if best > NONE:
                old = left_ptr + (t - 1) % 2 * longest
                new = left_ptr + t % 2 * longest
                offer = _dpp_tile(
                    gram_ptr, own_ptr, relevance_ptr, factor_ptr, old, new, picked(best), t - 1, start, n, length,
                    longest, ROWS, BLOCK,
                )  # fmt: skip
                tl.atomic_max(offers_ptr, tl.max(offer, axis=0), sem="relaxed")


@triton.jit(do_not_specialize=["size", "capacity", "t"])
def _cover_step_kernel(
    gram_ptr, norms_ptr, relevance_ptr, candidates_ptr, bounds_ptr, k_ptr, k, free_ptr, covered_ptr, offers_ptr, t,
    size, longest, capacity, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What is covered after pick t − 1, if there is one, and the best of ROWS tokens for pick t."""
    tiles = tl.cdiv(longest, ROWS)
    segment = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    i = tile * ROWS + tl.arange(0, ROWS)
    start, length = segment_bounds(bounds_ptr, segment, size, longest)
    gram_ptr += segment.to(tl.int64) * longest * longest
    free_ptr += segment.to(tl.int64) * longest
    covered_ptr += segment.to(tl.int64) * 2 * longest
    offers_ptr += segment.to(tl.int64) * capacity + t
    inside = i < length
    best = tl.zeros((), tl.int64)
    if t > 0:
        best = tl.load(offers_ptr - 1)
    if (t < budget_of(k_ptr, k, segment)) & (best > NONE):
        pick = picked(best)
        if t == 0:
            free = usable_tokens(norms_ptr, candidates_ptr, start + i, inside)
        else:
            free = (tl.load(free_ptr + i, mask=inside, other=0) != 0) & (i != pick)
        tl.store(free_ptr + i, free.to(tl.int8), mask=inside)
        gains = tl.zeros((ROWS, BLOCK), tl.int64)
        for m in range(0, length, BLOCK):
            j = m + tl.arange(0, BLOCK)
            there = j < length
            if t == 0:
                covered = tl.where(usable_tokens(norms_ptr, candidates_ptr, start + j, there), 0, FAR)
            else:
                covered = tl.load(covered_ptr + (t - 1) % 2 * longest + j, mask=there, other=FAR)
                dot = tl.load(gram_ptr + pick.to(tl.int64) * longest + j, mask=there, other=0)
                covered = tl.maximum(covered, dot)
            if tile == 0:
                tl.store(covered_ptr + t % 2 * longest + j, covered, mask=there)
            dots = tl.load(
                gram_ptr + (i.to(tl.int64) * longest)[:, None] + j[None, :], mask=inside[:, None] & there[None, :],
                other=0,
            )  # fmt: skip
            gains += tl.where(dots > covered[None, :], dots - covered[None, :], 0).to(tl.int64)
        gain = tl.sum(gains, axis=1).to(tl.float32)
        if relevance_ptr is not None:
            gain = gain * widen(tl.load(relevance_ptr + start + i, mask=inside, other=0.0))
        offer = tl.where(free, offered(ordered_key(gain), i), NONE)
        tl.atomic_max(offers_ptr, tl.max(offer, axis=0), sem="relaxed")


def _dpp(of: Tokens, into: Picks) -> None:
    parts, longest, size, capacity = of.parts, of.longest, of.norms.shape[1], into.tokens.shape[1]
    dots, own = gram(of.units, of.bounds, parts, longest)
    left = torch.empty(parts, 2, longest, dtype=torch.int64, device=own.device)
    factor = torch.empty(parts, capacity, longest, dtype=torch.int32, device=own.device)
    if capacity * longest <= alone_limit():
        launch(
            _dpp_kernel, parts,
            dots, own, *of.given, left, factor, *into, size, longest, capacity, **factor_tiles(longest),
        )  # fmt: skip
        return
    tiles = step_tiles()

    def step(offers: Tensor, t: int) -> None:
        launch(
            _dpp_step_kernel, parts * cdiv(longest, tiles["BLOCK"]),
            dots, own, *of.given, left, factor, offers, t, size, longest, capacity, **tiles,
        )  # fmt: skip

    by_steps(parts, step, into)


def _coverage(of: Tokens, into: Picks) -> None:
    parts, longest, size, capacity = of.parts, of.longest, of.norms.shape[1], into.tokens.shape[1]
    dots, own = gram(of.units, of.bounds, parts, longest)
    free = torch.empty(parts, longest, dtype=torch.int8, device=own.device)
    covered = torch.empty(parts, 2, longest, dtype=torch.int32, device=own.device)
    tiles = cover_tiles()

    def step(offers: Tensor, t: int) -> None:
        launch(
            _cover_step_kernel, parts * cdiv(longest, tiles["ROWS"]),
            dots, *of.given, free, covered, offers, t, size, longest, capacity, **tiles,
        )  # fmt: skip

    by_steps(parts, step, into)


RULES = {"maxmin": maxmin, "dpp": _dpp, "coverage": _coverage}


def greedy_select(
    x: Tensor,
    relevance: Optional[Tensor],
    candidates: Optional[Tensor],
    cu_seqlens: Optional[Tensor],
    k: Amount,
    slots: Slots,
    rule: str,
    by_index: bool,
    limbs: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    device, size, (longest, capacity) = x.device, x.shape[1], slots
    packed = cu_seqlens is not None
    parts = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    offsets, bounds = packed_bounds(cu_seqlens, size, device)
    chosen = torch.empty(parts, capacity, dtype=torch.int64, device=device)
    keys = torch.empty(parts, capacity, dtype=torch.int32, device=device) if by_index else None
    counts = torch.empty(parts, dtype=torch.int32, device=device)
    if not chosen.numel() or not longest:
        chosen.fill_(-1)
        return chosen.view(1, -1) if packed else chosen, counts.zero_(), offsets, bounds
    units, norms = unit_rows(x, limbs, LOW_BITS)
    if candidates is not None:
        candidates = candidates.view(torch.uint8)
    # As many samples as similarities fit; for max-min none need to.
    most = gram_limit() // longest**2 or (parts if rule == "maxmin" else 1)
    for first in range(0, parts, most):
        part = slice(first, min(first + most, parts))
        rows = slice(None) if packed else part
        within = bounds[part.start : part.stop + 1] if packed else None
        turn = first % len(k.numbers)
        numbers = [min(number, longest) for number in (*k.numbers[turn:], *k.numbers[:turn])]
        of = Tokens(
            units[rows],
            norms[rows],
            None if relevance is None else relevance[rows],
            None if candidates is None else candidates[rows],
            within,
            None if k.tensor is None else k.tensor[part],
            opaque(numbers),
            part.stop - part.start,
            longest,
        )
        RULES[rule](of, Picks(chosen[part], None if keys is None else keys[part], counts[part]))
    if not packed and keys is None:
        return chosen, counts, offsets, bounds
    tokens = torch.empty_like(chosen.view(1, -1) if packed else chosen)
    rows_at = offsets if packed else torch.empty(parts + 1, dtype=torch.int32, device=device)
    placed(chosen, keys, counts, bounds, (tokens, rows_at), packed)
    return tokens, counts, offsets, bounds
