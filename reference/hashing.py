"""Uniform numbers that are a hash of a seed and an index."""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
# Bits of a number in [0, 1) of each dtype.
_BITS = {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def hash_uniform(seeds: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """`[B, count]`: the leading bits of a 32-bit hash of (seed, index), as a number in [0, 1)."""
    low, high = seeds & _WORD, (seeds >> 32) & _WORD
    key = _mix(_mix((low + 0x9E3779B9) & _WORD) ^ high)
    index = torch.arange(count, dtype=torch.int64, device=seeds.device)
    word = _mix(_mix(index + 1) ^ key[:, None])
    bits = _BITS[dtype]
    return ((word >> (32 - bits)).to(torch.float32) * 2.0**-bits).to(dtype)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of MurmurHash3, of words in int64; products wrap."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _WORD
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _WORD
    return x ^ (x >> 16)
