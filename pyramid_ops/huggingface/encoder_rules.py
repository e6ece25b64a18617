"""Methods before the language model: which of the features of an image or video stay."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from .. import methods, plans
from ..ops.greedy import greedy_select
from .class_rules import CLASS_RULES
from .pyramid import select
from .rules import Count, counted
from .selection import Features, Selection
from .tower import TOWERS, TowerHandle, last_merging

__all__ = ["ENCODER_RULES"]


def _greedy(features: Features, count: Callable[[int], int], rule: str, relevance: Optional[Tensor]) -> Tensor:
    sizes = features.sizes
    bounds = torch.tensor([0, *sizes]).cumsum(0).to(features.each[0].device)
    counts = [count(size) for size in sizes]
    for size, picks in zip(sizes, counts, strict=True):
        features.seen.flops += 2 * size * picks * features.each[0].shape[1]
    options: dict[str, Any] = {"rule": rule, "relevance": relevance, "order": "index", "max_seqlen": max(sizes)}
    return plans.mask(greedy_select(torch.cat(features.each), counts, cu_seqlens=bounds, **options))


def _divprune(model: Any, keep: Count = 0.1) -> Selection:
    count = counted("divprune", "keep", keep)
    return Selection("divprune", lambda features: _greedy(features, count, "maxmin", None))


def _cdpruner(model: Any, relevance: Callable[[list[Tensor]], Sequence[Tensor]], keep: Count = 0.1) -> Selection:
    count = counted("cdpruner", "keep", keep)
    if not callable(relevance):
        raise TypeError(f"cdpruner: relevance: expected a callable, got {check.describe(relevance)}")

    def choose(features: Features) -> Tensor:
        scores = relevance(features.each)
        if not isinstance(scores, (list, tuple)) or not all(isinstance(x, Tensor) for x in scores):
            raise TypeError(f"cdpruner: relevance: expected a list of tensors [n], got {check.describe(scores)}")
        if (sizes := [list(x.shape) for x in scores]) != [[size] for size in features.sizes]:
            raise ValueError(f"cdpruner: relevance: expected scores of {features.sizes} tokens, got {sizes}")
        return _greedy(features, count, "dpp", torch.cat(scores))

    return Selection("cdpruner", choose)


def _pyramid(
    model: Any,
    keep: Count,
    levels: int = 3,
    weights: Union[str, Sequence[float], None] = "falling",
    saliency: Any = "variance",
    level_embedding: Optional[Tensor] = None,
) -> Selection:
    patch, count = model.config.vision_config.patch_size, counted("pyramid", "keep", keep)

    def choose(features: Features) -> list[Tensor]:
        finest = torch.stack(features.each)
        number = count(finest.shape[1])
        if keep > finest.shape[1]:
            raise ValueError(f"pyramid: keep: expected at most {finest.shape[1]}, the placeholders, got {keep}")
        given = {name: x for name, x in features.given.items() if name not in ("pixel_values", "kwargs", "return_dict")}
        options = (number, levels, weights, saliency, level_embedding)

        def encode(**images: Any) -> Any:
            output = features.encode(**images)
            features.seen.check(list(output.pooler_output))
            return output

        kept = select(encode, finest, features.given["pixel_values"], patch, given, *options)
        filled = torch.full_like(finest, torch.nan)
        filled[:, :number] = kept.tokens
        return list(filled)

    return Selection("pyramid", choose)


def _evs(model: Any, rate: float = 0.75) -> Selection:
    if not 0 <= check.number("evs", "rate", rate) < 1:
        raise ValueError(f"evs: rate: expected a share from 0 to 1 that goes, less than 1, got {rate}")

    def choose(features: Features) -> Tensor:
        frames = features.given["video_grid_thw"][:, 0].tolist()
        stay = []
        for x, count in zip(features.each, frames, strict=True):
            size = len(x) // count
            keep = methods.retained.evs(size, count, rate)
            features.seen.flops += 2 * (count - 1) * size * x.shape[1]
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
    "pyramid": _pyramid,
    "tome": _tome,
    **CLASS_RULES,
}
