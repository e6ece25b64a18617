"""Variance of regions, and scores of regions for their tokens."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyramid_ops import broadcast_regions, patch_entropy, region_variance, token_variance
from pyramid_ops.verify.inputs import FEATURES, FLOATS
from pyramid_ops.verify.inputs import GRIDS as PACKED
from tests.bits import assert_same_bits
from tests.ops.test_scoring import ulps


def cut(x: torch.Tensor, grid: tuple, regions: tuple) -> list[torch.Tensor]:
    """The tokens of each region `[B, T, D]`."""
    x = x.view(x.shape[0], *grid, x.shape[2])
    return [
        x[:, down, across].flatten(1, 2)
        for down in pieces(grid[0], regions[0])
        for across in pieces(grid[1], regions[1])
    ]


def pieces(size: int, count: int) -> list[slice]:
    """The rows or columns of each region: one where it would have none."""
    bounds = [k * size // count for k in range(count + 1)]
    return [slice(a, b if b > a else a + 1) for a, b in itertools.pairwise(bounds)]


def exact(x: torch.Tensor, grid: tuple, regions: tuple) -> torch.Tensor:
    x = x.double() - x[:, :1, :1].double()  # exact here, and `var` loses digits at a large mean in float64 too
    return torch.stack([cell.flatten(1).var(1) for cell in cut(x, grid, regions)], 1)


GRIDS = [
    ((8, 8), (4, 4)),
    ((7, 9), (3, 4)),
    ((5, 5), (5, 5)),
    ((16, 24), (1, 1)),
    ((40, 30), (1, 1)),
    ((33, 1), (4, 1)),
]
SMALL = [((2, 2), (4, 4)), ((3, 5), (4, 4)), ((1, 1), (3, 2))]


@pytest.mark.parametrize(("grid", "regions"), GRIDS + SMALL)
@pytest.mark.parametrize("features", [2, 3, 17, 64, 1000, 1537])
def test_region_variance_is_within_8_ulp(grid, regions, features):
    generator = torch.Generator().manual_seed(features)
    for mean in (0.0, 1.0, 1e2, 1e4, 1e6):
        for spread in (0.0, 1.0, 1e2):
            x = torch.randn(1, grid[0] * grid[1], features, generator=generator) + mean
            x += spread * torch.randn(1, grid[0] * grid[1], 1, generator=generator)
            assert ulps(region_variance(x, grid, regions), exact(x, grid, regions)).max() <= 8, (mean, spread)


@pytest.mark.parametrize("features", [1, 3])
def test_region_variance_of_65536_skewed_tokens_is_within_8_ulp(features):
    generator = torch.Generator().manual_seed(features)
    for power in (1, 3, 6):
        for mean in (0.0, 1e4):
            x = torch.randn(1, 1 << 16, features, generator=generator).abs() ** power + mean
            assert ulps(region_variance(x, (256, 256), (1, 1)), exact(x, (256, 256), (1, 1))).max() <= 8


@pytest.mark.parametrize("features", [3, 64, 767, 768, 3000])
def test_region_variance_is_within_8_ulp_where_features_differ_by_their_last_bit(features):
    generator = torch.Generator().manual_seed(features)
    base = torch.randint(1 << 23, (1 << 24) - 1, (20, 1, 1), generator=generator).float()
    several = base + torch.randint(0, 2, (20, 36, features), generator=generator)
    one = base.expand(20, 36, features).clone()
    one[:, 17, features // 2] += 1
    tokens = base + torch.randint(0, 3, (20, 36, 1), generator=generator).expand(20, 36, features)
    for x in (several, one, tokens):
        for regions in ((1, 1), (2, 2)):
            assert ulps(region_variance(x, (6, 6), regions), exact(x, (6, 6), regions)).max() <= 8


@pytest.mark.parametrize("dtype", FEATURES)
def test_region_variance_agrees_with_torch(dtype):
    x = (50 * torch.randn(2, 63, 96, generator=torch.Generator().manual_seed(0)).abs()).to(dtype)
    expected = torch.stack([cell.float().flatten(1).var(1) for cell in cut(x, (7, 9), (3, 2))], 1)
    torch.testing.assert_close(region_variance(x, (7, 9), (3, 2)), expected, rtol=1e-5, atol=0)


@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.integers(1, 40), st.integers(1, 300))
def test_constant_regions_have_variance_zero(value, features, tokens):
    x = torch.full((1, 2 * tokens, features + 1), value)
    x[:, ::2, 0] += 0.0  # −0 and 0 are one number
    assert_same_bits(region_variance(x, (1, 2 * tokens), (1, 2)), torch.zeros(1, 2))


@pytest.mark.parametrize("dtype", FEATURES)
def test_largest_constant_regions_have_variance_zero(dtype):
    largest = 255 if dtype == torch.uint8 else torch.finfo(dtype).max
    for value in (largest, largest // 3 if dtype == torch.uint8 else -largest / 3):
        x = torch.full((1, 600, 3), value, dtype=dtype)
        assert_same_bits(region_variance(x, (20, 30), (1, 2)), torch.zeros(1, 2))


def test_tokens_that_are_constant_but_differ():
    x = torch.tensor([1e6, 1e6 + 1, 1e6 + 3, 1e6])[None, :, None].expand(1, 4, 5)
    assert ulps(region_variance(x, (2, 2), (1, 1)), exact(x, (2, 2), (1, 1))).max() <= 1


def test_a_region_of_one_token_has_the_variance_of_the_token():
    x = torch.randn(2, 12, 300) + 7
    assert_same_bits(region_variance(x, (3, 4), (3, 4)), token_variance(x))


def test_non_finite_features_reach_their_region_only():
    x = torch.rand(1, 16, 8)
    x[0, 0, 3], x[0, 2, 0], x[0, 8] = torch.nan, torch.inf, torch.inf
    variance = region_variance(x, (4, 4), (2, 2))
    assert variance.isnan().tolist() == [[True, True, True, False]]
    largest = torch.tensor([3e38, -3e38]).repeat(8)[None, :, None].expand(1, 16, 8)
    assert region_variance(largest, (4, 4), (1, 1)).item() == math.inf


def test_fewer_than_two_features_give_nan():
    x = torch.ones(2, 4, 1)
    assert region_variance(x, (2, 2), (2, 2)).isnan().all()
    assert region_variance(x, (2, 2), (1, 2)).eq(0).all()
    lengths = torch.tensor([0, 2])
    variance = region_variance(torch.ones(2, 4, 1), (1, 4), (1, 1), lengths=lengths)
    assert variance[0].isnan().all()
    assert variance[1].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_lengths_count_the_first_tokens_only(dtype):
    x = torch.randn(4, 50, 24)
    lengths = torch.tensor([50, 1, 17, 1000], dtype=dtype)
    variance = region_variance(x, (1, 50), (1, 1), lengths=lengths)
    for b, length in enumerate((50, 1, 17, 50)):
        assert_same_bits(variance[b : b + 1], region_variance(x[b : b + 1, :length], (1, length), (1, 1)))
    x[2, 17:] = torch.nan
    assert_same_bits(region_variance(x, (1, 50), (1, 1), lengths=lengths), variance)


@pytest.mark.parametrize("view", ["transposed", "sliced", "last-dimension"])
def test_strided_inputs_agree_with_contiguous_ones(view):
    x = torch.randn(12, 12, 33)
    x = {"transposed": x.transpose(0, 1), "sliced": x[1:, :, 3:30], "last-dimension": x.transpose(1, 2)[:, :12]}[view]
    assert_same_bits(region_variance(x, (3, 4), (2, 2)), region_variance(x.contiguous(), (3, 4), (2, 2)))


def test_no_region_is_empty_and_each_token_is_in_that_which_it_is_given():
    for height, width, *regions in itertools.product(range(1, 7), repeat=4):
        token = torch.arange(height * width)[None, :, None]
        cells = [set(cell.flatten().tolist()) for cell in cut(token, (height, width), regions)]
        home = broadcast_regions(torch.arange(len(cells)), (height, width), regions).tolist()
        assert all(cells)
        assert all(token in cells[region] for token, region in enumerate(home))
        if height <= regions[0] and width <= regions[1]:
            assert all(cells[region] == {token} for token, region in enumerate(home))


@pytest.mark.parametrize("side", [1, 2, 4])
def test_regions_of_a_coarse_level_are_those_of_adaptive_pooling(side):
    x = torch.randn(2, side * side, 6)
    variance = region_variance(x, (side, side))
    pooled = torch.nn.functional.adaptive_avg_pool2d(token_variance(x).view(2, side, side), (4, 4))
    assert_same_bits(variance, pooled.flatten(1))
    assert_same_bits(broadcast_regions(variance, (side, side)), token_variance(x))


@pytest.mark.parametrize(("grid", "regions"), GRIDS)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.bool, torch.int64, torch.complex64])
def test_broadcast_gives_each_token_its_region(grid, regions, dtype):
    scores = torch.randint(0, 2, (2, regions[0] * regions[1])).to(dtype)
    if dtype.is_floating_point:
        scores[0, 0], scores[1, 0] = -0.0, torch.nan
    tokens = broadcast_regions(scores, grid, regions)
    assert tokens.dtype == dtype
    for k, cell in enumerate(cut(tokens[..., None], grid, regions)):
        expected = scores[:, k, None].expand(2, cell.shape[1])
        assert torch.equal(torch.view_as_real(cell[..., 0]), torch.view_as_real(expected)) if dtype.is_complex else True
        if not dtype.is_complex:
            assert_same_bits(cell[..., 0], expected)


def test_broadcast_of_strided_negated_and_conjugated_scores():
    scores = torch.randn(4, 6)
    for view in (scores.T[:, :4], torch._neg_view(scores)[:, :4], scores[:1, :4].expand(3, 4)):
        assert_same_bits(broadcast_regions(view, (5, 6), (2, 2)), broadcast_regions(view.clone(), (5, 6), (2, 2)))


SIDES = [(8, 8), (0, 3), (7, 9), (1, 1), (1, 5), (6, 1), (5, 0), (2, 2)]
CU = torch.tensor([0, *[height * width for height, width in SIDES]]).cumsum(0)


@pytest.mark.parametrize("regions", [(1, 1), (4, 4), (2, 3)])
@pytest.mark.parametrize("dtype", FEATURES)
def test_packed_grids_have_the_variances_of_each_alone(regions, dtype):
    x = (20 * torch.randn(int(CU[-1]), 24, generator=torch.Generator().manual_seed(0)).abs()).to(dtype)
    lengths = torch.tensor([64, 5, 30, 1, 0, 9, 2, 3])
    for counts in (None, lengths):
        actual = region_variance(x, torch.tensor(SIDES), regions, cu_seqlens=CU, lengths=counts)
        assert actual.shape == (len(SIDES), regions[0] * regions[1])
        for s, side in enumerate(SIDES):
            count = None if counts is None else counts[s : s + 1]
            part = x[CU[s] : CU[s + 1]]
            if len(part):
                assert_same_bits(actual[s], region_variance(part, side, regions, lengths=count))
            else:
                assert actual[s].isnan().all()


@pytest.mark.parametrize("regions", [(1, 1), (4, 4), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_packed_tokens_get_their_regions(regions, dtype):
    scores = torch.randint(0, 2, (len(SIDES), regions[0] * regions[1])).to(dtype)
    actual = broadcast_regions(scores, torch.tensor(SIDES), regions, cu_seqlens=CU, capacity=len(SIDES) + int(CU[-1]))
    assert actual.dtype == dtype
    parts = [broadcast_regions(scores[s], side, regions) for s, side in enumerate(SIDES) if 0 not in side]
    assert torch.equal(actual, torch.cat([*parts, torch.zeros(len(SIDES), dtype=dtype)]))
    assert torch.equal(broadcast_regions(scores, torch.tensor(SIDES), regions, cu_seqlens=CU, capacity=64), actual[:64])


@pytest.mark.parametrize("name", PACKED)
def test_grids_that_do_not_fit_are_cut_to_whole_rows(name):
    cu_seqlens, sides = PACKED[name]
    x = torch.randn(50, 3)
    actual = region_variance(x, sides, (2, 2), cu_seqlens=cu_seqlens)
    marks = torch.arange(4 * len(sides)).view(-1, 4) + 1
    spread = broadcast_regions(marks, sides, (2, 2), cu_seqlens=cu_seqlens, capacity=50)
    for s, (height, width) in enumerate(sides.tolist()):
        start, stop = (min(max(bound, 0), 50) for bound in cu_seqlens[s : s + 2].tolist())
        width = min(max(width, 0), max(stop - start, 0))
        height = min(max(height, 0), (stop - start) // width if width else 0)
        stop = start + height * width
        if start < stop:
            assert_same_bits(actual[s], region_variance(x[start:stop], (height, width), (2, 2)))
            if name != "hostile":
                assert_same_bits(spread[start:stop], broadcast_regions(marks[s], (height, width), (2, 2)))
        else:
            assert actual[s].isnan().all()
            assert name == "hostile" or not (spread.unsqueeze(-1) == marks[s]).any()


def test_inputs_are_not_modified():
    x, images = torch.randn(1, 16, 8), torch.rand(1, 2, 8, 8)
    before = x.clone(), images.clone()
    region_variance(x, (4, 4)), patch_entropy(images, 4)
    assert_same_bits((x, images), before)


X = torch.zeros(2, 12, 5)


S = torch.zeros(2, 4)


B, G = torch.tensor([0, 6, 12]), torch.tensor([[2, 3], [3, 2]])


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("features: expected a tensor", lambda: region_variance(None, (3, 4))),
        (r"features: expected shape \[B, N, D\]", lambda: region_variance(X[0, 0], (3, 4))),
        ("features: expected dtype", lambda: region_variance(X.double(), (3, 4))),
        ("features: expected 1 to 16384 features", lambda: region_variance(X[..., :0], (3, 4))),
        ("features: expected no gradient", lambda: region_variance(X.clone().requires_grad_(), (3, 4))),
        ("grid: expected H·W = 12, the number of tokens, got 3×5", lambda: region_variance(X, (3, 5), (1, 1))),
        (
            r"regions: expected at most 2\^30 rows in all, got 1152921504606846976",
            lambda: region_variance(X, (3, 4), (1 << 30, 1 << 30)),
        ),
        ("grid: expected a list or tuple", lambda: region_variance(X, 12, (1, 1))),
        (r"grid: expected \(rows, columns\), got \[12\]", lambda: region_variance(X, (12,), (1, 1))),
        (r"grid\[0\]: expected an integer, got 3.0", lambda: region_variance(X, (3.0, 4), (1, 1))),
        (r"regions\[1\]: expected at least 1, got 0", lambda: region_variance(X, (3, 4), (1, 0))),
        ("lengths: expected a tensor", lambda: region_variance(X, (3, 4), (1, 1), lengths=[1, 2])),
        ("lengths: expected dtype int32, int64", lambda: region_variance(X, (3, 4), (1, 1), lengths=torch.ones(2))),
        (r"lengths: expected \[2\] on cpu", lambda: region_variance(X, (3, 4), (1, 1), lengths=torch.ones(3).int())),
        ("grid: expected a tensor only with cu_seqlens", lambda: region_variance(X, G)),
        (r"features: expected shape \[T, D\]", lambda: region_variance(X, G, cu_seqlens=B)),
        ("grid: expected a tensor, got", lambda: region_variance(X[0], (3, 4), cu_seqlens=B)),
        (r"grid: expected shape \[2, 2\] on cpu", lambda: region_variance(X[0], G[:1], cu_seqlens=B)),
        ("grid: expected dtype int32, int64", lambda: region_variance(X[0], G.float(), cu_seqlens=B)),
        ("cu_seqlens: expected dtype int32, int64", lambda: region_variance(X[0], G, cu_seqlens=B.float())),
        (
            r"lengths: expected \[2\] on cpu",
            lambda: region_variance(X[0], G, cu_seqlens=B, lengths=torch.ones(3).int()),
        ),
    ],
)
def test_bad_region_variance(message, call):
    with pytest.raises((TypeError, ValueError), match=f"^region_variance: {message}"):
        call()


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("scores: expected a tensor", lambda: broadcast_regions([1], (2, 2), (2, 2))),
        (r"scores: expected shape \[B, R\]", lambda: broadcast_regions(S[0, 0], (2, 2), (2, 2))),
        ("scores: expected 6 a sample", lambda: broadcast_regions(S, (4, 4), (2, 3))),
        ("scores: expected a dtype of at most 8", lambda: broadcast_regions(S.to(torch.complex128), (2, 2), (2, 2))),
        (r"scores: expected shape \[S, R\]", lambda: broadcast_regions(S[0], G, (2, 2), cu_seqlens=B, capacity=12)),
        ("scores: expected 2 segments", lambda: broadcast_regions(S[:1], G, (2, 2), cu_seqlens=B, capacity=12)),
        ("capacity: expected with cu_seqlens", lambda: broadcast_regions(S, G, (2, 2), cu_seqlens=B)),
        ("capacity: expected with cu_seqlens", lambda: broadcast_regions(S, (2, 2), (2, 2), capacity=3)),
        (r"capacity: expected at most 2\^30", lambda: broadcast_regions(S, G, (2, 2), cu_seqlens=B, capacity=1 << 31)),
        ("grid: expected a tensor only with cu_seqlens", lambda: broadcast_regions(S, G, (2, 2))),
        ("grid: expected dtype int32, int64", lambda: broadcast_regions(S, G.bool(), cu_seqlens=B, capacity=3)),
    ],
)
def test_bad_broadcast(message, call):
    with pytest.raises((TypeError, ValueError), match=f"^broadcast_regions: {message}"):
        call()
