"""Token budgets on the device: a program allocates for a tile of samples, all levels beside each other."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import Amount, Bounds
from .arithmetic import cdiv, next_power_of_2
from .launch import launch
from .tiles import budget_tiles


@triton.jit
def _per_level(values, level):
    """A tuple with one integer for each level, or for all, as int64 in the shape of `level`."""
    out = tl.zeros_like(level).to(tl.int64)
    if len(values) == 1:
        out += values[0]
    else:
        for k in tl.static_range(len(values)):
            out = tl.where(level == k, values[k], out)
    return out


@triton.jit
def _weight_integers(weights, live):
    """See the reference; 0 and off where `live` is not set."""
    bits = weights.to(tl.int32, bitcast=True)
    usable = (bits > 0) & (bits < 0x7F800000) & live
    normal = bits >= 0x00800000
    exponent = tl.where(usable & normal, bits >> 23, 1)
    significand = tl.where(usable, (bits & 0x007FFFFF) + tl.where(normal, 0x00800000, 0), 0)
    shift = tl.minimum(tl.max(exponent, 1)[:, None] - exponent, 31)
    scaled = (significand << 6) >> shift
    none = (tl.max(scaled, 1) == 0)[:, None] & live
    return tl.where(none, 1, scaled).to(tl.int64), usable | none


@triton.jit
def _among_first(keys, many, LEVELS: tl.constexpr):
    """Whether a key, from 0 to 2⁴⁰, is among so many that are largest, the lower level of equals."""
    if LEVELS <= 64:
        mine = keys[:, :, None]
        other = keys[:, None, :]
        lower = (tl.arange(0, LEVELS)[None, :] < tl.arange(0, LEVELS)[:, None])[None, :, :]
        return tl.sum(((other > mine) | ((other == mine) & lower)).to(tl.int32), 2) < many
    # The least key that is among them, bit by bit.
    least = tl.zeros_like(many)
    step = tl.full((), 1 << 39, tl.int64)
    for _ in range(40):
        enough = tl.sum((keys >= least + step).to(tl.int32), 1)[:, None] >= many
        least = tl.where(enough, least + step, least)
        step = step >> 1
    equal = (keys == least).to(tl.int32)
    above = tl.sum((keys > least).to(tl.int32), 1)[:, None]
    return (keys > least) | ((equal != 0) & (tl.cumsum(equal, 1) - equal < many - above))


@triton.jit
def _shares(wanted, weights, BY_WEIGHT: tl.constexpr, LEVELS: tl.constexpr):
    whole = tl.maximum(tl.sum(weights, 1), 1)[:, None]
    shares = wanted * weights // whole
    keys = weights
    if not BY_WEIGHT:
        keys = wanted * weights - shares * whole
    return shares + _among_first(keys, wanted - tl.sum(shares, 1)[:, None], LEVELS).to(tl.int64)


@triton.jit
def _by_weight(missing, weights, room, BY_WEIGHT: tl.constexpr, LEVELS: tl.constexpr):
    """See the reference."""
    given = tl.zeros_like(room)
    open_weights = weights
    more = tl.full((), 1, tl.int32)
    while more > 0:
        has_room = given < room
        open_weights = tl.where(has_room, weights, 0)
        none = tl.sum(open_weights, 1)[:, None] == 0
        open_weights = tl.where(none, has_room.to(tl.int64), open_weights)
        whole = tl.maximum(tl.sum(open_weights, 1), 1)[:, None]
        # A quota is below 2⁶¹ wholes: where a room is not, the product could overflow. A division would branch.
        small = room * (whole >> 20) < (1 << 42)
        full = has_room & small & (missing * open_weights >= tl.where(small, room, 0) * whole)
        filled = tl.where(full, room, 0)
        given += filled
        missing -= tl.sum(filled, 1)[:, None]
        more = tl.max(tl.max((filled > 0).to(tl.int32), 1), 0)
    return given + _shares(missing, open_weights, BY_WEIGHT, LEVELS)


@triton.jit(do_not_specialize=["total"])
def _allocate_budgets_kernel(
    weights_ptr, totals_ptr, total, sizes_ptr, size, minimum, maximum, out_ptr, batch,
    HAS_TOTALS: tl.constexpr, HAS_SIZES: tl.constexpr, BY_WEIGHT: tl.constexpr, SURPLUS_BY_WEIGHT: tl.constexpr,
    L: tl.constexpr, SAMPLES: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    sample = (tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)).to(tl.int64)  # [SAMPLES]
    level = tl.arange(0, LEVELS)[None, :]
    live = (sample < batch)[:, None] & (level < L)  # [SAMPLES, LEVELS]
    offset = sample[:, None] * L + level
    MOST: tl.constexpr = 0x7FFFFFFF
    scaled, on = _weight_integers(tl.load(weights_ptr + offset, mask=live, other=0), live)
    most = tl.zeros((SAMPLES, LEVELS), tl.int64)
    if HAS_SIZES:
        most += tl.load(sizes_ptr + offset, mask=live, other=0).to(tl.int64)
    else:
        most += _per_level(size, level)
    most = tl.minimum(tl.maximum(tl.minimum(most, _per_level(maximum, level)), 0), MOST)
    most = tl.where(on, most, 0)
    least = tl.minimum(_per_level(minimum, level), most)
    wanted = tl.zeros((SAMPLES,), tl.int64)
    if HAS_TOTALS:
        wanted += tl.load(totals_ptr + sample, mask=sample < batch, other=0).to(tl.int64)
    else:
        wanted += total
    wanted = tl.minimum(tl.minimum(tl.maximum(wanted, 0), MOST), tl.sum(most, 1))[:, None]

    budgets = tl.minimum(tl.maximum(_shares(wanted, scaled, BY_WEIGHT, LEVELS), least), most)
    missing = wanted - tl.sum(budgets, 1)[:, None]
    room = most - budgets
    if SURPLUS_BY_WEIGHT:
        budgets += _by_weight(tl.maximum(missing, 0), scaled, room, BY_WEIGHT, LEVELS)
    else:
        before = tl.cumsum(room, 1) - room
        budgets += tl.minimum(tl.maximum(missing - before, 0), room)
    for step in tl.static_range(2):
        excess = tl.sum(budgets, 1)[:, None] - wanted
        spare = budgets
        if step == 0:
            spare = budgets - least
        after = tl.sum(spare, 1)[:, None] - tl.cumsum(spare, 1)
        budgets -= tl.minimum(tl.maximum(excess - after, 0), spare)
    tl.store(out_ptr + offset, budgets.to(tl.int32), mask=live)


def allocate_budgets_batch(
    weights: Tensor,
    totals: Optional[Tensor],
    total: int,
    sizes: Amount,
    bounds: Bounds,
) -> Tensor:
    batch, levels = weights.shape
    out = torch.empty(batch, levels, dtype=torch.int32, device=weights.device)
    if batch:
        tiles = budget_tiles(levels)
        launch(
            _allocate_budgets_kernel, cdiv(batch, tiles["SAMPLES"]),
            weights.contiguous(), out if totals is None else totals, total,
            out if sizes.tensor is None else sizes.tensor, tuple(sizes.numbers), tuple(bounds.minimum),
            tuple(bounds.maximum), out, batch,
            HAS_TOTALS=totals is not None, HAS_SIZES=sizes.tensor is not None,
            BY_WEIGHT=bounds.remainder == "weight", SURPLUS_BY_WEIGHT=bounds.surplus == "weight", L=levels,
            LEVELS=next_power_of_2(levels), **tiles,
        )  # fmt: skip
    return out
