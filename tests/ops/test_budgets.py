"""Budgets: the two rules, bounds, host against device."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyramid_ops import allocate_budgets, allocate_budgets_batch, select_topk_levels
from tests.bits import assert_same_bits

SIZES = (4096, 1024, 256, 64)


WEIGHTS = (0.4, 0.3, 0.2, 0.1)


def largest_remainder(total: int, weights: list) -> list[int]:
    """Hamilton's rule in rational numbers."""
    whole = sum(map(Fraction, weights))
    quotas = [total * Fraction(weight) / whole for weight in weights]
    budgets = [int(quota) for quota in quotas]
    order = sorted(range(len(weights)), key=lambda k: (budgets[k] - quotas[k], k))
    for k in order[: total - sum(budgets)]:
        budgets[k] += 1
    return budgets


@pytest.mark.parametrize(
    ("total", "weights", "sizes", "options", "expected"),
    [
        (273, WEIGHTS, SIZES, {"rule": "largest_remainder"}, [109, 82, 55, 27]),
        (10, (0.5, 0.25, 0.25), (9, 9, 9), {"rule": "largest_remainder"}, [5, 3, 2]),
        (2, (0.25, 0.25, 0.25, 0.25), (9, 9, 9, 9), {"rule": "largest_remainder"}, [1, 1, 0, 0]),
        (7, (0.0, 0.5, 0.5), (9, 9, 9), {"rule": "largest_remainder"}, [0, 4, 3]),
        (20, (0.5, 0.5), (4, 20), {"rule": "largest_remainder"}, [4, 16]),
        (273, WEIGHTS, SIZES, {"minimum": 64}, [81, 64, 64, 64]),
        (273, WEIGHTS, SIZES, {"maximum": 80}, [80, 80, 80, 33]),
        (273, WEIGHTS, SIZES, {"maximum": (80, 400, 400, 400)}, [80, 112, 54, 27]),
        (273, WEIGHTS, SIZES, {"minimum": (0, 0, 0, 64), "maximum": 100}, [100, 81, 28, 64]),
        (256, WEIGHTS, SIZES, {"minimum": 64, "maximum": 64}, [64, 64, 64, 64]),
        (0, WEIGHTS, SIZES, {"minimum": 0, "maximum": 0}, [0, 0, 0, 0]),
        # A level of weight 0 is off: no share, no surplus, no remainder.
        (40, (0, 0.5, 0, 0.5), (256, 64, 16, 4), {}, [0, 36, 0, 4]),
        (40, (0, 0.5, 0, 0.5), (256, 64, 16, 4), {"rule": "largest_remainder"}, [0, 36, 0, 4]),
        (68, (0, 0.5, -0.0, 0.5), (256, 64, 16, 4), {}, [0, 64, 0, 4]),
        (7, (0, 0, 1.0, 0), (9, 9, 9, 9), {}, [0, 0, 7, 0]),
        (7, (0, 0.25, 0.25, 0.5), (9, 9, 9, 9), {}, [0, 3, 1, 3]),
        (20, (0, 0.5, 0.5), (9, 30, 30), {"minimum": (0, 0, 15), "maximum": (9, 30, 30)}, [0, 5, 15]),
        (20, (0, 0.75, 0.25), (9, 30, 30), {"maximum": 12}, [0, 12, 8]),
        # A positive weight keeps its level on, even where its share rounds down to 0.
        (20, (1.0, 1e-20), (4, 30), {"rule": "largest_remainder"}, [4, 16]),
        (20, (1.0, 1e-20), (4, 30), {}, [4, 16]),
        # Fractions .5, .25, .25; the largest weight first.
        (10, (0.25, 0.125, 0.625), (9, 9, 9), {"rule": "largest_remainder"}, [3, 1, 6]),
        (10, (0.25, 0.125, 0.625), (9, 9, 9), {"rule": "largest_remainder", "remainder": "weight"}, [2, 1, 7]),
        (2, (0.25, 0.25, 0.25, 0.25), (9,) * 4, {"rule": "largest_remainder", "remainder": "weight"}, [1, 1, 0, 0]),
        # 320 tokens of level 2 less the 80 that it holds go to levels 0 and 1, or all to level 0.
        (800, (0.3, 0.3, 0.4), (600, 600, 80), {"surplus": "weight"}, [360, 360, 80]),
        (800, (0.3, 0.3, 0.4), (600, 600, 80), {}, [480, 240, 80]),
        # 50 left by level 0; a third of them fills level 1, and level 2 gets the others.
        (100, (0.7, 0.1, 0.2), (20, 15, 99), {"surplus": "weight"}, [20, 15, 65]),
        (100, (0, 0.9, 0.1), (20, 15, 99), {"surplus": "weight"}, [0, 15, 85]),
        # The rest of an odd surplus by the remainder's rule: quotas 30 + 7.5, 30 + 7.5.
        (101, (0.25, 0.25, 0.5), (99, 99, 10), {"surplus": "weight", "rule": "largest_remainder"}, [46, 45, 10]),
        # Levels whose weights round down to 0 share equally.
        (9, (1.0, 1e-20, 1e-30), (4, 30, 30), {"surplus": "weight"}, [4, 3, 2]),
        (40, (0.25, 0.25, 0.5), (99, 99, 10), {"minimum": (0, 18, 0), "surplus": "weight"}, [11, 19, 10]),
    ],
)
def test_rules_and_bounds(total, weights, sizes, options, expected):
    assert allocate_budgets(total, weights, sizes, **options) == expected


