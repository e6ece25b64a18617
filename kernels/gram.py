"""Every similarity within a sample, once, on tensor cores."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import cdiv
from .dots import exact_dots
from .launch import launch, target_arch
from .picks import segment_bounds
from .tiles import similarity_tiles


@triton.jit(do_not_specialize=["size"])
def _gram_kernel(units_ptr, bounds_ptr, gram_ptr, own_ptr, size, longest, DOT: tl.constexpr):
    """Tiles that touch the upper triangle; what is above the diagonal is stored a second time, below it."""
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
        inside = (row < length)[:, None] & (column < length)[None, :]
        if tl.program_id(0) % across * BLOCK_N < (tl.program_id(0) // across % down + 1) * BLOCK_M:
            own = own_ptr + segment.to(tl.int64) * longest + row[:, None] + tl.zeros_like(column)[None, :]
            tl.store(own, dots, mask=inside & (row[:, None] == column[None, :]))
        gram_ptr += segment.to(tl.int64) * longest * longest
        upper = gram_ptr + (row.to(tl.int64) * longest)[:, None] + column[None, :]
        tl.store(upper, dots, mask=inside & (row[:, None] <= column[None, :]))
        lower = gram_ptr + (column.to(tl.int64) * longest)[None, :] + row[:, None]
        tl.store(lower, dots, mask=inside & (row[:, None] < column[None, :]))


def gram(units: Tensor, bounds: Optional[Tensor], parts: int, longest: int) -> tuple[Tensor, Tensor]:
    """(int32 `[parts, longest, longest]` of unit rows `[B, N, limbs, D]`, in units of 2⁻³⁰, halves up; its diagonal).

    Parts are samples, or packed segments with ascending `bounds`; what lies past a shorter one is not written.
    """
    limbs, features = units.shape[2:]
    out = torch.empty(parts, longest, longest, dtype=torch.int32, device=units.device)
    own = torch.empty(parts, longest, dtype=torch.int32, device=units.device)
    tiles = similarity_tiles(features, limbs, target_arch())
    dot = tiles["DOT"]
    launch(
        _gram_kernel, parts * cdiv(longest, dot.BLOCK_M) * cdiv(longest, dot.BLOCK_N),
        units, bounds, out, own, units.shape[1], longest, **tiles,
    )  # fmt: skip
    return out, own
