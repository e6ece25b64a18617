"""`select_topk_levels` without weights: one to four levels have them, more ask for them."""

import pytest
import torch

from pyramid_ops import allocate_budgets, select_topk_levels
from tests.bits import assert_same_bits

SIZES = (512, 128, 64, 32, 16)


def features(levels: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(levels)
    return [torch.randn(2, n, 8, generator=generator) for n in SIZES[:levels]]


@pytest.mark.parametrize(
    ("weights", "budgets"),
    [
        ((1.0,), [100]),
        ((4 / 7, 3 / 7), [58, 42]),
        ((4 / 9, 3 / 9, 2 / 9), [45, 33, 22]),
        ((0.4, 0.3, 0.2, 0.1), [40, 30, 20, 10]),
    ],
)
def test_default_weights(weights, budgets):
    levels = features(len(weights))
    selected = select_topk_levels(levels, 100)
    assert selected.indices[0, :, 0].bincount().tolist() == budgets
    assert allocate_budgets(100, weights, SIZES[: len(weights)]) == budgets
    for given in (weights, "falling"):
        assert_same_bits(select_topk_levels(levels, 100, given), selected)
    compiled = torch.compile(lambda levels: select_topk_levels(levels, 100), backend="eager", fullgraph=True)
    assert_same_bits(compiled(levels), selected)


def test_one_level_needs_no_weights():
    hidden = torch.randn(1, 256, 16)
    assert_same_bits(select_topk_levels([hidden], 64), select_topk_levels([hidden], budgets=[64]))
    assert select_topk_levels([hidden[:, :0]], 0).tokens.shape == (1, 0, 16)


def test_none_is_one_topk_over_the_union():
    levels = features(3)
    scores = [torch.full(level.shape[:2], float(k)) for k, level in enumerate(levels)]
    assert (select_topk_levels(levels, 50, None, saliency=scores).indices[..., 0] == 2).all()


def test_five_levels_need_weights():
    levels = features(5)
    message = "^select_topk_levels: level_weights: expected one for each of 5 levels, got the default for at most 4"
    with pytest.raises(ValueError, match=message):
        select_topk_levels(levels, 100)
    with pytest.raises(ValueError, match="level_weights: expected one of 'falling', got 'rising'"):
        select_topk_levels(levels, 100, "rising")
    assert select_topk_levels(levels, 100, [0.2] * 5).tokens.shape == (2, 100, 8)
    assert select_topk_levels(levels, budgets=[16] * 5).tokens.shape == (2, 80, 8)