INTEGERS = st.lists(st.integers(0, 1 << 12), min_size=1, max_size=8).filter(any)


@given(INTEGERS, st.integers(0, 1 << 30))
def test_largest_remainder_is_exact_for_weights_on_the_grid(weights, total):
    """Twelve-bit weights are exact integers of the rule, so the result is Hamilton's."""
    expected = largest_remainder(total, weights)
    row = torch.tensor([weights], dtype=torch.float32)
    assert allocate_budgets_batch(total, row, [1 << 30] * len(weights)).tolist() == [expected]


def test_the_grid_of_the_weights():
    """2^-29 of the largest weight of 1 is the last digit that counts, on the host and on the device."""
    weights = [1.0, 2.0**-29, 2.0**-30, 3 * 2.0**-30]
    expected = largest_remainder(1 << 30, [1 << 29, 1, 0, 1])
    sizes = [1 << 30] * 4
    assert allocate_budgets(1 << 30, weights, sizes, rule="largest_remainder") == expected
    assert allocate_budgets_batch(1 << 30, torch.tensor([weights]), sizes).tolist() == [expected]


def test_subnormal_weights():
    weights = torch.tensor([[2.0**-126, 2.0**-127, 2.0**-128, 0.0]])
    assert allocate_budgets_batch(700, weights, [900] * 4).tolist() == [[400, 200, 100, 0]]
    assert allocate_budgets_batch(700, weights / 4, [900] * 4).tolist() == [[400, 200, 100, 0]]


@st.composite
def problems(draw):
    levels = draw(st.integers(1, 6))
    raw = draw(st.lists(st.floats(0, 1, width=32), min_size=levels, max_size=levels))
    weights = torch.tensor(raw) + torch.tensor(draw(st.sampled_from([1e-3, 1e-9, 1.0])))
    on = torch.tensor(draw(st.lists(st.booleans(), min_size=levels, max_size=levels).filter(any)))
    weights = torch.where(on, weights / weights[on].sum(), 0)
    sizes = draw(st.lists(st.integers(0, 60), min_size=levels, max_size=levels))
    room = [size if weight else 0 for size, weight in zip(sizes, weights.tolist(), strict=True)]
    least = [draw(st.integers(0, size)) for size in room]
    most = [draw(st.integers(low, 80)) for low in least]
    total = draw(st.integers(sum(least), sum(min(size, high) for size, high in zip(room, most, strict=True))))
    return total, weights, sizes, least, most


