"""Unit rows on a grid: exact products, and how near they are to the row."""

import pytest
import torch

from pyramid_ops import unit_rows
from pyramid_ops.verify.inputs import FLOATS
from tests.bits import assert_same_bits


@pytest.mark.parametrize("features", [1, 2, 64, 1000, 1024, 16384])
def test_dot_products_of_unit_rows_are_exact(features):
    """Any float32 accumulation order equals integer arithmetic, adversarial rows included."""
    generator = torch.Generator().manual_seed(features)
    x = torch.randn(48, features, generator=generator)
    x[0], x[1], x[2] = 1.0, -1.0, 0.0
    x[3] = torch.where(torch.arange(features) % 2 == 0, 1.0, -1.0)
    x[4, 0] = 1e20
    x[5] = x[4]
    x[6:12] = x[12:18] + 1e-3 * x[18:24]
    units, _ = unit_rows(x, limbs=2)
    bits = min(11, 13 - ((features - 1).bit_length() + 1) // 2)
    scaled = [(units[:, 0].double() * 2**11, 11), (units[:, 1].double() * 2.0**bits, bits)]
    for a, a_bits in scaled:
        assert_same_bits(a, a.round())
        for b, b_bits in scaled:
            exact = a.long() @ b.long().T
            assert exact.abs().max() <= 2**24
            left, right = (a / 2.0**a_bits).float(), (b / 2.0**b_bits).float()
            for product in (left @ right.T, left.flip(1) @ right.flip(1).T):
                assert torch.equal((product.double() * 2.0 ** (a_bits + b_bits)).long(), exact)
            bound = (left.abs().double() @ right.abs().double().T).max() * 2.0 ** (a_bits + b_bits)
            assert bound <= 2**24


@pytest.mark.parametrize("dtype", FLOATS)
def test_unit_rows_approximate_the_row(dtype):
    x = torch.randn(5, 100, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = x.double() / x.double().norm(dim=-1, keepdim=True)
    units, norms = unit_rows(x, limbs=2)
    # Half a grid step of the last limb (9 fraction bits at D = 100), and the rounding of u, |u| < 1/2, in float32.
    assert (units[:, 0].double() - exact).abs().max() <= 2**-12 + 2**-24
    assert (units[:, 0].double() + units[:, 1].double() * 2**-11 - exact).abs().max() <= 2**-21 + 2**-24
    torch.testing.assert_close(norms.double(), x.double().norm(dim=-1), rtol=1e-6, atol=0)


def test_unusable_rows_are_zero_rows_with_a_flag():
    x = torch.ones(6, 8)
    x[0], x[1, 2], x[2, 3], x[3] = 0.0, torch.nan, -torch.inf, torch.finfo(torch.float32).max
    x[4] = 1e-45
    units, norms = unit_rows(x, limbs=2)
    usable = (norms > 0) & (norms < torch.inf)
    assert usable.tolist() == [False, False, False, False, True, True]
    assert_same_bits(units[:4], torch.zeros(4, 2, 8, dtype=torch.float16))
    assert (units[4:, 0].float() - 8**-0.5).abs().max() < 2**-11
    assert_same_bits(norms[:4], torch.tensor([0.0, torch.nan, torch.inf, torch.inf]))


@pytest.mark.parametrize("limbs", [0, 3, 1.0])
def test_bad_limbs(limbs):
    with pytest.raises((TypeError, ValueError), match="^unit_rows: limbs: expected"):
        unit_rows(torch.ones(2, 3), limbs=limbs)
