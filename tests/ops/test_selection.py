"""Selection over levels: against brute force and eager code."""

import functools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyramid_ops import allocate_budgets, select_topk_levels, token_norm, token_variance
from pyramid_ops.verify.inputs import FEATURES, special_scores
from tests.bits import assert_same_bits

SIZES = (4096, 1024, 256, 64)


WEIGHTS = (0.4, 0.3, 0.2, 0.1)


def features(sizes=(60, 30, 8, 4), dim=16, batch=2, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(50 * torch.randn(batch, size, dim, generator=generator)).to(dtype) for size in sizes]


def rank(value: float) -> tuple:
    """Sort key: NaN above +inf, then descending, −0 as 0."""
    return (0, 0.0) if math.isnan(value) else (1, -value + 0.0)


def brute_force(scores: list, budgets: list, union: bool, by_index: bool) -> list:
    every = [(rank(v), level, i) for level, values in enumerate(scores) for i, v in enumerate(values)]
    if union:
        best = sorted(every)[: budgets[0]]
        return [(level, i) for _, level, i in (sorted(best, key=lambda x: x[1:]) if by_index else best)]
    chosen = []
    for level, k in enumerate(budgets):
        best = sorted(entry for entry in every if entry[1] == level)[:k]
        chosen += [(level, i) for _, _, i in (sorted(best, key=lambda x: x[2]) if by_index else best)]
    return chosen


FLOAT32 = st.floats(width=32) | st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, 1.0])


@given(st.lists(st.lists(FLOAT32, max_size=12), min_size=1, max_size=4), st.booleans(), st.booleans(), st.data())
def test_selection_equals_brute_force(scores, union, by_index, data):
    if union:
        budgets = [data.draw(st.integers(0, sum(map(len, scores))))]
    else:
        budgets = [data.draw(st.integers(0, len(values))) for values in scores]
    levels = [torch.arange(len(values) * 3).float().view(1, -1, 3) for values in scores]
    saliency = [torch.tensor(values, dtype=torch.float32)[None] for values in scores]
    options = {"target_tokens": budgets[0], "level_weights": None} if union else {"budgets": budgets}
    order = "index" if by_index else "saliency"
    tokens, indices = select_topk_levels(levels, saliency=saliency, order=order, **options)
    expected = brute_force([s[0].tolist() for s in saliency], budgets, union, by_index)
    assert [tuple(pair) for pair in indices[0].tolist()] == expected
    assert [tuple(row) for row in tokens[0].tolist()] == [tuple(levels[k][0, i].tolist()) for k, i in expected]


@pytest.mark.parametrize("saliency", ["variance", "norm"])
def test_drop_in_for_eager_topk_gather_cat(saliency):
    levels = features(SIZES, 32)
    tokens, indices = select_topk_levels(levels, saliency=saliency)
    assert tokens.shape == (2, 273, 32)
    assert indices.shape == (2, 273, 2)
    assert indices.dtype == torch.int64
    start = 0
    for k, (level, budget) in enumerate(zip(levels, (111, 81, 54, 27), strict=True)):
        scores = level.double().var(-1) if saliency == "variance" else level.double().norm(dim=-1)
        best = scores.topk(budget, 1).indices
        assert torch.equal(indices[:, start : start + budget, 1], best)
        assert (indices[:, start : start + budget, 0] == k).all()
        assert_same_bits(tokens[:, start : start + budget], level.gather(1, best[..., None].expand(-1, -1, 32)))
        start += budget


@pytest.mark.parametrize("dtype", FEATURES)
@pytest.mark.parametrize("order", ["saliency", "index"])
def test_saliency_by_name_equals_saliency_by_scores(dtype, order):
    levels = features(dtype=dtype)
    for name, op in (("variance", token_variance), ("norm", token_norm)):
        for weights in (WEIGHTS, None):
            named = select_topk_levels(levels, 20, weights, saliency=name, order=order)
            scores = [op(level) for level in levels]
            assert_same_bits(select_topk_levels(levels, 20, weights, saliency=scores, order=order), named)


