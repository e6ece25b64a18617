"""Relevance to a text: against the products it reduces."""

import pytest
import torch
from torch import Tensor

import pyramid_ops
from pyramid_ops.verify.inputs import FLOATS
from tests.bits import assert_same_bits

TOLERANCE = {"grid": 2e-3, "high": 1e-6}


def made(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def products(tokens: Tensor, text: Tensor, scale: float) -> Tensor:
    return tokens.double() @ text.double().mT * scale


@pytest.mark.parametrize("precision", ["grid", "high"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_relevance_is_the_reduced_product(reduction, dtype, precision):
    tokens, text = made(2, 300, 96, dtype=dtype), made(2, 21, 96, seed=1, dtype=dtype)
    text[:, 3] *= 20
    mask = torch.rand(2, 21, generator=torch.Generator().manual_seed(2)) < 0.7
    for chosen in (None, mask):
        actual = pyramid_ops.text_relevance(tokens, text, reduction=reduction, text_mask=chosen, precision=precision)
        assert actual.dtype == torch.float32
        for b in range(2):
            x = products(tokens[b], text[b] if chosen is None else text[b][chosen[b]], 96**-0.5)
            expected = x.amax(1) if reduction == "max" else x.mean(1)
            # Relative to the product of norms, which bounds the error of a cosine.
            bound = tokens[b].double().norm(dim=1) * text[b].double().norm(dim=1).amax() * 96**-0.5
            assert ((actual[b] - expected).abs() <= TOLERANCE[precision] * bound).all()


@pytest.mark.parametrize("precision", ["grid", "high"])
def test_softmax_relevance_is_the_rule_for_raters(precision):
    tokens, text = made(2, 300, 64) * 0.5, made(2, 21, 64, seed=1) * 0.5
    mask = torch.rand(2, 21, generator=torch.Generator().manual_seed(2)) < 0.7
    for chosen in (None, mask):
        for scale in (None, 0.2):
            x = products(tokens, text, scale or 1.0)
            if chosen is not None:
                x = x.masked_fill(~chosen[:, None], -torch.inf)
            actual = pyramid_ops.text_relevance(
                tokens, text, reduction="softmax", scale=scale, text_mask=chosen, precision=precision
            )
            expected = x.softmax(2).mean(1)
            torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE[precision])
            if chosen is not None:
                assert (actual[~chosen] == 0).all()


def test_relevance_of_tokens_and_text_that_do_not_count():
    tokens, text = made(3, 5, 8), made(3, 4, 8, seed=1)
    tokens[0, 1, 2], tokens[0, 2, 0], tokens[1, 3] = torch.nan, -torch.inf, 0.0
    text[0, 1, 3], text[0, 2, 3] = torch.inf, torch.nan
    mask = torch.tensor([[True] * 4, [True] * 4, [False] * 4])
    usable = text[0, [0, 3]]
    for reduction, nothing in (("max", -torch.inf), ("mean", 0.0)):
        actual = pyramid_ops.text_relevance(tokens, text, reduction=reduction, text_mask=mask)
        assert actual[0].isnan().tolist() == [False, True, True, False, False]
        kept = [0, 3, 4]
        alone = pyramid_ops.text_relevance(tokens[:1, kept], usable[None], reduction=reduction)
        assert_same_bits(actual[0, kept], alone[0])
        assert actual[1, 3].view(torch.int32) == 0
        assert (actual[2] == nothing).all()
        assert (pyramid_ops.text_relevance(tokens[1:], text[1:, :0], reduction=reduction) == nothing).all()
        assert pyramid_ops.text_relevance(tokens[:, :0], text, reduction=reduction).shape == (3, 0)
    actual = pyramid_ops.text_relevance(tokens, text, reduction="softmax", text_mask=mask)
    x = products(tokens[0, [0, 3, 4]], usable, 1.0).softmax(1).sum(0) / 5
    torch.testing.assert_close(actual[0, [0, 3]].double(), x, rtol=0, atol=1e-6)
    assert actual[0, 1] == actual[0, 2] == 0
    assert (actual[2] == 0).all()
    assert pyramid_ops.text_relevance(tokens[:, :0], text, reduction="softmax").tolist() == [[0.0] * 4] * 3


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_mean_relevance_keeps_its_bits_when_text_is_shuffled(reduction):
    tokens, text = made(1, 50, 24), made(1, 700, 24, seed=1)
    order = torch.randperm(700, generator=torch.Generator().manual_seed(2))
    expected = pyramid_ops.text_relevance(tokens, text, reduction=reduction)
    assert_same_bits(pyramid_ops.text_relevance(tokens, text[:, order], reduction=reduction), expected)


def test_relevance_rejects_bad_input():
    x, text = made(2, 5, 8), made(2, 4, 8)
    mask = torch.ones(2, 4, dtype=torch.bool)
    for error, message, args, options in (
        (TypeError, "tokens: expected a tensor, got None", (None, text), {}),
        (ValueError, r"tokens: expected shape \[B, N, D\], got float32 \[5, 8\]", (x[0], text), {}),
        (TypeError, "text: expected dtype float32, float16, bfloat16, got int64", (x, text.long()), {}),
        (ValueError, "tokens: expected 1 to 16384 features", (x[:, :, :0], text), {}),
        (ValueError, "text: expected the batch size, feature size and device of tokens", (x, text[:1]), {}),
        (ValueError, "text: expected the batch size, feature size and device of tokens", (x, text[..., 1:]), {}),
        (ValueError, "reduction: expected one of 'max', 'mean', 'softmax', got 'sum'", (x, text), {"reduction": "sum"}),
        (ValueError, "scale: expected a number above 0, got 0", (x, text), {"scale": 0}),
        (TypeError, "scale: expected a number, got 'a'", (x, text), {"scale": "a"}),
        (TypeError, "text_mask: expected dtype bool", (x, text), {"text_mask": mask.int()}),
        (ValueError, r"text_mask: expected \[2, 4\] on cpu, got bool \[2, 3\]", (x, text), {"text_mask": mask[:, 1:]}),
        (ValueError, "precision: expected one of 'grid', 'high', got 'low'", (x, text), {"precision": "low"}),
        (ValueError, "tokens: expected no gradient", (x.clone().requires_grad_(), text), {}),
    ):
        with pytest.raises(error, match=f"^text_relevance: {message}"):
            pyramid_ops.text_relevance(*args, **options)
