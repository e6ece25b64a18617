"""When a method scores, what it scores with, and how many image tokens it leaves."""

import functools
from collections.abc import Callable, Sequence
from fractions import Fraction
from numbers import Integral, Real
from typing import Any, NamedTuple, Optional, Union, cast

import torch
from torch import Tensor

from .. import _checks as check
from .. import methods, plans
from ..ops.attention import attention_importance
from ..plans.joined import merge_by_rows
from ..results import Keep, Merge

__all__ = ["RULES", "Count", "Later", "Method", "Plan", "Scene", "Step", "counted", "custom", "late"]

#: How many image tokens stay: a number of them, or a share from 0 to 1 of those in the prompt.
Count = Union[int, float, Fraction]


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
    keep, deleted : list of int
        How many image tokens of each sample shall stay, and how many shall not.
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
    deleted: list[int]
    capacity: int
    options: dict[str, Any]

    @property
    def arguments(self) -> dict[str, Any]:
        """What :mod:`pyramid_ops.methods` take beside queries, keys and image."""
        keep = self.keep if len(self.keep) <= 256 else torch.tensor(self.keep, device=self.hidden.device)
        return {"keep": keep, "key_mask": self.key_mask, "capacity": self.capacity, **self.options}


#: What goes, or a function that says so once it gets what goes into the layer before which tokens go.
Plan = Union[Keep, Merge, Callable[[Tensor], Merge]]
Rule = Callable[[Scene], Plan]


class Step(NamedTuple):
    """Image tokens go before layer `drop`, by the queries and keys of layer `score`: ``keep(n₀)`` of them stay."""

    score: int
    drop: int
    keep: Callable[[int], int]


class Later(NamedTuple):
    """Image tokens go every so many generated tokens, ``keep(n₀, generated)`` stay, by the queries of those in a layer.

    `rule` is that of :func:`pyramid_ops.methods.vscan_decode`.
    """

    layer: int
    every: int
    keep: Callable[[int, int], int]
    rule: Callable[..., Keep]


class Method(NamedTuple):
    """Steps by ascending layer, and marks that are made of (hidden, image, text) as the prompt comes in."""

    name: str
    rule: Optional[Rule]
    steps: list[Step]
    marks: Optional[Callable[[Tensor, Tensor, Tensor], Tensor]] = None
    #: Whether plans hold just what `keep` says, so that nobody has to look.
    exact: bool = True
    #: How many rows are made of so many tokens that a step deletes.
    recycled: Callable[[int], int] = lambda deleted: 0
    later: Optional[Later] = None
    #: Which rows score: "last", "text" or "all" of those that are left; None: nobody knows.
    rows: Optional[str] = None


def _is_share(keep: Any) -> bool:
    return isinstance(keep, Real) and not isinstance(keep, Integral)


def counted(op: str, name: str, keep: Any) -> Callable[[int], int]:
    """How many of so many tokens stay."""
    expected = "a share from 0 to 1 or a number of tokens"
    if _is_share(keep):
        share = keep if isinstance(keep, Fraction) else float(keep)
        if not 0 <= share <= 1:
            raise ValueError(f"{op}: {name}: expected {expected}, got {keep}")
        return lambda tokens: int(tokens * share)
    if isinstance(keep, bool) or not isinstance(keep, Integral):
        raise TypeError(f"{op}: {name}: expected {expected}, got {check.describe(keep)}")
    number = check.integer(op, name, keep, 0)
    return lambda tokens: min(tokens, number)


