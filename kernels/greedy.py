"""Tokens picked one after another from their similarities: by one program a sample, or one launch a pick."""

from typing import NamedTuple, Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import Amount, Slots
from .arithmetic import NO_KEY, cdiv, ordered_key, widen
from .dots import LOW_BITS
from .gram import gram, segment_bounds
from .keeping import ascending_bounds, placed
from .launch import launch
from .ragged import budget_of, opaque
from .tiles import cover_tiles, dpp_limit, factor_tiles, flat_tiles, greedy_tiles, nearest_tiles, step_tiles
from .units import NONE, unit_rows

FAR = tl.constexpr((1 << 31) - 1)
# What is left of a token that counts as nothing, and of one that is not to be picked: both in units of 2⁻⁶⁰.
FLOOR = tl.constexpr(1 << 36)
GONE = tl.constexpr(-(1 << 63))
# Similarities that exist at a time.
MOST = 1 << 29


@triton.jit(do_not_specialize=["segments", "size"])
def _bounds_kernel(cu_ptr, bounds_ptr, segments, size):
    segment = tl.program_id(0)
    start, end = ascending_bounds(cu_ptr, segment, segments, size)
    tl.store(bounds_ptr + segment, start)
    if segment == segments - 1:
        tl.store(bounds_ptr + segments, end)


@triton.jit
def _usable(norms_ptr, candidates_ptr, token, inside):
    """Tokens that can be picked."""
    usable = inside & (tl.load(norms_ptr + token, mask=inside, other=float("inf")) < float("inf"))
    if candidates_ptr is not None:
        usable = usable & (tl.load(candidates_ptr + token, mask=inside, other=0) != 0)
    return usable


@triton.jit
def _offer(key, n):
    """Keys with inverted index: the greatest is the greatest key's, of the least index."""
    return (key.to(tl.int64) << 32) | (0xFFFFFFFF - n.to(tl.int64))


@triton.jit
def _picked(best):
    return (0xFFFFFFFF - (best & 0xFFFFFFFF)).to(tl.int32)


@triton.jit
def _store_pick(tokens_ptr, keys_ptr, at, pick):
    tl.store(tokens_ptr + at, pick.to(tl.int64))
    if keys_ptr is not None:
        tl.store(keys_ptr + at, ~pick)


@triton.jit
def _finish(tokens_ptr, counts_ptr, segment, count, capacity, BLOCK: tl.constexpr):
    """No token in the slots that are not used, and how many are."""
    for t in range(0, capacity, BLOCK):
        slot = t + tl.arange(0, BLOCK)
        empty = tl.full((BLOCK,), -1, tl.int64)
        tl.store(tokens_ptr + slot, empty, mask=(slot >= count) & (slot < capacity))
    tl.store(counts_ptr + segment, count)


