"""Selection one level at a time: equal to selection from all levels, in less memory."""

import functools
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.conftest import _peak_bytes
from pyramid_ops import gaussian_pyramid, patchify, progressive_select, select_topk_levels, token_norm
from pyramid_ops.verify.inputs import FEATURES
from tests.bits import assert_same_bits

encode = functools.partial(patchify, patch_size=4)


def all_levels(images: torch.Tensor, levels: int, **options) -> list[torch.Tensor]:
    return [encode(level) for level in gaussian_pyramid(images, levels, **options)]


def pictures(height=64, width=48, dtype=torch.float32, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    images = 200 * torch.rand(2, 3, height, width, generator=generator)
    images[:, :, 8:40, 8:24] = 7.0  # ties
    return images.to(dtype)


@pytest.mark.parametrize("dtype", FEATURES)
@pytest.mark.parametrize("order", ["saliency", "index"])
@pytest.mark.parametrize("saliency", ["variance", "norm"])
def test_budgets_for_each_level(dtype, order, saliency):
    images = pictures(dtype=dtype)
    options = {"saliency": saliency, "order": order}
    expected = select_topk_levels(all_levels(images, 3), budgets=(90, 11, 0), **options)
    assert_same_bits(progressive_select(images, encode, (90, 11, 0), **options), expected)


@pytest.mark.parametrize("order", ["saliency", "index"])
@pytest.mark.parametrize("saliency", ["variance", "norm"])
def test_final_selection_over_the_union(order, saliency):
    images = pictures()
    levels = all_levels(images, 3)
    options = {"saliency": saliency, "order": order}
    for target in (0, 1, 100, 150):
        budgets = [min(target, level.shape[1]) for level in levels]
        expected = select_topk_levels(levels, target, None, **options)
        assert_same_bits(progressive_select(images, encode, budgets, target_tokens=target, **options), expected)


def test_final_selection_keeps_the_budgets_as_bounds():
    images = pictures()
    levels = all_levels(images, 3)
    first = select_topk_levels(levels, budgets=(20, 10, 5))
    tokens, indices = progressive_select(images, encode, (20, 10, 5), target_tokens=30)
    assert {tuple(pair) for pair in indices[0].tolist()} < {tuple(pair) for pair in first.indices[0].tolist()}
    scores = tokens.double().var(-1)
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    assert torch.bincount(indices[1, :, 0], minlength=3).le(torch.tensor([20, 10, 5])).all()


@given(st.integers(0, 40), st.booleans(), st.integers(0, 1000))
def test_scores_of_the_caller(target, union, seed):
    """Scores with many ties, kept beside the tokens for the final selection."""
    images = pictures(16, 16, seed=seed % 3)
    levels = all_levels(images, 3)
    table = [torch.randint(0, 4, x.shape[:2], generator=torch.Generator().manual_seed(seed)).float() for x in levels]
    by_size = {x.shape[1]: scores for x, scores in zip(levels, table, strict=True)}
    budgets = [min(target, x.shape[1]) for x in levels]
    options = {"target_tokens": min(target, 21)} if union else {}
    actual = progressive_select(images, encode, budgets, saliency=lambda x: by_size[x.shape[1]], **options)
    if union:
        expected = select_topk_levels(levels, min(target, 21), None, saliency=table)
    else:
        expected = select_topk_levels(levels, saliency=table, budgets=budgets)
    assert_same_bits(actual, expected)


def test_filter_options_reach_the_pyramid():
    images = pictures(63, 45)
    options = {"taps": [0.25, 0.5, 0.25], "padding": "reflect", "downsample": "decimate"}
    cut = lambda x: encode(x[..., : x.shape[2] // 4 * 4, : x.shape[3] // 4 * 4])  # noqa: E731
    expected = select_topk_levels([cut(x) for x in gaussian_pyramid(images, 3, **options)], budgets=(9, 5, 2))
    assert_same_bits(progressive_select(images, cut, (9, 5, 2), **options), expected)


def test_levels_are_encoded_once_and_freed():
    shapes, alive = [], []

    def encode_and_watch(images):
        alive.append(sum(reference() is not None for reference in references))
        tokens = encode(images)
        shapes.append(tuple(images.shape[2:]))
        references.append(weakref.ref(tokens))
        return tokens

    references: list = []
    progressive_select(pictures(), encode_and_watch, (4, 3, 2), saliency=token_norm, target_tokens=5)
    assert shapes == [(64, 48), (32, 24), (16, 12)]
    assert alive == [0, 0, 0]


def test_peak_memory_is_that_of_one_level():
    images = torch.rand(1, 3, 1024, 1536)
    cut = functools.partial(patchify, patch_size=16)
    budgets = (111, 81, 54, 27)
    peak = _peak_bytes(lambda: progressive_select(images, cut, budgets))
    at_once = _peak_bytes(lambda: select_topk_levels([cut(x) for x in gaussian_pyramid(images, 4)], budgets=budgets))
    working = 8 << 20
    assert images.nbytes < peak < images.nbytes + working
    assert at_once > images.nbytes * 1.6
    assert peak < 0.85 * at_once


IMAGES = pictures(16, 16)
GRAD = torch.zeros(2, 4, 3, requires_grad=True)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("images: expected a tensor", lambda op: op(None, encode, (1,))),
        (r"images: expected shape \[B, C, H, W\]", lambda op: op(IMAGES[0], encode, (1,))),
        ("images: expected dtype", lambda op: op(IMAGES.double(), encode, (1,))),
        ("encode: expected a function, got None", lambda op: op(IMAGES, None, (1,))),
        ("budgets: expected one for each level, got none", lambda op: op(IMAGES, encode, ())),
        ("budgets: expected a list or tuple", lambda op: op(IMAGES, encode, 3)),
        (r"budgets\[1\]: expected at least 0, got -1", lambda op: op(IMAGES, encode, (1, -1))),
        (r"budgets\[1\]: expected at most the 4 tokens of level 1, got 5", lambda op: op(IMAGES, encode, (1, 5))),
        (
            "budgets: expected at most 5 levels for the images, got 6",
            lambda op: op(IMAGES, lambda x: x.flatten(2)[..., :1], [0] * 6),
        ),
        ("target_tokens: expected at most 3, the budgets", lambda op: op(IMAGES, encode, (1, 2), target_tokens=4)),
        ("saliency: expected one of 'variance', 'norm'", lambda op: op(IMAGES, encode, (1,), saliency="x")),
        (
            r"saliency\[0\]: expected \[2, 16\] on cpu",
            lambda op: op(IMAGES, encode, (1,), saliency=lambda x: x[..., 0].T),
        ),
        ("saliency", lambda op: op(IMAGES, encode, (1,), saliency=lambda x: None)),
        ("order: expected one of", lambda op: op(IMAGES, encode, (1,), order="x")),
        ("padding: expected one of", lambda op: op(IMAGES, encode, (1,), padding="x")),
        ("sigma: expected a positive number", lambda op: op(IMAGES, encode, (1,), sigma=0)),
        (r"encode\(level 0\): expected a tensor, got None", lambda op: op(IMAGES, lambda x: None, (1,))),
        (r"encode\(level 0\): expected shape \[B, N, D\]", lambda op: op(IMAGES, lambda x: x, (1,))),
        (r"encode\(level 0\): expected no gradient", lambda op: op(IMAGES, lambda x: GRAD, (1,))),
        (r"encode\(level 0\): expected the batch size 2", lambda op: op(IMAGES, lambda x: encode(x)[:1], (1,))),
        (
            r"encode\(level 1\): expected the dtype and feature size of level 0",
            lambda op: op(IMAGES, lambda x: encode(x)[..., : x.shape[2]], (1, 1)),
        ),
    ],
)
def test_bad_input(message, call):
    with pytest.raises((TypeError, ValueError), match=f"^progressive_select: {message}"):
        call(progressive_select)
