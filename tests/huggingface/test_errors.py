"""What is not supported is said, with what is."""

import copy
import importlib.metadata
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

import pyramid_ops.huggingface as hf
from pyramid_ops.huggingface.requirement import check_transformers
from pyramid_ops.huggingface.rules import RULES
from pyramid_ops.huggingface.tower import Merging, last_merging

from .models import CACHE, TEXT, clip, llava, llava_inputs, qwen2_5_vl


def test_supported():
    assert "fastv" in hf.supported()["llava"]


def test_what_never_ran_is_said():
    with pytest.raises(ValueError, match="tome: model: expected a key projection"):
        Merging().merge(torch.zeros(1, 4, 8), 2, 1, False)
    with pytest.raises(ValueError, match="tome: model: expected a forward of its tower"):
        last_merging()
    scene = hf.Scene(*[None] * 12)
    with pytest.raises(ValueError, match="sparsevlm: scene.marks: expected the raters of the prompt, got None"):
        RULES["sparsevlm"](32).rule(scene)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("fastvv", {}, "apply: method: expected one of 'aim', .* or a callable for 'llava', got 'fastvv'"),
        ("fastv", {"ratio": 0.5}, "apply: options: expected layer, keep, got 'ratio'"),
        ("fastv", {"keep": 1.5}, r"fastv: keep: expected a share from 0 to 1 or a number of tokens, got 1.5"),
        ("fastv", {"keep": -1}, r"fastv: keep: expected at least 0, got -1"),
        ("fastv", {"layer": 0}, r"fastv: layer: expected at least 1, got 0"),
        ("fastv", {"layer": 5}, r"fastv: layer: expected less than 5, the layers of the model, got 5"),
        ("fitprune", {"layers": [1]}, "apply: options: expected 'keep', which has no default, got none"),
        ("sparsevlm", {"budget": 100}, "sparsevlm: budget: expected one of 192, 128, 64, got 100"),
        ("evs", {}, "apply: method: expected one of .* or a callable for 'llava', got 'evs'"),
        ("fastervlm", {"layer": 2}, "fastervlm: layer: expected one of the 2 layers of the tower, got 2"),
        ("divprune", {"keep": 2.0}, "divprune: keep: expected a share from 0 to 1 or a number of tokens, got 2.0"),
        ("aim", {"first": 7}, r"aim: first: expected less than 5, the layers of the model, got 7"),
        ("pyramiddrop", {"keep": (0.1, 0.2, 0.2)}, r"pyramiddrop: keep\[1\]: expected at most 0.1, the one before, go"),
        ("sparsevlm", {"layers": [1, 3], "keep": [4, 8]}, r"sparsevlm: keep\[1\]: expected at most 4, the one before"),
        ("pyramiddrop", {"layers": [1, 2]}, "pyramiddrop: keep: expected 2 of them, one for each layer, got 3"),
        (
            "pyramiddrop",
            {"layers": [2, 2], "keep": [1, 1]},
            r"layers\[1\]: expected more than 2, the one bef",
        ),
    ],
)
def test_options(method, options, message):
    with pytest.raises(ValueError, match=message):
        hf.apply(llava(), method, **options)


def test_a_failed_apply_leaves_nothing():
    model = llava()
    before = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    for r in ([1, 2, 3], -1):
        with pytest.raises(ValueError, match="tome: r"):
            hf.apply(model, "tome", r=r)
    assert [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()] == before
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_number_that_is_none():
    with pytest.raises(TypeError, match="fastv: keep: expected a share from 0 to 1 or a number of tokens, got 'half'"):
        hf.apply(llava(), "fastv", keep="half")
    with hf.apply(llava(), "fastv", keep=np.float32(0.25)) as handle:
        llava()(**llava_inputs())
    assert handle.stats["tokens"][-1] == [12 + 4]


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("evs", {"rate": "a"}, "evs: rate: expected a number, got 'a'"),
        ("vispruner", {"keep": "a"}, "vispruner: keep: expected a share from 0 to 1 or a number of tokens, got 'a'"),
        ("vispruner", {"important": 0.5}, "vispruner: important: expected an integer, got 0.5"),
        ("prumerge", {"keep": "a"}, "prumerge: keep: expected a share from 0 to 1 or a number of tokens, got 'a'"),
        ("prumerge", {"factor": "a"}, "prumerge: factor: expected a number, got 'a'"),
        ("prumerge_select", {"factor": "a"}, "prumerge_select: factor: expected a number, got 'a'"),
        ("pyramid", {"keep": None}, "pyramid: keep: expected a share from 0 to 1 or a number of tokens, got None"),
        ("cdpruner", {"relevance": 3}, "cdpruner: relevance: expected a callable, got 3"),
        ("sparsevlm", {"recycle": "no"}, "sparsevlm: recycle: expected a bool, got 'no'"),
        ("pyramiddrop", {"layers": 1}, "pyramiddrop: layers: expected a list or tuple of numbers, got 1"),
    ],
)
def test_types(method, options, message):
    model = qwen2_5_vl() if method == "evs" else llava()
    with pytest.raises(TypeError, match=message):
        hf.apply(model, method, **options)


