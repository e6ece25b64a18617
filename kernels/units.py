"""Unit rows on a grid where dot products are exact, and norms."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import cdiv
from .dots import to_limbs
from .launch import launch
from .rows import expand, features, load_rows, scaled_norm, store_rows
from .tiles import row_tiles


@triton.jit
def store_units(
    x_ptr, stride_n, token, row, mask, keep, units_ptr, norms_ptr, LIMBS: tl.constexpr, LOW_BITS: tl.constexpr,
    ROW: tl.constexpr,
):  # fmt: skip
    """Unit rows and norms of rows `token` [TILES] of x, stored as rows `row`; those not to `keep` are 0, of norm +inf.

    `keep` is None for all.
    """
    D: tl.constexpr = ROW.D
    loaded = mask
    if keep is not None:
        loaded = mask & keep
    chunks = load_rows(x_ptr, stride_n, token, loaded, ROW)
    scale, length, unscale = scaled_norm(chunks, ROW)
    norm = length * unscale
    if keep is not None:
        norm = tl.where(keep[:, None], norm, float("inf"))
    row = row[:, None]
    store_rows(norms_ptr + row, norm, mask, ROW)

    usable = expand((norm > 0) & (norm < float("inf")), ROW)
    factor = expand(scale, ROW)
    inverse = expand(tl.div_rn(tl.zeros_like(length) + 2048.0, length), ROW)
    for c in tl.static_range(ROW.CHUNKS):
        feature = features(c, ROW)
        inside = mask[:, None] & (feature < D)
        high, low = to_limbs(tl.where(usable, chunks[c] * factor * inverse, 0.0), LOW_BITS)
        tl.store(units_ptr + row * (LIMBS * D) + feature, (high * (1.0 / 2048.0)).to(tl.float16), mask=inside)
        if LIMBS == 2:
            tl.store(units_ptr + row * (LIMBS * D) + D + feature, low.to(tl.float16), mask=inside)


@triton.jit
def _unit_rows_kernel(
    x_ptr, mask_ptr, units_ptr, norms_ptr, stride_b, stride_h, stride_n, heads, tokens, LIMBS: tl.constexpr,
    LOW_BITS: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    programs = tl.cdiv(tokens, ROW.TILES // ROW.BLOCKS)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    token = (tl.program_id(0) % programs) * (ROW.TILES // ROW.BLOCKS) + tl.arange(0, ROW.TILES) // ROW.BLOCKS  # [TILES]
    mask = token < tokens
    x_ptr += tl.multiple_of(sample // heads * stride_b + sample % heads * stride_h, ROW.VECTOR)
    keep = None
    if mask_ptr is not None:
        keep = tl.load(mask_ptr + sample // heads * tokens + token, mask=mask, other=0) != 0
    row = sample * tokens + token
    store_units(x_ptr, stride_n, token, row, mask, keep, units_ptr, norms_ptr, LIMBS, LOW_BITS, ROW)


def unit_rows(x: Tensor, limbs: int, bits: int, mask: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:
    """Unit rows and norms of `[B, N, D]`, or of `[B, H, N, D]` as of B · H samples.

    With a `mask` uint8 `[B, N]`, rows where it is 0 are 0, of norm +inf.
    """
    heads, tokens, features = x.shape[1] if x.dim() == 4 else 1, *x.shape[-2:]
    samples = x.shape[0] * heads
    units = torch.empty(samples, tokens, limbs, features, dtype=torch.float16, device=x.device)
    norms = torch.empty(samples, tokens, dtype=torch.float32, device=x.device)
    if norms.numel():
        tiles = row_tiles([x])
        programs = samples * cdiv(tokens, tiles["ROW"].TILES // tiles["ROW"].BLOCKS)
        launch(
            _unit_rows_kernel, programs,
            x, mask, units, norms, x.stride(0), x.stride(1) if x.dim() == 4 else 0, x.stride(-2), heads, tokens,
            LIMBS=limbs, LOW_BITS=bits, **tiles,
        )  # fmt: skip
    return units, norms