def _stages(
    op: str, depth: int, layers: Sequence[int], keep: Any, ahead: int, option: Optional[str] = None
) -> list[Step]:
    """A step before each of the layers, scored `ahead` layers before; `option`, if there is one, says the only one."""
    layers, counts = check.sequence(op, "layers", layers), check.sequence(op, "keep", keep)
    if len(counts) != len(layers):
        raise ValueError(f"{op}: keep: expected {len(layers)} of them, one for each layer, got {len(counts)}")
    steps: list[Step] = []
    for k, (layer, count) in enumerate(zip(layers, counts, strict=True)):
        place, kept = (f"layers[{k}]", f"keep[{k}]") if option is None else (option, "keep")
        layer = check.integer(op, place, layer, 1)
        if layer >= depth:
            raise ValueError(f"{op}: {place}: expected less than {depth}, the layers of the model, got {layer}")
        if steps and layer <= steps[-1].drop:
            raise ValueError(f"{op}: {place}: expected more than {steps[-1].drop}, the one before, got {layer}")
        steps.append(Step(layer - ahead, layer, counted(op, kept, count)))
        before = counts[k - 1] if k else count
        if _is_share(count) == _is_share(before) and count > before:
            raise ValueError(f"{op}: {kept}: expected at most {before}, the one before, got {count}")
    return steps


def _fastv(depth: int, layer: int = 2, keep: Count = 0.5) -> Method:
    def rule(scene: Scene) -> Keep:
        return methods.fastv(scene.query, scene.key, scene.image, **scene.arguments)

    return Method("fastv", rule, _stages("fastv", depth, [layer], [keep], 1, "layer"), rows="last")


def late(name: str, depth: int, layer: int, keep: Count) -> Method:
    """One step by the last instruction token, before a layer and by its own queries and keys."""

    def rule(scene: Scene) -> Keep:
        return methods.fastv(scene.query, scene.key, scene.image, **scene.arguments)

    return Method(name, rule, _stages(name, depth, [layer], [keep], 0, "layer"), rows="last")


