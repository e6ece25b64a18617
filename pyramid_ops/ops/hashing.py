"""Uniform numbers that are a hash of a seed and an index."""

import math
from collections.abc import Sequence
from typing import Union

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from ..reference import hashing as reference

__all__ = ["hash_uniform"]

hash_uniform_op = Op(
    reference.hash_uniform,
    lambda seeds, count, dtype: seeds.new_empty(seeds.shape[0], count, dtype=dtype),
)


def hash_uniform(
    shape: Sequence[int],
    seed: Union[int, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    device: Union[torch.device, str, None] = None,
) -> Tensor:
    """Uniform numbers in [0, 1) from a seed, equal on every device and in every version: for random baselines.

    Parameters
    ----------
    shape : sequence of int
        Sizes of the result, at most 2³⁰ numbers for each seed.
    seed : int or Tensor
        An integer of 64 bits, for all numbers; or int32 or int64 ``[B]`` on the device, B the first size: sample b is
        what ``hash_uniform(shape[1:], seed[b])`` gives.
    dtype : torch.dtype
        float32: multiples of 2⁻²⁴; float16 or bfloat16: the same numbers rounded down to multiples of 2⁻¹¹ or 2⁻⁸.
    device : torch.device or str, optional
        A CPU or CUDA device. Default: that of a seed that is a tensor, else the CPU.

    Returns
    -------
    Tensor
        Of that shape, dtype and device.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, size, seed, dtype or device.

    Notes
    -----
    Number i, counted in row-major order, is the leading bits of the 32-bit hash m(m(i + 1) ^ k), where m is the
    finaliser of MurmurHash3 and k = m(m(low word of the seed + 0x9E3779B9) ^ high word). It depends on no other
    number, nor on the shape. Not for cryptography. One launch, and for a seed that is an integer a fill. No host
    synchronisation.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> scores = pyramid_ops.hash_uniform((2, 576), seed=7)
    >>> scores.topk(3).indices.shape
    torch.Size([2, 3])
    """
    op = "hash_uniform"
    sizes = [check.integer(op, f"shape[{k}]", size, 0) for k, size in enumerate(check.sequence(op, "shape", shape))]
    if dtype not in check.FLOATS:
        raise TypeError(f"{op}: dtype: expected float32, float16 or bfloat16, got {check.describe(dtype)}")
    if isinstance(seed, Tensor):
        check.tensor(op, "seed", seed, "B", dtypes=(torch.int32, torch.int64))
        if not sizes or seed.shape[0] != sizes[0]:
            raise ValueError(
                f"{op}: seed: expected one for each of the first size of {sizes}, got {check.describe(seed)}"
            )
        if device is not None and torch.device(device) != seed.device:
            raise ValueError(f"{op}: device: expected that of seed ({seed.device}), got {device}")
        seeds, count = seed.resolve_neg().to(torch.int64).contiguous(), math.prod(sizes[1:])
    else:
        number = check.integer(op, "seed", seed)
        on = torch.device("cpu" if device is None else device)
        if on.type not in ("cpu", "cuda"):
            raise ValueError(f"{op}: device: expected a CPU or CUDA device, got {device}")
        seeds, count = torch.full((1,), number, dtype=torch.int64, device=on), math.prod(sizes)
    check.packed_size(op, "shape", count)
    return hash_uniform_op(seeds, count, dtype).view(sizes)
