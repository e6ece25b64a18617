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


def reduced(x: Tensor, reduction: str, threshold: float) -> Tensor:
    if reduction == "count":
        return (x > threshold).sum(1).double()
    if reduction == "softmax":
        return x.softmax(1).mean(0) if x.shape[1] else x.new_zeros(0)
    return {"max": lambda: x.amax(1), "mean": lambda: x.mean(1), "var": lambda: x.var(1)}[reduction]()


@pytest.mark.parametrize("metric", ["dot", "cosine"])
@pytest.mark.parametrize("precision", ["grid", "high"])
@pytest.mark.parametrize("reduction", ["max", "mean", "var", "count", "softmax"])
def test_masks_and_segments_are_samples_of_their_own(reduction, precision, metric):
    """Per sample against float64: what does not count might as well not be there."""
    if (reduction, metric) == ("softmax", "cosine"):
        return
    counts, lengths = (70, 1, 0, 130), (9, 40, 3, 21)
    bounds = [torch.tensor([0, *sizes]).cumsum(0) for sizes in (counts, lengths)]
    tokens, text = made(sum(counts), 48), made(sum(lengths), 48, seed=1)
    text[3] *= 20
    token_mask, text_mask = made(len(tokens), 1, seed=2)[:, 0] < 0.6, made(len(text), 1, seed=3)[:, 0] < 0.6
    options = {"reduction": reduction, "precision": precision, "metric": metric, "scale": 0.3}
    if reduction == "count":
        options["threshold"] = 0.02
    offsets = {"cu_seqlens_tokens": bounds[0], "cu_seqlens_text": bounds[1]}
    masks = {"token_mask": token_mask, "text_mask": text_mask}
    plain, masked = (pyramid_ops.text_relevance(tokens, text, **options, **offsets, **m) for m in ({}, masks))
    for s in range(4):
        i, j = (slice(int(b[s]), int(b[s + 1])) for b in bounds)
        of = j if reduction == "softmax" else i
        alone = pyramid_ops.text_relevance(tokens[None, i], text[None, j], **options)[0]
        assert_same_bits(plain[of], alone)
        dense = {"token_mask": token_mask[None, i], "text_mask": text_mask[None, j]}
        assert_same_bits(masked[of], pyramid_ops.text_relevance(tokens[None, i], text[None, j], **options, **dense)[0])
        kept, words = tokens[i][token_mask[i]], text[j][text_mask[j]]
        counted = text_mask[j] if reduction == "softmax" else token_mask[i]
        assert_same_bits(masked[of][counted], pyramid_ops.text_relevance(kept[None], words[None], **options)[0])
        assert (masked[of][~counted] == (-torch.inf if reduction == "max" else 0)).all()
        if not len(kept):
            continue
        x, y = kept.double(), words.double()
        if metric == "cosine":
            x, y = (z / z.norm(dim=1, keepdim=True) for z in (x, y))
        expected = reduced(x @ y.mT * 0.3, reduction, 0.02)
        bound = TOLERANCE[precision] * (1 if reduction == "softmax" else 0.3 * x.norm(dim=1) * y.norm(dim=1).amax())
        if reduction == "var":  # of deviations within twice the product of norms
            bound = 0.3 * x.norm(dim=1) * y.norm(dim=1).amax() * 4 * bound
        if reduction == "count":  # but for products beside the threshold
            bound = ((x @ y.mT * 0.3 - 0.02).abs() <= bound[:, None]).sum(1)
        assert ((masked[of][counted] - expected).abs() <= bound).all()


@pytest.mark.parametrize("precision", ["grid", "high"])
def test_variance_of_text_that_does_not_vary(precision):
    """Exactly 0 for equal text, and small deviations are resolved beside a large mean."""
    tokens, row = made(1, 30, 32), made(1, 1, 32, seed=1)
    options = {"reduction": "var", "precision": precision, "scale": 1.0}
    assert (pyramid_ops.text_relevance(tokens, row.repeat(1, 50, 1), **options) == 0).all()
    assert pyramid_ops.text_relevance(tokens, row, **options).isnan().all()
    assert pyramid_ops.text_relevance(tokens, row[:, :0], **options).isnan().all()
    if precision == "high":
        text = row + 1e-3 * made(1, 500, 32, seed=2)
        actual = pyramid_ops.text_relevance(tokens, text, **options).double()
        torch.testing.assert_close(actual, products(tokens, text, 1.0).var(2), rtol=2e-2, atol=0)


