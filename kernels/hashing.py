"""Uniform numbers that are a hash of a seed and an index."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import cdiv, narrow
from .launch import launch
from .tiles import flat_tiles

# Bits of a number in [0, 1) of each dtype.
_BITS = {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


@triton.jit
def _mix(x):
    """The finaliser of MurmurHash3, of uint32."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit(do_not_specialize=["count"])
def _hash_uniform_kernel(seeds_ptr, out_ptr, count, BITS: tl.constexpr, BLOCK: tl.constexpr):
    programs = tl.cdiv(count, BLOCK)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    index = tl.program_id(0) % programs * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    seed = tl.zeros((BLOCK,), tl.int64) + tl.load(seeds_ptr + sample)
    key = _mix(_mix(seed.to(tl.uint32) + 0x9E3779B9) ^ (seed >> 32).to(tl.uint32))
    word = _mix(_mix((index + 1).to(tl.uint32)) ^ key)
    x = (word >> (32 - BITS)).to(tl.int32).to(tl.float32) * (1.0 / (1 << BITS))
    tl.store(out_ptr + sample * count + index, narrow(x, out_ptr.dtype.element_ty), mask=index < count)


def hash_uniform(seeds: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    out = torch.empty(seeds.shape[0], count, dtype=dtype, device=seeds.device)
    if out.numel():
        tiles = flat_tiles()
        launch(
            _hash_uniform_kernel, seeds.shape[0] * cdiv(count, tiles["BLOCK"]),
            seeds, out, count, BITS=_BITS[dtype], **tiles,
        )  # fmt: skip
    return out
