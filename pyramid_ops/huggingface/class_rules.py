"""Methods before the language model that ask the tower's class token which patches matter."""

import math
from collections.abc import Callable
from typing import Any, Optional, cast

import torch
from torch import Tensor

from .. import _checks as check
from .. import methods, plans
from ..results import Keep
from .rules import Count, counted, late
from .selection import Features, Seen, Selection, Tower

__all__ = ["CLASS_RULES"]


def _tower(op: str, model: Any, **looks: Optional[int]) -> Tower:
    """The tower and the layers that are looked at; by default the one whose features are read."""
    config, vision, read = model.config, model.base_model.vision_tower, "vision_feature_layer"
    kind, strategy = config.vision_config.model_type, config.vision_feature_select_strategy
    if kind not in ("clip_vision_model", "internvl_vision"):
        expected = "a tower with a class token, 'clip_vision_model' or 'internvl_vision'"
        raise ValueError(f"{op}: model: expected {expected}, got {kind!r}")
    if strategy != "default":
        raise ValueError(f"{op}: vision_feature_select_strategy: expected 'default', patches alone, got {strategy!r}")
    clip = kind == "clip_vision_model"
    layers = vision.encoder.layers if clip else vision.encoder.layer
    given = []
    for name, layer in looks.items():
        if layer is None:
            name, layer = read, getattr(config, read)
            if isinstance(layer, int) and layer >= 0:  # of hidden states, the first of which no layer makes
                layer = layer - 1 if layer else None
        if not isinstance(layer, int) or not -len(layers) <= layer < len(layers):
            got = getattr(config, read) if name == read else layer
            raise ValueError(f"{op}: {name}: expected one of the {len(layers)} layers of the tower, got {got!r}")
        given.append(layer)
    if clip:
        return Tower(layers, "self_attn", "layer_norm1", tuple(given))

    def fold(x: Tensor) -> Tensor:
        side = math.isqrt(x.shape[1])
        shuffled = model.base_model.pixel_shuffle(x.unflatten(1, (side, side)), scale_factor=config.downsample_ratio)
        return shuffled.flatten(1, 2)

    return Tower(layers, "attention", "layernorm_before", tuple(given), fold)


def _fastervlm(model: Any, keep: Count = 0.25, layer: Optional[int] = None) -> Selection:
    count = counted("fastervlm", "keep", keep)

    def choose(features: Features) -> Tensor:
        seen = features.seen
        attention = seen.attention[0]
        return seen.spread(
            plans.mask(methods.fastervlm(attention, keep=count(attention.shape[1]), key_mask=seen.present))
        )

    return Selection("fastervlm", choose, tower=_tower("fastervlm", model, layer=layer))


def _prumerge_select(model: Any, factor: float = 1.5, layer: Optional[int] = None) -> Selection:
    check.number("prumerge_select", "factor", factor)

    def choose(features: Features) -> Tensor:
        seen = features.seen
        return seen.spread(plans.mask(methods.prumerge_select(seen.attention[0], factor=factor, key_mask=seen.present)))

    return Selection("prumerge_select", choose, tower=_tower("prumerge_select", model, layer=layer))


def _stay(features: Features) -> Tensor:
    return cast(Tensor, features.seen.stay).flatten()


def _prumerge(
    model: Any,
    keep: Optional[Count] = None,
    factor: float = 1.5,
    plus: bool = False,
    neighbours: int = 32,
    layer: Optional[int] = None,
) -> Selection:
    tower = _tower("prumerge", model, layer=layer)
    count = None if keep is None else counted("prumerge", "keep", keep)
    check.number("prumerge", "factor", factor)
    check.flag("prumerge", "plus", plus)

    def chosen(attention: Tensor) -> Keep:
        best = None if count is None else count(attention.shape[1])
        if plus:
            return methods.prumerge_plus_select(attention, keep=best, factor=factor)
        if best is None:
            return methods.prumerge_select(attention, factor=factor)
        return plans.keep(attention, best)

    def merge(x: Tensor, seen: Seen) -> Tensor:
        attention, size = seen.attention[0], x.shape[1]
        key = cast(Tensor, seen.key).transpose(1, 2).flatten(2)
        key = key if tower.fold is None else tower.fold(key)
        plan = chosen(attention)
        tokens, rest = methods.prumerge(x, key, attention, plan, neighbours=min(neighbours, size - 1))
        stay = plans.mask(plan)
        first = (~stay).to(torch.int8).argmax(1, keepdim=True)  # of those that go: the place of what they become
        seen.stay = stay.scatter(1, first, True)
        tokens = torch.cat([tokens, rest], 1)
        place = torch.cat([plan.indices, torch.where(stay.all(1, keepdim=True), -1, first)], 1)
        place = torch.where(place < 0, size, place)[..., None].expand_as(tokens)
        return torch.cat([x, x[:, :1]], 1).scatter(1, place, tokens)[:, :size]

    return Selection("prumerge", _stay, tower=tower, merge=merge)


