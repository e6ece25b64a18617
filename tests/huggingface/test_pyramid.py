"""The pyramid pipeline on a model of transformers, against plain code."""

import pathlib
import runpy

import pytest
import torch
from torch.nn import functional

import pyramid_ops.huggingface as hf

from .models import alone, generate, llava, llava_inputs, llava_siglip, masked_oracle

OPTIONS = {"keep": 9, "levels": 3, "weights": (0.5, 0.3, 0.2)}


def plain_pyramid(model, images, keep, levels, weights):
    """Blur and halve with a convolution, encode, and the tokens with the greatest variance of each level."""
    taps = (-(torch.arange(-2, 3) ** 2) / 2).exp()
    kernel = (taps[:, None] * taps / taps.sum() ** 2).expand(3, 1, 5, 5)
    counts = [int(keep * weight) for weight in weights]
    counts[0] += keep - sum(counts)
    tokens = []
    for k in range(levels):
        if k:
            images = functional.avg_pool2d(functional.conv2d(images, kernel, padding=2, groups=3), 2)
        more = {"interpolate_pos_encoding": True} if k else {}
        x = torch.stack(list(model.base_model.get_image_features(images, return_dict=True, **more).pooler_output))
        count = min(counts[k], x.shape[1])
        best = x.var(2).topk(count).indices.sort(1).values
        tokens.append(x.take_along_dim(best[..., None], 1))
    return torch.cat(tokens, 1)


@pytest.mark.parametrize("make", [llava, llava_siglip])
def test_tokens(make):
    model, images = make(), llava_inputs(3)["pixel_values"]
    got = hf.pyramid_tokens(model, images, **OPTIONS)
    torch.testing.assert_close(got.tokens, plain_pyramid(model, images, **OPTIONS), rtol=0, atol=1e-4)
    assert got.indices[0, :, 0].bincount().tolist() == [6, 2, 1]
    embedding = torch.randn(3, 64)
    moved = hf.pyramid_tokens(model, images, level_embedding=embedding, **OPTIONS).tokens
    assert torch.equal(moved, got.tokens + embedding[got.indices[..., 0]])


def test_one_level_and_all_tokens_change_no_bit():
    model, inputs = llava(), llava_inputs(3)
    plain = generate(model, inputs)
    with hf.apply(model, "pyramid", keep=16, levels=1):
        assert torch.equal(generate(model, inputs).logits, plain.logits)


@pytest.mark.parametrize("samples", [1, 3])
def test_the_model_reads_them(samples):
    """Kept tokens fill the first placeholders of their image: as these features with the other placeholders masked."""
    model, inputs = llava(), llava_inputs(samples)
    with hf.apply(model, "pyramid", **OPTIONS) as handle:
        got = generate(model, inputs)
        (stage,) = handle.stats["stages"]
        each = [generate(model, alone(inputs, b)).logits for b in range(samples)]
    torch.testing.assert_close(torch.cat(each), got.logits, rtol=0, atol=1e-5)
    assert stage["tokens"] == [21, 25, 17][:samples]
    encoded = model.base_model.get_image_features(inputs["pixel_values"], return_dict=True)
    tokens = hf.pyramid_tokens(model, inputs["pixel_values"], **OPTIONS).tokens
    encoded.pooler_output = list(functional.pad(tokens, (0, 0, 0, 7)))
    given = {name: x for name, x in inputs.items() if name != "pixel_values"}
    given["mm_encoder_outputs"] = {"image": encoded}
    expected = masked_oracle(model, given, got.tokens, [stage])
    torch.testing.assert_close(got.logits, expected, rtol=0, atol=1e-5)


def test_a_finest_level_of_another_size():
    model = llava()
    images = torch.nn.functional.interpolate(llava_inputs()["pixel_values"], (112, 56))
    got = hf.pyramid_tokens(model, images, **OPTIONS | {"levels": 2, "weights": (0.6, 0.4)})
    encoded = model.base_model.get_image_features(images, return_dict=True, interpolate_pos_encoding=True)
    level, index = got.indices[0].unbind(1)
    assert torch.equal(got.tokens[0][level == 0], encoded.pooler_output[0][index[level == 0]])


def test_errors():
    model, inputs = llava(), llava_inputs()
    with (
        hf.apply(model, "pyramid", keep=17),
        pytest.raises(ValueError, match="pyramid: keep: expected at most 16, the pl"),
    ):
        model(**inputs)
    with pytest.raises(ValueError, match="pyramid: levels: expected images of a multiple of 112, got float32"):
        hf.pyramid_tokens(model, inputs["pixel_values"], keep=4, levels=4)
    with pytest.raises(TypeError, match=r"pyramid: level_embedding: expected a tensor, got \[1\]"):
        hf.pyramid_tokens(model, inputs["pixel_values"], keep=4, level_embedding=[1])
    with pytest.raises(ValueError, match=r"pyramid: level_embedding: expected \[3, 64\], got float32 \[2, 64\]"):
        hf.pyramid_tokens(model, inputs["pixel_values"], keep=4, level_embedding=torch.randn(2, 64))


def test_example(tmp_path, capsys):
    """examples/pyramid_vlm.py, with its picture."""
    pytest.importorskip("skimage")
    path = pathlib.Path(__file__).parents[2] / "examples" / "pyramid_vlm.py"
    runpy.run_path(str(path))["main"](str(tmp_path / "out.png"))
    printed = capsys.readouterr().out
    assert "prompt: 594 rows, 576 of an image; the language model reads 162" in printed
    assert (tmp_path / "out.png").stat().st_size > 10_000
