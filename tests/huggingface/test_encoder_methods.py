"""Methods before the language model, on models of transformers."""

import threading

import pytest
import torch
import transformers

import pyramid_ops.huggingface as hf
from pyramid_ops import greedy_select, plans

from .models import (
    CACHE,
    FAMILIES,
    IMAGE,
    alone,
    generate,
    llava,
    llava_inputs,
    llava_siglip,
    masked_oracle,
    noise,
    padded,
    qwen2_5_vl,
    qwen3_vl,
    words,
)

CASES = [(family, "divprune") for family in FAMILIES] + [("llava", "fastervlm")]
each_case = pytest.mark.parametrize(("family", "method"), CASES)
each_batch = pytest.mark.parametrize("samples", [1, 3])


def close(got, expected, bound=1e-5):
    torch.testing.assert_close(got, expected, rtol=0, atol=bound)


@each_batch
@each_case
def test_keeping_all_changes_no_bit(family, method, samples):
    make, inputs_of = FAMILIES[family]
    model, inputs = make(), inputs_of(samples)
    plain = generate(model, inputs)
    with hf.apply(model, method, keep=1.0):
        got = generate(model, inputs)
    assert torch.equal(got.logits, plain.logits)
    assert torch.equal(got.tokens, plain.tokens)


@each_case
@pytest.mark.parametrize(("attention", "samples"), [("sdpa", 1), ("sdpa", 3), ("eager", 3)])
def test_equals_the_model_with_dropped_columns_masked(family, method, samples, attention):
    make, inputs_of = FAMILIES[family]
    model, inputs = make(attention), inputs_of(samples)
    plain = generate(model, inputs)
    with hf.apply(model, method, keep=0.3) as handle:
        got = generate(model, inputs)
    (stage,) = handle.stats["stages"]
    expected = masked_oracle(model, inputs, got.tokens, [stage])
    close(got.logits, expected)
    assert torch.equal(expected.argmax(-1), got.tokens)
    assert (got.logits - plain.logits).abs().max() > 0.02
    assert {layer.keys.shape[2] - 7 for layer in got.cache.layers} == {max(stage["tokens"])}
    assert got.cache.get_seq_length() == inputs["input_ids"].shape[1] + 7


@each_case
def test_a_sample_keeps_what_it_would_keep_alone(family, method):
    make, inputs_of = FAMILIES[family]
    model, inputs = make(), inputs_of(3)
    with hf.apply(model, method, keep=0.3) as handle:
        got = generate(model, inputs)
        (together,) = handle.stats["stages"]
        for b in range(3):
            one = generate(model, alone(inputs, b))
            close(one.logits, got.logits[b : b + 1])
            assert torch.equal(one.tokens, got.tokens[b : b + 1])
            assert together["tokens"][b] == handle.stats["stages"][0]["tokens"][0]


@each_batch
@each_case
def test_static_cache_equals_dynamic(family, method, samples):
    make, inputs_of = FAMILIES[family]
    model, inputs = make(), inputs_of(samples)
    with hf.apply(model, method, keep=0.3):
        dynamic = generate(model, inputs)
        static = generate(model, inputs, cache_implementation="static", disable_compile=True)
    close(static.logits, dynamic.logits)
    assert torch.equal(static.tokens, dynamic.tokens)


@pytest.mark.parametrize("method", ["divprune", "fastervlm"])
def test_generation_of_other_kinds(method):
    """Beams, prompt lookup, another turn, a cache that is reset, no cache, tokens one by one."""
    model, inputs, batch = llava(), llava_inputs(), llava_inputs(3)
    beams = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    with hf.apply(model, method, keep=0.3) as handle:
        together = model.generate(**batch, **beams)[:, -6:]
        for b in range(3):
            assert torch.equal(model.generate(**alone(batch, b), **beams)[0, -6:], together[b])
        plain = generate(model, inputs, tokens=12)
        stages = handle.stats["stages"]
        assert torch.equal(generate(model, inputs, tokens=12, prompt_lookup_num_tokens=3).tokens, plain.tokens)
        close(model(**inputs, use_cache=False).logits[:, -1], plain.logits[:, 0])
        without = {"input_ids": inputs["input_ids"], "pixel_values": inputs["pixel_values"]}
        close(model(**without, use_cache=False).logits[:, -1], plain.logits[:, 0])
        out = model(**without)
        for step in range(1, 4):
            out = model(input_ids=plain.tokens[:, step - 1 : step], **{CACHE: getattr(out, CACHE)})
            close(out.logits[:, -1], plain.logits[:, step])
        first = generate(model, inputs, tokens=4)
        ids = torch.cat([inputs["input_ids"], first.tokens, torch.tensor([words(5, 7)])], 1)
        more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        second = generate(model, more, tokens=4, **{CACHE: first.cache})
        cache = transformers.StaticCache(config=model.config.get_text_config(), max_cache_len=64)
        for prompt in (inputs, llava_inputs(seed=5)):
            expected = generate(model, prompt)
            close(generate(model, prompt, disable_compile=True, **{CACHE: cache}).logits, expected.logits)
            cache.reset()
    later = torch.cat([ids[:, inputs["input_ids"].shape[1] :], second.tokens], 1)
    close(second.logits, masked_oracle(model, inputs, later, stages)[:, -4:])
    assert "get_image_features" not in model.base_model.__dict__
    with pytest.raises(RuntimeError, match=f"{method}: expected a new or reset cache after remove"):
        model(input_ids=second.tokens[:, -1:], **{CACHE: second.cache})


