"""Entropy of the pixels of patches."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import widen
from .launch import launch
from .rows import row_reduce, store_rows
from .tiles import entropy_tiles


@triton.jit
def _bin_terms(counts, total):
    """c · log2(total / c), see the reference."""
    whole = tl.zeros_like(counts).to(tl.float32) + total
    count = tl.where(counts > 0, counts.to(tl.float32), whole)
    exponent = (whole.to(tl.int32, bitcast=True) >> 23) - (count.to(tl.int32, bitcast=True) >> 23)
    scaled = count * ((127 + exponent) << 23).to(tl.float32, bitcast=True)
    exponent += (whole > scaled * 1.5).to(tl.int32)
    exponent -= (scaled > whole * 1.5).to(tl.int32)
    scaled = count * ((127 + exponent) << 23).to(tl.float32, bitcast=True)
    s = tl.div_rn(whole - scaled, whole + scaled)
    z = s * s
    series = z * 0.262308189252539 + 0.3205988979753252
    series = series * z + 0.4121985831111324
    series = series * z + 0.5770780163555854
    series = series * z + 0.9617966939259756
    series = series * z + 2.8853900817779268
    return count * (exponent.to(tl.float32) + s * series)


@triton.jit
def _patch_entropy_kernel(
    x_ptr, out_ptr, stride_b, stride_c, stride_h, channels, down, across,
    PATCH: tl.constexpr, BINS: tl.constexpr, ROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program counts the pixel values of one patch in words, a power of two of at least BINS and 32."""
    WORDS: tl.constexpr = ROW.WIDTH
    patch = tl.program_id(0) % (down * across)
    sample = (tl.program_id(0) // (down * across)).to(tl.int64)
    top = (patch // across).to(tl.int64) * PATCH
    left = (patch % across) * PATCH
    x_ptr += sample * stride_b + top * stride_h + left
    total = (tl.zeros((), tl.int32) + channels) * (PATCH * PATCH)
    counts = tl.zeros((WORDS,), tl.int32)
    unordered = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, total, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        mask = pixel < total
        channel = pixel // (PATCH * PATCH)
        row = pixel % (PATCH * PATCH) // PATCH
        offset = channel.to(tl.int64) * stride_c + row.to(tl.int64) * stride_h + pixel % PATCH
        x = tl.load(x_ptr + offset, mask=mask, other=0)
        if x.dtype == tl.uint8:
            word = (x.to(tl.int32) * BINS) >> 8
        else:
            y = widen(x) * BINS
            inside = tl.where(y >= 1.0, y, 0.0)
            word = tl.where(inside < BINS, inside, BINS - 1.0).to(tl.int32)
            unordered = unordered | tl.where(y == y, 0, 1)
        counts += tl.histogram(word, WORDS, mask=mask)
    terms = tl.reshape(_bin_terms(counts, total), (1, WORDS))
    entropy = row_reduce((terms,), "sum", ROW) + 0.0
    entropy = tl.div_rn(entropy, tl.zeros_like(entropy) + total)
    entropy = tl.where(tl.max(unordered) > 0, float("nan"), entropy)
    one = tl.arange(0, 1)
    store_rows(out_ptr + tl.program_id(0) + one[:, None], entropy, one == 0, ROW)


def patch_entropy(images: Tensor, patch_size: int, bins: int) -> Tensor:
    batch, channels, height, width = images.shape
    down, across = height // patch_size, width // patch_size
    out = torch.empty(batch, down * across, dtype=torch.float32, device=images.device)
    if out.numel():
        launch(
            _patch_entropy_kernel, out.numel(),
            images, out, *images.stride()[:3], channels, down, across, PATCH=patch_size, BINS=bins,
            **entropy_tiles(channels * patch_size * patch_size, bins),
        )  # fmt: skip
    return out
