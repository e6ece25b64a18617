"""ToMe in vision towers of transformers, against plain code."""

import pytest
import torch
import transformers

import pyramid_ops.huggingface as hf
from pyramid_ops import compat

from .models import noise, peaked

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}


def tower(kind, attention="sdpa"):
    torch.manual_seed(0)
    model = {
        "clip": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES)),
        "siglip": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIZES)),
        "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES)),
    }[kind]()
    model.set_attn_implementation(attention)
    return peaked(model)


KINDS = ("clip", "siglip", "vit")
each_kind = pytest.mark.parametrize("kind", KINDS)


def output(model, x):
    out = model(pixel_values=x, output_hidden_states=True)
    return out.hidden_states[-1]


@each_kind
def test_merging_nothing_changes_no_bit(kind):
    model, x = tower(kind), noise(0, 3, 3, 56, 56)
    plain, before = model(pixel_values=x)[0], [sorted(m.__dict__) for m in model.modules()]
    with hf.apply(model, "tome", r=0) as handle:
        assert torch.equal(model(pixel_values=x)[0], plain)
    assert handle.stats == {}
    assert [sorted(m.__dict__) for m in model.modules()] == before
    assert torch.equal(model(pixel_values=x)[0], plain)


def by_hand(model, x, r):
    """The authors' block on the model's own modules, with the names of ToMe; sizes in its order."""
    base = model.base_model
    class_token = base.config.model_type != "siglip_vision_model"
    hidden = base.embeddings(x)
    hidden = base.pre_layrnorm(hidden) if hasattr(base, "pre_layrnorm") else hidden
    sizes = torch.ones(*hidden.shape[:2], 1)
    for block in (base if hasattr(base, "layers") else base.encoder).layers:
        attention = getattr(block, "self_attn", None) or block.attention
        first = getattr(block, "layer_norm1", None) or block.layernorm_before
        second = getattr(block, "layer_norm2", None) or block.layernorm_after
        y = first(hidden)
        q, k, v = (getattr(attention, f"{n}_proj")(y).unflatten(2, (4, 8)).transpose(1, 2) for n in "qkv")
        weights = (q @ k.mT * 8**-0.5 + sizes.log()[:, None, None, :, 0]).softmax(-1)
        out = getattr(attention, "out_proj", None) or attention.o_proj
        hidden = hidden + out((weights @ v).transpose(1, 2).flatten(2))
        merge, _ = compat.bipartite_soft_matching(k.mean(1), r, class_token=class_token)
        hidden, sizes = compat.merge_wavg(merge, hidden, sizes)
        hidden = hidden + block.mlp(second(hidden))
    return hidden, sizes[..., 0]


@each_kind
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equals_the_authors_block(kind, attention):
    model, x = tower(kind, attention), noise(0, 2, 3, 56, 56)
    with hf.apply(model, "tome", r=3) as handle:
        got = output(model, x)
    expected, sizes = by_hand(model, x, 3)
    assert got.shape[1] == expected.shape[1] < 16
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3)
    assert torch.equal(handle.stats["sizes"], sizes)


@each_kind
def test_sizes_places_and_rows(kind):
    model, x = tower(kind), noise(0, 2, 3, 56, 56)
    tokens = 16 + (kind != "siglip")
    with hf.apply(model, "tome", r=[4, 0, 2, 1]) as handle:
        hidden = output(model, x)
    sizes, place, rows = (handle.stats[name] for name in ("sizes", "place", "rows"))
    assert hidden.shape[1] == tokens - 7 == sizes.shape[1]
    assert sizes.sum(1).tolist() == [tokens, tokens]
    for b in range(2):
        assert torch.equal(rows[b].bincount(minlength=tokens - 7).float(), sizes[b])
        assert torch.equal(rows[b, place[b]], torch.arange(tokens - 7))
    if kind != "siglip":
        assert place[:, 0].tolist() == [0, 0]
        assert sizes[:, 0].tolist() == [1, 1]


def test_errors():
    model = tower("vit")
    with pytest.raises(ValueError, match="apply: method: expected 'tome' for 'vit', got 'fastv'"):
        hf.apply(model, "fastv")
    with pytest.raises(ValueError, match="tome: r: expected 4 of them, one for each layer, got 2"):
        hf.apply(model, "tome", r=[1, 2])
    with pytest.raises(ValueError, match="apply: options: expected r, got 'ratio'"):
        hf.apply(model, "tome", ratio=2)
    with hf.apply(model, "tome"):
        with pytest.raises(ValueError, match="apply: model: expected one without a handle, got one with 'tome'"):
            hf.apply(model, "tome")
        with torch.enable_grad(), pytest.raises(ValueError, match="tome: model: expected a call under torch.no_grad"):
            model(pixel_values=noise(0, 1, 3, 56, 56))
    assert hf.supported()["vit"] == ["tome"]
