"""Methods inside the language model, on models of transformers: against the same model with columns masked."""

import sys
import threading

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

import pyramid_ops.huggingface as hf
from pyramid_ops import methods, plans
from pyramid_ops.huggingface.lengths import KEY
from pyramid_ops.huggingface.rules import RULES

from .models import CACHE, FAMILIES, alone, generate, llava, llava_inputs, masked_oracle, words

METHODS = {
    "fastv": {"layer": 2, "keep": 0.25},
    "pyramiddrop": {"layers": (1, 2, 4), "keep": (0.5, 0.25, 0.1)},
    "sparsevlm": {"layers": (1, 2, 4), "keep": (0.6, 0.3, 0.0), "recycle": False},
    "fitprune": {"layers": (1, 3), "keep": (0.5, 3)},
    "prunevid_llm": {"layer": 3},
}
ALL = {
    "fastv": {"layer": 2, "keep": 1.0},
    "pyramiddrop": {"layers": (1, 2, 4), "keep": (1.0, 1.0, 1.0)},
    "sparsevlm": {"layers": (1, 2, 4), "keep": (1.0, 1.0, 1.0)},
    "fitprune": {"layers": (1, 3), "keep": (1.0, 1.0)},
    "prunevid_llm": {"layer": 2, "keep": 1.0},
}
each_method = pytest.mark.parametrize("method", METHODS)
each_family = pytest.mark.parametrize("family", FAMILIES)
each_batch = pytest.mark.parametrize("samples", [1, 3])


def close(got, expected, bound=1e-5):
    torch.testing.assert_close(got, expected, rtol=0, atol=bound)


def hooks_of(model):
    modules = model.named_modules()
    return [(name, len(m._forward_hooks), len(m._forward_pre_hooks), sorted(m.__dict__)) for name, m in modules]


@each_batch
@each_family
@pytest.mark.parametrize("method", ALL)
def test_keeping_all_changes_no_bit(method, family, samples):
    make, inputs_of = FAMILIES[family]
    model, inputs = make(), inputs_of(samples)
    plain = generate(model, inputs)
    with hf.apply(model, method, **ALL[method]):
        got = generate(model, inputs)
    assert torch.equal(got.logits, plain.logits)
    assert torch.equal(got.tokens, plain.tokens)


@each_method
@each_family
@pytest.mark.parametrize(("attention", "samples"), [("sdpa", 1), ("sdpa", 3), ("eager", 3)])
def test_equals_the_model_with_dropped_columns_masked(family, method, samples, attention):
    make, inputs_of = FAMILIES[family]
    model, inputs = make(attention), inputs_of(samples)
    plain = generate(model, inputs)
    with hf.apply(model, method, **METHODS[method]) as handle:
        got = generate(model, inputs)
    expected = masked_oracle(model, inputs, got.tokens, handle.stats["stages"])
    close(got.logits, expected)
    assert torch.equal(expected.argmax(-1), got.tokens)
    assert (got.logits - plain.logits).abs().max() > 0.02
    lengths = [layer.keys.shape[2] - 7 for layer in got.cache.layers]
    rows = inputs["input_ids"].shape[1]
    stages = {stage["layer"]: max(stage["tokens"]) for stage in handle.stats["stages"]}
    expected = [min([n for layer, n in stages.items() if layer <= k], default=rows) for k in range(len(lengths))]
    assert lengths == expected


@each_method
@each_family
def test_a_sample_keeps_what_it_would_keep_alone(family, method):
    make, inputs_of = FAMILIES[family]
    model, inputs = make(), inputs_of(3)
    with hf.apply(model, method, **METHODS[method]) as handle:
        got = generate(model, inputs)
        together = handle.stats["stages"]
        for b in range(3):
            one = generate(model, alone(inputs, b))
            close(one.logits, got.logits[b : b + 1])
            assert torch.equal(one.tokens, got.tokens[b : b + 1])
            padding = int((inputs["attention_mask"][b] == 0).sum())
            for stage, single in zip(together, handle.stats["stages"], strict=True):
                index = stage["index"][b]
                assert torch.equal(index[index >= 0] - padding, single["index"][0])
                assert stage["tokens"][b] == single["tokens"][0]


def plain_scores(method, attention, embeds, image):
    """What image tokens score by the whole matrix ``[H, N, N]`` of a layer."""
    after = ~image & (image.cumsum(0) > 0)
    if method in ("fastv", "pyramiddrop"):
        return attention[:, -1].mean(0)
    if method == "sparsevlm":
        relevance = (embeds[image] @ embeds[after].T).softmax(1).mean(0)
        raters = after.nonzero().flatten()[relevance > relevance.mean()]
        return attention[:, raters].mean((0, 1))
    largest = attention.amax(0)
    return largest[image].sum(0) * largest[~image].sum(0) if method == "fitprune" else largest[~image].amax(0)


