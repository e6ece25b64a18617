"""Image tokens that go while tokens are generated: rows of the cache."""

import functools
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from .. import plans
from ..cost import score_flops
from .capture import Heads
from .lengths import count_prompt
from .prompt import Prompt, Stage
from .rules import Later

__all__ = ["Generated", "check_cache"]


class Generated:
    """The queries of the tokens generated so far in one layer, ``[B, H, 1, D]`` each."""

    def __init__(self, later: Later):
        self.later = later
        self.heads: list[Heads] = []
        self.width = 0

    def see(self, heads: Heads, hidden: Tensor) -> None:
        self.heads.append(heads)
        self.width = hidden.shape[2]

    def prune(self, prompt: Prompt, cache: Any) -> None:
        """Once every so many tokens, before the next one: what goes of each layer's keys and values."""
        later, count, entry = self.later, len(self.heads), prompt.entry
        if not count or count % later.every:
            return
        kept = [min(later.keep(n, count), left) for n, left in zip(prompt.images, prompt.kept, strict=True)]
        if kept == prompt.kept:
            return
        prompt.kept = kept
        left = prompt.left
        rows = left["index"].shape[1]
        after = torch.ones_like(left["image"][:, :1]).expand(-1, count) if entry is None else entry[:, prompt.rows :]
        real = torch.cat([left["real"], after[:, :count].expand(len(left["real"]), -1)], 1)
        image = torch.nn.functional.pad(left["image"], (0, count))
        plan = later.rule(
            torch.cat([heads.query for heads in self.heads], 2),
            cache.layers[later.layer].keys,
            image,
            keep=kept if len(kept) <= 256 else torch.tensor(kept, device=image.device),
            key_mask=real if prompt.padded or entry is not None else None,
            capacity=max(prompt.counts()) + count,
            **self.heads[0].options,
        )
        held = [x for layer in cache.layers for x in (layer.keys, layer.values)]
        index = torch.nn.functional.pad(left["index"], (0, count), value=-1)
        fill = [0] * (len(held) + 2) + [-1]
        *held, image, real, index = plans.apply(plan, [*held, image, real, index], align="right", fill=fill)
        for layer, key, value in zip(cache.layers, held[::2], held[1::2], strict=True):
            layer.keys, layer.values = key, value
        prompt.left = {name: x[:, :-count] for name, x in (("index", index), ("image", image), ("real", real))}
        prompt.padded = min(prompt.counts()) < prompt.left["index"].shape[1]
        stage = Stage(0, prompt.counts(), prompt.left["index"], prompt.left["real"] if prompt.padded else None, None)
        prompt.stages = [stage]
        (_, heads, _, size), keys = self.heads[0].query.shape, self.heads[0].key.shape[1]
        projected = score_flops(later.every, 0, self.width, heads * size, 2 * keys * size)
        stage.scoring = len(kept) * (projected + score_flops(rows + count, count, 0, heads * size, 0))
        prompt.report.append(stage.stats() | {"generated": count})
        count_prompt(cache)


def check_cache(method: str, cache: Any) -> None:
    """Whether rows can be taken from it."""
    if not isinstance(cache, DynamicCache) or cache.offloading:
        got = "one that is offloaded" if isinstance(cache, DynamicCache) else type(cache).__name__
        raise ValueError(f"{method}: cache: expected a DynamicCache, whose rows can go, got {got}")
    cache.reorder_cache = functools.partial(_refuse, method)


def _refuse(method: str, *_: Any) -> None:
    raise ValueError(f"{method}: num_beams: expected 1, since beams of a sample would keep different tokens")
