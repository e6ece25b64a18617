"""Radix selection of the best keys, and ranks among them or among all."""

import triton
import triton.language as tl

from .arithmetic import NO_KEY, ordered_key, widen


@triton.jit
def load_key(keys_ptr, index, mask):
    """Ordered keys (int32), as they are or of scores."""
    key = tl.load(keys_ptr + index, mask=mask, other=0)
    if key.dtype != tl.int32:
        key = ordered_key(widen(key))
    return key


@triton.jit
def load_words(keys_ptr, index, mask, candidates_ptr=None):
    """Words that ascend where scores descend, from ordered keys (int32) or from the scores themselves.

    The word of what is not a candidate is past those of all scores.
    """
    key = load_key(keys_ptr, index, mask)
    if candidates_ptr is not None:
        key = tl.where(tl.load(candidates_ptr + index, mask=mask, other=0) != 0, key, NO_KEY)
    return (key ^ 0x7FFFFFFF).to(tl.uint32, bitcast=True)


@triton.jit
def histogram(
    keys_ptr, begin, end, threshold, SHIFT: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr, candidates_ptr=None
):  # fmt: skip
    """How many words have each next digit, of those that agree with the threshold so far."""
    counts = tl.zeros((1 << BITS,), tl.int32)
    for start in range(begin, end, BLOCK):
        index = start + tl.arange(0, BLOCK)
        word = load_words(keys_ptr, index, index < end, candidates_ptr)
        live = index < end
        if SHIFT + BITS < 32:
            live = live & ((word >> (SHIFT + BITS)) == (threshold >> (SHIFT + BITS)))
        counts += tl.histogram(((word >> SHIFT) & ((1 << BITS) - 1)).to(tl.int32), 1 << BITS, mask=live)
    return counts


@triton.jit
def next_digit(counts, threshold, wanted, SHIFT: tl.constexpr):
    """The threshold with its next digit, and how many words that agree with it are still wanted."""
    before = tl.cumsum(counts, 0)
    bucket = tl.sum((before < wanted).to(tl.int32))
    wanted -= tl.max(tl.where(before < wanted, before, 0))
    return threshold | (bucket.to(tl.uint32) << SHIFT), wanted


@triton.jit
def select_threshold(keys_ptr, size, wanted, BLOCK: tl.constexpr, candidates_ptr=None):
    """The word of the wanted-th best key, and how many words equal to it are wanted: 11 + 11 + 10 bit radix select."""
    threshold = tl.zeros((), tl.uint32)
    counts = histogram(keys_ptr, 0, size, threshold, 21, 11, BLOCK, candidates_ptr)
    threshold, wanted = next_digit(counts, threshold, wanted, 21)
    counts = histogram(keys_ptr, 0, size, threshold, 10, 11, BLOCK, candidates_ptr)
    threshold, wanted = next_digit(counts, threshold, wanted, 10)
    counts = histogram(keys_ptr, 0, size, threshold, 0, 10, BLOCK, candidates_ptr)
    threshold, wanted = next_digit(counts, threshold, wanted, 0)
    return threshold, wanted


@triton.jit
def take_best(
    keys_ptr, chosen_ptr, chosen_keys_ptr, begin, end, first, threshold, wanted, ties, taken, BLOCK: tl.constexpr
):  # fmt: skip
    """Append the keys above the threshold and the first `wanted` equal to it, in index order, from `taken` on.

    `ties` keys equal to the threshold came before `begin`. Stores `first` + index.
    """
    for i in range(begin, end, BLOCK):
        index = i + tl.arange(0, BLOCK)
        word = load_words(keys_ptr, index, index < end)
        tie = ((word == threshold) & (index < end)).to(tl.int32)
        tie_rank = ties + tl.cumsum(tie, 0) - tie
        better = (word < threshold) & (index < end)
        take = (better | ((tie == 1) & (tie_rank < wanted))).to(tl.int32)
        position = taken + tl.cumsum(take, 0) - take
        tl.store(chosen_ptr + position, first + index, mask=take == 1)
        tl.store(chosen_keys_ptr + position, word.to(tl.int32, bitcast=True) ^ 0x7FFFFFFF, mask=take == 1)
        ties += tl.sum(tie)
        taken += tl.sum(take)


@triton.jit
def ranks(keys_ptr, key, candidate, first, last, begin, end, BLOCK: tl.constexpr):
    """How many of [first, last) go before each candidate [ROWS]; all of these ranges lie in [begin, end)."""
    rank = tl.zeros_like(candidate)
    for start in range(begin, end, BLOCK):
        other = start + tl.arange(0, BLOCK)[None, :]
        other_key = load_key(keys_ptr, other, other < end)
        ahead = (other_key > key[:, None]) | ((other_key == key[:, None]) & (other < candidate[:, None]))
        ahead = ahead & (other >= first[:, None]) & (other < last[:, None])
        rank += tl.sum(ahead.to(tl.int32), axis=1)
    return rank


@triton.jit
def _not_behind(total, keys_ptr, bound, start, size, BLOCK: tl.constexpr):
    """The total [ROWS, BLOCK] and 1 for each of BLOCK keys above the bounds [ROWS]."""
    other = start + tl.arange(0, BLOCK)
    key = tl.where(other < size, load_key(keys_ptr, other, other < size), NO_KEY)
    return total + (key[None, :] > bound[:, None]).to(tl.int32)


@triton.jit
def ranks_of_all(keys_ptr, candidate, size, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Ranks of ROWS tokens in a row among all of a segment; ROWS is a part of BLOCK."""
    key = load_key(keys_ptr, candidate, candidate < size)
    total = tl.zeros((ROWS, BLOCK), tl.int32)
    # Of equal keys those of earlier tokens go before; no key is the least integer.
    here = tl.min(candidate) // BLOCK * BLOCK
    for start in range(0, here, BLOCK):
        total = _not_behind(total, keys_ptr, key - 1, start, size, BLOCK)
    for start in range(here + BLOCK, size, BLOCK):
        total = _not_behind(total, keys_ptr, key, start, size, BLOCK)
    other = here + tl.arange(0, BLOCK)
    other_key = tl.where(other < size, load_key(keys_ptr, other, other < size), NO_KEY)
    total += (other_key[None, :] > key[:, None] - (other[None, :] < candidate[:, None]).to(tl.int32)).to(tl.int32)
    return tl.sum(total, 1)


@triton.jit
def slot_places(keys_ptr, candidate, count, BY_INDEX: tl.constexpr, BLOCK: tl.constexpr):
    """Where slots [ROWS] of a segment go, of which the first `count` are used: as they stand, or by rank."""
    place = candidate
    if not BY_INDEX:
        key = tl.load(keys_ptr + candidate, mask=candidate < count, other=0)
        zero = tl.zeros_like(candidate)
        rank = ranks(keys_ptr, key, candidate, zero, zero + count, 0, count, BLOCK)
        place = tl.where(candidate < count, rank, candidate)
    return place
