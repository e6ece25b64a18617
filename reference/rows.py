"""Rows of features and their reduction in the written order."""

import torch
from torch import Tensor

from .arithmetic import next_power_of_2, sqrt

LANES = 256
BLOCK = 1536


def row_shape(features: int) -> tuple[int, int, int]:
    """(blocks, chunks of a block, lanes of a block) of a row; blocks is the power of two that keeps chunks within 6."""
    lanes = min(LANES, next_power_of_2(features))
    blocks = next_power_of_2(-(-features // BLOCK))
    return blocks, -(-features // (blocks * lanes)), lanes


def lane_count(features: int) -> int:
    blocks, _, lanes = row_shape(features)
    return blocks * lanes


def lane_sums(x: Tensor, out: Tensor) -> None:
    """`[R, D]` → `[R, blocks · lanes]`: lane j of a block adds its features j, j + lanes, … in order from +0."""
    rows, features = x.shape
    blocks, chunks, lanes = row_shape(features)
    out = out.view(rows, blocks, lanes)
    full = features // (chunks * lanes)
    if full:
        first, *others = x[:, : full * chunks * lanes].unflatten(1, (full, chunks, lanes)).unbind(2)
        complete = out[:, :full]
        if others:
            torch.add(first, others.pop(0), out=complete)
        else:
            complete.copy_(first)
        for chunk in others:
            complete += chunk
    if full < blocks:
        out[:, full:] = 0.0
    for start in range(full * chunks * lanes, features, lanes):
        chunk = x[:, start : start + lanes]
        out[:, full, : chunk.shape[1]] += chunk


def tree_sum(x: Tensor) -> Tensor:
    """`[..., 2^n]` → `[...]`: adjacent pairs are added, then adjacent pairs of the sums, and so on; a zero is +0."""
    while x.shape[-1] > 1:
        x = x[..., 0::2] + x[..., 1::2]
    return x[..., 0] + 0.0


def row_sum(x: Tensor, lanes: Tensor | None = None) -> Tensor:
    """`[R, D]` float32 → `[R]`: lane sums (kept in `lanes`), then one tree over all lanes."""
    count = lane_count(x.shape[1])
    if x.shape[1] == count:
        return tree_sum(x)
    if lanes is None:
        lanes = x.new_empty(x.shape[0], count)
    lane_sums(x, lanes)
    return tree_sum(lanes)


def token_sum(x: Tensor) -> Tensor:
    """`[..., N]` → `[...]`: lane j of 256 adds j, j + 256, … in order from +0, then one tree over the lanes."""
    lanes = x.new_zeros(*x.shape[:-1], LANES)
    for start in range(0, x.shape[-1], LANES):
        chunk = x[..., start : start + LANES]
        lanes[..., : chunk.shape[-1]] += chunk
    return tree_sum(lanes)


def row_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Powers of two (s, 1/s) `[R]` that bring the largest magnitude of each row into [1, 4) where it is normal."""
    largest = torch.maximum(x.amax(-1), -x.amin(-1))
    exponent = (largest.view(torch.int32) & (255 << 23)).clamp(1 << 23, 253 << 23)
    return ((254 << 23) - exponent).view(torch.float32), exponent.view(torch.float32)


def scaled_norm(x: Tensor, scaled: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """`[R, D]` → (L2 norm of `scaled` = x · s, 1/s): the squares neither overflow nor vanish.

    Both buffers may be one.
    """
    wide = x if x.dtype == torch.float32 else scaled.copy_(x)
    scale, unscale = row_scale(wide)
    torch.mul(wide, scale[:, None], out=scaled)
    torch.mul(scaled, scaled, out=squares)
    return sqrt(row_sum(squares)), unscale