@each_batch
@pytest.mark.parametrize(("make", "left"), [(llava, 11), (llava_siglip, 6)])
def test_tome_in_the_tower(make, left, samples):
    """What is merged stands where its owner stood: as the same features given to the model, with the rest masked."""
    model, inputs = make(), llava_inputs(samples)
    plain = generate(model, inputs)
    with hf.apply(model, "tome", r=0):
        assert torch.equal(generate(model, inputs).logits, plain.logits)
    with hf.apply(model, "tome", r=5) as handle:
        got = generate(model, inputs)
        (stage,) = handle.stats["stages"]
        encoded = model.base_model.get_image_features(inputs["pixel_values"], return_dict=True)
        close(torch.cat([generate(model, alone(inputs, b)).logits for b in range(samples)]), got.logits)
    assert [int((~x[:, 0].isnan()).sum()) for x in encoded.pooler_output] == [left] * samples
    encoded.pooler_output = [x.nan_to_num(0.0) for x in encoded.pooler_output]
    given = {name: x for name, x in inputs.items() if name != "pixel_values"}
    given["mm_encoder_outputs"] = {"image": encoded}
    close(got.logits, masked_oracle(model, given, got.tokens, [stage]))
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("method", "options"),
    [("fastervlm", {}), ("visionzip", {"dominant": 3, "contextual": 2}), ("tome", {"r": 5}), ("pyramid", {"keep": 9})],
)
def test_threads_do_not_meet(method, options):
    model, prompts, got = llava(), [llava_inputs(), llava_inputs(seed=9)], {}
    with hf.apply(model, method, **options):
        expected = [generate(model, inputs) for inputs in prompts]

        def work(k):
            with torch.no_grad():
                for _ in range(3):
                    got[k] = generate(model, prompts[k])

        threads = [threading.Thread(target=work, args=[k]) for k in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for k, reference in enumerate(expected):
        close(got[k].logits, reference.logits)


@each_batch
@pytest.mark.parametrize(("method", "options"), [("prumerge_select", {"factor": 0.5}), ("vispruner", {"keep": 6})])
def test_other_selections_by_the_class_token(method, options, samples):
    model, inputs = llava(), llava_inputs(samples)
    with hf.apply(model, method, **options) as handle:
        got = generate(model, inputs)
        (stage,) = handle.stats["stages"]
        close(torch.cat([generate(model, alone(inputs, b)).logits for b in range(samples)]), got.logits)
    close(got.logits, masked_oracle(model, inputs, got.tokens, [stage]))
    kept = [tokens - text for tokens, text in zip(stage["tokens"], (12, 16, 8), strict=False)]
    assert kept == [6] * samples if method == "vispruner" else all(0 < count < 16 for count in kept)


def test_fastervlm_keeps_what_the_class_token_attends_to():
    model, inputs = llava("eager"), llava_inputs()
    tower = model.base_model.vision_tower
    attention = tower(inputs["pixel_values"], output_attentions=True).attentions[-2]
    best = attention[0, :, 0, 1:].mean(0).topk(4).indices.sort().values
    with hf.apply(model, "fastervlm") as handle:
        model(**inputs)
    kept = handle.stats["stages"][0]["index"][0]
    places = (inputs["input_ids"][0] == IMAGE).nonzero().flatten()
    assert torch.equal(kept[torch.isin(kept, places)], places[best])


def test_divprune_keeps_what_differs():
    """The authors' loop, in float64."""
    model, inputs = llava(), llava_inputs()
    x = model.base_model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output[0].double()
    unit = x / x.norm(dim=1, keepdim=True)
    distance = 1 - unit @ unit.T
    nearest = (distance + 9 * torch.eye(len(x))).amin(1)
    picks = [int(nearest.argmax())]
    while len(picks) < 5:
        nearest = distance[:, picks].amin(1)
        nearest[picks] = -1
        picks.append(int(nearest.argmax()))
    with hf.apply(model, "divprune", keep=5) as handle:
        model(**inputs)
    kept = handle.stats["stages"][0]["index"][0]
    places = (inputs["input_ids"][0] == IMAGE).nonzero().flatten()
    assert torch.equal(kept[torch.isin(kept, places)], places[sorted(picks)])


@pytest.mark.parametrize("family", FAMILIES)
def test_cdpruner_by_a_relevance_of_ones_own(family):
    make, inputs_of = FAMILIES[family]
    model, inputs = make(), inputs_of(3)
    seen = []

    def relevance(features):
        seen.append(features)
        return [x.norm(dim=1) for x in features]

    with hf.apply(model, "cdpruner", relevance=relevance, keep=0.3) as handle:
        got = generate(model, inputs)
        (stage,) = handle.stats["stages"]
    close(got.logits, masked_oracle(model, inputs, got.tokens, [stage]))
    for b, x in enumerate(seen[0]):
        plan = greedy_select(x[None], int(len(x) * 0.3), rule="dpp", relevance=x.norm(dim=1)[None])
        places = (inputs["input_ids"][b] == IMAGE).nonzero().flatten()
        assert torch.equal(torch.isin(places, stage["index"][b]), plans.mask(plan)[0])
    with hf.apply(model, "cdpruner", relevance=lambda features: features[:0], keep=0.3):
        with pytest.raises(ValueError, match="cdpruner: relevance: expected scores of .* tokens, got .."):
            generate(model, inputs)
    with hf.apply(model, "cdpruner", relevance=lambda features: None):
        with pytest.raises(TypeError, match="cdpruner: relevance: expected a list of tensors .n., got None"):
            model(**inputs)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("method", "options"),
    [("divprune", {"keep": 1.0}), ("fastervlm", {"keep": 0.5}), ("pyramid", {"keep": 9}), ("tome", {"r": 3})],
)
def test_features_that_are_not_finite_are_refused(method, options, value):
    model, inputs = llava(), llava_inputs(2)
    bias = model.base_model.multi_modal_projector.linear_2.bias
    before = bias.clone()
    bias[5] = value
    try:
        with hf.apply(model, method, **options), pytest.raises(ValueError, match="apply: features: expected finite"):
            model(**inputs)
    finally:
        bias.copy_(before)


