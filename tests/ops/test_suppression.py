"""What leaders mean: the plain greedy loop, token by token, in float64 and in integers."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyramid_ops
from pyramid_ops import suppress
from pyramid_ops.reference.units import unit_rows
from tests.bits import assert_same_bits

from .merging_inputs import INF, NAN, clusters, cosine, rand


def greedy(alike, order, usable):
    """Leaders by the loop that the op is named after; `alike` bool [N, N]."""
    leader = torch.full((len(alike),), -1)
    free = usable.clone()
    for token in order:
        if free[token]:
            joins = alike[token] & free
            joins[token] = True
            leader[joins] = token
            free &= ~joins
    return leader


def integers(x, limbs):
    """Similarities in units of 2⁻³⁰, of exact integers."""
    units, norms = unit_rows(x[None], limbs, 10)
    high = (units[0, :, 0].double() * 2048).to(torch.int64)
    low = (units[0, :, 1].double() * 1024).to(torch.int64) if limbs == 2 else torch.zeros_like(high)
    rows = (high << 10) + low
    return ((rows[:, None] * rows[None]).sum(-1) + 2048) >> 12, norms[0].abs() < INF


def expected(x, threshold, scores=None, candidates=None, limbs=2):
    """Of one sample."""
    if not len(x):
        return torch.zeros(0, dtype=torch.int64)
    similarity, usable = integers(x, limbs)
    if candidates is not None:
        usable = usable & candidates
    order = range(len(x))
    if scores is not None:
        values = [math.inf if score != score else score for score in scores.tolist()]
        order = sorted(order, key=lambda i: (scores[i] == scores[i], -values[i], i))
    least = 1 << 31 if threshold != threshold else math.ceil(Fraction(threshold) * 2**30)
    least = min(max(least, -1 << 31), 1 << 31)
    return greedy(similarity >= least, order, usable)


@settings(max_examples=40)
@given(
    st.integers(0, 60),
    st.sampled_from([1, 2, 5, 40]),
    st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.3, 0.9, 0.99, 1.0, 1.0 + 2.0**-30, 1.2, 7.0, 1e300, -1e300]),
    st.integers(0, 1 << 20),
)
def test_leaders_are_those_of_the_loop(count, features, threshold, seed):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(5, features, generator=generator)
    x = centers[torch.randint(0, 5, (2, count), generator=generator)]
    x = x + 0.1 * torch.randn(2, count, features, generator=generator)
    same = torch.rand(2, count, 1, generator=generator) < 0.3
    x = torch.where(same, centers[0], x)
    x[:, 3::7], x[:, 5::11], x[:, 6::13, 0] = 0.0, NAN, -INF
    scores = torch.randint(0, 9, (2, count), generator=generator) / 3 - 1
    scores[:, 2::9] = NAN
    candidates = torch.rand(2, count, generator=generator) < 0.7
    for precision, limbs in (("high", 2), ("grid", 1)):
        for given_scores in (None, scores):
            for chosen in (None, candidates):
                options = {"scores": given_scores, "candidates": chosen, "precision": precision}
                actual = suppress(x, threshold, **options)
                for b in range(2):
                    one = [None if value is None else value[b] for value in (given_scores, chosen)]
                    assert_same_bits(actual[b], expected(x[b], threshold, *one, limbs))


@pytest.mark.parametrize("tokens", [127, 128, 129, 700])
@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99])
def test_many_tokens(tokens, threshold):
    x, scores = clusters(1, tokens, 24, torch.float32)[0], rand(tokens, seed=2)
    assert_same_bits(suppress(x[None], threshold)[0], expected(x, threshold))
    assert_same_bits(suppress(x[None], threshold, scores=scores[None])[0], expected(x, threshold, scores))


@pytest.mark.parametrize("kind", ["clusters", "frames"])
def test_leaders_are_those_of_float64_where_similarities_keep_their_distance(kind):
    x = clusters(1, 400, 64, torch.float32)
    if kind == "frames":
        x = rand(1, 20, 64).repeat(1, 20, 1) + 0.05 * rand(1, 400, 64, seed=1)
    (similarity,) = cosine(x, x)
    values = similarity.flatten().sort().values
    values = values[(values > 0.2) & (values < 0.9999)]
    gap, at = (values[1:] - values[:-1]).max(0)
    threshold = (values[at] + gap / 2).item()
    assert gap > 2.0**-19
    actual = suppress(x, threshold)[0]
    assert_same_bits(actual, greedy(similarity >= threshold, range(400), torch.ones(400, dtype=torch.bool)))


def test_packed_tokens_join_inside_their_segment():
    x, scores = clusters(1, 150, 16, torch.float32)[0], rand(150, seed=1)
    candidates = rand(150, seed=2) > -1
    bounds = torch.tensor([0, 40, 40, 41, 120, 140])
    thresholds = torch.tensor([0.5, 0.9, 0.9, 0.99, NAN])
    options = {"scores": scores, "candidates": candidates, "cu_seqlens": bounds}
    for threshold in (0.9, thresholds):
        for most in (None, 70):
            actual = suppress(x, threshold, max_seqlen=most, **options)
            outside = torch.ones(150, dtype=torch.bool)
            for s in range(5):
                rows = slice(int(bounds[s]), min(int(bounds[s + 1]), int(bounds[s]) + (most or 150)))
                each = threshold[s].item() if isinstance(threshold, torch.Tensor) else threshold
                assert_same_bits(actual[rows], expected(x[rows], each, scores[rows], candidates[rows]))
                outside[rows] = False
            assert (actual[outside] == -1).all()
    assert_same_bits(suppress(x, 0.9, cu_seqlens=bounds[:1]), torch.full((150,), -1))


def test_a_threshold_of_each_sample_is_the_float_that_it_holds():
    x = clusters(3, 90, 24, torch.float32)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        thresholds = torch.tensor([0.3, 0.8, 0.97]).to(dtype)
        for precision in ("high", "grid"):
            actual = suppress(x, thresholds, precision=precision)
            for b in range(3):
                alone = suppress(x[b : b + 1], thresholds[b].item(), precision=precision)
                assert_same_bits(actual[b : b + 1], alone)


@pytest.mark.parametrize(("precision", "limbs"), [("high", 2), ("grid", 1)])
def test_the_threshold_is_reached_exactly(precision, limbs):
    x = rand(1, 2, 37)
    similarity = integers(x[0], limbs)[0][0, 1].item() / 2**30
    for above, leaders in ((0.0, [0, 0]), (-(2.0**-40), [0, 0]), (2.0**-40, [0, 1]), (2.0**-30, [0, 1])):
        assert suppress(x, similarity + above, precision=precision).tolist() == [leaders]
    each = torch.tensor([similarity, similarity]).nextafter(torch.tensor([-INF, INF]))
    assert suppress(x.repeat(2, 1, 1), each, precision=precision).tolist() == [[0, 0], [0, 1]]


def test_edges():
    zero = torch.zeros(1, 3, 4)
    assert suppress(zero, 0.0).tolist() == [[0, 0, 0]]
    assert suppress(zero, 1e-9).tolist() == [[0, 1, 2]]
    x = torch.tensor([[[1.0, 0.0], [NAN, 0.0], [1.0, 0.0], [INF, 0.0], [-1.0, 0.0], [2.0, 0.0]]])
    assert suppress(x, 0.9).tolist() == [[0, -1, 0, -1, 4, 0]]
    assert suppress(x, -1.5).tolist() == [[0, -1, 0, -1, 0, 0]]
    assert suppress(x, 1.5).tolist() == [[0, -1, 2, -1, 4, 5]]
    assert suppress(x, 0.9, candidates=torch.zeros(1, 6, dtype=torch.bool)).tolist() == [[-1] * 6]
    assert suppress(x[:, :1], 0.9).tolist() == [[0]]
    assert suppress(x[:, 1:2], 0.9).tolist() == [[-1]]
    assert suppress(x[:, :0], 0.9).shape == (1, 0)
    assert suppress(x[:0], 0.9).shape == (0, 6)
    assert suppress(x[0], 0.9, cu_seqlens=torch.tensor([0, 6]), max_seqlen=0).tolist() == [-1] * 6
    nan_first = torch.tensor([[0.0, 9.0, INF, 9.0, 9.0, NAN]])
    assert suppress(x, 0.9, scores=nan_first).tolist() == [[5, -1, 5, -1, 4, 5]]


def test_a_permutation_is_an_order_as_scores():
    x = clusters(2, 80, 24, torch.float32)
    order = torch.stack([torch.randperm(80, generator=torch.Generator().manual_seed(b)) for b in range(2)])
    actual = suppress(x, 0.9, scores=-order.argsort(-1).float())
    for b in range(2):
        similarity, usable = integers(x[b], 2)
        assert_same_bits(actual[b], greedy(similarity >= math.ceil(0.9 * 2**30), order[b].tolist(), usable))


def test_means_of_clusters():
    x = clusters(2, 90, 24, torch.float32)
    leader = suppress(x, 0.9)
    means, sizes = pyramid_ops.assign_mean(x, leader, 90)
    keep = leader == torch.arange(90)
    assert (sizes > 0).equal(keep)
    assert sizes.sum() == 180
    for b, token in keep.nonzero().tolist():
        torch.testing.assert_close(means[b, token], x[b, leader[b] == token].mean(0))


def test_layouts():
    x, scores = rand(2, 40, 8), rand(2, 40, seed=1)
    candidates = rand(2, 40, seed=2) > 0
    options = {"scores": scores, "candidates": candidates}
    strided = {key: value.T.contiguous().T for key, value in options.items()}
    assert_same_bits(suppress(x.mT.contiguous().mT, 0.3, **strided), suppress(x, 0.3, **options))
    negative = torch._neg_view(scores)
    assert_same_bits(suppress(x, 0.3, scores=negative), suppress(x, 0.3, scores=-scores))
    thresholds = torch._neg_view(torch.tensor([-0.3, -0.5]))
    assert_same_bits(suppress(x, thresholds), suppress(x, torch.tensor([0.3, 0.5])))


X, B = rand(2, 6, 4), torch.tensor([0, 2, 6])
S = X[..., 0]


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("x: expected a tensor", lambda: suppress([1], 0.9)),
        (r"x: expected shape \[B, N, D\], got float32 \[6, 4\]", lambda: suppress(X[0], 0.9)),
        (r"x: expected shape \[T, D\], got float32 \[2, 6, 4\]", lambda: suppress(X, 0.9, cu_seqlens=B)),
        ("x: expected dtype float32", lambda: suppress(X.double(), 0.9)),
        ("x: expected 1 to 16384 features", lambda: suppress(X[..., :0], 0.9)),
        ("x: expected no gradient", lambda: suppress(X.clone().requires_grad_(), 0.9)),
        ("x: expected at most 65536 tokens", lambda: suppress(torch.empty(1, 65537, 1), 0.9)),
        ("threshold: expected a number, got None", lambda: suppress(X, None)),
        ("threshold: expected a finite number", lambda: suppress(X, NAN)),
        (r"threshold: expected shape \[S\], got float32 \[2, 6\]", lambda: suppress(X, S)),
        (r"threshold: expected \[2\] on cpu, got float32 \[6\]", lambda: suppress(X, S[0])),
        (r"threshold: expected \[2\] on cpu", lambda: suppress(X[0], S[0, :3], cu_seqlens=B)),
        ("threshold: expected dtype float32", lambda: suppress(X, torch.tensor([1, 1]))),
        (r"scores: expected \[2, 6\] on cpu, got float32 \[2, 5\]", lambda: suppress(X, 0.9, scores=S[:, 1:])),
        ("scores: expected dtype float32, float16, bfloat16", lambda: suppress(X, 0.9, scores=S.long())),
        (r"scores: expected shape \[T\]", lambda: suppress(X[0], 0.9, scores=S, cu_seqlens=B)),
        ("candidates: expected dtype bool", lambda: suppress(X, 0.9, candidates=S)),
        (r"candidates: expected \[2, 6\]", lambda: suppress(X, 0.9, candidates=S[:, 1:] > 0)),
        ("cu_seqlens: expected dtype int32, int64", lambda: suppress(X[0], 0.9, cu_seqlens=B.float())),
        ("cu_seqlens: expected at least one element", lambda: suppress(X[0], 0.9, cu_seqlens=B[:0])),
        ("max_seqlen: expected only with cu_seqlens, got 3", lambda: suppress(X, 0.9, max_seqlen=3)),
        ("max_seqlen: expected at least 0", lambda: suppress(X[0], 0.9, cu_seqlens=B, max_seqlen=-1)),
        (
            "max_seqlen: expected at most 65536 tokens",
            lambda: suppress(torch.empty(65538, 1), 0.9, cu_seqlens=B, max_seqlen=65537),
        ),
        ("precision: expected one of 'grid', 'high', got 'low'", lambda: suppress(X, 0.9, precision="low")),
    ],
)
def test_bad_arguments(message, call):
    with pytest.raises((TypeError, ValueError), match=f"^suppress: {message}"):
        call()
