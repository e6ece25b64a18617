"""What is chosen of a vision tower's features, by what the tower shows on the way."""

import contextvars
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Optional, Union

import torch
from torch import Tensor

from .. import methods
from .capture import flops, queries_and_keys
from .hooks import Hooks
from .rules import Method

__all__ = ["Features", "Seen", "Selection", "Tower", "attend", "marked", "packed", "project"]


class Tower(NamedTuple):
    """The layers of a tower with a class token, whose attention is looked at in some of them.

    `fold` makes features of tokens ``[B, m, F]`` of those of patches ``[B, n, f]``, where a token is several patches.
    """

    layers: Sequence[torch.nn.Module]
    attention: str
    norm: str
    looks: tuple[int, ...]
    fold: Optional[Callable[[Tensor], Tensor]] = None


class Seen:
    """What a tower has shown: class attention ``[B, n]`` of each layer that was looked at, by token.

    Of the last of them also `metric` ``[B, n, d]``, keys averaged over heads, and `key` ``[B, H, …, d]`` of its
    patches. `stay` is the mask ``[B, n]`` of a method that has merged tokens before they were projected. `places`,
    where features of several tiles are packed: which of all patches each feature is, −1 for a new line, on the host;
    `present` ``[B, n]``: the patches that are there. `flops` are operations of scores; `finite`, bool ``[]`` each: of
    features.
    """

    def __init__(self) -> None:
        self.attention: dict[int, Tensor] = {}
        self.metric: Optional[Tensor] = None
        self.key: Optional[Tensor] = None
        self.stay: Optional[Tensor] = None
        self.places: Optional[Tensor] = None
        self.present: Optional[Tensor] = None
        self.flops = 0
        self.finite: list[Tensor] = []

    def check(self, each: Sequence[Tensor]) -> None:
        """Note whether features are finite, since NaN is the mark of those that go: nobody waits for it here."""
        self.finite += [x.isfinite().all() for x in each]

    def spread(self, stay: Tensor) -> Tensor:
        """A mask of patches as one of all features one after the other, with every new line."""
        if self.places is None:
            return stay.flatten()
        places = self.places.to(stay.device)
        return (places < 0) | stay.flatten()[places.clamp(min=0)]


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

    `tower` has the layers whose attention it needs, `merge` changes tokens before they are projected, `install` puts
    more hooks in, `inside` goes on in the language model.
    """

    name: str
    choose: Callable[[Features], Union[Tensor, list[Tensor]]]
    function: str = "get_image_features"
    tower: Optional[Tower] = None
    merge: Optional[Callable[[Tensor, Seen], Tensor]] = None
    install: Optional[Callable[[], Hooks]] = None
    inside: Optional[Method] = None


_SEEN: contextvars.ContextVar[Optional[Seen]] = contextvars.ContextVar("pyramid_ops_tower", default=None)


def attend(tower: Tower, look: int, layer: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Hook of a layer of the tower: what its tokens receive from the class token."""
    seen = _SEEN.get()
    if seen is None:
        return
    hidden = args[0] if args else kwargs["hidden_states"]
    heads = queries_and_keys(getattr(layer, tower.attention), getattr(layer, tower.norm)(hidden), None)
    attention = methods.class_attention(heads.query, heads.key, scale=heads.scale)
    metric = heads.key[:, :, 1:].mean(1)
    seen.flops += flops(heads, hidden.shape[2], [1] * len(hidden))
    if tower.fold is not None:
        attention, metric = tower.fold(attention[..., None]).mean(2), tower.fold(metric)
    seen.attention[look] = attention
    if look == len(tower.looks) - 1:
        seen.metric, seen.key = metric, heads.key[:, :, 1:]


def project(merge: Callable[[Tensor, Seen], Tensor], projector: Any, args: Any) -> Any:
    """Hook of the projector: merged tokens in the place of their owners."""
    seen = _SEEN.get()
    return None if seen is None else (merge(args[0], seen), *args[1:])


def packed(original: Callable[..., Any], image_features: Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
    """In place of ``pack_image_features``: the numbers of patches go the same way as their features."""
    seen = _SEEN.get()
    if seen is not None:
        tiles, size = sum(len(x) for x in image_features), image_features[0].shape[1]
        numbers = torch.arange(tiles * size).view(tiles, size, 1).split([len(x) for x in image_features])
        given = inspect.signature(original).bind(numbers, *args, **kwargs).arguments
        line = None if given.get("image_newline") is None else torch.tensor([-1])
        places = torch.cat(original(**given | {"image_newline": line})[0])[:, 0]
        present = torch.zeros(tiles * size, dtype=torch.bool)
        present[places[places >= 0]] = True
        seen.places, seen.present = places, present.view(tiles, size).to(image_features[0].device)
    return original(image_features, *args, **kwargs)


def marked(
    selection: Selection, original: Callable[..., Any], given: dict[str, Any], *args: Any, **kwargs: Any
) -> tuple[Any, Seen]:
    """The tower's output with NaN for what is dropped, so that the marks go where the features go; what was seen."""
    seen = Seen()
    token = _SEEN.set(seen)
    try:
        output = original(*args, **kwargs)
    finally:
        _SEEN.reset(token)
    pooled = output.pooler_output
    features = Features(list(pooled), given, seen, original)
    seen.check(features.each)
    each = selection.choose(features)
    if isinstance(each, Tensor):
        stay = each.split(features.sizes)
        each = [torch.where(keep[:, None], x, torch.nan) for keep, x in zip(stay, features.each, strict=True)]
    output.pooler_output = torch.stack(each) if isinstance(pooled, Tensor) else type(pooled)(each)
    return output, seen