@pytest.mark.parametrize(
    ("method", "options", "layer"),
    [
        ("fastv", {"layer": 2, "keep": 5}, 1),
        ("pyramiddrop", {"layers": [2], "keep": [5]}, 2),
        ("sparsevlm", {"layers": [2], "keep": [5], "recycle": False}, 1),
        ("fitprune", {"layers": [2], "keep": [5]}, 1),
        ("prunevid_llm", {"layer": 2, "keep": 5}, 1),
    ],
)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_keeps_what_the_method_says(family, method, options, layer):
    """By the probabilities of eager attention."""
    make, inputs_of = FAMILIES[family]
    model, inputs = make("eager"), inputs_of()
    entered = []
    hook = model.base_model.language_model.layers[0].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    attention = model(**inputs, output_attentions=True).attentions[layer][0]
    hook.remove()
    image = inputs["input_ids"][0] == 100
    scores = plain_scores(method, attention, entered[0][0], image)
    places = image.nonzero().flatten()
    best = places[scores[places].topk(5).indices].sort().values
    with hf.apply(model, method, **options) as handle:
        model(**inputs)
    (stage,) = handle.stats["stages"]
    kept = stage["index"][0]
    assert torch.equal(kept[torch.isin(kept, places)], best)
    assert handle.stats["rows"] == len(image)
    assert handle.stats["visual"] == [len(places)]
    assert stage["tokens"] == [len(image) - len(places) + 5]


@each_batch
@each_method
@each_family
def test_static_cache_equals_dynamic(family, method, samples):
    make, inputs_of = FAMILIES[family]
    model, inputs = make(), inputs_of(samples)
    with hf.apply(model, method, **METHODS[method]):
        dynamic = generate(model, inputs)
        static = generate(model, inputs, cache_implementation="static", disable_compile=True)
    close(static.logits, dynamic.logits)
    assert torch.equal(static.tokens, dynamic.tokens)


@each_method
def test_a_reset_cache_holds_another_prompt(method):
    model, inputs, other = llava(), llava_inputs(), llava_inputs(seed=5)
    text = {name: other[name][:, -7:] for name in ("input_ids", "attention_mask")}
    plain = generate(model, text)
    with hf.apply(model, method, **METHODS[method]):
        cache = transformers.StaticCache(config=model.config.get_text_config(), max_cache_len=64)
        options = {CACHE: cache, "disable_compile": True}
        expected = generate(model, other)
        for prompt, reference in ((inputs, generate(model, inputs)), (other, expected), (text, plain)):
            close(generate(model, prompt, **options).logits, reference.logits)
            cache.reset()


@each_method
def test_without_a_cache_and_with_one_of_its_own(method):
    model, inputs = llava(), llava_inputs(3)
    with hf.apply(model, method, **METHODS[method]):
        first = generate(model, inputs, tokens=1).logits[:, 0]
        close(model(**inputs, use_cache=False).logits[:, -1], first)
        close(model(**inputs, logits_to_keep=1).logits[:, -1], first)
        # By hand, with the cache that the model made, and no mask.
        single = alone(inputs, 0)
        expected = generate(model, single, tokens=4)
        out = model(**single)
        for step in range(1, 4):
            out = model(input_ids=expected.tokens[:, step - 1 : step], **{CACHE: getattr(out, CACHE)})
            close(out.logits[:, -1], expected.logits[:, step])


def test_samples_without_padding_that_keep_different_numbers():
    """No mask is needed at first, but where samples have images of different numbers of tokens."""
    model, generator = llava(), torch.Generator().manual_seed(0)
    rows = [words(5, 0) + [100] * 32 + words(7, 1), words(9, 2) + [100] * 16 + words(19, 3)]
    ids = torch.tensor(rows)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(3, 3, 56, 56, generator=generator),
    }
    for method, options in METHODS.items():
        with hf.apply(model, method, **options) as handle:
            got = generate(model, inputs)
            out = model(input_ids=ids, pixel_values=inputs["pixel_values"])
        close(out.logits[:, -1], got.logits[:, 0])
        close(got.logits, masked_oracle(model, inputs, got.tokens, handle.stats["stages"]))


@each_method
def test_beams_equal_those_of_each_sample_alone(method):
    model, inputs = llava(), llava_inputs(3)
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    with hf.apply(model, method, **METHODS[method]):
        together = model.generate(**inputs, **options)[:, -6:]
        for b in range(3):
            assert torch.equal(model.generate(**alone(inputs, b), **options)[0, -6:], together[b])


@each_method
def test_prompt_lookup_finds_the_same_tokens(method):
    model, inputs = llava(), llava_inputs()
    with hf.apply(model, method, **METHODS[method]):
        plain = generate(model, inputs, tokens=12)
        assert torch.equal(generate(model, inputs, tokens=12, prompt_lookup_num_tokens=3).tokens, plain.tokens)


