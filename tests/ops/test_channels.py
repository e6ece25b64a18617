"""Variance of channels over tokens: meaning, accuracy, bad input."""

import itertools

import pytest
import torch

from pyramid_ops import channel_variance
from pyramid_ops.verify.inputs import FEATURES, FLOATS, int32
from tests.bits import assert_same_bits

from .merging_inputs import INF, NAN, rand
from .test_scoring import ulps


@pytest.mark.parametrize("tokens", [2, 3, 9, 64, 65, 577, 2048, 16384, 65536])
@pytest.mark.parametrize("mean", [0.0, 1.0, 1e2, 1e4, 1e6])
def test_channels_are_within_8_ulp(tokens, mean):
    x = rand(2, tokens, 20, seed=tokens) + mean
    x[1, 0] += 1e4
    assert ulps(channel_variance(x), x.double().var(1)).max() <= 8


@pytest.mark.parametrize("tokens", [3, 64, 1000, 16384])
def test_channels_are_within_8_ulp_where_features_differ_by_their_last_bit(tokens):
    generator = torch.Generator().manual_seed(tokens)
    base = torch.randint(1 << 23, (1 << 24) - 1, (1, 50), generator=generator).float()
    one = base.expand(tokens, 50).clone()
    one[tokens // 3] += 1
    several = base + torch.randint(0, 2, (tokens, 50), generator=generator)
    for rows in (one, several):
        assert ulps(channel_variance(rows), rows.double().var(0)).max() <= 8


@pytest.mark.parametrize("dtype", FLOATS)
def test_channels_agree_with_torch(dtype):
    x = rand(3, 200, 70, dtype=dtype)
    actual = channel_variance(x)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, x.float().var(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", FEATURES)
def test_constant_channels_have_variance_zero(dtype):
    largest = 255 if dtype == torch.uint8 else torch.finfo(dtype).max
    row = torch.tensor([largest, 3.1, 0.1, 0]).to(dtype)
    for tokens in (2, 9, 64, 65, 1000, 5000):
        assert_same_bits(channel_variance(row.expand(tokens, 4)), torch.zeros(4))
    x = torch.full((1000, 2), 0.1)
    x[999, 1] += 2.0**-27
    assert (channel_variance(x) > 0).tolist() == [False, True]


def test_one_token_and_what_is_not_finite_give_nan():
    assert channel_variance(rand(2, 1, 5)).isnan().all()
    assert channel_variance(rand(2, 0, 5)).isnan().all()
    x = rand(300, 5)
    x[7, 0], x[250, 1], x[:, 2], x[299, 3] = NAN, INF, INF, -INF
    assert channel_variance(x).isnan().tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("bounds", [(0, 64, 64, 65, 300), (7, 8, 10, 75, 258), (0, 300), (-5, 100, 999)])
def test_packed_segments_are_samples(bounds):
    x = rand(300, 40)
    packed = channel_variance(x, cu_seqlens=int32(*bounds))
    for s, (start, stop) in enumerate(itertools.pairwise(bounds)):
        part = x[max(start, 0) : stop]
        assert_same_bits(packed[s], channel_variance(part[None])[0])
        assert_same_bits(packed[s], channel_variance(part))


def test_an_offset_below_an_earlier_one_counts_as_that_one():
    x = rand(50, 8)
    expected = channel_variance(x, cu_seqlens=int32(0, 30, 30, 50, 50))
    assert_same_bits(channel_variance(x, cu_seqlens=torch.tensor([0, 30, 10, 50, 20])), expected)


def test_strided_features_agree_with_contiguous_ones():
    x = rand(6, 70, 33)
    for view in (x.transpose(0, 1), x[1:, ::2, 3:30], x.mT):
        assert_same_bits(channel_variance(view), channel_variance(view.contiguous()))


X = torch.zeros(2, 12, 4)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("features: expected a tensor", lambda: channel_variance([1])),
        (r"features: expected shape \[B, N, D\] or \[T, D\], got float32 \[4\]", lambda: channel_variance(X[0, 0])),
        ("features: expected dtype float32", lambda: channel_variance(X.double())),
        ("features: expected 1 to 16384 features", lambda: channel_variance(X[..., :0])),
        ("features: expected no gradient", lambda: channel_variance(X.clone().requires_grad_())),
        (r"cu_seqlens: expected only with packed", lambda: channel_variance(X, cu_seqlens=int32(0, 2))),
        ("cu_seqlens: expected a tensor", lambda: channel_variance(X[0], cu_seqlens=[0, 2])),
        ("cu_seqlens: expected at least one", lambda: channel_variance(X[0], cu_seqlens=int32())),
        ("cu_seqlens: expected dtype int32, int64", lambda: channel_variance(X[0], cu_seqlens=torch.zeros(2))),
    ],
)
def test_bad_channels(message, call):
    with pytest.raises((TypeError, ValueError), match=f"^channel_variance: {message}"):
        call()
