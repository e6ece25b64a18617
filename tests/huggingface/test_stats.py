"""What a handle says of a prompt: tokens by layer, and what scoring costs, against operations that PyTorch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import pyramid_ops.huggingface as hf
from pyramid_ops import cost
from pyramid_ops.huggingface import handle as handles
from pyramid_ops.huggingface import selection

from .models import FAMILIES, LAYERS, TEXT, generate, internvl, llava, llava_inputs, llava_next, llava_next_inputs


class Projections:
    """Operations of what captures queries and keys."""

    def __init__(self, monkeypatch, module):
        self.total, capture = 0, module.queries_and_keys

        def counted(*args):
            with FlopCounterMode(display=False) as counter:
                heads = capture(*args)
            self.total += counter.get_total_flops()
            return heads

        monkeypatch.setattr(module, "queries_and_keys", counted)


@pytest.mark.parametrize(
    ("method", "options", "rows"),
    [
        ("fastv", {"layer": 2, "keep": 4}, "last"),
        ("pyramiddrop", {"layers": [1, 3], "keep": [8, 4]}, "last"),
        ("sparsevlm", {"layers": [1, 3], "keep": [12, 4]}, "text"),
        ("fitprune", {"layers": [2], "keep": [4]}, "all"),
        ("prunevid_llm", {"layer": 2, "keep": 4}, "text"),
    ],
)
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_scores_inside_the_language_model(family, method, options, rows, monkeypatch):
    make, inputs_of = FAMILIES[family]
    model, inputs, projected = make(), inputs_of(3), Projections(monkeypatch, handles)
    with hf.apply(model, method, **options) as handle:
        model(**inputs)
    stats, text = handle.stats, (inputs["attention_mask"].sum(1) - (inputs["input_ids"] == 100).sum(1)).tolist()
    logits, left = 0, stats["rows"]
    for stage in stats["stages"]:
        scoring = {"last": [1] * 3, "text": text, "all": [left] * 3}[rows]
        logits += sum(2 * count * left * 4 * 16 for count in scoring)
        left = stage["index"].shape[1]
    assert stats["scoring"] == sum(stage["scoring"] for stage in stats["stages"]) == projected.total + logits


@pytest.mark.parametrize(("make", "inputs_of"), [(llava, llava_inputs), (llava_next, llava_next_inputs)])
def test_class_attention(make, inputs_of, monkeypatch):
    inputs, tiles = inputs_of(2), 2 if make is llava else 8
    projected = Projections(monkeypatch, selection)
    with hf.apply(make(), "fastervlm") as handle:
        make()(**inputs)
    (stage,) = handle.stats["stages"]
    assert handle.stats["scoring"] == stage["scoring"] == projected.total + tiles * 2 * 17 * 32


def test_similarities_before_the_language_model():
    with hf.apply(internvl(), "divprune", keep=5) as handle:
        internvl()(**FAMILIES["internvl"][1](2))
    assert handle.stats["scoring"] == 2 * 2 * 16 * 5 * 64


def test_tokens_by_layer_and_operations_of_the_prompt():
    model, inputs = llava(), llava_inputs(2)
    with hf.apply(model, "pyramiddrop", layers=[1, 3], keep=[8, 0]) as handle:
        model(**inputs)
    stats = handle.stats
    assert stats["tokens"] == [[28, 32], [20, 24], [20, 24], [12, 16], [12, 16]]
    language = cost.Language(LAYERS, TEXT["hidden_size"], 4, 2, TEXT["intermediate_size"], TEXT["vocab_size"])
    expected = [cost.prefill_flops(language, text, [16, 8, 8, 0, 0]) for text in (12, 16)]
    assert stats["prefill"] == sum(expected)


def test_text_alone_has_none():
    model, inputs = llava(), llava_inputs()
    with hf.apply(model, "fastv") as handle:
        model(**inputs)
        assert handle.stats["visual"] == [16]
        generate(model, {name: inputs[name][:, -7:] for name in ("input_ids", "attention_mask")})
        assert handle.stats == {}


def test_while_tokens_are_generated(monkeypatch):
    model, inputs, projected = llava(), llava_inputs(2), Projections(monkeypatch, handles)
    with hf.apply(model, "vscan_decode", rate=2.5, every=2) as handle:
        generate(model, inputs, tokens=4)
    (stage,) = handle.stats["stages"]
    assert handle.stats["scoring"] == 0
    assert stage["scoring"] == projected.total * 2 // 3 + 2 * 2 * 2 * (inputs["input_ids"].shape[1] + 2) * 64
    assert torch.equal(stage["index"] >= 0, torch.arange(28)[None] >= 28 - torch.tensor([[24], [28]]))
