"""Methods before the language model: which of the features of an image or video stay."""

import contextvars
from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from .. import methods, plans
from ..ops.greedy import greedy_select
from .capture import queries_and_keys
from .rules import Count, counted

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
    """`choose` returns a mask of all features one after the other; `tower` is the layer whose attention it needs."""

    name: str
    choose: Callable[[Features], Tensor]
    function: str = "get_image_features"
    tower: Optional[torch.nn.Module] = None


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
    stay = selection.choose(features).split(features.sizes)
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


def _fastervlm(model: Any, keep: Count = 0.25, layer: Optional[int] = None) -> Selection:
    config, count = model.config, counted("fastervlm", "keep", keep)
    tower = config.vision_config.model_type
    if tower != "clip_vision_model":
        raise ValueError(f"fastervlm: model: expected a tower with a class token, 'clip_vision_model', got {tower!r}")
    if config.vision_feature_select_strategy != "default":
        got = config.vision_feature_select_strategy
        raise ValueError(f"fastervlm: vision_feature_select_strategy: expected 'default', patches alone, got {got!r}")
    layer = config.vision_feature_layer if layer is None else layer
    layers = model.base_model.vision_tower.encoder.layers
    if not isinstance(layer, int) or not -len(layers) <= layer < len(layers):
        raise ValueError(f"fastervlm: layer: expected one of the {len(layers)} layers of the tower, got {layer!r}")

    def choose(features: Features) -> Tensor:
        assert features.attention is not None
        size = features.attention.shape[1]
        return plans.mask(methods.fastervlm(features.attention, keep=count(size), capacity=count(size))).flatten()

    return Selection("fastervlm", choose, tower=layers[layer])


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


#: (model, options) → Selection.
ENCODER_RULES: dict[str, Callable[..., Selection]] = {"divprune": _divprune, "evs": _evs, "fastervlm": _fastervlm}
