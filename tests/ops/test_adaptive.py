"""Budgets by difficulty: against the sigmoid."""

import math

import pytest
import torch

from pyramid_ops import adaptive_budgets, adaptive_weights, allocate_budgets_batch, region_variance
from tests.bits import assert_same_bits

from .test_budgets import SIZES


def test_adaptive_budgets_leave_levels_of_weight_0_empty():
    still = torch.zeros(1, 4, 16)
    rows = ((1.0, 0.0, 0.0), (0.0, 2.0, 1.0), (1.0, 1.0, 0.0))
    assert adaptive_budgets(40, still, (99, 50, 4), weights=rows).tolist() == [[0, 36, 4]]
    assert adaptive_budgets(90, still, (99, 50, 4), weights=rows).tolist() == [[0, 50, 4]]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_adaptive_weights_follow_the_sigmoid():
    rows = torch.tensor(((0.15, 0.20, 0.35, 0.30), (0.25, 0.30, 0.25, 0.20), (0.35, 0.30, 0.20, 0.15)))
    generator = torch.Generator().manual_seed(0)
    instruction = torch.randn(200, 12, 16, generator=generator) * torch.linspace(0, 0.4, 200)[:, None, None]
    lengths = torch.randint(1, 13, (200,), generator=generator)
    seen = set()
    for scale in (0.1, -0.2):
        weights = adaptive_weights(instruction, lengths=lengths, length_scale=scale)
        for b, length in enumerate(lengths.tolist()):
            variance = instruction[b, :length].double().var().item()
            difficulty = sigmoid(scale * length + 10 * variance)
            if min(abs(difficulty - 0.3), abs(difficulty - 0.7)) > 1e-6:
                row = 0 if difficulty < 0.3 else 1 if difficulty < 0.7 else 2
                seen.add((scale, row))
                assert_same_bits(weights[b], rows[row])
    # With the described coefficients no instruction is easy.
    assert seen == {(0.1, 1), (0.1, 2), (-0.2, 0), (-0.2, 1), (-0.2, 2)}


def test_thresholds_hold_to_the_last_bit():
    """Without variance the difficulty is the length alone: log(.7 / .3) lies between 8.47 and 0.1 · 9."""
    still = torch.zeros(1, 20, 4)
    for length in range(1, 21):
        weights = adaptive_weights(still, lengths=torch.tensor([length]))
        assert weights[0, 0].item() == pytest.approx(0.25 if length < 9 else 0.35)
    equal = adaptive_weights(still[:, :10], thresholds=(0.5,), weights=((1.0,), (2.0,)), length_scale=0.0)
    assert equal.item() == 2.0


def test_undefined_variance_is_most_difficult():
    x = torch.zeros(3, 4, 2)
    x[0, 1, 0] = torch.nan
    weights = adaptive_weights(x, lengths=torch.tensor([4, 0, 4]), length_scale=-1.0)
    assert weights[:, 0].tolist() == pytest.approx([0.35, 0.35, 0.15])


def test_adaptive_budgets_compose():
    generator = torch.Generator().manual_seed(0)
    instruction = torch.randn(16, 9, 8, generator=generator) * torch.linspace(0, 0.4, 16)[:, None, None]
    lengths = torch.randint(1, 10, (16,), generator=generator)
    weights = adaptive_weights(instruction, lengths=lengths)
    budgets = adaptive_budgets(273, instruction, SIZES, lengths=lengths, minimum=30)
    assert_same_bits(budgets, allocate_budgets_batch(273, weights, SIZES, minimum=30))
    assert budgets.sum(1).tolist() == [273] * 16
    assert len({tuple(row) for row in budgets.tolist()}) == 2
    variance = region_variance(instruction, (1, 9), (1, 1), lengths=lengths)[:, 0]
    hard = 0.1 * lengths + 10 * variance.double() >= math.log(7 / 3)
    assert torch.equal(weights[:, 0] > 0.3, hard)


X = torch.zeros(2, 5, 8)


@pytest.mark.parametrize(
    ("message", "args", "options"),
    [
        ("instruction: expected a tensor", (None,), {}),
        (r"instruction: expected shape \[B, T, D\]", (X[0],), {}),
        ("instruction: expected at least one token", (X[:, :0],), {}),
        (r"lengths: expected \[2\] on cpu", (X,), {"lengths": torch.ones(1).int()}),
        ("thresholds: expected ascending numbers between 0 and 1", (X,), {"thresholds": (0.7, 0.3)}),
        ("thresholds: expected ascending numbers between 0 and 1", (X,), {"thresholds": (0.0, 0.3)}),
        (r"thresholds\[0\]: expected a number", (X,), {"thresholds": ("a", 0.3)}),
        ("weights: expected 3 rows of one length, 1 to 64, got rows of", (X,), {"weights": ((1.0,), (1.0,))}),
        ("weights: expected 2 rows of one length", (X,), {"weights": ((1.0,), (0.5, 0.5)), "thresholds": (0.5,)}),
        (r"weights\[0\]\[1\]: expected a non-negative", (X,), {"weights": ((1.0, -1.0),), "thresholds": ()}),
        (r"weights\[1\]: expected a list or tuple", (X,), {"weights": ((1.0,), 2.0, (1.0,))}),
        ("variance_scale: expected a finite number", (X,), {"variance_scale": math.inf}),
        ("length_scale: expected a number", (X,), {"length_scale": None}),
        (
            r"weights\[0\]\[0\]: expected a finite number that float32",
            (X,),
            {"weights": ((1e39, 1.0),), "thresholds": ()},
        ),
        (
            r"weights\[0\]\[1\]: expected a finite number that float32",
            (X,),
            {"weights": ((1.0, 1e-50),), "thresholds": ()},
        ),
        ("length_scale: expected a finite number that float32", (X,), {"length_scale": 1e39}),
        ("instruction: expected 1 to 16384 features", (X[..., :0],), {}),
    ],
)
def test_bad_adaptive(message, args, options):
    with pytest.raises((TypeError, ValueError), match=f"^adaptive_weights: {message}"):
        adaptive_weights(*args, **options)
    with pytest.raises((TypeError, ValueError), match=f"^adaptive_budgets: {message}"):
        adaptive_budgets(3, *args, SIZES, **options)


def test_bad_adaptive_budgets_name_their_op():
    with pytest.raises(ValueError, match="^adaptive_budgets: total: expected at most 5440"):
        adaptive_budgets(6000, X, SIZES)