@each_method
def test_another_turn_of_text(method):
    model, inputs = llava(), llava_inputs()
    with hf.apply(model, method, **METHODS[method]) as handle:
        options = {"do_sample": False, "return_dict_in_generate": True}
        first = model.generate(**inputs, max_new_tokens=4, **options)
        stages = handle.stats["stages"]
        ids = torch.cat([first.sequences, torch.tensor([words(5, 7)])], 1)
        more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        second = generate(model, more, tokens=4, **{CACHE: getattr(first, CACHE)})
    later = torch.cat([ids[:, inputs["input_ids"].shape[1] :], second.tokens], 1)
    expected = masked_oracle(model, inputs, later, stages)
    close(second.logits, expected[:, -4:])


@each_method
def test_interleaved_requests_and_threads(method):
    model, prompts = llava(), [llava_inputs(), llava_inputs(seed=9)]
    with hf.apply(model, method, **METHODS[method]):
        expected = [generate(model, inputs) for inputs in prompts]
        outs = [model(**inputs) for inputs in prompts]
        for step in range(1, 8):
            for k, reference in enumerate(expected):
                outs[k] = model(input_ids=reference.tokens[:, step - 1 : step], **{CACHE: getattr(outs[k], CACHE)})
                close(outs[k].logits[:, -1], reference.logits[:, step])
        got = {}

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


@each_family
def test_aim_drops_ever_more_of_samples_without_padding(family):
    make, inputs_of = FAMILIES[family]
    model, inputs = make(), inputs_of()
    image = int((inputs["input_ids"] == 100).sum())
    text = inputs["input_ids"].shape[1] - image
    with hf.apply(model, "aim", first=1, layers=4) as handle:
        got = generate(model, inputs)
    stages = handle.stats["stages"]
    assert [stage["tokens"][0] - text for stage in stages] == [image * 3 // 4, image // 2, image // 4, 0]
    close(got.logits, masked_oracle(model, inputs, got.tokens, stages))
    with hf.apply(model, "aim", first=1), pytest.raises(ValueError, match="aim: attention_mask: expected prompts of o"):
        model(**inputs_of(2))


def test_default_options_are_the_authors():
    """Of a model with 32 layers."""
    layers = {
        name: [(step.drop, step.keep(576)) for step in make(32).steps]
        for name, make in RULES.items()
        if name != "fitprune"
    }
    assert layers["fastv"] == [(2, 288)]
    assert layers["pyramiddrop"] == [(8, 288), (16, 144), (24, 72)]
    assert layers["sparsevlm"] == [(3, 300), (7, 200), (16, 110)]
    assert layers["prunevid_llm"] == [(10, 230)]
    assert layers["aim"] == [(14 + k, 576 - 72 * (k + 1)) for k in range(8)]


def test_bfloat16():
    model = llava().to(torch.bfloat16)
    try:
        inputs = llava_inputs(3)
        inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
        plain = generate(model, inputs)
        with hf.apply(model, "fastv", **ALL["fastv"]):
            assert torch.equal(generate(model, inputs).logits, plain.logits)
    finally:
        llava.cache_clear()


def test_compiled_decoding_is_one_graph():
    model, inputs, graphs = llava(), llava_inputs(), []

    def backend(graph, example):
        graphs.append(graph)
        return graph

    for method, options in (*list(METHODS.items())[:2], ("divprune", {"keep": 0.3})):
        graphs.clear()
        torch._dynamo.reset()
        with hf.apply(model, method, **options):
            expected = generate(model, inputs, tokens=5)
            cache = transformers.StaticCache(config=model.config.get_text_config(), max_cache_len=64)
            out = model(**inputs, **{CACHE: cache})
            step = torch.compile(model, fullgraph=True, backend=backend)
            rows = inputs["input_ids"].shape[1]
            for k in range(1, 5):
                column = torch.arange(64)[None, None, None] <= cache.get_seq_length()
                out = step(
                    input_ids=expected.tokens[:, k - 1 : k],
                    attention_mask=column,
                    position_ids=torch.tensor([[rows + k - 1]]),
                    **{CACHE: cache},
                )
                close(out.logits[:, -1], expected.logits[:, k])
        assert len(graphs) == 1


def test_a_rule_of_ones_own():
    """The image tokens with the largest hidden states."""

    def largest(scene):
        scores = scene.hidden.norm(dim=2)
        return plans.keep(scores, scene.keep, candidates=scene.image, forced=scene.text, capacity=scene.capacity)

    def as_fastv(scene):
        return methods.fastv(scene.query, scene.key, scene.image, **scene.arguments)

    def greedy(scene):
        return plans.keep(scene.hidden.norm(dim=2), 2)

    model, inputs = llava(), llava_inputs(3)
    with hf.apply(model, largest, layer=3, keep=5) as handle:
        got = generate(model, inputs)
    assert handle.method == "largest"
    assert handle.stats["stages"][0]["tokens"] == [17, 21, 13]
    close(got.logits, masked_oracle(model, inputs, got.tokens, handle.stats["stages"]))
    with hf.apply(model, as_fastv, layer=2, keep=0.5):
        own = generate(model, inputs)
    with hf.apply(model, "pyramiddrop", layers=[2], keep=[0.5]):
        assert torch.equal(generate(model, inputs).logits, own.logits)
    with hf.apply(model, greedy), pytest.raises(ValueError, match=r"rule: expected a plan of \[20, 24, 16\] tokens"):
        generate(model, inputs)
    with hf.apply(model, lambda scene: None), pytest.raises(TypeError, match="rule: expected one that returns a plan"):
        generate(model, inputs)


def rule_of(**options):
    def rule(scene):
        given = {"candidates": scene.image, "forced": scene.text, "capacity": scene.capacity} | options
        return plans.keep(scene.hidden.norm(dim=2), scene.keep, **given)

    return rule


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (rule_of(order="value"), "a plan of tokens in their order, got descending indices"),
        (lambda scene: plans.keep(scene.hidden.norm(dim=2), [20, 24]), "a plan that keeps all text, got one without"),
        (lambda scene: plans.tome(scene.hidden, 4), r"a plan of \[20, 24\] tokens, text and image, got \[28, 28\]"),
        (lambda scene: plans.keep(torch.rand(2, 9), 3), r"a plan for 2 samples of 32 tokens, got one of \[2, 3\] rows"),
    ],
)
def test_rules_that_lose_or_move_text_are_refused(rule, message):
    with hf.apply(llava(), rule), pytest.raises(ValueError, match=f"apply: rule: expected {message}"):
        llava()(**llava_inputs(2))


