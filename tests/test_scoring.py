"""What the scores mean: float64, torch, stated bounds, bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pyramid_ops
from pyramid_ops import token_norm, token_variance, unit_rows
from tests.bits import assert_same_bits
from tests.cases import FEATURES, FLOATS


def ulps(actual: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Distance in units of the last place of the float32 nearest to `exact`."""
    nearest = np.abs(exact.double().numpy()).astype(np.float32)
    return torch.from_numpy(np.abs(actual.double().numpy() - exact.double().numpy()) / np.spacing(nearest))


@pytest.mark.parametrize("features", [2, 3, 17, 64, 256, 1000, 1024, 1152, 4096, 5000, 16384])
@pytest.mark.parametrize("mean", [0.0, 1.0, 1e2, 1e4, 1e6])
def test_variance_is_within_8_ulp(features, mean):
    x = torch.randn(64, features, generator=torch.Generator().manual_seed(features)) + mean
    exact = x.double().var(-1)
    assert ulps(token_variance(x), exact).max() <= 8


@pytest.mark.parametrize("mean", [0.0, 1.0, 1e4, 1e6])
def test_variance_is_within_8_ulp_with_an_outlier_or_two_values(mean):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 1024, generator=generator) + mean
    x[:, 0] += 1e4
    two = torch.where(torch.rand(64, 1024, generator=generator) < 0.5, mean + 1 / 3, mean - 1 / 7)
    for rows in (x, two):
        assert ulps(token_variance(rows), rows.double().var(-1)).max() <= 8


@pytest.mark.parametrize("features", [3, 767, 768, 3000, 16384])
def test_variance_is_within_8_ulp_where_features_differ_by_their_last_bit(features):
    generator = torch.Generator().manual_seed(features)
    base = torch.randint(1 << 23, (1 << 24) - 1, (200, 1), generator=generator).float()
    one = base.expand(200, features).clone()
    one[:, features // 3] += 1
    several = base + torch.randint(0, 2, (200, features), generator=generator)
    for rows in (one, several):
        assert ulps(token_variance(rows), rows.double().var(-1)).max() <= 8


@pytest.mark.parametrize("dtype", FLOATS)
def test_variance_agrees_with_torch(dtype):
    x = torch.randn(3, 50, 768, generator=torch.Generator().manual_seed(0)).to(dtype)
    for correction in (0, 1, 5):
        expected = x.float().var(-1, correction=correction)
        torch.testing.assert_close(token_variance(x, correction=correction), expected, rtol=1e-6, atol=0)


@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.integers(2, 3000))
def test_constant_rows_have_variance_zero(value, features):
    assert_same_bits(token_variance(torch.full((2, features), value)), torch.zeros(2))


@pytest.mark.parametrize("dtype", FEATURES)
def test_largest_constant_rows_have_variance_zero(dtype):
    largest = 255 if dtype == torch.uint8 else torch.finfo(dtype).max
    for features in (2, 3, 1000, 16383):
        assert_same_bits(token_variance(torch.full((1, features), largest, dtype=dtype)), torch.zeros(1))


def test_nearly_constant_rows_are_not_constant():
    x = torch.ones(3, 1024)
    x[0, 5] += 2.0**-23
    x[1, -1] += 2.0**-23
    variance = token_variance(x)
    assert (variance[:2] > 0).all()
    assert variance[2] == 0


def test_variance_without_degrees_of_freedom_is_nan():
    assert token_variance(torch.ones(2, 1)).isnan().all()
    assert token_variance(torch.ones(2, 5), correction=5).isnan().all()
    assert token_variance(torch.ones(2, 5), correction=4).eq(0).all()
    assert token_variance(torch.ones(2, 1), correction=0).eq(0).all()


def test_non_finite_features_give_nan_variance():
    x = torch.rand(4, 10)
    x[0, 3], x[1, 0], x[2, :] = torch.nan, torch.inf, torch.inf
    variance = token_variance(x)
    assert variance[:3].isnan().all()
    assert variance[3].isfinite()


