"""An image pyramid in a vision-language model: a photo's levels through the model's own tower, the best tokens kept.

    python examples/pyramid_vlm.py [OUT.png]

The model is a tiny LLaVA with random weights, so that this runs anywhere: what it answers means nothing, which patches
it reads is in the picture. With a real one, `model` comes from ``LlavaForConditionalGeneration.from_pretrained``.
"""

import sys

import torch
import transformers
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from skimage import data

import pyramid_ops
import pyramid_ops.huggingface as hf

PATCH, SIDE, LEVELS, KEEP, IMAGE = 14, 336, 3, 144, 99


def tiny_llava() -> transformers.LlavaForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**sizes, image_size=SIDE, patch_size=PATCH),
        text_config=transformers.LlamaConfig(**sizes, vocab_size=100),
        image_token_id=IMAGE,
    )
    return transformers.LlavaForConditionalGeneration(config).eval()


def photo() -> torch.Tensor:
    pixels = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None].float() / 255
    return torch.nn.functional.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)


def draw(out: str, levels: list[torch.Tensor], indices: torch.Tensor) -> None:
    figure = Figure(figsize=(4 * len(levels), 4.2), layout="constrained")
    for k, (axis, picture) in enumerate(zip(figure.subplots(1, len(levels)), levels, strict=True)):
        side = picture.shape[3] // PATCH
        kept = set(indices[indices[:, 0] == k, 1].tolist())
        axis.imshow(picture[0].permute(1, 2, 0).clamp(0, 1).numpy(), extent=(0, side, side, 0))
        for token in set(range(side * side)) - kept:
            axis.add_patch(Rectangle((token % side, token // side), 1, 1, color="white", alpha=0.75, linewidth=0))
        axis.set_title(f"level {k}: {len(kept)} of {side * side} tokens")
        axis.set_axis_off()
    figure.savefig(out, dpi=80)


def main(out: str = "pyramid_vlm.png") -> None:
    model, picture = tiny_llava(), photo()
    pixel_values = (picture - 0.45) / 0.27
    placeholders = (SIDE // PATCH) ** 2
    ids = torch.tensor([[1, *range(3, 9), *[IMAGE] * placeholders, *range(9, 20)]])
    with torch.inference_mode():
        selection = hf.pyramid_tokens(model, pixel_values, keep=KEEP, levels=LEVELS)
        with hf.apply(model, "pyramid", keep=KEEP, levels=LEVELS) as handle:
            answer = model.generate(input_ids=ids, pixel_values=pixel_values, max_new_tokens=5, do_sample=False)
    (stage,) = handle.stats["stages"]
    print(f"prompt: {ids.shape[1]} rows, {placeholders} of an image; the language model reads {stage['tokens'][0]}")
    print("tokens of each level:", selection.indices[0, :, 0].bincount(minlength=LEVELS).tolist())
    print("answer of random weights:", answer[0, ids.shape[1] :].tolist())
    draw(out, pyramid_ops.gaussian_pyramid(picture, LEVELS), selection.indices[0])
    print(f"kept patches: {out}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
