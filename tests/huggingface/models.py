"""Tiny random models, prompts, and what they must agree with."""

import functools
from typing import NamedTuple

import torch
import transformers
from torch import Tensor

IMAGE = 100
LAYERS = 5
TEXT = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
CACHE = "cache" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24) else "past_key_values"


def peaked(model):
    """Usual random weights attend to all alike: make selection matter."""
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and ("q_proj" in name or "k_proj" in name):
            weight.mul_(6)
        elif weight.dim() > 1 and "embed" not in name and "position" not in name:
            weight.mul_(2)
    model.lm_head.weight[IMAGE] = 0  # never generated
    return model.eval()


def clip(image):
    return transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=image,
        patch_size=14,
        projection_dim=32,
    )


@functools.cache
def llava(attention="sdpa", image=56, **text):
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=clip(image),
        text_config=transformers.LlamaConfig(**{**TEXT, **text}),
        image_token_id=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    config._attn_implementation = attention
    return peaked(transformers.LlavaForConditionalGeneration(config))


def words(count, seed):
    return torch.randint(3, 90, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def padded(rows):
    """Padding on the left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def llava_inputs(samples=1, after=(7, 11, 3), image=56, seed=0):
    tokens = (image // 14) ** 2
    rows = [words(5, 9 * b + seed) + [IMAGE] * tokens + words(after[b], 9 * b + seed + 1) for b in range(samples)]
    generator = torch.Generator().manual_seed(seed)
    return padded(rows) | {"pixel_values": torch.randn(samples, 3, image, image, generator=generator)}


def alone(inputs, b):
    """One sample of a batch, without its padding."""
    real = inputs["attention_mask"][b].bool()
    tokens = {name: inputs[name][b : b + 1, real] for name in ("input_ids", "attention_mask")}
    return tokens | {"pixel_values": inputs["pixel_values"][b : b + 1]}


class Generated(NamedTuple):
    tokens: Tensor
    logits: Tensor
    cache: object


def generate(model, inputs, tokens=8, **options):
    options = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True} | options
    inputs = {name: x.clone() for name, x in inputs.items()}
    out = model.generate(**inputs, max_new_tokens=tokens, **options)
    new = out.sequences[:, inputs["input_ids"].shape[1] :]
    return Generated(new, torch.stack(out.logits, 1), getattr(out, CACHE))


def masked_oracle(model, inputs, tokens, stages):
    """Logits of `tokens` by the whole model on all rows, without a cache: dropped columns masked layer by layer."""
    ids, there = inputs["input_ids"], inputs["attention_mask"].bool()
    rows, new = ids.shape[1], tokens.shape[1] - 1
    ids = torch.cat([ids, tokens[:, :-1]], 1)
    there = torch.cat([there, torch.ones_like(tokens[:, :-1], dtype=torch.bool)], 1)
    causal = torch.ones(rows + new, rows + new, dtype=torch.bool).tril()

    def hook(layer, module, args, kwargs):
        seen = there.clone()
        for stage in stages:
            if stage["layer"] <= layer:
                for b, index in enumerate(stage["index"]):
                    seen[b, :rows] = False
                    seen[b, index[index >= 0]] = True
        # A row without a column would be NaN.
        mask = causal & seen[:, None, None] | torch.eye(rows + new, dtype=torch.bool)
        eager = model.config._attn_implementation == "eager"
        kwargs["attention_mask"] = torch.where(mask, 0.0, -torch.inf) if eager else mask
        return args, kwargs

    layers = model.base_model.language_model.layers
    hooks = [
        layer.register_forward_pre_hook(functools.partial(hook, k), with_kwargs=True) for k, layer in enumerate(layers)
    ]
    more = {name: x for name, x in inputs.items() if name not in ("input_ids", "attention_mask")}
    position = (there.long().cumsum(1) - 1).clamp(min=0)
    try:
        out = model(input_ids=ids, attention_mask=there.long(), position_ids=position, use_cache=False, **more)
    finally:
        for each in hooks:
            each.remove()
    return out.logits[:, rows - 1 :]
