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
from .pyramid import select
from .rules import Count, counted
from .tower import TOWERS, TowerHandle, last_merging

__all__ = ["ENCODER_RULES", "Features", "Selection", "attend", "marked", "project"]


class Seen:
    """What a layer of the tower has shown: class attention ``[B, n]``, keys averaged over heads ``[B, n, d]``.

    `stay` is the mask ``[B, n]`` of a method that has merged patches before they were projected.
    """

    attention: Tensor
    metric: Tensor
    stay: Tensor


class Features(NamedTuple):
    """What a vision tower gives: of each image or video ``[n, D]``, its arguments, what was seen on the way, itself."""

    each: list[Tensor]
    given: dict[str, Any]
    seen: Seen
    encode: Callable[..., Any]

    @property
    def sizes(self) -> list[int]:
        return [len(x) for x in self.each]


class Selection(NamedTuple):
    """`choose` returns a mask of all features one after the other, or features in place, NaN where there is none.

    `tower` is the layer whose attention it needs, `merge` changes patches before they are projected, `install` puts
    more hooks in.
    """

    name: str
    choose: Callable[[Features], Union[Tensor, list[Tensor]]]
    function: str = "get_image_features"
    tower: Optional[torch.nn.Module] = None
    merge: Optional[Callable[[Tensor, Seen], Tensor]] = None
    install: Optional[Callable[[], Hooks]] = None


_SEEN: contextvars.ContextVar[Optional[Seen]] = contextvars.ContextVar("pyramid_ops_tower", default=None)


def attend(layer: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Hook of a layer of the tower: what its patches receive from the class token."""
    seen = _SEEN.get()
    if seen is not None:
        hidden = args[0] if args else kwargs["hidden_states"]
        heads = queries_and_keys(layer.self_attn, layer.layer_norm1(hidden), None)
        seen.attention = methods.class_attention(heads.query, heads.key, scale=heads.scale)
        seen.metric = heads.key[:, :, 1:].mean(1)


def project(merge: Callable[[Tensor, Seen], Tensor], projector: Any, args: Any) -> Any:
    """Hook of the projector: merged patches in the place of their owners."""
    seen = _SEEN.get()
    return None if seen is None else (merge(args[0], seen), *args[1:])


def marked(selection: Selection, original: Callable[..., Any], given: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """The tower's output with NaN for what is dropped: the marks go where the features go."""
    seen = Seen()
    token = _SEEN.set(seen)
    try:
        output = original(*args, **kwargs)
    finally:
        _SEEN.reset(token)
    pooled = output.pooler_output
    features = Features(list(pooled), given, seen, original)
    each = selection.choose(features)
    if isinstance(each, Tensor):
        stay = each.split(features.sizes)
        each = [torch.where(keep[:, None], x, torch.nan) for keep, x in zip(stay, features.each, strict=True)]
    output.pooler_output = torch.stack(each) if isinstance(pooled, Tensor) else type(pooled)(each)
    return output


def _greedy(features: Features, count: Callable[[int], int], rule: str, relevance: Optional[Tensor]) -> Tensor:
    sizes = features.sizes
    bounds = torch.tensor([0, *sizes]).cumsum(0).to(features.each[0].device)
    counts = [count(size) for size in sizes]
    options: dict[str, Any] = {"rule": rule, "relevance": relevance, "order": "index", "max_seqlen": max(sizes)}
    return plans.mask(greedy_select(torch.cat(features.each), counts, cu_seqlens=bounds, **options))


def _divprune(model: Any, keep: Count = 0.1) -> Selection:
    count = counted("divprune", "keep", keep)
    return Selection("divprune", lambda features: _greedy(features, count, "maxmin", None))


def _cdpruner(model: Any, relevance: Callable[[list[Tensor]], Sequence[Tensor]], keep: Count = 0.1) -> Selection:
    count = counted("cdpruner", "keep", keep)

    def choose(features: Features) -> Tensor:
        scores = list(relevance(features.each))
        if [len(x) for x in scores] != features.sizes:
            raise ValueError(
                f"cdpruner: relevance: expected scores of {features.sizes} tokens, got {list(map(len, scores))}"
            )
        return _greedy(features, count, "dpp", torch.cat(scores))

    return Selection("cdpruner", choose)


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
        return plans.mask(
            methods.fastervlm(features.seen.attention, keep=count(features.seen.attention.shape[1]))
        ).flatten()

    return Selection("fastervlm", choose, tower=_tower_layer("fastervlm", model, layer))


def _prumerge_select(model: Any, factor: float = 1.5, layer: Optional[int] = None) -> Selection:
    def choose(features: Features) -> Tensor:
        return plans.mask(methods.prumerge_select(features.seen.attention, factor=factor)).flatten()

    return Selection("prumerge_select", choose, tower=_tower_layer("prumerge_select", model, layer))


def _vispruner(model: Any, keep: int = 64, important: Optional[int] = None, layer: Optional[int] = None) -> Selection:
    important = keep // 2 if important is None else important

    def choose(features: Features) -> Tensor:
        x = torch.stack(features.each)
        return plans.mask(methods.vispruner(x, features.seen.attention, keep=keep, important=important)).flatten()

    return Selection("vispruner", choose, tower=_tower_layer("vispruner", model, layer))


def _pyramid(
    model: Any,
    keep: int,
    levels: int = 3,
    weights: Union[str, Sequence[float], None] = "falling",
    saliency: Any = "variance",
    level_embedding: Optional[Tensor] = None,
) -> Selection:
    patch = model.config.vision_config.patch_size

    def choose(features: Features) -> list[Tensor]:
        finest = torch.stack(features.each)
        if keep > finest.shape[1]:
            raise ValueError(f"pyramid: keep: expected at most {finest.shape[1]}, the placeholders, got {keep}")
        given = {name: x for name, x in features.given.items() if name not in ("pixel_values", "kwargs", "return_dict")}
        options = (keep, levels, weights, saliency, level_embedding)
        kept = select(features.encode, finest, features.given["pixel_values"], patch, given, *options)
        filled = torch.full_like(finest, torch.nan)
        filled[:, :keep] = kept.tokens
        return list(filled)

    return Selection("pyramid", choose)


def _visionzip(model: Any, dominant: int = 54, contextual: int = 10, layer: Optional[int] = None) -> Selection:
    def merge(x: Tensor, seen: Seen) -> Tensor:
        first, rest = methods.visionzip(seen.attention, seen.metric, dominant=dominant, contextual=contextual)
        seen.stay = plans.mask(first) | plans.mask(rest)
        return x.scatter(1, rest.indices[..., None].expand(-1, -1, x.shape[2]), plans.apply(rest, x))

    def choose(features: Features) -> Tensor:
        return features.seen.stay.flatten()

    return Selection("visionzip", choose, tower=_tower_layer("visionzip", model, layer), merge=merge)


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
    "cdpruner": _cdpruner,
    "divprune": _divprune,
    "evs": _evs,
    "fastervlm": _fastervlm,
    "prumerge_select": _prumerge_select,
    "pyramid": _pyramid,
    "tome": _tome,
    "visionzip": _visionzip,
    "vispruner": _vispruner,
}