class Wrapped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.config = llava(), llava().config


def test_models():
    text = {name: value for name, value in TEXT.items() if name != "num_hidden_layers"}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**text, num_hidden_layers=1))
    with pytest.raises(ValueError, match="apply: model: expected one of 'internvl', 'llava', .*, got 'llama'"):
        hf.apply(model, "fastv")
    with pytest.raises(ValueError, match="apply: model: expected one of 'internvl', 'llava', .*, got Linear"):
        hf.apply(torch.nn.Linear(1, 1), "fastv")
    for model, got in ((None, "NoneType"), (Wrapped(), "Wrapped")):
        with pytest.raises(ValueError, match=f"apply: model: expected one of 'internvl', .*, got {got}"):
            hf.apply(model, "fastv")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(text_config=sizes, vision_config=sizes | {"image_size": 28, "patch_size": 14})
    with pytest.raises(ValueError, match="apply: model: expected one of .*, 'clip_vision_model', .*, got 'clip'"):
        hf.apply(transformers.CLIPModel(config), "tome")
    config = transformers.LlavaConfig(
        vision_config=clip(28), text_config=transformers.MistralConfig(**TEXT, sliding_window=16), image_token_id=100
    )
    with pytest.raises(ValueError, match="expected full attention in every layer of the text model, got a sliding win"):
        hf.apply(transformers.LlavaForConditionalGeneration(config), "fastv")


def test_one_handle_at_a_time():
    with hf.apply(llava(), "fastv"), pytest.raises(ValueError, match="without a handle, got one with 'fastv'"):
        hf.apply(llava(), "pyramiddrop", layers=[2], keep=[0.5])
    hf.apply(llava(), "fastv").remove()


def test_a_handle_on_a_part_or_on_the_whole():
    whole = llava()
    tower = whole.base_model.vision_tower
    for first, second in ((tower, whole), (whole, tower), (whole.base_model, whole), (whole, whole.base_model)):
        with hf.apply(first, "tome", r=2), pytest.raises(ValueError, match="without a handle, got one with 'tome'"):
            hf.apply(second, "tome", r=2)
    with hf.apply(whole, "fastv"), pytest.raises(ValueError, match="without a handle, got one with 'fastv'"):
        hf.apply(tower, "tome")
    with hf.apply(tower, "tome"):
        copied = copy.deepcopy(tower)
    with pytest.raises(ValueError, match="without a handle, got one with 'tome'"):
        hf.apply(copied, "tome")