def _pyramiddrop(
    depth: int, layers: Optional[Sequence[int]] = None, keep: Sequence[Count] = (0.5, 0.25, 0.125)
) -> Method:
    def rule(scene: Scene) -> Keep:
        return methods.pyramiddrop(scene.query, scene.key, scene.image, **scene.arguments)

    layers = [depth // 4, depth // 2, depth * 3 // 4] if layers is None else layers
    return Method("pyramiddrop", rule, _stages("pyramiddrop", depth, layers, keep, 0), rows="last")


def _sparsevlm(
    depth: int,
    layers: Sequence[int] = (3, 7, 16),
    keep: Optional[Sequence[Count]] = None,
    budget: int = 192,
    recycle: bool = True,
) -> Method:
    check.flag("sparsevlm", "recycle", recycle)

    def rule(scene: Scene) -> Plan:
        if scene.marks is None:
            raise ValueError("sparsevlm: scene.marks: expected the raters of the prompt, got None")
        if recycle and any(scene.deleted):
            return _recycling(scene, scene.marks)
        return methods.sparsevlm(scene.query, scene.key, scene.image, scene.marks, **scene.arguments)

    if keep is None:
        keep = [Fraction(count, 576) for count in methods.retained.sparsevlm(budget)]
    steps = _stages("sparsevlm", depth, layers, keep, 1)
    method = Method("sparsevlm", rule, steps, methods.sparsevlm_raters, rows="text")
    return method._replace(recycled=_recycled) if recycle else method


def _recycled(deleted: int) -> int:
    return methods.retained.sparsevlm_recycle(deleted) if deleted else 0


def _recycling(scene: Scene, raters: Tensor) -> Callable[[Tensor], Merge]:
    """SparseVLM with means of clusters of what it deletes, each in the place of its center."""
    arguments = scene.arguments
    options = {"causal": True, "key_mask": scene.key_mask, "query_mask": raters, **scene.options}
    scores = attention_importance(scene.query, scene.key, **options)
    best = plans.keep(
        scores, arguments["keep"], candidates=scene.image, forced=scene.text, capacity=arguments["capacity"]
    )

    def plan(hidden: Tensor) -> Merge:
        deleted = scene.image & ~plans.mask(best)
        both = plans.concat(best, _clusters(hidden, scores, deleted, scene.deleted))
        order: dict[str, Any] = {"largest": False, "order": "value", "capacity": arguments["capacity"]}
        place = plans.keep(both.indices.to(torch.float32), candidates=both.indices >= 0, **order)
        return cast(Merge, plans.then(both, place))

    return plan


def _clusters(hidden: Tensor, scores: Tensor, deleted: Tensor, numbers: list[int]) -> Merge:
    """Of samples of which different numbers of tokens are deleted: those of one number together."""
    if len({*numbers}) == 1:
        return methods.sparsevlm_recycle(hidden, scores, deleted, number=numbers[0])
    most, batch = max(map(_recycled, numbers)), len(numbers)
    indices = torch.full((batch, most), -1, dtype=torch.int64, device=hidden.device)
    counts = torch.zeros(batch, dtype=torch.int32, device=hidden.device)
    rows = torch.full(deleted.shape, -1, dtype=torch.int64, device=hidden.device)
    for number in sorted({*numbers} - {0}):
        these = [b for b, count in enumerate(numbers) if count == number]
        made = methods.sparsevlm_recycle(hidden[these], scores[these], deleted[these], number=number)
        indices[these, : made.indices.shape[1]] = made.indices
        counts[these], rows[these] = made.counts, made.rows
    return merge_by_rows(Keep(indices, counts, hidden.shape[1]), rows)


def _fitprune(depth: int, layers: Sequence[int], keep: Sequence[Count]) -> Method:
    def rule(scene: Scene) -> Keep:
        return methods.fitprune(scene.query, scene.key, scene.image, scene.text, **scene.arguments)

    return Method("fitprune", rule, _stages("fitprune", depth, layers, keep, 1), rows="all")


def _prunevid_llm(depth: int, layer: int = 10, keep: Count = 0.4) -> Method:
    def rule(scene: Scene) -> Keep:
        batch, rows = scene.image.shape
        sets = torch.arange(0, batch * rows + 1, rows, device=scene.image.device)
        query, key, image, text = scene.query, scene.key, scene.image, scene.text
        return methods.prunevid_llm(query, key, image, text, sets, longest=rows, **scene.arguments)

    return Method("prunevid_llm", rule, _stages("prunevid_llm", depth, [layer], [keep], 1, "layer"), rows="text")


def _aim(depth: int, first: int = 14, layers: int = 8) -> Method:
    def rule(scene: Scene) -> Keep:
        if scene.key_mask is not None:
            raise ValueError(
                "aim: attention_mask: expected prompts of one length with as many image tokens, no padding"
            )
        options = scene.arguments
        del options["key_mask"]
        return methods.aim_prune(scene.query, scene.key, scene.image, **options)

    check.integer("aim", "layers", layers, 1)
    places = range(check.integer("aim", "first", first, 1), min(first + layers, depth))
    steps = _stages("aim", depth, places or [first], [0] * max(len(places), 1), 1, "first")
    count = methods.retained.aim_prune
    steps = [
        step._replace(keep=functools.partial(count, layer=step.drop, first=first, layers=layers)) for step in steps
    ]
    return Method("aim", rule, steps, rows="all")


def _vscan_decode(depth: int, rate: float = 0.5, every: int = 5, layer: Optional[int] = None) -> Method:
    op = "vscan_decode"
    if not check.number(op, "rate", rate) >= 0:
        raise ValueError(f"{op}: rate: expected at least 0, got {rate}")
    layer = depth // 2 if layer is None else check.integer(op, "layer", layer, 0)
    if layer >= depth:
        raise ValueError(f"{op}: layer: expected less than {depth}, the layers of the model, got {layer}")
    keep = functools.partial(methods.retained.vscan_decode, rate=rate)
    later = Later(layer, check.integer(op, "every", every, 1), keep, methods.vscan_decode)
    return Method(op, None, [], later=later)


def custom(rule: Rule, depth: int, layer: int = 2, keep: Count = 0.5) -> Method:
    """A user's own rule, before one layer, by the queries and keys of that layer."""
    name = getattr(rule, "__name__", type(rule).__name__)
    return Method(name, rule, _stages(name, depth, [layer], [keep], 0, "layer"), exact=False)


#: (layers of the model, options) → Method.
RULES: dict[str, Callable[..., Method]] = {
    "aim": _aim,
    "fastv": _fastv,
    "fitprune": _fitprune,
    "prunevid_llm": _prunevid_llm,
    "pyramiddrop": _pyramiddrop,
    "sparsevlm": _sparsevlm,
    "vscan_decode": _vscan_decode,
}
