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
    if hasattr(model, "lm_head"):
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


def made(model_class, config, attention):
    torch.manual_seed(0)
    config._attn_implementation = attention
    return peaked(model_class(config))


@functools.cache
def llava(attention="sdpa"):
    config = transformers.LlavaConfig(
        vision_config=clip(56),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return made(transformers.LlavaForConditionalGeneration, config, attention)


@functools.cache
def llava_siglip(attention="sdpa"):
    """A tower without a class token, all of whose patches are read."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlavaConfig(
        vision_config=transformers.SiglipVisionConfig(**sizes, image_size=56, patch_size=14),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return made(transformers.LlavaForConditionalGeneration, config, attention)


@functools.cache
def llava_next(attention="sdpa"):
    config = transformers.LlavaNextConfig(
        vision_config=clip(56),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]],
    )
    return made(transformers.LlavaNextForConditionalGeneration, config, attention)


@functools.cache
def internvl(attention="sdpa"):
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": [112, 112],
        "patch_size": [14, 14],
    }
    config = transformers.InternVLConfig(
        vision_config=vision,
        text_config=transformers.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
        image_seq_length=16,
        downsample_ratio=0.5,
    )
    return made(transformers.InternVLForConditionalGeneration, config, attention)


QWEN_TOKENS = {"image_token_id": IMAGE, "video_token_id": 101, "vision_start_token_id": 102, "vision_end_token_id": 103}
QWEN_VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 64,
}


@functools.cache
def qwen2_5_vl(attention="sdpa"):
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    vision = QWEN_VISION | {"window_size": 56, "fullatt_block_indexes": [2]}
    config = transformers.Qwen2_5_VLConfig(
        text_config=TEXT | {"rope_parameters": rope}, vision_config=vision, **QWEN_TOKENS
    )
    return made(transformers.Qwen2_5_VLForConditionalGeneration, config, attention)


@functools.cache
def qwen3_vl(attention="sdpa"):
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3], "mrope_interleaved": True}
    vision = QWEN_VISION | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2]}
    config = transformers.Qwen3VLConfig(
        text_config=TEXT | {"head_dim": 16, "rope_parameters": rope}, vision_config=vision, **QWEN_TOKENS
    )
    return made(transformers.Qwen3VLForConditionalGeneration, config, attention)


def words(count, seed):
    return torch.randint(3, 90, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def padded(rows):
    """Padding on the left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def prompts(counts, seed=0, after=(7, 11, 3)):
    """A prompt for each number of image tokens."""
    rows = [
        words(5, 9 * b + seed) + [IMAGE] * count + words(after[b], 9 * b + seed + 1) for b, count in enumerate(counts)
    ]
    return padded(rows)


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def llava_inputs(samples=1, seed=0):
    return prompts([16] * samples, seed) | {"pixel_values": noise(seed, samples, 3, 56, 56)}


def llava_next_inputs(samples=1, seed=0):
    sizes = torch.tensor([[100, 100], [50, 100], [100, 100]])[:samples]
    pixels = noise(seed, samples, 5, 3, 56, 56)
    features = llava_next().base_model.get_image_features(pixels, sizes, return_dict=True).pooler_output
    return prompts([len(x) for x in features], seed) | {"pixel_values": pixels, "image_sizes": sizes}


def internvl_inputs(samples=1, seed=0):
    return prompts([16] * samples, seed) | {"pixel_values": noise(seed, samples, 3, 112, 112)}


def qwen_inputs(samples=1, seed=0):
    grids = torch.tensor([[1, 8, 8], [1, 4, 6], [1, 6, 6]])[:samples]
    patches = grids.prod(1)
    inputs = prompts((patches // 4).tolist(), seed)
    return inputs | {
        "pixel_values": noise(seed, int(patches.sum()), 3 * 2 * 14 * 14),
        "image_grid_thw": grids,
        "mm_token_type_ids": (inputs["input_ids"] == IMAGE).int(),
    }


FAMILIES = {
    "llava": (llava, llava_inputs),
    "llava_next": (llava_next, llava_next_inputs),
    "internvl": (internvl, internvl_inputs),
    "qwen2_5_vl": (qwen2_5_vl, qwen_inputs),
    "qwen3_vl": (qwen3_vl, qwen_inputs),
}


def alone(inputs, b):
    """One sample of a batch, without its padding."""
    real = inputs["attention_mask"][b].bool()
    one = {}
    for name, x in inputs.items():
        one[name] = x[b : b + 1, real] if x.shape == inputs["attention_mask"].shape else x[b : b + 1]
    if "image_grid_thw" in inputs:
        one["pixel_values"] = inputs["pixel_values"].split(inputs["image_grid_thw"].prod(1).tolist())[b]
    return one


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
    """Logits of `tokens` by the whole model on all rows, without a cache: dropped columns masked layer by layer.

    Where a stage merges rows, the one that owns them becomes their mean; one with `generated` is for what comes after.
    """
    ids, there = inputs["input_ids"], inputs["attention_mask"].bool()
    rows, new = ids.shape[1], tokens.shape[1] - 1
    ids = torch.cat([ids, tokens[:, :-1]], 1)
    there = torch.cat([there, torch.ones_like(tokens[:, :-1], dtype=torch.bool)], 1)
    causal = torch.ones(rows + new, rows + new, dtype=torch.bool).tril()

    def merged(hidden, before, stage):
        """`before`: the rows that were left."""
        hidden = hidden.clone()
        for b, owner in enumerate(stage["owner"]):
            for row in owner[owner >= 0].unique():
                hidden[b, row] = hidden[b, before[b][owner == row]].mean(0)
        return hidden

    def hook(layer, module, args, kwargs):
        before = torch.arange(rows).expand(len(ids), -1)
        for stage in stages:
            if stage["layer"] == layer and "owner" in stage:
                args = (merged(args[0], before, stage), *args[1:])
            before = stage["index"]
        seen = there[:, None].repeat(1, rows + new, 1)
        for stage in stages:
            if stage["layer"] <= layer:
                first = rows + stage["generated"] if "generated" in stage else 0
                for b, index in enumerate(stage["index"]):
                    seen[b, first:, :rows] = False
                    seen[b, first:, index[index >= 0]] = True
        # A row without a column would be NaN.
        mask = causal & seen[:, None] | torch.eye(rows + new, dtype=torch.bool)
        eager = model.config._attn_implementation == "eager"
        kwargs["attention_mask"] = torch.where(mask, 0.0, -torch.inf) if eager else mask
        return args, kwargs

    layers = model.base_model.language_model.layers
    hooks = [
        layer.register_forward_pre_hook(functools.partial(hook, k), with_kwargs=True) for k, layer in enumerate(layers)
    ]
    more = {name: x for name, x in inputs.items() if name not in ("input_ids", "attention_mask")}
    if "mm_token_type_ids" in more:
        more["mm_token_type_ids"] = torch.nn.functional.pad(more["mm_token_type_ids"], (0, new))
    position = model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))
    position = torch.cat([position, position[..., -1:] + torch.arange(1, new + 1)], -1)
    try:
        out = model(input_ids=ids, attention_mask=there.long(), position_ids=position, use_cache=False, **more)
    finally:
        for each in hooks:
            each.remove()
    return out.logits[:, rows - 1 :]