def test_remove_goes_on_after_an_error():
    model = llava()
    handle = hf.apply(model, "fastv")
    handle._undo.append(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        handle.remove()
    assert not model.base_model._forward_pre_hooks
    with pytest.raises(RuntimeError, match="fastv: expected a handle that is in a model, got one that was removed"):
        with handle:
            pass


@pytest.mark.parametrize("method", ["fastv", "divprune"])
def test_a_copy_of_a_cache(method):
    model, token = llava(), torch.tensor([[5]])
    with hf.apply(model, method):
        cache = getattr(model(**llava_inputs()), CACHE)
        copied = copy.deepcopy(copy.deepcopy(cache))
        expected = model(input_ids=token, **{CACHE: copy.deepcopy(cache)}).logits
        assert torch.equal(model(input_ids=token, **{CACHE: cache}).logits, expected)
    for each in (copied, cache):
        with pytest.raises(RuntimeError, match=f"{method}: expected a new or reset cache after remove"):
            model(input_ids=token, **{CACHE: each})


@pytest.fixture
def model():
    with hf.apply(llava(), "fastv", layer=2, keep=0.5):
        yield llava()


def test_padding_on_the_right(model):
    inputs = llava_inputs()
    for name in ("input_ids", "attention_mask"):
        inputs[name] = torch.nn.functional.pad(inputs[name], (0, 4))
    with pytest.raises(ValueError, match="fastv: attention_mask: expected padding on the left, got padding on the rig"):
        model(**inputs)


def test_masks_of_another_pattern(model):
    inputs = llava_inputs(3)
    rows = inputs["input_ids"].shape[1]
    there = inputs.pop("attention_mask").bool()
    causal = torch.ones(rows, rows, dtype=torch.bool).tril() & there[:, None, None]
    position = {"position_ids": (there.long().cumsum(1) - 1).clamp(min=0)}
    model(**inputs, **position, attention_mask=causal | torch.eye(rows, dtype=torch.bool))
    both_ways = there[:, None, None].expand(-1, 1, rows, -1)
    with pytest.raises(
        ValueError, match="fastv: attention_mask: expected .B, N., or causal but for padding, got a pat"
    ):
        model(**inputs, **position, attention_mask=both_ways)


def test_labels(model):
    inputs = llava_inputs()
    with pytest.raises(ValueError, match="fastv: labels: expected none, since logits are those of the rows that are l"):
        model(**inputs, labels=inputs["input_ids"])


def test_grad_mode(model):
    with torch.enable_grad(), pytest.raises(ValueError, match="fastv: model: expected a call under torch.no_grad"):
        model(**llava_inputs())
    with torch.inference_mode():
        model(**llava_inputs())


def test_images_in_a_later_forward(model):
    inputs = llava_inputs()
    out = model(**inputs)
    with pytest.raises(ValueError, match="fastv: images: expected all of them in the first forward of a cache"):
        model(**inputs, **{CACHE: getattr(out, CACHE)})


def test_prompts_in_chunks(model):
    cache = transformers.DynamicCache(config=model.config.get_text_config())
    with pytest.raises(ValueError, match="fastv: prefill_chunk_size: expected None, since a prompt is scored as a who"):
        model.generate(**llava_inputs(), max_new_tokens=2, prefill_chunk_size=24, **{CACHE: cache})


def test_embeddings_with_images(model):
    inputs = llava_inputs()
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    for given in ({"pixel_values": inputs["pixel_values"]}, {}):
        with pytest.raises(ValueError, match="apply: input_ids: expected the prompt's, which say where images are"):
            model(inputs_embeds=embeds, **given)


def test_embeddings_of_generated_tokens(model):
    inputs = llava_inputs()
    cache, token = getattr(model(**inputs), CACHE), torch.tensor([[5]])
    given = {CACHE: copy.deepcopy(cache)}
    expected = model(input_ids=token, **{CACHE: cache}).logits
    assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(token), **given).logits, expected)


def test_a_prompt_that_ends_with_an_image(model):
    inputs = llava_inputs()
    inputs = {name: inputs[name][:, :21] for name in ("input_ids", "attention_mask")} | {
        "pixel_values": inputs["pixel_values"]
    }
    with pytest.raises(ValueError, match="apply: input_ids: expected text after the last image, got a prompt that end"):
        model(**inputs)


def test_no_prompt(model):
    with pytest.raises(ValueError, match="apply: input_ids: expected at least one prompt, got none"):
        model(**{name: x[:0] for name, x in llava_inputs().items()})


def test_logits_of_chosen_rows(model):
    inputs = llava_inputs()
    assert model(**inputs, logits_to_keep=2).logits.shape[1] == 2
    with pytest.raises(ValueError, match="fastv: logits_to_keep: expected how many of the last rows, got indices"):
        model(**inputs, logits_to_keep=torch.tensor([0, 5]))


def test_flex_attention(model):
    model.config.get_text_config()._attn_implementation = "flex_attention"
    try:
        with pytest.raises(ValueError, match="fastv: attn_implementation: expected 'eager', 'sdpa' or FlashAttention"):
            model(**llava_inputs())
    finally:
        model.config.get_text_config()._attn_implementation = "sdpa"


def test_packed_prompts(model):
    with pytest.raises(ValueError, match="fastv: cu_seq_lens_q: expected None, one prompt in each row of the batch"):
        model(**llava_inputs(), cu_seq_lens_q=torch.tensor([0, 12, 28]))


def test_compiled_prompts(model):
    step = torch.compile(model, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="prompts with images outside torch.compile"):
        step(**llava_inputs())


@pytest.mark.parametrize("version", ["5.17.3", "4.57.0", None])
def test_old_or_missing_transformers(version, monkeypatch):
    def found(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", found)
    message = f"pyramid_ops.huggingface: transformers: expected at least 5.18, got {version or 'none'}"
    with pytest.raises(ImportError, match=message):
        check_transformers()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "5.18.0")
    check_transformers()


def test_the_package_itself_imports_none_of_it():
    code = "import sys, pyramid_ops, pyramid_ops.methods; raise SystemExit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