@triton.jit(do_not_specialize=["size"])
def _nearest_kernel(
    gram_ptr, own_ptr, norms_ptr, relevance_ptr, candidates_ptr, bounds_ptr, least_ptr, size, longest,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Of each token the distance to its nearest other, or its relevance: the key of the first pick."""
    segment = tl.program_id(0) // longest
    i = tl.program_id(0) % longest
    start, length = segment_bounds(bounds_ptr, segment, size, longest)
    if i < length:
        gram_ptr += (segment.to(tl.int64) * longest + i) * longest
        own_ptr += segment.to(tl.int64) * longest
        if relevance_ptr is not None:
            key = ordered_key(widen(tl.load(relevance_ptr + start + i)))
        else:
            own = tl.load(own_ptr + i)
            least = tl.full((BLOCK,), FAR, tl.int32)
            for n in range(0, length, BLOCK):
                j = n + tl.arange(0, BLOCK)
                other = _usable(norms_ptr, candidates_ptr, start + j, (j < length) & (j != i))
                dot = tl.load(gram_ptr + j, mask=other, other=0)
                apart = _distance(own, tl.load(own_ptr + j, mask=other, other=0), dot)
                least = tl.minimum(least, tl.where(other, apart, FAR))
            key = tl.min(least, axis=0)
        usable = _usable(norms_ptr, candidates_ptr, start + i, i < length)
        tl.store(least_ptr + segment.to(tl.int64) * longest + i, tl.where(usable, key, NO_KEY))


@triton.jit
def _distance(a, b, dot):
    """Half of a + b, less dot and less 1, without the overflow of a + b."""
    return ((a & b) + ((a ^ b) >> 1) - (1 << 30)) - dot


@triton.jit(do_not_specialize=["size", "capacity"])
def _maxmin_kernel(
    gram_ptr, own_ptr, least_ptr, bounds_ptr, k_ptr, k, tokens_ptr, keys_ptr, counts_ptr, size, longest, capacity,
    BLOCK: tl.constexpr,
):  # fmt: skip
    segment = tl.program_id(0)
    _, length = segment_bounds(bounds_ptr, segment, size, longest)
    gram_ptr += segment.to(tl.int64) * longest * longest
    own_ptr += segment.to(tl.int64) * longest
    least_ptr += segment.to(tl.int64) * longest
    slots = segment.to(tl.int64) * capacity
    bests = tl.full((BLOCK,), NONE, tl.int64)
    several = tl.zeros((BLOCK,), tl.int32)
    for i in range(0, length, BLOCK):
        n = i + tl.arange(0, BLOCK)
        least = tl.load(least_ptr + n, mask=n < length, other=NO_KEY)
        several += (least > NO_KEY).to(tl.int32)
        bests = tl.maximum(bests, tl.where(least > NO_KEY, _offer(least, n), NONE))
    count = tl.minimum(tl.minimum(tl.maximum(budget_of(k_ptr, k, segment), 0), tl.sum(several)), capacity)
    for t in range(count):
        pick = _picked(tl.max(bests, axis=0))
        _store_pick(tokens_ptr, keys_ptr, slots + t, pick)
        own = tl.load(own_ptr + pick)
        bests = tl.full((BLOCK,), NONE, tl.int64)
        for i in range(0, tl.where(t + 1 < count, length, 0), BLOCK):
            n = i + tl.arange(0, BLOCK)
            inside = n < length
            least = tl.load(least_ptr + n, mask=inside, other=NO_KEY)
            dot = tl.load(gram_ptr + pick.to(tl.int64) * longest + n, mask=inside, other=0)
            apart = _distance(own, tl.load(own_ptr + n, mask=inside, other=0), dot)
            apart = tl.where(t == 0, apart, tl.minimum(least, apart))
            least = tl.where((n == pick) | (least == NO_KEY), NO_KEY, apart)
            tl.store(least_ptr + n, least, mask=inside)
            bests = tl.maximum(bests, tl.where(least > NO_KEY, _offer(least, n), NONE))
    _finish(tokens_ptr + slots, counts_ptr, segment, count, capacity, BLOCK)


@triton.jit
def _dpp_offer(left, own, relevance_ptr, token, n, inside):
    """What each token would add to the determinant, with its index; NONE where it is not to be picked."""
    gain = tl.div_rn(left.to(tl.float32) * (1.0 / 1073741824.0), own.to(tl.float32))
    if relevance_ptr is not None:
        weight = widen(tl.load(relevance_ptr + token, mask=inside, other=0.0))
        gain = gain * (weight * weight)
    gain = tl.where(left > FLOOR, gain, 0.0)
    return tl.where(left > GONE, _offer(ordered_key(gain), n), NONE)


@triton.jit
def _dpp_start(own_ptr, norms_ptr, relevance_ptr, candidates_ptr, left_ptr, start, n, length):
    """All of tokens n is left: what they offer."""
    inside = n < length
    own = tl.maximum(tl.load(own_ptr + n, mask=inside, other=1), 1)
    usable = _usable(norms_ptr, candidates_ptr, start + n, inside)
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
        column = ((rounded + 6755399441055744.0) - 6755399441055744.0).to(tl.int32)
    tl.store(factor_ptr + (tl.zeros((), tl.int64) + t) * longest + n, column, mask=inside)
    left = tl.where((n == pick) | (left == GONE), GONE, left - column.to(tl.int64) * column.to(tl.int64))
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
        pick = _picked(tl.max(bests, axis=0))
        _store_pick(tokens_ptr, keys_ptr, slots + t, pick)
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
    _finish(tokens_ptr + slots, counts_ptr, segment, count, capacity, BLOCK)


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
                    gram_ptr, own_ptr, relevance_ptr, factor_ptr, old, new, _picked(best), t - 1, start, n, length,
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
        pick = _picked(best)
        if t == 0:
            free = _usable(norms_ptr, candidates_ptr, start + i, inside)
        else:
            free = (tl.load(free_ptr + i, mask=inside, other=0) != 0) & (i != pick)
        tl.store(free_ptr + i, free.to(tl.int8), mask=inside)
        gains = tl.zeros((ROWS, BLOCK), tl.int64)
        for m in range(0, length, BLOCK):
            j = m + tl.arange(0, BLOCK)
            there = j < length
            if t == 0:
                covered = tl.where(_usable(norms_ptr, candidates_ptr, start + j, there), 0, FAR)
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
        offer = tl.where(free, _offer(ordered_key(gain), i), NONE)
        tl.atomic_max(offers_ptr, tl.max(offer, axis=0), sem="relaxed")


@triton.jit(do_not_specialize=["capacity"])
def _picks_kernel(offers_ptr, tokens_ptr, keys_ptr, counts_ptr, capacity, BLOCK: tl.constexpr):
    segment = tl.program_id(0)
    slots = segment.to(tl.int64) * capacity
    several = tl.zeros((BLOCK,), tl.int32)
    for t in range(0, capacity, BLOCK):
        slot = t + tl.arange(0, BLOCK)
        inside = slot < capacity
        best = tl.load(offers_ptr + slots + slot, mask=inside, other=NONE)
        pick = _picked(best)
        tl.store(tokens_ptr + slots + slot, tl.where(best > NONE, pick.to(tl.int64), -1), mask=inside)
        if keys_ptr is not None:
            tl.store(keys_ptr + slots + slot, ~pick, mask=inside)
        several += (best > NONE).to(tl.int32)
    tl.store(counts_ptr + segment, tl.sum(several))


class _Tokens(NamedTuple):
    """Samples or segments, and how many of each to pick, as kernels take them."""

    gram: Tensor
    own: Tensor
    norms: Tensor
    relevance: Optional[Tensor]
    candidates: Optional[Tensor]
    bounds: Optional[Tensor]
    k: Optional[Tensor]
    numbers: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """How many, tokens of each in the tensors, and of the longest."""
        return self.own.shape[0], self.norms.shape[1], self.own.shape[1]


class _Picks(NamedTuple):
    """Tokens `[S, capacity]`, keys by which they ascend, and counts."""

    tokens: Tensor
    keys: Optional[Tensor]
    counts: Tensor


def _maxmin(of: _Tokens, into: _Picks) -> None:
    parts, size, longest = of.shape
    least = torch.empty_like(of.own)
    launch(
        _nearest_kernel, parts * longest,
        *of[:6], least, size, longest, **nearest_tiles(longest),
    )  # fmt: skip
    launch(
        _maxmin_kernel, parts,
        of.gram, of.own, least, *of[5:], *into, size, longest, into.tokens.shape[1], **greedy_tiles(longest),
    )  # fmt: skip


def _dpp(of: _Tokens, into: _Picks) -> None:
    (parts, size, longest), capacity = of.shape, into.tokens.shape[1]
    left = torch.empty(parts, 2, longest, dtype=torch.int64, device=of.own.device)
    factor = torch.empty(parts, capacity, longest, dtype=torch.int32, device=of.own.device)
    if capacity * longest <= dpp_limit():
        launch(
            _dpp_kernel, parts,
            *of, left, factor, *into, size, longest, capacity, **factor_tiles(longest),
        )  # fmt: skip
        return
    offers = torch.full(into.tokens.shape, NONE.value, dtype=torch.int64, device=left.device)
    tiles = step_tiles()
    for t in range(capacity):
        launch(
            _dpp_step_kernel, parts * cdiv(longest, tiles["BLOCK"]),
            *of, left, factor, offers, t, size, longest, capacity, **tiles,
        )  # fmt: skip
    launch(_picks_kernel, parts, offers, *into, capacity, **flat_tiles())


def _coverage(of: _Tokens, into: _Picks) -> None:
    (parts, size, longest), capacity = of.shape, into.tokens.shape[1]
    free = torch.empty(parts, longest, dtype=torch.int8, device=of.own.device)
    covered = torch.empty(parts, 2, longest, dtype=torch.int32, device=free.device)
    offers = torch.full(into.tokens.shape, NONE.value, dtype=torch.int64, device=free.device)
    tiles = cover_tiles()
    for t in range(capacity):
        launch(
            _cover_step_kernel, parts * cdiv(longest, tiles["ROWS"]),
            of.gram, *of[2:], free, covered, offers, t, size, longest, capacity, **tiles,
        )  # fmt: skip
    launch(_picks_kernel, parts, offers, *into, capacity, **flat_tiles())


RULES = {"maxmin": _maxmin, "dpp": _dpp, "coverage": _coverage}


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
    offsets, bounds = (torch.zeros((parts + 1) * packed, dtype=torch.int32, device=device) for _ in range(2))
    chosen = torch.empty(parts, capacity, dtype=torch.int64, device=device)
    keys = torch.empty(parts, capacity, dtype=torch.int32, device=device) if by_index else None
    counts = torch.empty(parts, dtype=torch.int32, device=device)
    if packed and parts:
        launch(_bounds_kernel, parts, cu_seqlens, bounds, parts, size)
    if not chosen.numel() or not longest:
        chosen.fill_(-1)
        return chosen.view(1, -1) if packed else chosen, counts.zero_(), offsets, bounds
    units, norms = unit_rows(x, limbs, LOW_BITS)
    if candidates is not None:
        candidates = candidates.view(torch.uint8)
    most = max(1, MOST // longest**2)
    for first in range(0, parts, most):
        part = slice(first, min(first + most, parts))
        rows = slice(None) if packed else part
        within = bounds[part.start : part.stop + 1] if packed else None
        turn = first % len(k.numbers)
        numbers = [min(number, longest) for number in (*k.numbers[turn:], *k.numbers[:turn])]
        of = _Tokens(
            *gram(units[rows], within, part.stop - part.start, longest),
            norms[rows],
            None if relevance is None else relevance[rows],
            None if candidates is None else candidates[rows],
            within,
            None if k.tensor is None else k.tensor[part],
            opaque(numbers),
        )
        RULES[rule](of, _Picks(chosen[part], None if keys is None else keys[part], counts[part]))
    if not packed and keys is None:
        return chosen, counts, offsets, bounds
    tokens = torch.empty_like(chosen.view(1, -1) if packed else chosen)
    rows_at = offsets if packed else torch.empty(parts + 1, dtype=torch.int32, device=device)
    placed(chosen, keys, counts, bounds, (tokens, rows_at), packed)
    return tokens, counts, offsets, bounds
