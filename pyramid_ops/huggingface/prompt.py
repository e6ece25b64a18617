"""A prompt's rows: which are left from which layer on, and the masks that go with them."""

from typing import Any, Optional, cast

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from .. import _checks as check
from .. import plans
from ..cost import Language, prefill_flops
from ..results import Keep, Merge
from .capture import Heads, Rotary, flops
from .lengths import Held
from .rules import Method, Plan, Rule, Scene, Step

__all__ = ["Prompt", "Stage", "columns", "only_padding"]


class Stage:
    """From layer `first` on, the rows that are left: `index` ``[B, L]``, −1 in the padding; `real` None: no padding.

    `counts` are those of each sample, `mask` is that of the forward that runs, `rotary` of the prompt's own. `owner`
    ``[B, …]``, where rows were merged: the row of the prompt that each row before this stage has become part of, or −1.
    """

    owner: Optional[Tensor] = None
    scoring = 0  # operations

    def __init__(self, first: int, counts: list[int], index: Tensor, real: Optional[Tensor], rotary: Optional[Rotary]):
        self.first, self.counts, self.index, self.real = first, counts, index, real
        self.rotary = rotary
        self.mask: Any = None

    def stats(self) -> dict[str, Any]:
        found = {"layer": self.first, "tokens": self.counts, "index": self.index, "scoring": self.scoring}
        return found if self.owner is None else found | {"owner": self.owner}

    def attention_mask(self, config: Any, hidden: Tensor, cache: Any, entry: Optional[Tensor], rows: int) -> Any:
        """As transformers makes it for the rows of this stage; `entry` ``[B, rows + …]`` is that of all of them."""
        if self.mask is None:
            there = self.real
            if self.rotary is None:  # a later forward: columns of what came after the prompt follow
                length = self.index.shape[1]
                wide = cache.get_mask_sizes(hidden.shape[1], self.first)[0]
                ones = torch.ones(hidden.shape[0], wide, dtype=torch.bool, device=hidden.device)
                later = ones[:, length:] if entry is None else entry[:, rows:].expand(hidden.shape[0], -1)
                there = torch.cat([ones[:, :length] if there is None else there, later], 1)
            self.mask = create_causal_mask(
                config,
                hidden,
                there,
                None if cache is None else Held(cache),
                layer_idx=self.first,
                allow_is_causal_skip=False,
            )
        return self.mask


class Prompt:
    """Lives on the prompt's cache, or where there is none for one forward."""

    def __init__(self, image: Tensor, real: Optional[Tensor], images: list[int], texts: list[int]):
        self.rows = image.shape[1]
        self.images, self.texts = images, texts
        self.entered = images  # into the first layer: what shares are of
        self.kept = images  # so far
        self.entry: Optional[Tensor] = None  # columns of the mask of a later forward
        self.filling = True  # the prompt's own forward runs
        self.stages: list[Stage] = []
        every = torch.ones_like(image) if real is None else real.expand(image.shape)
        place = torch.arange(self.rows, device=image.device).expand(image.shape)
        self.left: dict[str, Tensor] = {"index": place, "image": image, "real": every}
        self.padded = real is not None
        self.plans: dict[int, Plan] = {}
        self.scoring: dict[int, int] = {}  # operations, by the layer of the plan
        self.generated: Any = None  # what goes later by, see decoding
        self.report: list[dict[str, Any]] = []  # stages as `stats` has them

    @property
    def missing(self) -> int:
        """Rows that even the first layer does not hold."""
        first = self.stages[0] if self.stages and not self.stages[0].first else None
        return 0 if first is None else self.rows - first.index.shape[1]

    def enter(self, stay: Tensor, scoring: int, finite: list[Tensor]) -> None:
        """Make the plan of what goes before the first layer: all image tokens but those that `stay` ``[B, N]``.

        `finite`, bool ``[]`` each: whether features were so before some were chosen.
        """
        image, real = self.left["image"], self.left["real"]
        broken = (~torch.stack(finite)).sum() if finite else image.new_zeros((), dtype=torch.int64)
        *kept, bad = torch.cat([(image & stay).sum(1), broken[None]]).tolist()
        if bad:
            raise ValueError("apply: features: expected finite ones of the vision tower, got NaN or infinity")
        self.entered = self.kept = kept
        scores = torch.zeros(image.shape, device=image.device)
        capacity, self.scoring[0] = max(self.counts()), scoring
        self.plans[0] = plans.keep(scores, candidates=image & stay, forced=real & ~image, capacity=capacity)

    def at(self, layer: int) -> Optional[Stage]:
        """The stage that a layer is in."""
        return next((stage for stage in reversed(self.stages) if stage.first <= layer), None)

    def score(self, method: Method, step: Step, heads: Heads, hidden: Tensor) -> None:
        """Make the plan of a step."""
        texts, lefts = self.texts, [self.left["index"].shape[1]] * len(self.texts)
        rows = {"last": [1] * len(texts), "text": texts, "all": lefts}.get(str(method.rows), [0] * len(texts))
        self.scoring[step.drop] = flops(heads, hidden.shape[2], rows)
        keep = [min(step.keep(count), left) for count, left in zip(self.entered, self.kept, strict=True)]
        deleted = [left - count for left, count in zip(self.kept, keep, strict=True)]
        self.kept = [count + method.recycled(gone) for count, gone in zip(keep, deleted, strict=True)]
        image, real = self.left["image"], self.left["real"]
        scene = Scene(
            layer=step.score,
            query=heads.query,
            key=heads.key,
            hidden=hidden,
            image=image,
            text=real & ~image,
            key_mask=real if self.padded else None,
            marks=self.left.get("marks"),
            keep=keep,
            deleted=deleted,
            capacity=max(self.counts()),
            options=heads.options,
        )
        plan = cast(Rule, method.rule)(scene)
        if not method.exact:
            _check_plan(plan, scene.text, self.counts())
        self.plans[step.drop] = plan

    def counts(self) -> list[int]:
        """Tokens of each sample, text and the image tokens that the last plan keeps."""
        return [text + image for text, image in zip(self.texts, self.kept, strict=True)]

    def drop(self, layer: int, hidden: Tensor, rotary: Rotary) -> Tensor:
        """Carry out a step's plan: the hidden states that are left."""
        fill = [0, 0, 0, *(-1 if name == "index" else 0 for name in self.left)]
        mode = ["mean"] + ["owner"] * (len(fill) - 1)
        plan = self.plans.pop(layer)
        plan = plan if isinstance(plan, (Keep, Merge)) else plan(hidden)
        owner = _owner(plan, self.left["index"]) if isinstance(plan, Merge) else None
        tensors = [hidden, *rotary, *self.left.values()]
        hidden, cos, sin, *left = plans.apply(plan, tensors, align="right", fill=fill, mode=mode)
        self.left = dict(zip(self.left, left, strict=True))
        self.padded = min(self.counts()) < hidden.shape[1]
        real = self.left["real"] if self.padded else None
        self.stages.append(Stage(layer, self.counts(), self.left["index"], real, (cos, sin)))
        self.stages[-1].owner, self.stages[-1].scoring = owner, self.scoring.pop(layer)
        return hidden

    def stats(self, config: Any) -> dict[str, Any]:
        """Of the whole prompt; `config` is the text model's."""
        heads, width = config.num_attention_heads, config.hidden_size
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        inner = getattr(config, "intermediate_size", None) or 4 * width
        language = Language(config.num_hidden_layers, width, heads, kv_heads, inner, config.vocab_size)
        every = [text + image for text, image in zip(self.texts, self.images, strict=True)]
        stages = [self.at(k) for k in range(language.layers)]
        tokens = [every if stage is None else stage.counts for stage in stages]
        return {
            "rows": self.rows,
            "visual": self.images,
            "tokens": tokens,
            "prefill": sum(prefill_flops(language, 0, counts) for counts in zip(*tokens, strict=True)),
            "scoring": sum(stage["scoring"] for stage in self.report),
            "stages": self.report,
        }

    def filled(self) -> None:
        """The prompt's own forward is over: only what later ones need stays."""
        self.filling = False
        self.plans = {}
        self.report += [stage.stats() for stage in self.stages]
        for stage in self.stages:
            stage.rotary = stage.mask = None


