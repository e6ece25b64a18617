"""Thresholds of segments: against torch and NumPy, segment by segment."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyramid_ops import segment_threshold
from pyramid_ops.verify.inputs import FLOATS, special_scores
from tests.bits import assert_same_bits

QS = (0.0, 0.1, 0.25, 1 / 3, 0.5, 0.75, 0.9, 0.999, 1.0)


def made(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def expected(x: torch.Tensor, rule: str, q: float = 0.5, factor: float = 1.5) -> float:
    """In float64."""
    x = x.double().numpy()
    if not len(x):
        return np.nan
    if rule == "mean":
        return x.mean()
    if rule == "quantile":
        return np.quantile(x, q)
    first, third = np.percentile(x, [25, 75])
    return third + factor * (third - first)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rule", ["mean", "quantile", "iqr"])
def test_dense_and_packed_thresholds_are_those_of_numpy(rule, dtype):
    lengths = (1, 2, 3, 0, 576, 1000, 4097)
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    packed = made(int(bounds[-1]), dtype=dtype)
    candidates = made(len(packed), seed=1) > -0.5
    for chosen in (None, candidates):
        for q in QS if rule == "quantile" else (0.5,):
            actual = segment_threshold(packed, bounds, rule, q=q, candidates=chosen)
            assert actual.dtype == torch.float32
            assert actual.shape == (len(lengths),)
            for s, (start, stop) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
                x, mask = packed[start:stop], None if chosen is None else chosen[start:stop]
                value = expected(x if mask is None else x[mask], rule, q)
                np.testing.assert_allclose(actual[s].item(), value, rtol=2e-6, atol=1e-6)
                alone = segment_threshold(x[None], None, rule, q=q, candidates=None if mask is None else mask[None])
                assert_same_bits(alone, actual[s : s + 1])


def test_quantile_and_mean_are_those_of_torch():
    x = made(4, 1001)
    for q in QS:
        torch.testing.assert_close(segment_threshold(x, rule="quantile", q=q), x.quantile(q, 1), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(segment_threshold(x), x.mean(1), rtol=0, atol=1e-7)


@given(st.integers(1, 60), st.integers(0, 100), st.integers(0, 9))
def test_a_place_that_is_whole_gives_that_score(number, percent, seed):
    """Whatever float64 makes of (n − 1) · q: no score moves from one side of a threshold to the other."""
    x = made(number, seed=seed)
    place = (number - 1) * percent
    threshold = segment_threshold(x[None], rule="quantile", q=percent / 100)[0]
    ordered = x.sort().values
    low, high = ordered[place // 100], ordered[min(place // 100 + 1, number - 1)]
    assert threshold == low if place % 100 == 0 else low <= threshold <= high


def test_written_order_of_the_mean():
    """Lane j adds j, j + 256, …, then a tree."""
    x = (1e4 * made(700)).numpy()
    lanes = np.zeros(256, dtype=np.float32)
    for start in range(0, 700, 256):
        lanes[: len(x[start : start + 256])] += x[start : start + 256]
    while len(lanes) > 1:
        lanes = lanes[::2] + lanes[1::2]
    expected = torch.from_numpy(lanes) / torch.tensor([700.0])
    assert_same_bits(segment_threshold(torch.from_numpy(x)[None]), expected)


def test_mean_of_many_scores_is_accurate():
    """Within (N / 256 + 9) roundings of the mean magnitude."""
    x = made(1, 1 << 18).abs() + 1000
    error = (segment_threshold(x).double() - x.double().mean()).abs() / x.double().mean()
    assert error < ((1 << 18) / 256 + 9) * 2.0**-24


@pytest.mark.parametrize("rule", ["mean", "quantile", "iqr"])
def test_nothing_is_above_what_has_no_threshold(rule):
    nan = torch.nan
    x = torch.tensor([[1.0, nan, 2.0], [1.0, 2.0, 3.0], [nan, 5.0, 5.0]])
    mask = torch.tensor([[True] * 3, [False] * 3, [False, True, True]])
    threshold = segment_threshold(x, rule=rule, candidates=mask)
    assert threshold.isnan().tolist() == [True, True, False]
    assert threshold[2] == 5
    assert not (x > threshold[:, None]).any()
    assert segment_threshold(x[0], torch.tensor([0, 0, 1, 1]), rule).isnan().tolist() == [True, False, True]
    assert segment_threshold(x[:, :0], rule=rule).isnan().tolist() == [True] * 3
    assert segment_threshold(x[:0], rule=rule).shape == (0,)


def test_infinite_scores():
    inf = torch.inf
    pairs = torch.tensor([[-inf, 2.0], [2.0, inf], [-3e38, 3e38], [inf, inf], [-inf, inf]])
    for q in (0.25, 0.75):
        quantile = segment_threshold(pairs, rule="quantile", q=q)
        assert quantile[[0, 1, 3]].tolist() == [-inf, inf, inf]
        torch.testing.assert_close(quantile[2], torch.tensor((2 * q - 1) * 3e38))
        assert quantile[4].isnan()
    masked = torch.tensor([[1.0, -inf, 3.0, -inf, 2.0]])
    assert segment_threshold(masked, rule="quantile", q=1.0) == 3
    assert segment_threshold(masked, rule="quantile", q=0.5) == 1
    assert segment_threshold(masked, rule="iqr", candidates=masked > -inf) == 2.5 + 1.5 * 1.0


def test_raters_and_outliers_are_counted_on_the_device():
    """SparseVLM's raters and PruMerge's number of tokens, as their authors count them."""
    x = made(3, 577).exp()
    assert_same_bits((x > segment_threshold(x)[:, None]).sum(1), (x > x.mean(1, keepdim=True)).sum(1))
    counts = (x > segment_threshold(x, rule="iqr")[:, None]).sum(1)
    for b in range(3):
        first, third = np.percentile(x[b].double().numpy(), [25, 75])
        assert counts[b] == int((x[b].double().numpy() > third + 1.5 * (third - first)).sum())


def test_later_scores_of_a_longer_segment_do_not_count():
    x, bounds = made(50), torch.tensor([0, 30, 50])
    for rule in ("mean", "quantile", "iqr"):
        actual = segment_threshold(x, bounds, rule, max_seqlen=20)
        assert_same_bits(actual, segment_threshold(torch.stack((x[:20], x[30:])), rule=rule))


def test_ties_zeros_and_layouts():
    x = special_scores(2, 90, torch.float32, 4).nan_to_num(7.0)
    for rule in ("mean", "quantile", "iqr"):
        assert_same_bits(segment_threshold(x.T.contiguous().T, rule=rule), segment_threshold(x, rule=rule))
    zeros = segment_threshold(torch.tensor([[-0.0, 0.0, -0.0]]), rule="quantile")
    assert zeros.view(torch.int32) == 0
    flipped = torch._neg_view(x)
    assert_same_bits(segment_threshold(flipped, rule="iqr"), segment_threshold(-x, rule="iqr"))


S = made(2, 6)
B = torch.tensor([0, 2, 6])
M = torch.ones(2, 6, dtype=torch.bool)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("scores: expected a tensor", lambda: segment_threshold([1])),
        (r"scores: expected shape \[B, N\], got float32 \[6\]", lambda: segment_threshold(S[0])),
        (r"scores: expected shape \[T\], got float32 \[2, 6\]", lambda: segment_threshold(S, B)),
        ("scores: expected dtype float32, float16, bfloat16, got int64", lambda: segment_threshold(S.long())),
        ("scores: expected no gradient", lambda: segment_threshold(S.clone().requires_grad_())),
        ("rule: expected one of 'mean', 'quantile', 'iqr', got 'max'", lambda: segment_threshold(S, None, "max")),
        ("q: expected a number from 0 to 1, got 1.5", lambda: segment_threshold(S, q=1.5)),
        ("q: expected a finite number", lambda: segment_threshold(S, q=float("nan"))),
        ("q: expected a number, got None", lambda: segment_threshold(S, q=None)),
        ("factor: expected a finite number", lambda: segment_threshold(S, factor=1e39)),
        ("cu_seqlens: expected dtype int32, int64", lambda: segment_threshold(S[0], B.float())),
        ("cu_seqlens: expected at least one element", lambda: segment_threshold(S[0], B[:0])),
        ("max_seqlen: expected at least 0, got -1", lambda: segment_threshold(S[0], B, max_seqlen=-1)),
        ("max_seqlen: expected only with cu_seqlens, got 3", lambda: segment_threshold(S, max_seqlen=3)),
        ("candidates: expected dtype bool", lambda: segment_threshold(S, candidates=S)),
        (r"candidates: expected shape \[T\]", lambda: segment_threshold(S[0], B, candidates=M)),
        (r"candidates: expected \[2, 6\] on cpu", lambda: segment_threshold(S, candidates=M[:, 1:])),
    ],
)
def test_bad_thresholds(message, call):
    with pytest.raises((TypeError, ValueError), match=f"^segment_threshold: {message}"):
        call()
