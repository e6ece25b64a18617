"""Scores and tokens pooled over windows: against torch."""

import numpy as np
import pytest
import torch

from pyramid_ops import pool_scores, pool_scores_packed, pool_tokens
from pyramid_ops.verify.inputs import FEATURES, FLOATS, GRIDS, int32, special_scores
from tests.bits import assert_same_bits

from .test_scoring import S

POOLS = [((8, 8), (2, 2)), ((7, 9), (2, 2)), ((7, 9), (3, 4)), ((1, 5), (1, 2)), ((6, 1), (4, 3)), ((5, 5), (9, 9))]


def pooled_by_torch(scores, grid, window, reduction):
    x = scores.double().view(-1, 1, *grid)
    if reduction == "max":
        x = torch.nn.functional.max_pool2d(x, window, ceil_mode=True)
    else:
        (height, width), (down, across) = grid, window
        missing = (0, -width % across, 0, -height % down)
        total = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(x, missing), window, divisor_override=1)
        mean = torch.nn.functional.avg_pool2d(x, window, ceil_mode=True, count_include_pad=False)
        x = total if reduction == "sum" else mean
    return x.flatten(1)


@pytest.mark.parametrize(("grid", "window"), POOLS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_pooling_is_that_of_torch(grid, window, dtype):
    scores = torch.rand(3, grid[0] * grid[1], generator=torch.Generator().manual_seed(0)).to(dtype)
    for reduction in ("mean", "sum", "max"):
        if reduction == "max" and window == (9, 9):
            window = grid  # torch wants at most half of a window outside
        expected = pooled_by_torch(scores, grid, window, reduction)
        actual = pool_scores(scores, grid, window=window, reduction=reduction)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.double(), expected, rtol=0 if reduction == "max" else 1e-6, atol=0)


def test_a_sum_is_added_row_by_row():
    scores = torch.tensor([[1e8, 3.0, 5.0, -1e8]])
    total = np.float32(np.float32(np.float32(1e8) + np.float32(3)) + np.float32(5)) + np.float32(-1e8)
    assert pool_scores(scores, (2, 2), reduction="sum").item() == total
    assert pool_scores(scores, (2, 2)).item() == total / np.float32(4)
    assert_same_bits(pool_scores(torch.full((1, 4), -0.0), (2, 2), reduction="sum"), torch.zeros(1, 1))


def test_a_maximum_is_the_first_of_the_largest():
    nan = torch.nan
    scores = torch.tensor([[-0.0, 0.0, 0.0, -0.0, 1.0, nan, -torch.inf, -torch.inf, torch.inf, 5.0]])
    expected = torch.tensor([[-0.0, 0.0, nan, -torch.inf, torch.inf]])
    assert_same_bits(pool_scores(scores, (1, 10), window=(1, 2), reduction="max"), expected)


def test_pooling_a_window_of_one_changes_nothing():
    scores = special_scores(2, 12, torch.float32, 4)
    assert_same_bits(pool_scores(scores, (3, 4), window=(1, 1), reduction="max"), scores)
    assert_same_bits(pool_scores(scores, (3, 4), window=(1, 1)), scores + 0.0)


SIDES = [(8, 8), (0, 3), (7, 9), (1, 1), (1, 5), (6, 1), (5, 0)]


def packed(sides):
    return torch.tensor([0, *[height * width for height, width in sides]]).cumsum(0), torch.tensor(sides)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("window", [(2, 2), (3, 1), (100, 100)])
