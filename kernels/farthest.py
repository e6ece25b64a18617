"""Greedy max-min picks: from all similarities by one program a sample, or multiplied anew for each pick."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import NO_KEY, cdiv, ordered_key, widen
from .dots import exact_dots, own_dots
from .gram import gram
from .launch import launch, target_arch
from .picks import (
    Picks,
    Tokens,
    by_steps,
    finish,
    offered,
    picked,
    segment_bounds,
    store_pick,
    usable_tokens,
)
from .ragged import budget_of
from .tiles import apart_tiles, farthest_tiles, gram_limit, greedy_tiles, spread_tiles, square_tiles
from .units import NONE

FAR = tl.constexpr((1 << 31) - 1)


@triton.jit
def distance(a, b, dot):
    """Half of a + b, less dot and less 1, without the overflow of a + b."""
    return ((a & b) + ((a ^ b) >> 1) - (1 << 30)) - dot


@triton.jit(do_not_specialize=["size"])
def _apart_kernel(
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
                there = j < length
                other = usable_tokens(norms_ptr, candidates_ptr, start + j, there) & (j != i)
                dot = tl.load(gram_ptr + j, mask=there, other=0)
                apart = distance(own, tl.load(own_ptr + j, mask=there, other=0), dot)
                least = tl.minimum(least, tl.where(other, apart, FAR))
            key = tl.min(least, axis=0)
        usable = usable_tokens(norms_ptr, candidates_ptr, start + i, i < length)
        tl.store(least_ptr + segment.to(tl.int64) * longest + i, tl.where(usable, key, NO_KEY))


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
        bests = tl.maximum(bests, tl.where(least > NO_KEY, offered(least, n), NONE))
    count = tl.minimum(tl.minimum(tl.maximum(budget_of(k_ptr, k, segment), 0), tl.sum(several)), capacity)
    for t in range(count):
        pick = picked(tl.max(bests, axis=0))
        store_pick(tokens_ptr, keys_ptr, slots + t, pick)
        own = tl.load(own_ptr + pick)
        bests = tl.full((BLOCK,), NONE, tl.int64)
        for i in range(0, tl.where(t + 1 < count, length, 0), BLOCK):
            n = i + tl.arange(0, BLOCK)
            inside = n < length
            least = tl.load(least_ptr + n, mask=inside, other=NO_KEY)
            dot = tl.load(gram_ptr + pick.to(tl.int64) * longest + n, mask=inside, other=0)
            apart = distance(own, tl.load(own_ptr + n, mask=inside, other=0), dot)
            apart = tl.where(t == 0, apart, tl.minimum(least, apart))
            least = tl.where((n == pick) | (least == NO_KEY), NO_KEY, apart)
            tl.store(least_ptr + n, least, mask=inside)
            bests = tl.maximum(bests, tl.where(least > NO_KEY, offered(least, n), NONE))
    finish(tokens_ptr + slots, counts_ptr, segment, count, capacity, BLOCK)


@triton.jit(do_not_specialize=["size"])
def _ready_kernel(
    units_ptr, norms_ptr, relevance_ptr, candidates_ptr, bounds_ptr, own_ptr, least_ptr, size, longest,
    D: tl.constexpr, LIMBS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Products of tokens with themselves, and keys: their relevance, or the distance to no other."""
    tiles = tl.cdiv(longest, ROWS)
    segment = tl.program_id(0) // tiles
    n = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    start, length = segment_bounds(bounds_ptr, segment, size, longest)
    inside = n < length
    key = tl.full((ROWS,), FAR, tl.int32)
    if relevance_ptr is not None:
        key = ordered_key(widen(tl.load(relevance_ptr + start + n, mask=inside, other=0.0)))
    usable = usable_tokens(norms_ptr, candidates_ptr, start + n, inside)
    to = segment.to(tl.int64) * longest + n
    tl.store(least_ptr + to, tl.where(usable, key, NO_KEY), mask=inside)
    tl.store(own_ptr + to, own_dots(units_ptr, start + n, inside, D, LIMBS, ROWS, BLOCK), mask=inside)


@triton.jit(do_not_specialize=["size"])
def _spread_kernel(
    units_ptr, norms_ptr, candidates_ptr, bounds_ptr, own_ptr, least_ptr, size, longest, DOT: tl.constexpr
):  # fmt: skip
    """Distances of a tile of the upper triangle to the nearest other, of rows and of columns."""
    BLOCK_M: tl.constexpr = DOT.BLOCK_M
    BLOCK_N: tl.constexpr = DOT.BLOCK_N
    across = tl.cdiv(longest, BLOCK_N)
    down = tl.cdiv(longest, BLOCK_M)
    segment = tl.program_id(0) // (down * across)
    row = tl.program_id(0) // across % down * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) % across * BLOCK_N + tl.arange(0, BLOCK_N)
    start, length = segment_bounds(bounds_ptr, segment, size, longest)
    if (tl.program_id(0) % across + 1) * BLOCK_N > tl.program_id(0) // across % down * BLOCK_M:
        dots = exact_dots(units_ptr, start + row, row < length, units_ptr, start + column, column < length, DOT)
        if DOT.LIMBS == 1:
            dots = (dots * 1073741824.0).to(tl.int32)
        own_ptr += segment.to(tl.int64) * longest
        least_ptr += segment.to(tl.int64) * longest
        usable = usable_tokens(norms_ptr, candidates_ptr, start + row, row < length)[:, None]
        usable = usable & usable_tokens(norms_ptr, candidates_ptr, start + column, column < length)[None, :]
        own = tl.load(own_ptr + row, mask=row < length, other=0)[:, None]
        others = tl.load(own_ptr + column, mask=column < length, other=0)[None, :]
        apart = tl.where(usable & (row[:, None] < column[None, :]), distance(own, others, dots), FAR)
        tl.atomic_min(least_ptr + row, tl.min(apart, axis=1), mask=row < length, sem="relaxed")
        tl.atomic_min(least_ptr + column, tl.min(apart, axis=0), mask=column < length, sem="relaxed")


