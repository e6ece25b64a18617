"""Hooks in a model: where tokens are scored and dropped, and how later forwards find what is left."""

import contextvars
import functools
import inspect
import weakref
from typing import Any, Optional, Union, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from .capture import queries_and_keys
from .decoding import Generated, check_cache
from .families import Family
from .hooks import Hooks
from .lengths import COPIES, KEY, Copies, count_held, count_prompt
from .prompt import Prompt, Stage, columns, only_padding
from .rules import Method
from .selection import Seen, Selection, attend, marked, packed, project

__all__ = ["Handle"]


class _Call:
    """A forward of the whole model, from its inputs to its last layer."""

    def __init__(self, ids: Optional[Tensor], images: bool):
        self.ids, self.images = ids, images
        self.seen: list[Seen] = []  # by the tower
        self.prompt: Optional[Prompt] = None


_CALL: contextvars.ContextVar[Optional[_Call]] = contextvars.ContextVar("pyramid_ops_call", default=None)


class Handle(Hooks):
    """What :func:`apply` returns; ``remove()`` or the end of a ``with`` block takes everything away again.

    Attributes
    ----------
    model : torch.nn.Module
    method : str
    stats : dict
        Of the last prompt of all threads, empty where it had no image. Its `rows`, the `visual` tokens of each sample,
        `tokens`, for each layer how many of each sample it reads, and by formula the operations of the language model
        for those, `prefill`, and of scores beside them, `scoring`: projections, similarities and logits of the rows
        that may score. For each of the `stages` the `layer` before which tokens went, the `tokens` that are left of
        each sample, its part of `scoring`, and `index`, int64 ``[B, L]``: the rows of the prompt that are left, −1 for
        padding. Where rows were merged also `owner`, int64 ``[B, …]``: for each row before it, the row of the prompt
        that it has become part of, −1 for none. While tokens are generated, what goes before one of them is a stage of
        its own, with `generated`, how many there were.
    """

    def __init__(self, model: Any, method: Union[Method, Selection], family: Family):
        super().__init__(model, method.name)
        self._family = family
        self._before = method if isinstance(method, Selection) else None
        self._method = method.inside if isinstance(method, Selection) else method
        self._later = None if self._method is None else self._method.later
        base = model.base_model
        self._text = base.language_model
        self._arguments = inspect.signature(type(base).forward)
        known = inspect.signature(type(self._text).forward).parameters
        self._cache = "cache" if "cache" in known else "past_key_values"  # transformers >= 5.24, before
        self._caches: weakref.WeakSet[Any] = weakref.WeakSet()
        if self._before is not None and self._before.install is not None:
            self._undo.append(self._before.install().remove)
        hooks = [
            model.register_forward_pre_hook(self._refuse_labels, with_kwargs=True),
            base.register_forward_pre_hook(self._call, with_kwargs=True),
            base.register_forward_hook(self._called, always_call=True),
            self._text.register_forward_pre_hook(self._enter, with_kwargs=True),
            self._text.register_forward_hook(self._leave, with_kwargs=True, always_call=True),
        ]
        steps = [] if self._before is not None or self._method is None else self._method.steps
        first = min((step.score for step in steps), default=0)
        for k, layer in enumerate(self._text.layers[first:], first):
            hooks.append(layer.register_forward_pre_hook(functools.partial(self._layer, k), with_kwargs=True))
        tower = None if self._before is None else self._before.tower
        if tower is not None:
            for look, k in enumerate(tower.looks):
                hook = functools.partial(attend, tower, look)
                hooks.append(tower.layers[k].register_forward_pre_hook(hook, with_kwargs=True))
        if self._before is not None and self._before.merge is not None:
            hook = functools.partial(project, self._before.merge)
            hooks.append(base.multi_modal_projector.register_forward_pre_hook(hook))
        self._undo += [hook.remove for hook in hooks]
        if self._before is not None:
            self.override(base, self._before.function, self._features)
        if tower is not None and hasattr(base, "pack_image_features"):
            self.override(base, "pack_image_features", packed)
        if hasattr(model, "_prefill"):
            self.override(model, "_prefill", self._refuse_chunks)
        if hasattr(self._text, "_deepstack_process"):
            self.override(self._text, "_deepstack_process", self._deepstack)

    def remove(self) -> None:
        """Take the hooks away. A cache that holds a reduced prompt, or its deep copy, says that it cannot be used then.

        One that was pickled does not say so.
        """
        for cache in list(self._caches):
            cache.update = functools.partial(_stale, weakref.ref(cache), self.method)
        self._caches.clear()
        super().remove()

    def _error(self, what: str, expected: str) -> ValueError:
        return ValueError(f"{self.method}: {what}: expected {expected}")

    # What cannot work, said before it runs.

    def _refuse_labels(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("labels") is not None:
            raise self._error("labels", "none, since logits are those of the rows that are left")
        if isinstance(kwargs.get("logits_to_keep"), Tensor):
            raise self._error("logits_to_keep", "how many of the last rows, got indices of rows that may be gone")

    def _refuse_chunks(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind_partial(*args, **kwargs).arguments
        if getattr(given.get("generation_config"), "prefill_chunk_size", None) is not None:
            raise self._error("prefill_chunk_size", "None, since a prompt is scored as a whole")
        return original(*args, **kwargs)

    # The vision tower.

    def _features(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind_partial(*args, **kwargs).arguments
        with torch.no_grad():
            output, seen = marked(cast(Selection, self._before), original, given, *args, **kwargs)
        call = _CALL.get()
        if call is not None:
            call.seen.append(seen)
        return output

    # The whole model.

    def _call(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            if any(kwargs.get(name) is not None for name in self._family.inputs):
                raise self._error("model", "prompts with images outside torch.compile, which is for decoding")
            return
        given = self._arguments.bind_partial(module, *args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        encoded = given.get("mm_encoder_outputs") or {}
        images = any(given.get(name) is not None for name in self._family.inputs)
        images, ids = images or any(x is not None for x in encoded.values()), given.get("input_ids")
        if images and ids is not None and not len(ids):
            raise ValueError("apply: input_ids: expected at least one prompt, got none")
        _CALL.set(_Call(ids, images))

    def _called(self, *_: Any) -> None:
        if not torch.compiler.is_compiling():
            _CALL.set(None)

    # The text model.

    def _enter(self, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        kwargs = dict(kwargs)
        embeds, cache = kwargs["inputs_embeds"], kwargs.get(self._cache)
        use = kwargs.get("use_cache")
        if cache is None and (module.config.use_cache if use is None else use):
            cache = kwargs[self._cache] = DynamicCache(config=module.config)
        # A static cache has its length on the device: looking at it waits, once a prompt.
        later = embeds.shape[1] == 1 or torch.compiler.is_compiling()
        if cache is None or not (later or int(cache.get_seq_length())):
            self._begin(module, kwargs, cache)
        else:
            self._resume(kwargs, cache, getattr(cache, KEY, None))
        return args, kwargs

    def _begin(self, module: Any, kwargs: dict[str, Any], cache: Any) -> None:
        """The first forward of a prompt."""
        if cache is not None and hasattr(cache, KEY):
            count_held(cache)  # it was reset
        if torch.compiler.is_compiling():
            return
        self.stats = {}
        call = _CALL.get()
        if call is None:
            return
        embeds = kwargs["inputs_embeds"]
        if call.ids is None:
            if call.images or embeds.shape[1] > 1:
                raise ValueError(
                    "apply: input_ids: expected the prompt's, which say where images are, got inputs_embeds alone"
                )
            return
        image = functools.reduce(torch.logical_or, [call.ids == token for token in self._family.tokens(self.model)])
        real = columns(kwargs.get("attention_mask"))
        real = None if real is None else real[:, : image.shape[1]].expand(image.shape)
        there = torch.ones_like(image) if real is None else real
        sums = [image.sum(1), (there & ~image).sum(1), there[:, -1], image[:, -1]]
        images, texts, last, open_end = torch.stack(sums).tolist()
        if not any(images):
            return
        if torch.is_grad_enabled() and embeds.requires_grad:
            raise self._error("model", "a call under torch.no_grad() or torch.inference_mode()")
        if not all(last):
            raise self._error("attention_mask", "padding on the left, got padding on the right")
        if any(open_end):
            raise ValueError("apply: input_ids: expected text after the last image, got a prompt that ends with one")
        if not only_padding(kwargs.get("attention_mask"), there):
            raise self._error("attention_mask", "[B, N], or causal but for padding, got a pattern of its own")
        if module.config._attn_implementation == "flex_attention":
            raise self._error("attn_implementation", "'eager', 'sdpa' or FlashAttention, got 'flex_attention'")
        if kwargs.get("cu_seq_lens_q") is not None:
            raise self._error("cu_seq_lens_q", "None, one prompt in each row of the batch")
        padded = min(text + count for text, count in zip(texts, images, strict=True)) < image.shape[1]
        prompt = Prompt(image, real if padded else None, images, texts)
        if self._before is not None:
            finite = [x.to(image.device) for seen in call.seen for x in seen.finite]
            prompt.enter(~embeds[..., 0].isnan(), sum(seen.flops for seen in call.seen), finite)
        elif self._method is not None and self._method.marks is not None:
            after = image.cumsum(1) > 0
            prompt.left["marks"] = self._method.marks(embeds, image, there & ~image & after)
        call.prompt = prompt
        if cache is not None:
            if self._later is not None:
                check_cache(self.method, cache)
                prompt.generated = Generated(self._later)
            setattr(cache, KEY, prompt)
            self._caches.add(cache)
            setattr(cache, COPIES, Copies(cache, self._caches))
            if self._before is not None:
                count_prompt(cache)

    def _resume(self, kwargs: dict[str, Any], cache: Any, prompt: Optional[Prompt]) -> None:
        """A later forward: of generated tokens, candidates, or text of another turn."""
        call = None if torch.compiler.is_compiling() else _CALL.get()
        if call is not None and call.images:
            raise self._error("images", "all of them in the first forward of a cache, not in a later one")
        if prompt is not None:
            prompt.entry = columns(kwargs.get("attention_mask"))
            if prompt.generated is not None:
                if (rows := kwargs["inputs_embeds"].shape[1]) != 1:
                    raise self._error("input_ids", f"one token after the other behind the prompt, got {rows} at once")
                if torch.compiler.is_compiling():
                    raise self._error("model", "decoding outside torch.compile, since rows of the cache go")
                prompt.generated.prune(prompt, cache)
            for stage in prompt.stages:
                stage.mask = None

    def _leave(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        prompt = self._prompt(kwargs)
        if prompt is not None and prompt.filling:
            prompt.filled()
            self.stats = prompt.stats(module.config)
            if self._later is None:
                prompt.left = {}

    def _prompt(self, kwargs: dict[str, Any]) -> Optional[Prompt]:
        cache = kwargs.get(self._cache)
        if cache is not None:
            return getattr(cache, KEY, None)
        call = None if torch.compiler.is_compiling() else _CALL.get()
        return None if call is None else call.prompt

    # A layer.

    def _layer(self, k: int, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        prompt = self._prompt(kwargs)
        if prompt is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        kwargs = dict(kwargs)
        if prompt.filling and self._before is not None and k == 0:
            hidden = prompt.drop(0, hidden, kwargs["position_embeddings"])
        if prompt.filling and self._method is not None:
            hidden = self._step(self._method, k, module, hidden, kwargs)
        if not prompt.filling and prompt.generated is not None and k == prompt.generated.later.layer:
            heads = queries_and_keys(module.self_attn, module.input_layernorm(hidden), kwargs["position_embeddings"])
            prompt.generated.see(heads, hidden)
        self._place(prompt, prompt.at(k), hidden, kwargs)
        if args:
            return (hidden, *args[1:]), kwargs
        kwargs["hidden_states"] = hidden
        return args, kwargs

    def _step(self, method: Method, k: int, module: Any, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        prompt = cast(Prompt, self._prompt(kwargs))
        for step in method.steps:
            stage = prompt.at(k)
            rotary: Any = kwargs["position_embeddings"] if stage is None else stage.rotary
            if step.score == k:
                heads = queries_and_keys(module.self_attn, module.input_layernorm(hidden), rotary)
                prompt.score(method, step, heads, hidden)
            if step.drop == k:
                hidden = prompt.drop(k, hidden, rotary)
        return hidden

    def _place(self, prompt: Prompt, stage: Optional[Stage], hidden: Tensor, kwargs: dict[str, Any]) -> None:
        """The arguments of a layer for the rows that are left."""
        if stage is None:
            return
        if stage.rotary is not None:
            kwargs["position_embeddings"] = stage.rotary
            kwargs["position_ids"] = None  # FlashAttention takes gaps in them for packed sequences
        if stage.real is not None or kwargs.get("attention_mask") is not None:
            kwargs["attention_mask"] = stage.attention_mask(
                self._text.config, hidden, kwargs.get(self._cache), prompt.entry, prompt.rows
            )

    def _deepstack(self, original: Any, hidden: Tensor, where: Tensor, embeds: Tensor) -> Tensor:
        """Features of the vision tower that are added to the rows of images after the first layers."""
        call = None if torch.compiler.is_compiling() else _CALL.get()
        prompt = None if call is None else call.prompt
        if prompt is None or not prompt.stages:
            return original(hidden, where, embeds)
        index = prompt.stages[-1].index[..., None]
        rows = hidden.new_zeros(*where.shape, hidden.shape[2]).masked_scatter(where[..., None], embeds.to(hidden))
        return hidden + rows.take_along_dim(index.clamp(min=0), 1).masked_fill(index < 0, 0)


def _stale(cache: Any, method: str, *args: Any, **kwargs: Any) -> Any:
    """`update` of a cache whose handle was removed, until it is reset."""
    cache = cache()
    if int(cache.get_seq_length()):
        raise RuntimeError(f"{method}: expected a new or reset cache after remove(), got one of a reduced prompt")
    del cache.update
    count_held(cache)
    return cache.update(*args, **kwargs)