def test_index_order_holds_the_same_tokens():
    levels = features()
    for weights in (WEIGHTS, None):
        by_saliency = select_topk_levels(levels, 40, weights).indices.tolist()
        by_index = select_topk_levels(levels, 40, weights, order="index").indices.tolist()
        assert [sorted(sample) for sample in by_saliency] == by_index


def test_all_equal_scores_select_the_first_tokens():
    levels = features((9, 5))
    scores = [torch.zeros(2, 9), -torch.zeros(2, 5)]
    indices = select_topk_levels(levels, saliency=scores, budgets=(4, 2)).indices
    assert indices[0].tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1]]
    indices = select_topk_levels(levels, 11, None, saliency=scores).indices
    assert indices[0].tolist() == [[0, i] for i in range(9)] + [[1, 0], [1, 1]]


def test_zero_tokens_and_all_tokens():
    levels = features((5, 3))
    assert select_topk_levels(levels, 0, (0.5, 0.5)).tokens.shape == (2, 0, 16)
    tokens, indices = select_topk_levels(levels, 8, (0.5, 0.5), order="index")
    assert_same_bits(tokens, torch.cat(levels, 1))
    assert indices[1].tolist() == [[0, i] for i in range(5)] + [[1, i] for i in range(3)]


def test_token_bits_are_untouched():
    levels = [torch.full((1, 4, 3), -0.0), torch.full((1, 4, 3), torch.nan)]
    tokens = select_topk_levels(levels, budgets=[2, 2]).tokens
    assert tokens[:, :2].signbit().all()
    assert tokens[:, 2:].isnan().all()


def test_scores_of_half_precision():
    levels = features((20, 10))
    for dtype in (torch.float16, torch.bfloat16):
        scores = [special_scores(2, n, dtype, n) for n in (20, 10)]
        expected = select_topk_levels(levels, saliency=[s.float() for s in scores], budgets=[7, 3])
        assert_same_bits(select_topk_levels(levels, saliency=scores, budgets=[7, 3]), expected)


def test_strided_levels():
    levels = features()
    expected = select_topk_levels(levels, 20)
    for layout in ("batch", "last"):
        order = (0, 1) if layout == "batch" else (1, 2)
        strided = [level.transpose(*order).contiguous().transpose(*order) for level in levels]
        assert_same_bits(select_topk_levels(strided, 20), expected)


@pytest.mark.parametrize(
    ("total", "weights", "sizes", "expected"),
    [
        (273, WEIGHTS, SIZES, [111, 81, 54, 27]),
        (273, (0.1, 0.2, 0.3, 0.4), SIZES, [74, 54, 81, 64]),
        (10, (0.25, 0.75), (100, 3), [7, 3]),
        (10, (1.0,), (10,), [10]),
        (5, (0.0, 1.0), (9, 9), [0, 5]),
        (4, (0.0, 0.0, 1.0), (2, 3, 5), [0, 0, 4]),
        (0, (0.5, 0.5), (0, 0), [0, 0]),
        (85, WEIGHTS, (64, 16, 4, 1), [64, 16, 4, 1]),
        (100, (0.29, 0.71), (100, 100), [29, 71]),
    ],
)
def test_budgets(total, weights, sizes, expected):
    budgets = allocate_budgets(total, weights, sizes)
    assert budgets == expected
    assert sum(budgets) == total


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 1)), min_size=1, max_size=6), st.floats(0, 1))
def test_budgets_always_add_up(levels, share):
    sizes = [size for size, _ in levels]
    weights = np.array([weight + 1e-3 for _, weight in levels])
    total = int(share * sum(sizes))
    budgets = allocate_budgets(total, (weights / weights.sum()).tolist(), sizes)
    assert sum(budgets) == total
    assert all(0 <= budget <= size for budget, size in zip(budgets, sizes, strict=True))