@given(problems(), st.sampled_from(["fraction", "weight"]), st.sampled_from(["finest", "weight"]))
def test_host_and_device_agree_and_meet_the_bounds(problem, remainder, surplus):
    total, weights, sizes, least, most = problem
    bounds = {"minimum": least, "maximum": most, "remainder": remainder, "surplus": surplus}
    budgets = allocate_budgets(total, weights.tolist(), sizes, **bounds, rule="largest_remainder")
    assert sum(budgets) == total
    sizes_on = [size if weight else 0 for size, weight in zip(sizes, weights.tolist(), strict=True)]
    for budget, size, low, high in zip(budgets, sizes_on, least, most, strict=True):
        assert low <= budget <= min(size, high)
    row = weights[None]
    assert allocate_budgets_batch(total, row, sizes, **bounds).tolist() == [budgets]
    tensors = torch.tensor([total]), row, torch.tensor([sizes], dtype=torch.int32)
    assert allocate_budgets_batch(*tensors, **bounds).tolist() == [budgets]
    del bounds["remainder"]
    level0 = allocate_budgets(total, weights.tolist(), sizes, **bounds)
    assert sum(level0) == total
    for budget, size, low, high in zip(level0, sizes_on, least, most, strict=True):
        assert low <= budget <= min(size, high)


def test_host_and_device_agree_on_many_weights():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(500, 4, generator=generator) ** 8
    weights /= weights.sum(1, keepdim=True)
    totals = torch.randint(0, 5441, (500,), generator=generator)
    batch = allocate_budgets_batch(totals, weights, SIZES).tolist()
    for row, total, budgets in zip(weights.tolist(), totals.tolist(), batch, strict=True):
        assert allocate_budgets(total, row, SIZES, rule="largest_remainder") == budgets


def filled(missing: int, weights: list, room: list) -> list[float]:
    """What each level takes of water that rises in proportion to its weight: the level of the water by bisection."""
    low, high = 0.0, 1e12
    for _ in range(200):
        middle = (low + high) / 2
        enough = sum(min(middle * weight, most) for weight, most in zip(weights, room, strict=True)) >= missing
        low, high = (low, middle) if enough else (middle, high)
    return [min(high * weight, most) for weight, most in zip(weights, room, strict=True)]


@given(st.lists(st.tuples(st.integers(1, 4000), st.integers(0, 40)), min_size=1, max_size=8), st.integers(0, 320))
def test_surplus_by_weight_is_water_that_rises(levels, total):
    """Less than one token from the fractional result, all of it from level 0, which holds none."""
    weights, room = [weight for weight, _ in levels], [most for _, most in levels]
    total = min(total, sum(room))
    row = torch.tensor([[1 << 29, *weights]], dtype=torch.float32)
    budgets = allocate_budgets_batch(total, row, [0, *room], surplus="weight")[0].tolist()
    assert budgets[0] == 0
    assert sum(budgets) == total
    for budget, expected in zip(budgets[1:], filled(total, weights, room), strict=True):
        assert abs(budget - expected) < 1 + 1e-6


@pytest.mark.parametrize("levels", [64, 65, 127, 128, 500, 1024])
@pytest.mark.parametrize("surplus", ["finest", "weight"])
@pytest.mark.parametrize("remainder", ["fraction", "weight"])
def test_host_and_device_agree_on_many_levels(levels, remainder, surplus):
    generator = torch.Generator().manual_seed(levels)
    weights = torch.rand(6, levels, generator=generator) ** 4
    weights[1] = 1.0
    weights[2, ::3] = 0.0
    weights /= weights.sum(1, keepdim=True)
    sizes = torch.randint(0, 30, (6, levels), generator=generator)
    totals = (torch.where(weights > 0, sizes, 0).sum(1) * torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 1.0])).long()
    options = {"remainder": remainder, "surplus": surplus}
    batch = allocate_budgets_batch(totals, weights, sizes, **options).tolist()
    for row, total, size, budgets in zip(weights.tolist(), totals.tolist(), sizes.tolist(), batch, strict=True):
        assert allocate_budgets(total, row, size, rule="largest_remainder", **options) == budgets
    options |= {"minimum": 2, "maximum": 9}
    batch = allocate_budgets_batch(4 * levels, weights[[0, 1]], [20] * levels, **options).tolist()
    for row, budgets in zip(weights[[0, 1]].tolist(), batch, strict=True):
        assert allocate_budgets(4 * levels, row, [20] * levels, rule="largest_remainder", **options) == budgets


def test_many_levels_take_one_number_for_all():
    weights = torch.ones(2, 65)
    for message, args, options in (
        ("sizes: expected a tensor or one number for all of more than 64 levels, got 1 to 65", range(1, 66), {}),
        ("minimum: expected one number for all", [9] * 65, {"minimum": [0] * 64 + [1]}),
        ("maximum: expected one number for all", [9] * 65, {"maximum": [5] * 64 + [1]}),
    ):
        with pytest.raises(ValueError, match=f"^allocate_budgets_batch: {message}"):
            allocate_budgets_batch(1, weights, args, **options)