@pytest.mark.parametrize("make", [qwen2_5_vl, qwen3_vl])
def test_evs_keeps_the_first_frame_and_what_changes(make):
    """Two videos of 3 and 2 frames; in the second nothing changes but one patch."""
    model, grids = make(), torch.tensor([[3, 4, 4], [2, 4, 4]])
    first, still = noise(0, 48, 1176), noise(1, 16, 1176).repeat(2, 1)
    still[16:20] = noise(2, 4, 1176)
    frame = [102, 101, 101, 101, 101, 103]
    videos = [frame * 3, frame * 2]
    if make is qwen2_5_vl:  # a video's frames are one span there
        videos = [[102] + [101] * 12 + [103], [102] + [101] * 8 + [103]]
    rows = [words(3, b) + video + words(4, 9) for b, video in enumerate(videos)]
    inputs = padded(rows)
    inputs |= {
        "pixel_values_videos": torch.cat([first, still]),
        "video_grid_thw": grids,
        "mm_token_type_ids": 2 * (inputs["input_ids"] == 101).int(),
    }
    plain = generate(model, inputs)
    with hf.apply(model, "evs", rate=0.0):
        assert torch.equal(generate(model, inputs).logits, plain.logits)
    with hf.apply(model, "evs", rate=0.5) as handle:
        got = generate(model, inputs)
    (stage,) = handle.stats["stages"]
    close(got.logits, masked_oracle(model, inputs, got.tokens, [stage]))
    for b, keep in enumerate((6, 4)):
        places = (inputs["input_ids"][b] == 101).nonzero().flatten()
        kept = stage["index"][b]
        chosen = torch.isin(places, kept)
        assert int(chosen.sum()) == keep
        assert bool(chosen[:4].all())