def test_budgets_when_weights_sum_to_slightly_more_than_one():
    assert allocate_budgets(10_000_000, (0.0, 1 + 9e-7), (10_000_000, 10_000_000)) == [0, 10_000_000]


def test_surplus_goes_to_the_finest_level_with_room():
    indices = select_topk_levels(features((40, 20, 2, 1)), 30).indices
    counts = torch.bincount(indices[0, :, 0]).tolist()
    assert counts == [18, 9, 2, 1]


L = features()


BAD = [
    (TypeError, "pyramid_features: expected a list or tuple", lambda op: op(L[0])),
    (ValueError, "pyramid_features: expected at least one tensor, got an empty list", lambda op: op([])),
    (TypeError, r"pyramid_features\[1\]: expected a tensor, got None", lambda op: op([L[0], None])),
    (ValueError, r"pyramid_features\[0\]: expected shape \[B, N, D\]", lambda op: op([L[0][0]])),
    (TypeError, r"pyramid_features\[0\]: expected a dense tensor", lambda op: op([L[0].to_sparse()])),
    (TypeError, r"pyramid_features\[0\]: expected dtype", lambda op: op([x.double() for x in L])),
    (ValueError, r"pyramid_features\[1\]: expected the device, dtype", lambda op: op([L[0], L[1].half()])),
    (ValueError, r"pyramid_features\[1\]: expected the device, dtype", lambda op: op([L[0], L[1][:1]])),
    (ValueError, r"pyramid_features\[1\]: expected the device, dtype", lambda op: op([L[0], L[1][..., :8]])),
    (TypeError, r"pyramid_features\[1\]: expected a CPU or CUDA", lambda op: op([L[0], L[1].to("meta")])),
    (ValueError, r"pyramid_features\[0\]: expected no gradient", lambda op: op([L[0].clone().requires_grad_()])),
    (ValueError, "target_tokens: expected at most 102, the tokens of the levels, got 273", lambda op: op(L)),
    (ValueError, "target_tokens: expected at most 102", lambda op: op(L, 103, None)),
    (ValueError, "target_tokens: expected at least 0, got -1", lambda op: op(L, -1)),
    (TypeError, "target_tokens: expected an integer, got 10.0", lambda op: op(L, 10.0)),
    (TypeError, "target_tokens: expected an integer, got True", lambda op: op(L, True)),
    (ValueError, "level_weights: expected one for each of 4 levels, got 2", lambda op: op(L, 9, (0.5, 0.5))),
    (ValueError, "level_weights: expected a sum of 1 within 1e-6, got 0.9", lambda op: op(L, 9, (0.4, 0.3, 0.2, 0))),
    (ValueError, r"level_weights\[1\]: expected a non-negative", lambda op: op(L, 9, (1.0, -0.5, 0.5, 0.0))),
    (ValueError, r"level_weights\[0\]: expected a finite", lambda op: op(L, 9, (math.nan, 0.5, 0.5, 0.0))),
    (TypeError, r"level_weights\[0\]: expected a number", lambda op: op(L, 9, ("0.4", 0.3, 0.2, 0.1))),
    (TypeError, "level_weights: expected a list or tuple", lambda op: op(L, 9, torch.tensor(WEIGHTS))),
    (TypeError, "level_weights: expected a list or tuple", lambda op: op(L, 9, 0.5)),
    (ValueError, "budgets: expected one for each of 4 levels, got 1", lambda op: op(L, budgets=[3])),
    (ValueError, r"budgets\[3\]: expected at most the 4 tokens of level 3", lambda op: op(L, budgets=[1, 1, 1, 5])),
    (ValueError, r"budgets\[0\]: expected at least 0, got -1", lambda op: op(L, budgets=[-1, 1, 1, 1])),
    (TypeError, r"budgets\[0\]: expected an integer, got 1.5", lambda op: op(L, budgets=[1.5, 1, 1, 1])),
    (ValueError, "saliency: expected one of 'variance', 'norm', 'attention', got 'x'", lambda o: o(L, 9, saliency="x")),
    (TypeError, "saliency: expected 'variance', 'norm', 'attention' or a list", lambda op: op(L, 9, saliency=None)),
    (ValueError, "saliency: expected one tensor for each of 4", lambda op: op(L, 9, saliency=[torch.ones(2, 60)])),
    (ValueError, r"saliency\[1\]: expected \[2, 30\] on cpu", lambda op: op(L, 9, saliency=[torch.ones(2, 60)] * 4)),
    (TypeError, r"saliency\[0\]: expected dtype", lambda op: op(L, 9, saliency=[torch.ones(2, 60).long()] * 4)),
    (ValueError, "order: expected one of 'saliency', 'index', got 'random'", lambda op: op(L, 9, order="random")),
]  # fmt: skip