@given(st.lists(st.lists(st.floats(width=32), min_size=3, max_size=3), min_size=1, max_size=8), st.integers(0, 900))
def test_any_weights_give_an_exact_sum(rows, total):
    """The total, or all tokens of the levels that are on."""
    weights = torch.tensor(rows, dtype=torch.float32)
    budgets = allocate_budgets_batch(total, weights, (500, 300, 100))
    on = (weights > 0) & (weights < math.inf)
    on |= ~on.any(1, keepdim=True)
    room = on * torch.tensor([500, 300, 100])
    assert budgets.dtype == torch.int32
    assert budgets.sum(1).tolist() == room.sum(1).clamp(max=total).tolist()
    assert ((budgets >= 0) & (budgets <= room)).all()


def test_levels_of_weight_0_are_off_on_the_device():
    weights = torch.tensor([[0.0, 0.5, 0.0, 0.5], [0, 1, 0, 1], [0, 0, 0, 0], [math.nan, 0, -1, 1e-45]])
    sizes = (256, 64, 16, 4)
    expected = [[0, 36, 0, 4], [0, 36, 0, 4], [10, 10, 16, 4], [0, 0, 0, 4]]
    expected[2] = allocate_budgets(40, [0.25] * 4, sizes, rule="largest_remainder")
    assert allocate_budgets_batch(40, weights, sizes).tolist() == expected
    tensors = torch.full((4,), 40), weights, torch.tensor([sizes] * 4)
    assert allocate_budgets_batch(*tensors).tolist() == expected
    # What the levels that are on cannot hold is missing, and so is a minimum of a level that is off.
    assert allocate_budgets_batch(200, weights[:2], sizes, minimum=3).tolist() == [[0, 64, 0, 4]] * 2


def test_selection_takes_nothing_from_a_level_of_weight_0():
    levels = [torch.randn(1, n, 8) for n in (64, 16, 4)]
    for _ in range(2):  # the second time the budgets are remembered
        assert set(select_topk_levels(levels, 20, (0.0, 0.5, 0.5)).indices[0, :, 0].tolist()) == {1, 2}
        with pytest.raises(ValueError, match="^select_topk_levels: target_tokens: expected at most 20, the tokens of"):
            select_topk_levels(levels, 21, (0.0, 0.5, 0.5))


def test_weights_that_are_no_weights():
    nan, inf = math.nan, math.inf
    weights = torch.tensor(
        [[nan, 1, -1, inf], [0, -0.0, nan, -nan], [inf, 0, 0, 0], [1, 1, 0, 0], [1e-45, 0, 0, 1e-45]]
    )
    budgets = allocate_budgets_batch(10, weights, (100,) * 4)
    assert budgets.tolist() == [[0, 10, 0, 0], [3, 3, 2, 2], [3, 3, 2, 2], [5, 5, 0, 0], [5, 0, 0, 5]]


def test_scale_of_the_weights_does_not_matter():
    weights = torch.rand(50, 5, generator=torch.Generator().manual_seed(0))
    expected = allocate_budgets_batch(1000, weights, [900] * 5)
    for exponent in (-100, -1, 90):
        assert_same_bits(allocate_budgets_batch(1000, weights * 2.0**exponent, [900] * 5), expected)


def test_device_bounds_that_nothing_can_meet_give_way():
    weights = torch.ones(3, 3)
    sizes = torch.tensor([[5, 5, 5], [-4, 2, 100], [10, 10, 10]])
    totals = torch.tensor([1000, 50, -3])
    assert allocate_budgets_batch(totals, weights, sizes).tolist() == [[5, 5, 5], [0, 2, 48], [0, 0, 0]]
    totals = torch.tensor([10, 50, 14])
    budgets = allocate_budgets_batch(totals, weights, sizes, minimum=7, maximum=20)
    assert budgets.tolist() == [[5, 5, 0], [0, 2, 20], [7, 7, 0]]


