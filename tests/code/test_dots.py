"""Dot products on the grid are exact: tensor cores, BLAS and the interpreter against integers."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from pyramid_ops.kernels.launch import LAUNCH
from tests.conftest import DEVICE
from tests.dots import GRID_TILES, grid_dots_kernel, grid_rows

SIZES = [64, 1000, 1024] if DEVICE.type == "cpu" else [64, 256, 1000, 1024, 2048, 4096, 8191, 16384]


def products(features, count):
    """(a, b, exact): operands in float64, and their products from integers, for all pairs of limbs."""
    high, low, bits = grid_rows(features, count)
    limbs = [(high, 2.0**-11), (low, 2.0**-bits)]
    for a, a_unit in limbs:
        for b, b_unit in limbs:
            yield a.double() * a_unit, b.double() * b_unit, (a @ b.T).double() * (a_unit * b_unit)


@pytest.mark.kernel
@pytest.mark.parametrize("features", SIZES)
@pytest.mark.parametrize(("m", "n", "k", "warps"), GRID_TILES)
def test_triton_dots_are_exact(features, m, n, k, warps, device):
    count = max(m, n)
    for a, b, exact in products(features, count):
        a, b = (F.pad(x, (0, -features % k)).half().to(device) for x in (a, b))
        out = torch.full((count, count), torch.nan, device=device)
        grid_dots_kernel[(count // m, count // n)](
            a, b, out, count, D=a.shape[1], M=m, N=n, K=k, num_warps=warps, **LAUNCH
        )
        assert torch.equal(out.cpu().double(), exact)


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("features", [*SIZES, 16384] if DEVICE.type == "cpu" else SIZES)
def test_blas_is_exact(features, precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        for a, b, exact in products(features, 32):
            out = a.float().to(DEVICE) @ b.float().to(DEVICE).T
            assert torch.equal(out.cpu().double(), exact)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("features", [64, 1000, 4096, 16384])
def test_these_rows_would_show_a_lost_bit(features):
    """Sums kept in 21 bits instead of 24, as in a tensor core that truncates, are wrong for each pair of limbs."""
    for a, b, exact in products(features, 16):
        total = torch.zeros_like(exact)
        for feature in range(features):
            total += a[:, feature, None] * b[None, :, feature]
            mantissa, exponent = torch.frexp(total)
            total = torch.ldexp((mantissa * 2**21).trunc(), exponent - 21)
        assert not torch.equal(total, exact)


@pytest.mark.parametrize("features", [64, 1000, 1024, 8191, 16384])
def test_these_rows_keep_to_the_bounds(features):
    """No component above 1, no sum of magnitudes of products past 24 bits of its unit."""
    high, low, bits = grid_rows(features, 16)
    assert high.abs().max() == 2048
    assert low.abs().max() == 1 << (bits - 1)
    for a in (high, low):
        for b in (high, low):
            largest = (a.abs() @ b.abs().T).max()
            assert 2**20 < largest <= 2**24