def test_budgets_of_one_call_are_not_those_of_equal_numbers_that_are_wrong():
    weights = (1.0, 0.0, 0.0, 0.0)
    select_topk_levels(L, 1, weights)
    for wrong in ((True, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0, False)):
        with pytest.raises(TypeError, match="expected a number"):
            select_topk_levels(L, 1, wrong)
    for wrong in (True, 1.0):
        with pytest.raises(TypeError, match="target_tokens: expected an integer"):
            select_topk_levels(L, wrong, weights)


@pytest.mark.parametrize(("error", "message", "call"), BAD)
def test_bad_input(error, message, call):
    with pytest.raises(error, match=f"^select_topk_levels: {message}"):
        call(select_topk_levels)


@pytest.mark.parametrize(
    ("message", "args"),
    [
        ("total: expected at most 3, the tokens of the levels, got 4", (4, (1.0,), (3,))),
        ("weights: expected one for each of 2 levels, got 1", (4, (1.0,), (3, 3))),
        (r"sizes\[0\]: expected at least 0, got -3", (0, (1.0,), (-3,))),
        ("weights: expected a sum of 1", (0, (), ())),
    ],
)
def test_bad_budgets(message, args):
    with pytest.raises((TypeError, ValueError), match=f"^allocate_budgets: {message}"):
        allocate_budgets(*args)


@pytest.mark.slow
def test_working_memory_stays_within_64_mb():
    """Peak resident memory beyond inputs and outputs, in a process of its own."""
    code = """
import resource, torch, pyramid_ops
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
small = [torch.randn(1, 64, 64) for _ in range(4)]
pyramid_ops.select_topk_levels(small, 100)
pyramid_ops.gaussian_pyramid(torch.rand(1, 3, 128, 128), 4)
levels = [torch.ones(4, n, 1024).bernoulli_() for n in (65536, 16384, 4096, 1024)]
scores = sum(level.shape[0] * level.shape[1] for level in levels)
before = peak()
tokens, indices = pyramid_ops.select_topk_levels(levels, 2048)
used = peak() - before - tokens.nbytes - indices.nbytes - 80 * scores
assert used < 64 << 20, f"selection: {used >> 20} MB"
images = torch.ones(2, 3, 8192, 8192).bernoulli_()
before = peak()
pyramid = pyramid_ops.gaussian_pyramid(images, 4)
used = peak() - before - sum(level.nbytes for level in pyramid[1:])
assert used < 64 << 20, f"pyramid: {used >> 20} MB"
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("scores", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("ambient", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_does_not_matter(scores, ambient):
    levels = [torch.randn(2, n, 8) for n in (16, 4)]
    saliency = [level[..., 0].to(scores) for level in levels]
    for weights in (None, (0.5, 0.5)):
        select = functools.partial(select_topk_levels, levels, 6, weights, saliency=saliency)
        expected = select()
        with torch.autocast("cpu", dtype=ambient):
            tokens, indices = select()
        assert torch.equal(indices, expected.indices)
        assert torch.equal(tokens, expected.tokens)