def test_one_sample_equals_the_sample_in_a_batch():
    weights = torch.rand(20, 4)
    batch = allocate_budgets_batch(273, weights, SIZES)
    for b in range(20):
        assert_same_bits(allocate_budgets_batch(273, weights[b : b + 1], SIZES), batch[b : b + 1])


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("rule: expected one of 'level0', 'largest_remainder', got 'x'", {"rule": "x"}),
        ("remainder: expected 'fraction' with rule='level0', got 'weight'", {"rule": "level0", "remainder": "weight"}),
        ("remainder: expected one of 'fraction', 'weight', got 'x'", {"remainder": "x"}),
        ("surplus: expected one of 'finest', 'weight', got None", {"surplus": None}),
        (r"minimum: expected a sum of at most 100, the total, got 104", {"minimum": 26}),
        ("minimum: expected at most the 64 tokens of level 3, got 65", {"minimum": (0, 0, 0, 65)}),
        ("minimum: expected at most the maximum 9 of level 0, got 10", {"minimum": 10, "maximum": 9}),
        ("total: expected at most 96, the sum of the maximums, got 100", {"maximum": 24}),
        ("minimum: expected at least 0, got -1", {"minimum": -1}),
        (r"maximum\[2\]: expected an integer, got 1.5", {"maximum": (1, 1, 1.5, 1)}),
        ("maximum: expected one for each of 4 levels, got 2", {"maximum": (1, 1)}),
        ("minimum: expected an integer, got None", {"minimum": None}),
    ],
)
def test_bad_bounds(message, options):
    with pytest.raises((TypeError, ValueError), match=f"^allocate_budgets: {message}"):
        allocate_budgets(100, WEIGHTS, SIZES, **options)
    if "rule" not in options:
        with pytest.raises((TypeError, ValueError), match=f"^allocate_budgets_batch: {message}"):
            allocate_budgets_batch(100, torch.ones(2, 4), SIZES, **options)


@pytest.mark.parametrize(
    ("message", "total", "options"),
    [
        ("total: expected at most 68, the tokens of the levels whose weight is not 0, got 69", 69, {}),
        ("minimum: expected 0 for level 0, whose weight is 0, got 1", 9, {"minimum": 1}),
        ("minimum: expected 0 for level 2, whose weight is 0, got 2", 9, {"minimum": (0, 1, 2, 1)}),
        ("total: expected at most 14, the sum of the maximums, got 20", 20, {"maximum": 10}),
    ],
)
@pytest.mark.parametrize("rule", ["level0", "largest_remainder"])
def test_bad_bounds_of_levels_that_are_off(rule, message, total, options):
    with pytest.raises(ValueError, match=f"^allocate_budgets: {message}"):
        allocate_budgets(total, (0, 0.5, 0, 0.5), (256, 64, 16, 4), **options, rule=rule)


W = torch.ones(2, 4)


N = torch.ones(2, 4, dtype=torch.int32)


@pytest.mark.parametrize(
    ("message", "args"),
    [
        ("weights: expected a tensor", (1, WEIGHTS, SIZES)),
        (r"weights: expected shape \[B, L\]", (1, W[0], SIZES)),
        ("weights: expected dtype float32", (1, W.half(), SIZES)),
        ("weights: expected 1 to 1024 levels", (1, W[:, :0], ())),
        ("weights: expected 1 to 1024 levels", (1, torch.ones(2, 1025), [1] * 1025)),
        ("weights: expected no gradient", (1, W.clone().requires_grad_(), SIZES)),
        ("total: expected at most 5440, the tokens of the levels, got 5441", (5441, W, SIZES)),
        ("total: expected at most 2147483647", (1 << 31, W, N)),
        ("total: expected an integer", (1.0, W, SIZES)),
        (r"total: expected \[2\] on cpu", (torch.ones(3).int(), W, SIZES)),
        ("total: expected dtype int32, int64", (torch.ones(2), W, SIZES)),
        ("sizes: expected one for each of 4 levels, got 1", (1, W, (9,))),
        (r"sizes\[0\]: expected at least 0", (1, W, (-9, 9, 9, 9))),
        (r"sizes: expected \[2, 4\] on cpu", (1, W, N[:1])),
        ("sizes: expected dtype int32, int64", (1, W, W)),
    ],
)
def test_bad_batch(message, args):
    with pytest.raises((TypeError, ValueError), match=f"^allocate_budgets_batch: {message}"):
        allocate_budgets_batch(*args)
