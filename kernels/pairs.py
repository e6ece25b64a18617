"""Similarity of paired rows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import cdiv
from .launch import launch
from .rows import expand, load_rows, row_reduce, scaled_norm, store_rows
from .tiles import row_tiles


@triton.jit
def _directions(chunks, ROW: tl.constexpr):
    """(norm, spread; what makes unit rows in units of 2⁻²¹, twice a factor, as tiles) of rows."""
    scale, length, unscale = scaled_norm(chunks, ROW)
    inverse = tl.div_rn(tl.zeros_like(length) + 2048.0, length)
    return length * unscale, expand(scale, ROW), expand(inverse, ROW)


@triton.jit
def _unit(x, scale, inverse, usable):
    """Integers in units of 2⁻²¹: both limbs of a unit row at once."""
    u = tl.where(usable, x * scale * inverse, 0.0) * 1024.0
    return ((u + 12582912.0) - 12582912.0).to(tl.int32)


@triton.jit
def _paired_similarity_kernel(
    x_ptr, y_ptr, out_ptr, x_stride_b, x_stride_n, y_stride_b, y_stride_n, tokens, ROW: tl.constexpr
):
    programs = tl.cdiv(tokens, ROW.TILES // ROW.BLOCKS)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    token = (tl.program_id(0) % programs) * (ROW.TILES // ROW.BLOCKS) + tl.arange(0, ROW.TILES) // ROW.BLOCKS  # [TILES]
    mask = token < tokens
    x = load_rows(x_ptr + tl.multiple_of(sample * x_stride_b, ROW.VECTOR), x_stride_n, token, mask, ROW)
    y = load_rows(y_ptr + tl.multiple_of(sample * y_stride_b, ROW.VECTOR), y_stride_n, token, mask, ROW)
    x_norm, x_scale, x_inverse = _directions(x, ROW)
    y_norm, y_scale, y_inverse = _directions(y, ROW)
    # Zero rows have no direction, and similarity 0.
    # Integers, since the compiler would gather the flags of four comparisons on a stack.
    x_bits = x_norm.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    y_bits = y_norm.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    finite = tl.maximum(x_bits, y_bits) < 0x7F800000
    usable = expand(tl.where(finite, tl.minimum(x_bits, y_bits), 0), ROW) > 0
    total = tl.zeros((ROW.TILES, ROW.WIDTH), tl.int64)
    for c in tl.static_range(ROW.CHUNKS):
        u = _unit(x[c], x_scale, x_inverse, usable)
        total += u.to(tl.int64) * _unit(y[c], y_scale, y_inverse, usable)
    # In two words: the compiler keeps a stack for shuffles of 64 bits. 4096 of 19 bits fit into one.
    low = row_reduce(((total & 0x7FFFF).to(tl.int32),), "sum", ROW)
    high = row_reduce(((total >> 19).to(tl.int32),), "sum", ROW)
    product = (((high.to(tl.int64) << 19) + low + 2048) >> 12).to(tl.int32)  # in units of 2⁻³⁰
    similarity = tl.where(finite, product.to(tl.float32) * (1.0 / 1073741824.0), float("-inf"))
    store_rows(out_ptr + (sample * tokens + token)[:, None], similarity, mask, ROW)


def paired_similarity(x: Tensor, y: Tensor) -> Tensor:
    batch, tokens, _ = x.shape
    out = torch.empty(batch, tokens, dtype=torch.float32, device=x.device)
    if out.numel():
        tiles = row_tiles([x, y])
        launch(
            _paired_similarity_kernel, batch * cdiv(tokens, tiles["ROW"].TILES // tiles["ROW"].BLOCKS),
            x, y, out, x.stride(0), x.stride(1), y.stride(0), y.stride(1), tokens, **tiles,
        )  # fmt: skip
    return out
