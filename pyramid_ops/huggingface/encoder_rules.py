"""Methods before the language model: which of the features of an image or video stay."""

import contextvars
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Optional, Union

import torch
from torch import Tensor

from .. import methods, plans
from ..ops.greedy import greedy_select
from .capture import queries_and_keys
from .hooks import Hooks
from .rules import Count, counted
from .tower import TOWERS, TowerHandle, last_merging

__all__ = ["ENCODER_RULES", "Features", "Selection", "attend", "marked"]


class Features(NamedTuple):
    """What a vision tower gives: of each image or video ``[n, D]``, its arguments, and class attention ``[B, n]``."""

    each: list[Tensor]
    given: dict[str, Any]
    attention: Optional[Tensor]

    @property
    def sizes(self) -> list[int]:
        return [len(x) for x in self.each]


class Selection(NamedTuple):
    """`choose` returns a mask of all features one after the other, or features in place, NaN where there is none.

    `tower` is the layer whose attention it needs, `install` puts more hooks in.
    """

    name: str
    choose: Callable[[Features], Union[Tensor, list[Tensor]]]
    function: str = "get_image_features"
    tower: Optional[torch.nn.Module] = None
    install: Optional[Callable[[], Hooks]] = None


_ATTENTION: contextvars.ContextVar[Optional[list[Tensor]]] = contextvars.ContextVar("pyramid_ops_tower", default=None)


def attend(layer: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Hook of a layer of the tower: what its patches receive from the class token."""
    found = _ATTENTION.get()
    if found is not None:
        hidden = args[0] if args else kwargs["hidden_states"]
        heads = queries_and_keys(layer.self_attn, layer.layer_norm1(hidden), None)
        found.append(methods.class_attention(heads.query, heads.key, scale=heads.scale))


def marked(selection: Selection, original: Callable[..., Any], given: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """The tower's output with NaN for what is dropped: the marks go where the features go."""
    found: list[Tensor] = []
    token = _ATTENTION.set(found)
    try:
        output = original(*args, **kwargs)
    finally:
        _ATTENTION.reset(token)
    pooled = output.pooler_output
    features = Features(list(pooled), given, found[0] if found else None)
    each = selection.choose(features)
    if isinstance(each, Tensor):
        stay = each.split(features.sizes)
        each = [torch.where(keep[:, None], x, torch.nan) for keep, x in zip(stay, features.each, strict=True)]
    output.pooler_output = torch.stack(each) if isinstance(pooled, Tensor) else type(pooled)(each)
    return output


def _divprune(model: Any, keep: Count = 0.1) -> Selection:
    count = counted("divprune", "keep", keep)

    def choose(features: Features) -> Tensor:
        sizes = features.sizes
        bounds = torch.tensor([0, *sizes]).cumsum(0).to(features.each[0].device)
        counts = [count(size) for size in sizes]
        plan = greedy_select(torch.cat(features.each), counts, cu_seqlens=bounds, max_seqlen=max(sizes), order="index")
        return plans.mask(plan)

    return Selection("divprune", choose)


def _tower_layer(op: str, model: Any, layer: Optional[int]) -> torch.nn.Module:
    """The layer of a CLIP tower whose class token says what matters; by default that whose features are read."""
    config = model.config
    tower, strategy = config.vision_config.model_type, config.vision_feature_select_strategy
    if tower != "clip_vision_model":
        raise ValueError(f"{op}: model: expected a tower with a class token, 'clip_vision_model', got {tower!r}")
    if strategy != "default":
        raise ValueError(f"{op}: vision_feature_select_strategy: expected 'default', patches alone, got {strategy!r}")
    layer = config.vision_feature_layer if layer is None else layer
    layers = model.base_model.vision_tower.encoder.layers
    if not isinstance(layer, int) or not -len(layers) <= layer < len(layers):
        raise ValueError(f"{op}: layer: expected one of the {len(layers)} layers of the tower, got {layer!r}")
    return layers[layer]


def _fastervlm(model: Any, keep: Count = 0.25, layer: Optional[int] = None) -> Selection:
    count = counted("fastervlm", "keep", keep)

    def choose(features: Features) -> Tensor:
        assert features.attention is not None
        return plans.mask(methods.fastervlm(features.attention, keep=count(features.attention.shape[1]))).flatten()

    return Selection("fastervlm", choose, tower=_tower_layer("fastervlm", model, layer))


def _prumerge_select(model: Any, factor: float = 1.5, layer: Optional[int] = None) -> Selection:
    def choose(features: Features) -> Tensor:
        assert features.attention is not None
        return plans.mask(methods.prumerge_select(features.attention, factor=factor)).flatten()

    return Selection("prumerge_select", choose, tower=_tower_layer("prumerge_select", model, layer))


def _vispruner(model: Any, keep: int = 64, important: Optional[int] = None, layer: Optional[int] = None) -> Selection:
    important = keep // 2 if important is None else important

    def choose(features: Features) -> Tensor:
        assert features.attention is not None
        x = torch.stack(features.each)
        return plans.mask(methods.vispruner(x, features.attention, keep=keep, important=important)).flatten()

    return Selection("vispruner", choose, tower=_tower_layer("vispruner", model, layer))


def _evs(model: Any, rate: float = 0.75) -> Selection:
    if not 0 <= rate < 1:
        raise ValueError(f"evs: rate: expected a share from 0 to 1 that goes, less than 1, got {rate}")

    def choose(features: Features) -> Tensor:
        frames = features.given["video_grid_thw"][:, 0].tolist()
        stay = []
        for x, count in zip(features.each, frames, strict=True):
            size = len(x) // count
            keep = methods.retained.evs(size, count, rate)
            stay.append(plans.mask(methods.evs(x.view(1, count, size, -1), keep=keep))[0])
        return torch.cat(stay)

    return Selection("evs", choose, function="get_video_features")


def _tome(model: Any, r: Union[int, Sequence[int]] = 8) -> Selection:
    config, tower = model.config, model.base_model.vision_tower
    kind, layer = tower.config.model_type, config.vision_feature_layer
    if kind not in TOWERS or not isinstance(layer, int):
        raise ValueError(
            f"tome: model: expected a tower of {', '.join(TOWERS)} and one layer of it, got {kind}, {layer}"
        )
    first = int(config.vision_feature_select_strategy == "default")  # where the features that are read begin
    if first > TOWERS[kind]:
        raise ValueError(f"tome: vision_feature_select_strategy: expected 'full' for {kind!r}, got 'default'")
    layers = layer if layer >= 0 else len(tower.encoder.layers) + 1 + layer

    def choose(features: Features) -> list[Tensor]:
        merging = last_merging()
        if merging.place is None or merging.rows is None:
            return features.each
        merged = torch.stack(features.each)
        place = (merging.place[:, first:] - first)[..., None].expand_as(merged)
        slots = merged.new_full((len(merged), merging.rows.shape[1] - first, merged.shape[2]), torch.nan)
        return list(slots.scatter(1, place, merged))

    return Selection("tome", choose, install=functools.partial(TowerHandle, tower, r, layers))


#: (model, options) → Selection.
ENCODER_RULES: dict[str, Callable[..., Selection]] = {
    "divprune": _divprune,
    "evs": _evs,
    "fastervlm": _fastervlm,
    "prumerge_select": _prumerge_select,
    "tome": _tome,
    "vispruner": _vispruner,
}
