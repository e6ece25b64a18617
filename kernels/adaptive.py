"""Level weights that follow the difficulty of a sample."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import Difficulty
from .arithmetic import cdiv, next_power_of_2
from .launch import launch
from .tiles import budget_tiles


@triton.jit(do_not_specialize=["length"])
def _adaptive_weights_kernel(
    variance_ptr, lengths_ptr, length, length_scale, variance_scale, thresholds, rows, out_ptr, batch,
    HAS_LENGTHS: tl.constexpr, L: tl.constexpr, SAMPLES: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    sample = (tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)).to(tl.int64)
    mask = sample < batch
    count = tl.zeros((SAMPLES,), tl.int64)
    if HAS_LENGTHS:
        count += tl.load(lengths_ptr + sample, mask=mask, other=0).to(tl.int64)
    else:
        count += length
    variance = tl.load(variance_ptr + sample, mask=mask, other=0)
    difficulty = tl.maximum(count, 0).to(tl.float32) * length_scale + variance * variance_scale
    row = tl.zeros((SAMPLES,), tl.int32)
    for k in tl.static_range(len(thresholds)):
        row += tl.where(difficulty < thresholds[k], 0, 1)
    level = tl.arange(0, LEVELS)[None, :]
    entry = row[:, None] * L + level
    weight = tl.zeros((SAMPLES, LEVELS), tl.float32)
    for k in tl.static_range(len(rows)):
        weight = tl.where(entry == k, rows[k], weight)
    tl.store(out_ptr + sample[:, None] * L + level, weight, mask=mask[:, None] & (level < L))


def adaptive_weights(
    variance: Tensor,
    lengths: Optional[Tensor],
    length: int,
    difficulty: Difficulty,
) -> Tensor:
    length_scale, variance_scale, thresholds, rows = difficulty
    batch, levels = variance.shape[0], len(rows) // (len(thresholds) + 1)
    out = torch.empty(batch, levels, dtype=torch.float32, device=variance.device)
    if batch:
        tiles = budget_tiles(levels)
        launch(
            _adaptive_weights_kernel, cdiv(batch, tiles["SAMPLES"]),
            variance.contiguous(), out if lengths is None else lengths, length, length_scale, variance_scale,
            tuple(thresholds), tuple(rows), out, batch, HAS_LENGTHS=lengths is not None, L=levels,
            LEVELS=next_power_of_2(levels), **tiles,
        )  # fmt: skip
    return out
