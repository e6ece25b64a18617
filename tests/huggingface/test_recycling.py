"""SparseVLM with what it recycles: means of clusters in the places of their centers, inside the language model."""

import pytest
import torch

import pyramid_ops.huggingface as hf
from pyramid_ops import methods, plans

from .models import FAMILIES, alone, generate, llava, llava_inputs, llava_next, llava_next_inputs, masked_oracle

LAYERS = {"layers": (1, 2, 4)}
each_family = pytest.mark.parametrize("family", FAMILIES)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 3])
@each_family
def test_keeping_all_changes_no_bit(family, samples):
    make, inputs_of = FAMILIES[family]
    model, inputs = make(), inputs_of(samples)
    plain = generate(model, inputs)
    with hf.apply(model, "sparsevlm", **LAYERS, keep=(1.0, 1.0, 1.0)):
        assert torch.equal(generate(model, inputs).logits, plain.logits)


@pytest.mark.parametrize(("attention", "samples"), [("sdpa", 1), ("eager", 3)])
@each_family
def test_equals_the_model_with_means_in_place(family, attention, samples):
    make, inputs_of = FAMILIES[family]
    model, inputs = make(attention), inputs_of(samples)
    text = [int((ids > 0).sum() - (ids == 100).sum()) for ids in inputs["input_ids"]]
    with hf.apply(model, "sparsevlm", **LAYERS, keep=(0.6, 0.3, 0.0)) as handle:
        got = generate(model, inputs)
        stages, left = handle.stats["stages"], handle.stats["visual"]
        close(generate(model, inputs, cache_implementation="static", disable_compile=True).logits, got.logits)
        for b in range(samples):
            one = generate(model, alone(inputs, b))
            close(one.logits, got.logits[b : b + 1])
            assert torch.equal(one.tokens, got.tokens[b : b + 1])
    close(got.logits, masked_oracle(model, inputs, got.tokens, stages))
    whole = left
    for stage, share in zip(stages, (0.6, 0.3, 0.0), strict=True):
        keep = [min(int(n * share), count) for n, count in zip(whole, left, strict=True)]
        gone = [count - kept for count, kept in zip(left, keep, strict=True)]
        left = [kept + (int(0.3 * n) + 1) // 10 + bool(n) for kept, n in zip(keep, gone, strict=True)]
        assert [count - words for count, words in zip(stage["tokens"], text, strict=True)] == left


def test_recycles_what_the_method_says():
    """By the probabilities of eager attention and what goes into the layer before which tokens go."""
    model, inputs, entered = llava_next("eager"), llava_next_inputs(), {}
    layers = model.base_model.language_model.layers
    hooks = [layers[k].register_forward_pre_hook(lambda _, args, k=k: entered.update({k: args[0]})) for k in (0, 2)]
    attention = model(**inputs, output_attentions=True).attentions[1][0]
    for hook in hooks:
        hook.remove()
    image = inputs["input_ids"][0] == 100
    after = ~image & (image.cumsum(0) > 0)
    relevance = (entered[0][0, image] @ entered[0][0, after].T).softmax(1).mean(0)
    raters = after.nonzero().flatten()[relevance > relevance.mean()]
    scores = attention[:, raters].mean((0, 1))
    places = image.nonzero().flatten()
    best = places[scores[places].topk(20).indices]
    deleted = image.clone()
    deleted[best] = False
    made = methods.sparsevlm_recycle(entered[2], scores[None], deleted[None], number=68)
    with hf.apply(model, "sparsevlm", layers=[2], keep=[20]) as handle:
        model(**inputs)
    (stage,) = handle.stats["stages"]
    assert made.counts.tolist() == [3]
    left = torch.cat([(~image).nonzero().flatten(), best, made.indices[0]]).sort().values
    assert torch.equal(stage["index"][0], left)
    owner = torch.where(made.rows[0] >= 0, made.indices[0][made.rows[0].clamp(min=0)], -1)
    owner[~deleted] = (~deleted).nonzero().flatten()
    assert torch.equal(stage["owner"][0], owner)


def test_images_of_different_sizes_without_padding():
    """Samples of one length of which different numbers of tokens are deleted, and none of one."""
    model = llava()
    rows = [[1, 2] + [100] * 32 + [3, 4, 5], [1, 2] + [100] * 16 + list(range(3, 22))]
    ids = torch.tensor(rows)
    pixels = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    with hf.apply(model, "sparsevlm", layers=[2], keep=[16]) as handle:
        got = generate(model, inputs)
    assert handle.stats["stages"][0]["tokens"] == [5 + 16 + 1, 21 + 16]
    close(got.logits, masked_oracle(model, inputs, got.tokens, handle.stats["stages"]))


def test_a_rule_of_ones_own_may_merge():
    def joined(scene):
        scores = scene.hidden.norm(dim=2)
        options = {"candidates": scene.image, "forced": scene.text, "capacity": scene.capacity}
        return plans.join(scene.hidden, plans.keep(scores, scene.keep, **options))

    model, inputs = llava(), llava_inputs(3)
    with hf.apply(model, joined, layer=2, keep=5) as handle:
        got = generate(model, inputs)
    close(got.logits, masked_oracle(model, inputs, got.tokens, handle.stats["stages"]))


def test_beams_equal_those_of_each_sample_alone():
    model, inputs = llava(), llava_inputs(3)
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    with hf.apply(model, "sparsevlm", **LAYERS, keep=(0.6, 0.3, 0.0)):
        together = model.generate(**inputs, **options)[:, -6:]
        for b in range(3):
            assert torch.equal(model.generate(**alone(inputs, b), **options)[0, -6:], together[b])