@pytest.mark.parametrize("features", [1, 3, 64, 1000, 1024, 16384])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_norm_is_within_8_ulp(features, scale):
    x = torch.randn(64, features, generator=torch.Generator().manual_seed(features)) * scale
    assert ulps(token_norm(x), (x.double() ** 2).sum(-1).sqrt()).max() <= 8


def test_norm_of_special_rows():
    x = torch.zeros(6, 4)
    x[1], x[2, 1], x[3, 2], x[4, 0] = -0.0, torch.inf, -torch.inf, torch.nan
    x[5] = torch.finfo(torch.float32).max
    expected = torch.tensor([0.0, 0.0, torch.inf, torch.inf, torch.nan, torch.inf])
    assert_same_bits(token_norm(x), expected)
    tiny = torch.full((1, 4), 1e-45)
    assert token_norm(tiny).item() == pytest.approx(2e-45, rel=0.5)


def test_packed_and_batched_agree():
    x = torch.randn(3, 5, 40)
    for op in (token_variance, token_norm):
        assert_same_bits(op(x).flatten(), op(x.flatten(0, 1)))
    for batched, packed in zip(unit_rows(x, limbs=2), unit_rows(x.flatten(0, 1), limbs=2), strict=True):
        assert_same_bits(batched.flatten(0, 1), packed)


@pytest.mark.parametrize("view", ["transposed", "sliced", "last-dimension"])
def test_strided_inputs_agree_with_contiguous_ones(view):
    x = torch.randn(6, 7, 33)
    x = {"transposed": x.transpose(0, 1), "sliced": x[1:, ::2, 3:30], "last-dimension": x.transpose(1, 2)}[view]
    for op in (token_variance, token_norm):
        assert_same_bits(op(x), op(x.contiguous()))


def test_inputs_are_not_modified():
    x = torch.randn(2, 3, 1024)
    before = x.clone()
    token_variance(x), token_norm(x), unit_rows(x, limbs=2)
    assert_same_bits(x, before)


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


BAD = [
    (TypeError, "features: expected a tensor, got \\[1, 2\\]", lambda op: op([1, 2])),
    (ValueError, r"features: expected shape \[B, N, D\] or \[T, D\], got float32 \[3\]", lambda op: op(torch.ones(3))),
    (TypeError, "features: expected dtype float32.*got float64", lambda op: op(torch.ones(2, 3, dtype=torch.float64))),
    (TypeError, "features: expected dtype float32.*got int64", lambda op: op(torch.ones(2, 3, dtype=torch.int64))),
    (ValueError, "features: expected 1 to 16384 features", lambda op: op(torch.ones(2, 0))),
    (ValueError, "features: expected 1 to 16384 features", lambda op: op(torch.ones(2, 16385))),
    (ValueError, "features: expected no gradient", lambda op: op(torch.ones(2, 3, requires_grad=True))),
    (TypeError, "features: expected a CPU or CUDA tensor", lambda op: op(torch.ones(2, 3, device="meta"))),
]


@pytest.mark.parametrize("op", [token_variance, token_norm])
@pytest.mark.parametrize(("error", "message", "call"), BAD)
def test_bad_features(op, error, message, call):
    with pytest.raises(error, match=f"^{op.__name__}: {message}"):
        call(op)


@pytest.mark.parametrize("correction", [1.5, "1", True, None, -1])
def test_bad_correction(correction):
    with pytest.raises((TypeError, ValueError), match="^token_variance: correction: expected"):
        token_variance(torch.ones(2, 3), correction=correction)


@pytest.mark.parametrize("limbs", [0, 3, 1.0])
def test_bad_limbs(limbs):
    with pytest.raises((TypeError, ValueError), match="^unit_rows: limbs: expected"):
        unit_rows(torch.ones(2, 3), limbs=limbs)


def test_gradients_are_allowed_where_grad_mode_is_off():
    with torch.no_grad():
        assert token_norm(torch.ones(2, 4, requires_grad=True)).tolist() == [2, 2]


def test_ambient_state_does_not_matter():
    x = torch.randn(4, 100).to(torch.bfloat16)
    expected = pyramid_ops.token_variance(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_bits(pyramid_ops.token_variance(x), expected)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert_same_bits(pyramid_ops.token_variance(x), expected)
    torch.set_num_threads(threads)