def _hired(
    model: Any, keep: Count = 0.2, alpha: float = 0.5, shallow: int = 0, deep: Optional[int] = None
) -> Selection:
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    count, config = counted("hired", "keep", keep), model.config

    def choose(features: Features) -> Tensor:
        seen, side = features.seen, config.vision_config.image_size // config.vision_config.patch_size
        places, present = cast(Tensor, seen.places), cast(Tensor, seen.present)
        stay, first = torch.zeros_like(present), 0
        for size, own in zip(features.given["image_sizes"], places.split(features.sizes), strict=True):
            tiles = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
            these = slice(first, first + 1 + math.prod(tiles))
            plan = methods.hired(
                seen.attention[0][first : first + 1],
                seen.attention[1][None, these],
                keep=count(int((own >= 0).sum())),
                grid=(side, side),
                tiles=tiles,
                alpha=alpha,
                key_mask=present[None, these],
            )
            stay[these], first = plans.mask(plan), these.stop
        return seen.spread(stay)

    return Selection("hired", choose, tower=_tower("hired", model, shallow=shallow, deep=deep))


def _vispruner(model: Any, keep: Count = 64, important: Optional[int] = None, layer: Optional[int] = None) -> Selection:
    count = counted("vispruner", "keep", keep)
    if important is not None:
        check.integer("vispruner", "important", important, 0)

    def choose(features: Features) -> Tensor:
        x, attention = torch.stack(features.each), features.seen.attention[0]
        number = count(attention.shape[1])
        first = number // 2 if important is None else important
        return plans.mask(methods.vispruner(x, attention, keep=number, important=first)).flatten()

    return Selection("vispruner", choose, tower=_tower("vispruner", model, layer=layer))


def _visionzip(model: Any, dominant: int = 54, contextual: int = 10, layer: Optional[int] = None) -> Selection:
    def merge(x: Tensor, seen: Seen) -> Tensor:
        attention, metric = seen.attention[0], cast(Tensor, seen.metric)
        first, rest = methods.visionzip(attention, metric, dominant=dominant, contextual=contextual)
        seen.stay = plans.mask(first) | plans.mask(rest)
        return x.scatter(1, rest.indices[..., None].expand(-1, -1, x.shape[2]), plans.apply(rest, x))

    return Selection("visionzip", _stay, tower=_tower("visionzip", model, layer=layer), merge=merge)


def _vscan(
    model: Any,
    keep: Count = 0.25,
    window: tuple[int, int] = (6, 6),
    shallow: int = 6,
    deep: Optional[int] = None,
    layer: Optional[int] = 16,
    keep_inside: Count = 0.5,
) -> Selection:
    count = counted("vscan", "keep", keep)

    def merge(x: Tensor, seen: Seen) -> Tensor:
        size, side = x.shape[1], math.isqrt(x.shape[1])
        plan = methods.vscan(
            x, *(seen.attention[k] for k in range(2)), keep=count(size), grid=(side, side), window=window
        )
        seen.stay = plans.mask(plan)
        return x.scatter(1, plan.indices[..., None].expand(-1, -1, x.shape[2]), plans.apply(plan, x))

    depth = len(model.base_model.language_model.layers)
    inside = None if layer is None else late("vscan", depth, layer, keep_inside)
    tower = _tower("vscan", model, shallow=shallow, deep=deep)
    return Selection("vscan", _stay, tower=tower, merge=merge, inside=inside)


#: (model, options) → Selection.
CLASS_RULES: dict[str, Callable[..., Selection]] = {
    "fastervlm": _fastervlm,
    "hired": _hired,
    "prumerge": _prumerge,
    "prumerge_select": _prumerge_select,
    "visionzip": _visionzip,
    "vispruner": _vispruner,
    "vscan": _vscan,
}