@each_method
def test_remove_leaves_nothing(method):
    model, inputs = llava(), llava_inputs()
    plain, before = generate(model, inputs), hooks_of(model)
    handle = hf.apply(model, method, **METHODS[method])
    held = generate(model, inputs)
    handle.remove()
    handle.remove()
    assert hooks_of(model) == before
    assert torch.equal(generate(model, inputs).logits, plain.logits)
    assert hasattr(held.cache, KEY)
    # The reduced cache says that it is one, until it is reset.
    with pytest.raises(RuntimeError, match=f"{method}: expected a new or reset cache after remove"):
        model(input_ids=held.tokens[:, -1:], **{CACHE: held.cache})
    for layer in held.cache.layers:
        layer.crop(-layer.get_seq_length())
    text = {name: inputs[name][:, -7:] for name in ("input_ids", "attention_mask")}
    reused = model(**text, **{CACHE: held.cache})
    close(reused.logits, model(**text).logits)
    assert not hasattr(held.cache, KEY)


def test_text_alone_is_left_alone():
    model, inputs = llava(), llava_inputs()
    text = {name: inputs[name][:, -7:] for name in ("input_ids", "attention_mask")}
    plain = generate(model, text)
    with hf.apply(model, "fastv"):
        assert torch.equal(generate(model, text).logits, plain.logits)


class Waits(TorchDispatchMode):
    """Counts operations that wait for a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket._qualified_op_name in (
            "aten::_local_scalar_dense",
            "aten::nonzero",
            "aten::is_nonzero",
            "aten::equal",
        )
        return function(*args, **(kwargs or {}))


@each_batch
@pytest.mark.parametrize(
    ("method", "options"),
    [
        *METHODS.items(),
        ("sparsevlm", METHODS["sparsevlm"] | {"recycle": True}),
        ("vscan_decode", {"every": 1}),
        ("divprune", {"keep": 0.3}),
        ("fastervlm", {"keep": 0.3}),
    ],
)
def test_a_prompt_waits_for_the_device_once_and_a_token_never(method, options, samples, monkeypatch):
    """Beside the model itself; of prompts only here, since ops on a CPU are their specification, which may wait."""
    lists, tolist = [], torch.Tensor.tolist

    def noted(x):
        lists.extend(["huggingface"] * ("pyramid_ops/huggingface" in sys._getframe(1).f_code.co_filename))
        return tolist(x)

    monkeypatch.setattr(torch.Tensor, "tolist", noted)
    model, inputs = llava(), llava_inputs(samples)

    def waits():
        cache = transformers.DynamicCache(config=model.config.get_text_config())
        out = model(**inputs, **{CACHE: cache})
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        with Waits() as token:
            model(input_ids=out.logits[:, -1:].argmax(-1), attention_mask=mask, **{CACHE: cache})
        return token.count

    plain = waits()
    assert not lists
    with hf.apply(model, method, **options):
        assert waits() == plain
    assert len(lists) == (1 if method in RULES else 2)
