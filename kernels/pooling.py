"""Scores pooled over windows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import Windows
from .arithmetic import NO_KEY, cdiv, ordered_key, widen
from .launch import launch
from .tiles import pool_tiles


@triton.jit(do_not_specialize=["height", "width", "down", "across"])
def _pool_scores_kernel(
    scores_ptr, out_ptr, stride_b, stride_n, height, width, down, across,
    REDUCTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program reduces BLOCK windows of a sample."""
    columns = tl.cdiv(width, across)
    windows = tl.cdiv(height, down) * columns
    programs = tl.cdiv(windows, BLOCK)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    window = tl.program_id(0) % programs * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    mask = window < windows
    top = window // columns * down
    left = window % columns * across
    scores_ptr += sample * stride_b
    total = tl.zeros((BLOCK,), tl.float32)
    best = tl.full((BLOCK,), NO_KEY, tl.int32)
    for i in range(down):
        for j in range(across):
            inside = mask & (top + i < height) & (left + j < width)
            token = ((top + i) * width + left + j).to(tl.int64)
            x = widen(tl.load(scores_ptr + token * stride_n, mask=inside, other=0))
            if REDUCTION == "max":
                key = ordered_key(x)
                better = inside & (key > best)
                total = tl.where(better, x, total)
                best = tl.where(better, key, best)
            else:
                total = tl.where(inside, total + x, total)
    if REDUCTION == "mean":
        heights = tl.minimum(height - top, down)
        widths = tl.minimum(width - left, across)
        total = tl.div_rn(total, (heights * widths).to(tl.float32))
    tl.store(out_ptr + sample * windows + window, total, mask=mask)


def pool_scores(scores: Tensor, windows: Windows, reduction: str) -> Tensor:
    height, width, down, across = windows
    count = cdiv(height, down) * cdiv(width, across)
    out = torch.empty(scores.shape[0], count, dtype=torch.float32, device=scores.device)
    if out.numel():
        tiles = pool_tiles(count)
        launch(
            _pool_scores_kernel, scores.shape[0] * cdiv(count, tiles["BLOCK"]),
            scores, out, scores.stride(0), scores.stride(1), height, width, down, across,
            REDUCTION=reduction, **tiles,
        )  # fmt: skip
    return out
