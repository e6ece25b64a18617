"""Products of rows on the grid of `unit_rows` on tensor cores, and rows on which a lost bit would show."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

import pyramid_ops
from pyramid_ops.ops.units import low_limb_bits

# M, N, K, warps: wgmma and tcgen05, the smallest of these, and mma.sync.
GRID_TILES = [(128, 128, 64, 8), (64, 64, 64, 4), (16, 16, 32, 1)]


@triton.jit
def grid_dots_kernel(
    a_ptr, b_ptr, out_ptr, columns, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr
):  # fmt: skip
    """out[i, j] = Σ a[i]·b[j] for an [M, N] tile; float16 rows of D features, float32 accumulation."""
    rows = tl.program_id(0) * M + tl.arange(0, M)
    others = tl.program_id(1) * N + tl.arange(0, N)
    total = tl.zeros((M, N), tl.float32)
    for k in range(0, D, K):
        feature = k + tl.arange(0, K)
        a = tl.load(a_ptr + rows[:, None] * D + feature[None, :])
        b = tl.load(b_ptr + others[:, None] * D + feature[None, :])
        total = tl.dot(a, tl.trans(b), total)
    tl.store(out_ptr + rows[:, None] * columns + others[None, :], total)


@triton.jit
def grid_dots_plus_one_kernel(
    a_ptr, b_ptr, out_ptr, columns, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr
):  # fmt: skip
    """What an op must not do: Triton makes 1 the start of the sum."""
    rows = tl.arange(0, M)
    others = tl.arange(0, N)
    feature = tl.arange(0, K)
    a = tl.load(a_ptr + rows[:, None] * D + feature[None, :])
    b = tl.load(b_ptr + others[:, None] * D + feature[None, :])
    tl.store(out_ptr + rows[:, None] * columns + others[None, :], tl.dot(a, tl.trans(b)) + 1.0)


def grid_rows(features: int, count: int) -> tuple[Tensor, Tensor, int]:
    """(high, low, bits): int64 `[count, D]` in units of 2⁻¹¹ and 2⁻ᵇⁱᵗˢ, the hardest rows that `unit_rows` may give.

    All of one sign and as large as the norm allows, alternating, cancelling in halves, one huge and many tiny.
    """
    generator = torch.Generator().manual_seed(features)
    ones = torch.ones(features, dtype=torch.int64)
    alternating = 1 - 2 * (torch.arange(features) % 2)
    halves = torch.where(torch.arange(features) < features // 2, 1, -1)
    signs = torch.randint(0, 2, (features,), generator=generator) * 2 - 1
    largest = math.isqrt(2048**2 // features)
    huge = math.isqrt(2048**2 - features + 1)
    first, last = ones.clone(), -ones
    first[0], last[-1] = huge, huge
    single = torch.zeros_like(ones)
    single[features // 2] = 2048
    high = [largest * ones, -largest * ones, largest * alternating, largest * halves, largest * signs, first, last]
    high += [round(2048 / math.sqrt(features)) * ones, single]
    bits = low_limb_bits(features)
    half = 1 << (bits - 1)
    low = [half * ones, -half * ones, half * alternating, half * halves, half * signs]
    low += [torch.randint(0, half + 1, (features,), generator=generator)]
    low += [torch.randint(-half, half + 1, (features,), generator=generator) for _ in range(3)]
    x = torch.randn(count - len(high), features, generator=generator)
    x[1] = x[1].abs()
    x[2, :] = 1.0
    x[3] *= 1e-3
    x[3, 0] = 1.0
    units, _ = pyramid_ops.unit_rows(x, limbs=2)
    high += list((units[:, 0].double() * 2048).long())
    low += list((units[:, 1].double() * (1 << bits)).long())
    return torch.stack(high), torch.stack(low), bits