def test_images_of_different_sizes_are_pooled_each_alone(window, dtype):
    cu_seqlens, grids = packed(SIDES)
    scores = torch.rand(int(cu_seqlens[-1]), generator=torch.Generator().manual_seed(0)).to(dtype)
    for reduction in ("mean", "sum", "max"):
        pooled = pool_scores_packed(scores, cu_seqlens, grids, window=window, reduction=reduction)
        expected, counts = [], []
        for part, side in zip(scores.split((grids[:, 0] * grids[:, 1]).tolist()), SIDES, strict=True):
            alone = pool_scores(part, side, window=window, reduction=reduction) if len(part) else part.float()
            if len(part) and window != (100, 100):  # torch wants at most half of a window outside
                by_torch = pooled_by_torch(part, side, window, reduction)[0]
                torch.testing.assert_close(alone.double(), by_torch, rtol=1e-6, atol=0)
            expected.append(alone)
            counts.append(len(alone))
        ends = torch.tensor([0, *counts]).cumsum(0)
        assert_same_bits(pooled.cu_seqlens, ends.int())
        assert_same_bits(pooled.scores, torch.cat([*expected, torch.zeros(len(scores) - ends[-1])]))
        windows = torch.where(grids.amin(1, keepdim=True) > 0, -(-grids // torch.tensor(window)), 0)
        assert_same_bits(pooled.grids, windows.int())
        less = pool_scores_packed(scores, cu_seqlens, grids, window=window, reduction=reduction, capacity=7)
        assert_same_bits(less.scores, torch.nn.functional.pad(pooled.scores, (0, 7))[:7])
        assert_same_bits(less.cu_seqlens, pooled.cu_seqlens.clamp(max=7))


@pytest.mark.parametrize("name", GRIDS)
def test_grids_that_do_not_fit_are_cut_to_whole_rows(name):
    cu_seqlens, grids = GRIDS[name]
    scores = torch.randn(50)
    pooled = pool_scores_packed(scores, cu_seqlens, grids, reduction="sum", capacity=200)
    for s, (height, width) in enumerate(grids.tolist()):
        start, stop = (min(max(x, 0), 50) for x in cu_seqlens[s : s + 2].tolist())
        segment = scores[start : max(start, stop)]
        width = min(max(width, 0), len(segment))
        rows = list(segment.split(width))[: max(height, 0)] if width else []
        rows = [row for row in rows if len(row) == width]
        here = pooled.scores[pooled.cu_seqlens[s] : pooled.cu_seqlens[s + 1]]
        if rows:
            assert_same_bits(here, pool_scores(torch.cat(rows), (len(rows), width), reduction="sum"))
        else:
            assert not len(here)


def test_pooled_images_are_packed_images():
    cu_seqlens, grids = packed(SIDES)
    scores = torch.rand(int(cu_seqlens[-1]))
    halves = pool_scores_packed(scores, cu_seqlens, grids, window=(2, 2), reduction="max")
    twice = pool_scores_packed(*halves, window=(2, 2), reduction="max")
    assert_same_bits(list(twice), list(pool_scores_packed(scores, cu_seqlens, grids, window=(4, 4), reduction="max")))


def test_no_images():
    pooled = pool_scores_packed(torch.rand(3), int32(0), torch.empty(0, 2, dtype=torch.int32))
    assert_same_bits(list(pooled), [torch.zeros(3), int32(0), torch.empty(0, 2, dtype=torch.int32)])


CU, SIDES_2 = int32(0, 6, 12), int32(2, 3, 3, 2).view(2, 2)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"scores: expected shape \[T\], got float32 \[2, 12\]", lambda: pool_scores_packed(S, CU, SIDES_2)),
        ("scores: expected dtype float32, float16, bf", lambda: pool_scores_packed(S[0].long(), CU, SIDES_2)),
        (r"cu_seqlens: expected shape \[S\+1\]", lambda: pool_scores_packed(S[0], SIDES_2, SIDES_2)),
        ("cu_seqlens: expected at least one element", lambda: pool_scores_packed(S[0], CU[:0], SIDES_2[:0])),
        ("grids: expected a tensor, got \\[", lambda: pool_scores_packed(S[0], CU, [(2, 3), (3, 2)])),
        (r"grids: expected shape \[2, 2\] on cpu, got int32 \[1", lambda: pool_scores_packed(S[0], CU, SIDES_2[:1])),
        ("grids: expected dtype int32, int64, got bool", lambda: pool_scores_packed(S[0], CU, SIDES_2.bool())),
        ("window", lambda: pool_scores_packed(S[0], CU, SIDES_2, window=(0, 1))),
        ("reduction: expected one of", lambda: pool_scores_packed(S[0], CU, SIDES_2, reduction="min")),
        ("capacity: expected at least 0, got -1", lambda: pool_scores_packed(S[0], CU, SIDES_2, capacity=-1)),
        (r"capacity: expected at most 2\^30", lambda: pool_scores_packed(S[0], CU, SIDES_2, capacity=1 << 31)),
    ],
)
def test_bad_packed_pooling(message, call):
    with pytest.raises((TypeError, ValueError), match=f"^pool_scores_packed: {message}"):
        call()


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("scores: expected a tensor", lambda: pool_scores([1], (3, 4))),
        (r"scores: expected shape \[B, N\] or \[N\], got float32 \[\]", lambda: pool_scores(S[0, 0], (3, 4))),
        ("scores: expected dtype float32, float16, bfloat16, got int64", lambda: pool_scores(S.long(), (3, 4))),
        ("scores: expected no gradient", lambda: pool_scores(S.clone().requires_grad_(), (3, 4))),
        ("grid: expected H·W = 12, the number of scores, got 3×5", lambda: pool_scores(S, (3, 5))),
        ("grid: expected a list or tuple", lambda: pool_scores(S, 12)),
        (r"grid: expected \(rows, columns\), got \[12\]", lambda: pool_scores(S, (12,))),
        (r"window\[1\]: expected at least 1, got 0", lambda: pool_scores(S, (3, 4), window=(2, 0))),
        (r"window\[0\]: expected an integer, got 2.0", lambda: pool_scores(S, (3, 4), window=(2.0, 2))),
        ("reduction: expected one of 'mean', 'sum', 'max', got 'min'", lambda: pool_scores(S, (3, 4), reduction="min")),
    ],
)
def test_bad_pooling(message, call):
    with pytest.raises((TypeError, ValueError), match=f"^pool_scores: {message}"):
        call()