@triton.jit(do_not_specialize=["size", "capacity", "t"])
def _farthest_kernel(
    units_ptr, own_ptr, least_ptr, bounds_ptr, k_ptr, k, offers_ptr, t, size, longest, capacity, DOT: tl.constexpr,
):  # fmt: skip
    """The distance of a tile of tokens to pick t − 1, if there is one, and the farthest of it for pick t."""
    BLOCK_M: tl.constexpr = DOT.BLOCK_M
    BLOCK_N: tl.constexpr = DOT.BLOCK_N
    tiles = tl.cdiv(longest, BLOCK_N)
    segment = tl.program_id(0) // tiles
    n = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    start, length = segment_bounds(bounds_ptr, segment, size, longest)
    own_ptr += segment.to(tl.int64) * longest
    least_ptr += segment.to(tl.int64) * longest
    offers_ptr += segment.to(tl.int64) * capacity + t
    inside = n < length
    best = tl.zeros((), tl.int64)
    if t > 0:
        best = tl.load(offers_ptr - 1)
    if (t < budget_of(k_ptr, k, segment)) & (best > NONE):
        least = tl.load(least_ptr + n, mask=inside, other=NO_KEY)
        if t > 0:
            pick = picked(best)
            first = tl.arange(0, BLOCK_M)
            dots = exact_dots(units_ptr, start + pick + first * 0, first == 0, units_ptr, start + n, inside, DOT)
            if DOT.LIMBS == 1:
                dots = (dots * 1073741824.0).to(tl.int32)
            # The other rows are zeros.
            dot = tl.sum(dots, axis=0)
            apart = distance(tl.load(own_ptr + pick), tl.load(own_ptr + n, mask=inside, other=0), dot)
            apart = tl.where(t == 1, apart, tl.minimum(least, apart))
            least = tl.where((n == pick) | (least == NO_KEY), NO_KEY, apart)
            tl.store(least_ptr + n, least, mask=inside)
        offer = tl.where(least > NO_KEY, offered(least, n), NONE)
        tl.atomic_max(offers_ptr, tl.max(offer, axis=0), sem="relaxed")


def maxmin(of: Tokens, into: Picks) -> None:
    parts, longest, size, capacity = of.parts, of.longest, of.norms.shape[1], into.tokens.shape[1]
    if longest**2 > gram_limit():
        _maxmin_by_steps(of, into)
        return
    dots, own = gram(of.units, of.bounds, parts, longest)
    least = torch.empty_like(own)
    launch(
        _apart_kernel, parts * longest,
        dots, own, *of.given[:4], least, size, longest, **apart_tiles(longest),
    )  # fmt: skip
    launch(
        _maxmin_kernel, parts,
        dots, own, least, *of.given[3:], *into, size, longest, capacity, **greedy_tiles(longest),
    )  # fmt: skip


def _maxmin_by_steps(of: Tokens, into: Picks) -> None:
    """No similarity is kept: those of each pick are multiplied when it is made."""
    parts, longest, size, capacity = of.parts, of.longest, of.norms.shape[1], into.tokens.shape[1]
    limbs, features = of.units.shape[2:]
    own, least = (torch.empty(parts, longest, dtype=torch.int32, device=of.units.device) for _ in range(2))
    tiles = square_tiles(features)
    launch(
        _ready_kernel, parts * cdiv(longest, tiles["ROWS"]),
        of.units, *of.given[:4], own, least, size, longest, D=features, LIMBS=limbs, **tiles,
    )  # fmt: skip
    if of.relevance is None:
        tiles = spread_tiles(features, limbs, target_arch())
        dot = tiles["DOT"]
        launch(
            _spread_kernel, parts * cdiv(longest, dot.BLOCK_M) * cdiv(longest, dot.BLOCK_N),
            of.units, of.norms, of.candidates, of.bounds, own, least, size, longest, **tiles,
        )  # fmt: skip
    tiles = farthest_tiles(features, limbs)

    def step(offers: Tensor, t: int) -> None:
        launch(
            _farthest_kernel, parts * cdiv(longest, tiles["DOT"].BLOCK_N),
            of.units, own, least, *of.given[3:], offers, t, size, longest, capacity, **tiles,
        )  # fmt: skip

    by_steps(parts, step, into)