def _check_plan(plan: Any, text: Tensor, counts: list[int]) -> None:
    """Whether it is one of so many tokens, in their order and with all text: waits once."""
    if not isinstance(plan, (Keep, Merge)):
        raise TypeError(f"apply: rule: expected one that returns a plan, got {check.describe(plan)}")
    (batch, rows), index = text.shape, plan.indices
    if index.dim() != 2 or (len(index), plan.num_tokens) != (batch, rows):
        got = f"one of {list(index.shape)} rows for {plan.num_tokens}"
        raise ValueError(f"apply: rule: expected a plan for {batch} samples of {rows} tokens, got {got}")
    falls = ((index[:, 1:] <= index[:, :-1]) & (index[:, 1:] >= 0)).any(1)
    lost = (text & ~plans.mask(plan)).sum(1)
    found, disordered, missing = torch.stack([plan.counts.long(), falls.long(), lost]).tolist()
    if found != counts:
        raise ValueError(f"apply: rule: expected a plan of {counts} tokens, text and image, got {found}")
    if any(missing):
        raise ValueError(f"apply: rule: expected a plan that keeps all text, got one without {missing} tokens of it")
    if any(disordered):
        raise ValueError("apply: rule: expected a plan of tokens in their order, got descending indices")


def _owner(plan: Merge, index: Tensor) -> Tensor:
    """The row of the prompt that each of the rows of `index` becomes part of."""
    owned = plan.indices.gather(1, plan.rows.clamp(min=0))
    return torch.where((plan.rows >= 0) & (index >= 0), index.gather(1, owned.clamp(min=0)), -1)


def columns(mask: Any) -> Optional[Tensor]:
    """Which rows there are, bool ``[B, N]``, of a mask as a text model takes it."""
    mask = _full(mask)
    if mask is None or mask.dim() == 2:
        return mask
    return mask[:, 0, -1]  # the last row sees all but padding


def only_padding(mask: Any, there: Tensor) -> bool:
    """Whether a prompt's mask is causal but for padding, whose rows may see anything."""
    mask = _full(mask)
    if mask is None or mask.dim() == 2:
        return True
    rows = there.shape[1]
    causal = torch.ones(rows, rows, dtype=torch.bool, device=there.device).tril() & there[:, None]
    return not bool(((mask[:, 0, :, :rows] != causal) & there[..., None]).any())


def _full(mask: Any) -> Optional[Tensor]:
    """bool ``[B, N]`` or ``[B, 1, Q, N]``, or None."""
    if isinstance(mask, dict):  # one for each type of layer, from `generate` with a static cache
        mask = mask["full_attention"]
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        raise ValueError(f"apply: attention_mask: expected [B, N] or [B, 1, Q, N], got {type(mask).__name__}")
    return mask.bool() if mask.dim() == 2 or mask.dtype == torch.bool else mask == 0