BINS = [((8, 8), (4, 4)), ((7, 9), (3, 4)), ((24, 24), (10, 7)), ((1, 5), (1, 2)), ((3, 4), (7, 9)), ((6, 1), (1, 1))]


@pytest.mark.parametrize(("grid", "out"), BINS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_pooled_tokens_are_those_of_torch(grid, out, dtype):
    tokens = torch.randn(3, grid[0] * grid[1], 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    image = tokens.double().mT.unflatten(2, grid)
    mean = torch.nn.functional.adaptive_avg_pool2d(image, out).flatten(2).mT
    actual = pool_tokens(tokens, grid, out)
    assert actual.dtype == dtype
    bound = 1e-6 + torch.finfo(dtype).eps / 2 * mean.abs()
    assert ((actual.double() - mean).abs() <= bound).all()
    largest = torch.nn.functional.adaptive_max_pool2d(image, out).flatten(2).mT
    assert_same_bits(pool_tokens(tokens, grid, out, mode="amax"), largest.to(dtype))
    assert_same_bits(pool_tokens(tokens[0], grid, out), actual[0])


def test_a_bin_is_added_row_by_row():
    tokens = torch.tensor([1e8, 3.0, 5.0, -1e8]).view(1, 4, 1)
    total = np.float32(np.float32(np.float32(1e8) + np.float32(3)) + np.float32(5)) + np.float32(-1e8)
    assert pool_tokens(tokens, (2, 2), (1, 1)).item() == total / np.float32(4)
    assert_same_bits(pool_tokens(torch.full((1, 4, 1), -0.0), (2, 2), (1, 1)), torch.zeros(1, 1, 1))


@pytest.mark.parametrize("dtype", FEATURES)
def test_bins_of_one_token_change_nothing(dtype):
    tokens = torch.arange(60).view(2, 6, 5).to(dtype)
    for mode in ("mean", "amax"):
        assert_same_bits(pool_tokens(tokens, (2, 3), (2, 3), mode=mode), tokens)
        twice = tokens.unflatten(1, (2, 3)).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
        assert_same_bits(pool_tokens(tokens, (2, 3), (4, 6), mode=mode), twice)


def test_the_largest_feature_is_the_first():
    nan, inf = torch.nan, torch.inf
    rows = torch.tensor([[-0.0, 0.0, 1.0, -inf, -nan, 2.0], [0.0, -0.0, nan, -inf, inf, 2.5]])
    assert_same_bits(pool_tokens(rows, (1, 2), (1, 1), mode="amax"), torch.tensor([[-0.0, 0.0, nan, -inf, nan, 2.5]]))


def test_means_of_bytes_round_half_up():
    rows = torch.tensor([[1, 255, 0], [2, 254, 0]], dtype=torch.uint8)
    assert pool_tokens(rows, (2, 1), (1, 1)).tolist() == [[2, 255, 0]]


def test_pooled_strided_tokens():
    x = torch.randn(6, 12, 33)
    for view in (x.transpose(0, 1)[:, :4], x[1:, :4, 3:30], x.mT[:, :32, :9]):
        expected = pool_tokens(view.contiguous(), (2, view.shape[1] // 2), (1, 2))
        assert_same_bits(pool_tokens(view, (2, view.shape[1] // 2), (1, 2)), expected)


T = torch.zeros(2, 12, 4)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("tokens: expected a tensor", lambda: pool_tokens([1], (3, 4), (1, 1))),
        (r"tokens: expected shape \[B, N, D\] or", lambda: pool_tokens(T[0, 0], (3, 4), (1, 1))),
        ("tokens: expected dtype float32", lambda: pool_tokens(T.double(), (3, 4), (1, 1))),
        ("tokens: expected no gradient", lambda: pool_tokens(T.clone().requires_grad_(), (3, 4), (1, 1))),
        ("grid: expected H·W = 12, the number of tokens, got 3×5", lambda: pool_tokens(T, (3, 5), (1, 1))),
        (r"out_grid\[1\]: expected at least 1, got 0", lambda: pool_tokens(T, (3, 4), (1, 0))),
        ("out_grid: expected a list or tuple", lambda: pool_tokens(T, (3, 4), 2)),
        (r"out_grid: expected at most 2\^30", lambda: pool_tokens(T, (3, 4), (1 << 20, 1 << 20))),
        ("mode: expected one of 'mean', 'amax', got 'max'", lambda: pool_tokens(T, (3, 4), (1, 1), mode="max")),
    ],
)
def test_bad_token_pooling(message, call):
    with pytest.raises((TypeError, ValueError), match=f"^pool_tokens: {message}"):
        call()
