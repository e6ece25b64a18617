"""Scores of tokens and their combination: meaning, accuracy, bad input."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pyramid_ops
from pyramid_ops import combine_scores, pool_scores, token_norm, token_variance, unit_rows
from pyramid_ops.verify.inputs import FEATURES, FLOATS, int32
from tests.bits import assert_same_bits


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


@pytest.mark.parametrize("features", [1, 3, 64, 1000, 1024, 16384])
@pytest.mark.parametrize("dtype", FEATURES)
def test_sum_of_magnitudes_is_within_4_ulp(features, dtype):
    x = (100 * torch.randn(64, features, generator=torch.Generator().manual_seed(features))).to(dtype)
    assert ulps(token_norm(x, p=1), x.double().abs().sum(-1)).max() <= 4


def test_magnitudes_of_special_rows():
    x = torch.zeros(7, 4)
    x[1], x[2, 1], x[3, 2], x[4, 0], x[5, 3] = -0.0, torch.inf, -torch.inf, torch.nan, -torch.nan
    x[6] = -torch.finfo(torch.float32).max
    expected = torch.tensor([0.0, 0.0, torch.inf, torch.inf, torch.nan, torch.nan, torch.inf])
    assert_same_bits(token_norm(x, p=1), expected)
    assert token_norm(torch.full((1, 4), -1e-45), p=1).item() == 4 * 2.0**-149


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


@pytest.mark.parametrize("p", [0, 3, 1.0, "1", True, None])
def test_bad_p(p):
    with pytest.raises((TypeError, ValueError), match="^token_norm: p: expected"):
        token_norm(torch.ones(2, 3), p=p)


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


def min_max(x: torch.Tensor) -> torch.Tensor:
    """The plain formula in float64, of one sample."""
    x = x.double()
    finite = x[x.isfinite()]
    low, high = (finite.min(), finite.max()) if len(finite) else (torch.tensor(0.0), torch.tensor(0.0))
    y = torch.where(high > low, (x - low) / (high - low), 0.0)
    y = torch.where(x == torch.inf, 1.0, torch.where(x == -torch.inf, 0.0, y))
    return torch.where(x.isnan(), torch.nan, y)


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 3, (torch.bfloat16,) * 3, FLOATS])
@pytest.mark.parametrize("normalize", [None, "minmax"])
def test_combination_is_the_plain_formula(dtypes, normalize):
    generator = torch.Generator().manual_seed(1)
    scores = [torch.randn(4, 100, generator=generator).to(dtype) for dtype in dtypes]
    weights = [0.3, -0.5, 2.0]
    rows = [torch.stack([min_max(row) for row in x]) if normalize else x.double() for x in scores]
    expected = sum(weight * row for weight, row in zip(weights, rows, strict=True))
    actual = combine_scores(scores, weights, normalize=normalize)
    assert actual.dtype == torch.float32
    bound = 1e-6 * sum(abs(weight) * row.abs() for weight, row in zip(weights, rows, strict=True)).max()
    assert (actual.double() - expected).abs().max() <= bound


def test_products_are_added_in_order():
    scores = [torch.full((1, 1), value) for value in (1e8, 3.0, 5.0, -1e8)]
    f = np.float32
    expected = f(f(f(f(1e8) * f(0.1)) + f(f(3) * f(0.7))) + f(f(5) * f(0.7))) + f(f(-1e8) * f(0.1))
    assert combine_scores(scores, [0.1, 0.7, 0.7, 0.1]).item() == expected
    assert_same_bits(combine_scores([torch.full((1, 2), -0.0)], [1.0]), torch.zeros(1, 2))


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 1e20, 1e38])
@pytest.mark.parametrize("mean", [0.0, 1.0, 2.0])
def test_normalised_scores_are_within_3_ulp_and_in_order(scale, mean):
    generator = torch.Generator().manual_seed(0)
    x = ((torch.randn(20, 500, generator=generator) + mean) * scale).clamp(-3.4e38, 3.4e38)
    y = combine_scores([x], [1.0], normalize="minmax")
    exact = torch.stack([min_max(row) for row in x])
    normal = exact > 1.2e-38
    assert ulps(y[normal], exact[normal]).max() <= 3
    assert (y - exact).abs()[~normal].max() <= 1e-44
    order = x.argsort(1)
    assert (y.gather(1, order).diff(dim=1) >= 0).all()
    assert y.min() == 0
    assert y.max() == 1


@given(st.lists(st.floats(width=32), min_size=1, max_size=30))
def test_normalised_scores_of_any_floats(values):
    x = torch.tensor([values])
    y = combine_scores([x], [1.0], normalize="minmax")
    torch.testing.assert_close(y.double(), min_max(x[0])[None], rtol=4e-7, atol=3e-45, equal_nan=True)


def test_a_range_that_overflows():
    largest = torch.finfo(torch.float32).max
    x = torch.tensor([[-largest, 0.0, largest, largest / 2], [-3e38, 3e38, 1e-40, -1.5e38]])
    expected = torch.tensor([[0.0, 0.5, 1.0, 0.75], [0.0, 1.0, 0.5, 0.25]])
    torch.testing.assert_close(combine_scores([x], [1.0], normalize="minmax"), expected, rtol=2e-7, atol=0)
    x[:, 3] = torch.inf
    assert combine_scores([x], [1.0], normalize="minmax")[:, 3].tolist() == [1, 1]


def test_neighbouring_and_equal_scores():
    tiny = torch.tensor([[0.0, 1e-45], [1.0, 1 + 2.0**-23], [-0.0, 0.0], [3.1, 3.1], [-3e38, -3e38]])
    expected = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert_same_bits(combine_scores([tiny], [1.0], normalize="minmax"), expected)


def test_what_is_not_finite_changes_no_other_token():
    nan, inf = torch.nan, torch.inf
    x = torch.tensor([[1.0, nan, 3.0, 2.0], [1.0, inf, 3.0, -inf], [nan, nan, nan, nan], [inf, -inf, 4.0, nan]])
    expected = torch.tensor([[0.0, nan, 1.0, 0.5], [0.0, 1.0, 1.0, 0.0], [nan] * 4, [1.0, 0.0, 0.0, nan]])
    assert_same_bits(combine_scores([x], [1.0], normalize="minmax"), expected)


def test_samples_do_not_change_each_other():
    x = torch.randn(3, 50) * torch.tensor([[1.0], [100.0], [1e-6]])
    together = combine_scores([x, x.abs()], [0.3, 0.7], normalize="minmax")
    for b in range(3):
        alone = combine_scores([x[b : b + 1], x[b : b + 1].abs()], [0.3, 0.7], normalize="minmax")
        assert_same_bits(alone, together[b : b + 1])


@pytest.mark.parametrize("normalize", [None, "minmax"])
def test_packed_segments_are_samples(normalize):
    scores = [torch.randn(60), torch.randn(60).bfloat16()]
    bounds = [2, 2, 9, 10, 40, 40, 55]
    packed = combine_scores(scores, [0.3, 0.7], normalize=normalize, cu_seqlens=int32(*bounds))
    assert_same_bits(packed[:2], torch.zeros(2))
    assert_same_bits(packed[55:], torch.zeros(5))
    for start, end in itertools.pairwise(bounds):
        alone = combine_scores([x[None, start:end] for x in scores], [0.3, 0.7], normalize=normalize)
        assert_same_bits(packed[start:end], alone[0])


@pytest.mark.parametrize("normalize", [None, "minmax"])
def test_tokens_of_no_segment_get_zero_whatever_their_score(normalize):
    x = torch.tensor([torch.nan, 1.0, 2.0, torch.inf])
    for bounds, expected in (
        ((1, 3), [0.0, 1.0, 2.0, 0.0]),
        ((0,), [0.0] * 4),
        ((4, 9), [0.0] * 4),
        ((-5, 0), [0.0] * 4),
    ):
        actual = combine_scores([x], [1.0], normalize=normalize, cu_seqlens=int32(*bounds))
        expected = torch.tensor(expected)
        assert_same_bits(actual, (expected == 2).float() if normalize else expected)


@given(st.lists(st.integers(-5, 40), min_size=1, max_size=12), st.integers(0, 30))
def test_offsets_in_any_order_put_a_token_into_a_segment_that_holds_it_or_into_none(offsets, tokens):
    from pyramid_ops.reference.segments import segment_of

    found = segment_of(torch.tensor(offsets), tokens).tolist()
    assert len(found) == tokens
    for token, segment in enumerate(found):
        holding = [s for s in range(len(offsets) - 1) if offsets[s] <= token < offsets[s + 1]]
        assert segment in holding or segment == len(offsets) - 1
        if offsets == sorted(offsets):
            assert [segment] == (holding or [len(offsets) - 1])


def test_scores_are_not_modified():
    x = torch.randn(2, 12)
    before = x.clone()
    pool_scores(x, (3, 4)), combine_scores([x, x], [1.0, 2.0], normalize="minmax")
    assert_same_bits(x, before)


def test_strided_and_negated_scores():
    x = torch.randn(12, 24)
    for view in (x.T[:, :12], x[::2, 3:15], x[:1, :12].expand(3, 12), torch._neg_view(x)[:, :12]):
        assert_same_bits(pool_scores(view, (3, 4)), pool_scores(view.clone(), (3, 4)))
        for mode in (None, "minmax"):
            expected = combine_scores([view.clone()] * 2, [0.3, 0.7], normalize=mode)
            assert_same_bits(combine_scores([view] * 2, [0.3, 0.7], normalize=mode), expected)


S = torch.zeros(2, 12)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("scores: expected a list or tuple of tensors, got float32", lambda: combine_scores(S, [1.0])),
        ("scores: expected 1 to 64 tensors, got 0", lambda: combine_scores([], [])),
        ("scores: expected 1 to 64 tensors, got 65", lambda: combine_scores([S] * 65, [1.0] * 65)),
        (r"scores\[1\]: expected a tensor", lambda: combine_scores([S, None], [1.0, 1.0])),
        (r"scores\[0\]: expected shape \[B, N\]", lambda: combine_scores([S[0, 0]], [1.0])),
        (r"scores\[0\]: expected shape \[T\]", lambda: combine_scores([S], [1.0], cu_seqlens=int32(0, 2))),
        (r"scores\[1\]: expected \[2, 12\] on cpu, got", lambda: combine_scores([S, S[:1]], [1.0, 1.0])),
        (r"scores\[0\]: expected dtype", lambda: combine_scores([S.double()], [1.0])),
        (r"scores\[0\]: expected no gradient", lambda: combine_scores([S.clone().requires_grad_()], [1.0])),
        ("weights: expected a list or tuple", lambda: combine_scores([S], torch.ones(1))),
        ("weights: expected one for each of 1 tensors, got 2", lambda: combine_scores([S], [1.0, 1.0])),
        (r"weights\[0\]: expected a number, got '1'", lambda: combine_scores([S], ["1"])),
        (r"weights\[1\]: expected a finite number, got nan", lambda: combine_scores([S] * 2, [1.0, float("nan")])),
        (r"weights\[0\]: expected a number that is finite in float32", lambda: combine_scores([S], [1e39])),
        (
            "normalize: expected None or 'minmax', got 'softmax'",
            lambda: combine_scores([S], [1.0], normalize="softmax"),
        ),
        ("normalize: expected None or 'minmax', got True", lambda: combine_scores([S], [1.0], normalize=True)),
        ("cu_seqlens: expected a tensor", lambda: combine_scores([S[0]], [1.0], cu_seqlens=[0, 2])),
        ("cu_seqlens: expected dtype int32", lambda: combine_scores([S[0]], [1.0], cu_seqlens=torch.ones(2).short())),
        ("cu_seqlens: expected at least one", lambda: combine_scores([S[0]], [1.0], cu_seqlens=int32())),
    ],
)
def test_bad_combination(message, call):
    with pytest.raises((TypeError, ValueError), match=f"^combine_scores: {message}"):
        call()
