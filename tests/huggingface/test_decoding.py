"""Image tokens that go while tokens are generated."""

import threading

import pytest
import torch
import transformers

import pyramid_ops.huggingface as hf
from pyramid_ops import methods

from .models import CACHE, FAMILIES, alone, generate, llava, llava_inputs, masked_oracle, words

OPTIONS = {"rate": 2.5, "every": 2, "layer": 1}
each_family = pytest.mark.parametrize("family", FAMILIES)
each_batch = pytest.mark.parametrize("samples", [1, 3])


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@each_batch
@each_family
def test_keeping_all_changes_no_bit(family, samples):
    make, inputs_of = FAMILIES[family]
    model, inputs = make(), inputs_of(samples)
    plain = generate(model, inputs)
    with hf.apply(model, "vscan_decode", rate=0.0, every=1):
        got = generate(model, inputs)
    assert torch.equal(got.logits, plain.logits)
    assert torch.equal(got.tokens, plain.tokens)


@pytest.mark.parametrize(("attention", "samples"), [("sdpa", 1), ("eager", 3)])
@each_family
def test_equals_the_model_with_columns_masked_for_later_rows(family, attention, samples):
    make, inputs_of = FAMILIES[family]
    model, inputs = make(attention), inputs_of(samples)
    plain = generate(model, inputs)
    with hf.apply(model, "vscan_decode", **OPTIONS) as handle:
        got = generate(model, inputs)
        stages, visual = handle.stats["stages"], handle.stats["visual"]
        for b in range(samples):
            one = generate(model, alone(inputs, b))
            close(one.logits, got.logits[b : b + 1])
            assert torch.equal(one.tokens, got.tokens[b : b + 1])
    close(got.logits, masked_oracle(model, inputs, got.tokens, stages))
    assert torch.equal(got.logits[:, :3], plain.logits[:, :3])
    assert (got.logits - plain.logits).abs().max() > 0.02
    assert [stage["generated"] for stage in stages] == [2, 4, 6]
    text = (inputs["attention_mask"].sum(1) - (inputs["input_ids"] == 100).sum(1)).tolist()
    for stage in stages:
        left = [methods.retained.vscan_decode(n, stage["generated"], 2.5) for n in visual]
        assert stage["tokens"] == [count + kept for count, kept in zip(text, left, strict=True)]
    assert {layer.keys.shape[2] - 7 for layer in got.cache.layers} == {max(stages[-1]["tokens"])}
    assert got.cache.get_seq_length() == inputs["input_ids"].shape[1] + 7


def test_keeps_what_generated_tokens_attend_to():
    """By the probabilities of eager attention."""
    model, inputs = llava("eager"), llava_inputs()
    with hf.apply(model, "vscan_decode", **OPTIONS) as handle:
        got = generate(model, inputs, tokens=4)
    ids = torch.cat([inputs["input_ids"], got.tokens[:, :2]], 1)
    attention = model(input_ids=ids, pixel_values=inputs["pixel_values"], output_attentions=True).attentions[1][0]
    places = (ids[0] == 100).nonzero().flatten()
    best = places[attention[:, -2:, places].mean(0).sum(0).topk(12).indices].sort().values
    kept = handle.stats["stages"][0]["index"][0]
    assert torch.equal(kept[torch.isin(kept, places)], best)


def test_by_hand_and_interleaved_and_in_threads():
    """Without `generate`, without a mask, with caches that the model makes."""
    model, prompts, got = llava(), [llava_inputs(), llava_inputs(seed=9)], {}
    with hf.apply(model, "vscan_decode", **OPTIONS):
        expected = [generate(model, inputs) for inputs in prompts]
        outs = [model(input_ids=x["input_ids"], pixel_values=x["pixel_values"]) for x in prompts]
        for step in range(1, 8):
            for k, reference in enumerate(expected):
                outs[k] = model(input_ids=reference.tokens[:, step - 1 : step], **{CACHE: getattr(outs[k], CACHE)})
                close(outs[k].logits[:, -1], reference.logits[:, step])

        def work(k):
            with torch.no_grad():
                got[k] = generate(model, prompts[k])

        threads = [threading.Thread(target=work, args=[k]) for k in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        close(model(**prompts[0], use_cache=False).logits[:, -1], expected[0].logits[:, 0])
    for k, reference in enumerate(expected):
        close(got[k].logits, reference.logits)


def test_removal_and_a_cache_that_is_used_again():
    model, inputs = llava(), llava_inputs()
    plain = generate(model, inputs)
    handle = hf.apply(model, "vscan_decode", **OPTIONS)
    cache = transformers.DynamicCache(config=model.config.get_text_config())
    held = generate(model, inputs, **{CACHE: cache})
    cache.reset()
    close(generate(model, inputs, **{CACHE: cache}).logits, held.logits)
    handle.remove()
    assert torch.equal(generate(model, inputs).logits, plain.logits)
    with pytest.raises(RuntimeError, match="vscan_decode: expected a new or reset cache after remove"):
        model(input_ids=held.tokens[:, -1:], **{CACHE: cache})
    cache.reset()
    text = {name: inputs[name][:, -7:] for name in ("input_ids", "attention_mask")}
    model(**text, **{CACHE: cache})
    assert not {"reorder_cache", "update"} & {*vars(cache)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "vscan_decode: num_beams: expected 1, since beams of a sample would keep different tokens"),
        ({"prompt_lookup_num_tokens": 3}, "vscan_decode: input_ids: expected one token after the other behind the pr"),
        ({"cache_implementation": "static"}, "vscan_decode: cache: expected a DynamicCache, .* got StaticCache"),
    ],
)
def test_what_cannot_work_is_said(options, message):
    model, inputs = llava(), llava_inputs()
    with hf.apply(model, "vscan_decode", **OPTIONS):
        with pytest.raises(ValueError, match=message):
            model.generate(**inputs, max_new_tokens=12, do_sample=False, disable_compile=True, **options)


def test_another_turn_and_compiled_decoding_are_refused():
    model, inputs = llava(), llava_inputs()
    with hf.apply(model, "vscan_decode", **OPTIONS):
        out = model(**inputs)
        with pytest.raises(
            ValueError, match="vscan_decode: input_ids: expected one token after the other .* got 5 at o"
        ):
            model(input_ids=torch.tensor([words(5, 1)]), **{CACHE: getattr(out, CACHE)})
        step = torch.compile(model, fullgraph=True, backend="eager")
        with pytest.raises(Exception, match="decoding outside torch.compile, since rows of the cache go"):
            step(input_ids=torch.tensor([[5]]), **{CACHE: getattr(out, CACHE)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": -1}, "vscan_decode: rate: expected at least 0, got -1"),
        ({"every": 0}, "vscan_decode: every: expected at least 1, got 0"),
        ({"layer": 5}, "vscan_decode: layer: expected less than 5, the layers of the model, got 5"),
    ],
)
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        hf.apply(llava(), "vscan_decode", **options)
