"""Scores pooled over windows: against torch."""

import numpy as np
import pytest
import torch

from pyramid_ops import pool_scores
from pyramid_ops.verify.inputs import FLOATS, special_scores
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