def test_variance_of_few_similarities_that_float32_holds():
    """Units of 2⁻²⁹, norms that are powers of two: exact."""
    text = torch.tensor([[[4.0], [-4.0], [4.0], [4.0]]])
    actual = pyramid_ops.text_relevance(torch.tensor([[[2.0], [-0.5]]]), text, reduction="var", scale=1.0)
    assert actual.tolist() == [[64.0, 4.0]]


def test_relevance_rejects_bad_input():
    x, text = made(2, 5, 8), made(2, 4, 8)
    mask, longer = torch.ones(2, 4, dtype=torch.bool), torch.tensor([0, 1, 4])
    offsets = {"cu_seqlens_tokens": torch.tensor([0, 5]), "cu_seqlens_text": torch.tensor([0, 4])}
    for error, message, args, options in (
        (TypeError, "tokens: expected a tensor, got None", (None, text), {}),
        (ValueError, r"tokens: expected shape \[B, N, D\] or \[T, D\], got float32 \[8\]", (x[0, 0], text), {}),
        (ValueError, "text: expected the batch size, feature size and device of tokens", (x[0], text), {}),
        (TypeError, "text: expected dtype float32, float16, bfloat16, got int64", (x, text.long()), {}),
        (ValueError, "tokens: expected 1 to 16384 features", (x[:, :, :0], text), {}),
        (ValueError, "text: expected the batch size, feature size and device of tokens", (x, text[:1]), {}),
        (ValueError, "text: expected the batch size, feature size and device of tokens", (x, text[..., 1:]), {}),
        (
            ValueError,
            "reduction: expected one of 'max', 'mean', 'var', 'count', 'softmax'",
            (x, text),
            {"reduction": "sum"},
        ),
        (ValueError, "metric: expected one of 'dot', 'cosine', got 'l2'", (x, text), {"metric": "l2"}),
        (
            ValueError,
            "metric: expected 'dot' for the reduction 'softmax', got 'cosine'",
            (x, text),
            {"metric": "cosine", "reduction": "softmax"},
        ),
        (ValueError, "threshold: expected a number, got None", (x, text), {"reduction": "count"}),
        (ValueError, "threshold: expected only with the reduction 'count', got 1", (x, text), {"threshold": 1}),
        (ValueError, "threshold: expected a finite number", (x, text), {"reduction": "count", "threshold": 1e39}),
        (ValueError, r"token_mask: expected \[2, 5\] on cpu", (x, text), {"token_mask": mask}),
        (TypeError, "token_mask: expected dtype bool", (x, text), {"token_mask": x[..., 0]}),
        (ValueError, r"text_mask: expected shape \[T\]", (x[0], text[0]), {"text_mask": mask, **offsets}),
        (ValueError, "cu_seqlens_tokens, cu_seqlens_text: expected offsets of both", (x[0], text[0]), {}),
        (ValueError, "cu_seqlens_tokens, cu_seqlens_text: expected offsets only with packed", (x, text), offsets),
        (ValueError, r"cu_seqlens_text: expected shape \[2\]", (x[0], text[0]), {**offsets, "cu_seqlens_text": longer}),
        (
            ValueError,
            "max_seqlen_text: expected only with cu_seqlens_tokens and",
            (x, text),
            {"max_seqlen_text": 3},
        ),
        (ValueError, "max_seqlen_tokens: expected at least 0", (x[0], text[0]), {**offsets, "max_seqlen_tokens": -1}),
        (ValueError, "scale: expected a number above 0, got 0", (x, text), {"scale": 0}),
        (TypeError, "scale: expected a number, got 'a'", (x, text), {"scale": "a"}),
        (TypeError, "text_mask: expected dtype bool", (x, text), {"text_mask": mask.int()}),
        (ValueError, r"text_mask: expected \[2, 4\] on cpu, got bool \[2, 3\]", (x, text), {"text_mask": mask[:, 1:]}),
        (ValueError, "precision: expected one of 'grid', 'high', got 'low'", (x, text), {"precision": "low"}),
        (ValueError, "tokens: expected no gradient", (x.clone().requires_grad_(), text), {}),
    ):
        with pytest.raises(error, match=f"^text_relevance: {message}"):
            pyramid_ops.text_relevance(*args, **options)
