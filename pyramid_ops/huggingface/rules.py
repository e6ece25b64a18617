"""When a method scores, what it scores with, and how many image tokens it leaves."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from .. import methods
from ..results import Keep

__all__ = ["RULES", "Count", "Method", "Scene", "Step", "custom"]

#: How many image tokens stay: a number of them, or a share from 0 to 1 of those in the prompt.
Count = Union[int, float]


class Scene(NamedTuple):
    """What a rule sees of a prompt inside the language model; L rows are left of it, padded on the left.

    Attributes
    ----------
    layer : int
        The layer whose queries and keys these are.
    query, key : Tensor
        After rotary embedding, ``[B, H, L, D]`` and ``[B, Hkv, L, D]``.
    hidden : Tensor
        ``[B, L, D]``: what goes into the layer.
    image, text : Tensor
        bool ``[B, L]``; padding is neither.
    key_mask : Tensor or None
        bool ``[B, L]``: the rows that are not padding; None where all are.
    marks : Tensor or None
        bool ``[B, L]``: rows that the method has marked as the prompt came in.
    keep : list of int
        How many image tokens of each sample shall stay.
    capacity : int
        Rows of the plan: the most tokens that a sample keeps, text and all.
    options : dict
        `scale` and, where the model has one, `softcap`, as :func:`pyramid_ops.attention_importance` takes them.
    """

    layer: int
    query: Tensor
    key: Tensor
    hidden: Tensor
    image: Tensor
    text: Tensor
    key_mask: Optional[Tensor]
    marks: Optional[Tensor]
    keep: list[int]
    capacity: int
    options: dict[str, Any]

    @property
    def arguments(self) -> dict[str, Any]:
        """What :mod:`pyramid_ops.methods` take beside queries, keys and image."""
        keep = self.keep if len(self.keep) <= 256 else torch.tensor(self.keep, device=self.hidden.device)
        return {"keep": keep, "key_mask": self.key_mask, "capacity": self.capacity, **self.options}


Rule = Callable[[Scene], Keep]


class Step(NamedTuple):
    """Image tokens go before layer `drop`, by the queries and keys of layer `score`: ``keep(n₀)`` of them stay."""

    score: int
    drop: int
    keep: Callable[[int], int]


class Method(NamedTuple):
    """Steps by ascending layer, and marks that are made of (hidden, image, text) as the prompt comes in."""

    name: str
    rule: Rule
    steps: list[Step]
    marks: Optional[Callable[[Tensor, Tensor, Tensor], Tensor]] = None
    #: Whether plans hold just what `keep` says, so that nobody has to look.
    exact: bool = True
    padding: bool = True


def _count(op: str, name: str, keep: Any) -> Callable[[int], int]:
    if isinstance(keep, float):
        if not 0 <= keep <= 1:
            raise ValueError(f"{op}: {name}: expected a share from 0 to 1 or a number of tokens, got {keep}")
        return lambda tokens: int(tokens * keep)
    number = check.integer(op, name, keep, 0)
    return lambda tokens: min(tokens, number)


def _stages(op: str, depth: int, layers: Sequence[int], keep: Any, ahead: int) -> list[Step]:
    """A step before each of the layers, scored `ahead` layers before."""
    counts = check.sequence(op, "keep", keep)
    if len(counts) != len(layers):
        raise ValueError(f"{op}: keep: expected {len(layers)} of them, one for each layer, got {len(counts)}")
    steps: list[Step] = []
    for k, (layer, count) in enumerate(zip(layers, counts, strict=True)):
        layer = check.integer(op, f"layers[{k}]", layer, 1)
        if layer >= depth:
            raise ValueError(f"{op}: layers[{k}]: expected less than {depth}, the layers of the model, got {layer}")
        if steps and layer <= steps[-1].drop:
            raise ValueError(f"{op}: layers[{k}]: expected more than {steps[-1].drop}, the one before, got {layer}")
        steps.append(Step(layer - ahead, layer, _count(op, f"keep[{k}]", count)))
    return steps


def _fastv(depth: int, layer: int = 2, keep: Count = 0.5) -> Method:
    def rule(scene: Scene) -> Keep:
        return methods.fastv(scene.query, scene.key, scene.image, **scene.arguments)

    return Method("fastv", rule, _stages("fastv", depth, [layer], [keep], 1))


def _pyramiddrop(
    depth: int, layers: Optional[Sequence[int]] = None, keep: Sequence[Count] = (0.5, 0.25, 0.125)
) -> Method:
    def rule(scene: Scene) -> Keep:
        return methods.pyramiddrop(scene.query, scene.key, scene.image, **scene.arguments)

    layers = [depth // 4, depth // 2, depth * 3 // 4] if layers is None else layers
    return Method("pyramiddrop", rule, _stages("pyramiddrop", depth, layers, keep, 0))


def custom(rule: Rule, depth: int, layer: int = 2, keep: Count = 0.5) -> Method:
    """A user's own rule, before one layer, by the queries and keys of that layer."""
    name = getattr(rule, "__name__", type(rule).__name__)
    return Method(name, rule, _stages(name, depth, [layer], [keep], 0), exact=False)


#: (layers of the model, options) → Method.
RULES: dict[str, Callable[..., Method]] = {"fastv": _fastv, "pyramiddrop": _pyramiddrop}
