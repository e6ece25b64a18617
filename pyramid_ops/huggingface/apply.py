"""The one line."""

import inspect
from collections.abc import Callable
from typing import Any, Union

from ..results import Keep
from .encoder_rules import ENCODER_RULES
from .families import FAMILIES, family_of
from .handle import Handle
from .hooks import Hooks, check_free
from .rules import RULES, Scene, custom
from .tower import TOWERS, TowerHandle

__all__ = ["apply", "supported"]


def apply(model: Any, method: Union[str, Callable[[Scene], Keep]], **options: Any) -> Hooks:
    """Reduce the visual tokens of every prompt that a model reads, until the handle is removed.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Of a family in :func:`supported`, with or without its head. Nothing of it is changed but for hooks.
    method : str or callable
        A name in :func:`supported`, or a rule of one's own: it gets a :class:`Scene` and returns a plan of
        :mod:`pyramid_ops.plans`, that keeps all text and `scene.keep` image tokens of each sample, in their order.
    **options
        - ``"fastv"``: `layer` = 2 before which tokens go, scored by the layer before it, `keep` = 0.5;
        - ``"pyramiddrop"``: `layers` before which they go, scored by the same (default: after each quarter of the
          model), `keep` = (0.5, 0.25, 0.125), each of the tokens in the prompt;
        - ``"sparsevlm"``: `layers` = (3, 7, 16), scored by the layers before them, which read all, as in the authors'
          code, `keep` of each (default: their shares for a `budget` of 192, 128 or 64); with `recycle` = True the best
          of what goes lives on as means of a few clusters, each in the place of its center, beside what `keep` counts;
        - ``"fitprune"``: `layers` and `keep` from a table that was fitted to the model, scored by the layers before;
        - ``"prunevid_llm"``: `layer` = 10, `keep` = 0.4, all visual tokens of a sample as one static set;
        - ``"aim"``: from layer `first` = 14 on, ever fewer over so many `layers` = 8; for samples without padding;
        - ``"vscan_decode"``: nothing of the prompt, but after `every` = 5 generated tokens of their image tokens those
          that generated tokens attend to least in a `layer` (default: in the middle), as `rate` = 0.5 says; for dynamic
          caches, without beams, one token after the other;
        - ``"divprune"``: before the language model, `keep` = 0.1 of each image;
        - ``"cdpruner"``: before the language model, `keep` = 0.1 of each image; `relevance` is a callable that gets the
          features ``[n, D]`` of each image and returns their scores ``[n]``, such as cosines with a text encoder's;
        - ``"evs"``: before the language model, videos less the share `rate` = 0.75 that is like the frame before;
        - ``"fastervlm"``: before the language model, `keep` = 0.25 of each image by the class token's attention in a
          `layer` of the tower (default: the one whose features are read);
        - ``"hired"``: before the language model, `keep` = 0.2 of an image and its tiles, `alpha` = 0.5 of that for the
          whole image; tiles share by the attention of layer `shallow` = 0, patches are chosen by that of `deep`
          (default: as above);
        - ``"prumerge"``: before the language model, the patches of ``"prumerge_select"``, of PruMerge+ where `plus`, or
          the best `keep`; each takes in the `neighbours` = 32 that are like it, and one more token, in the place of the
          first that goes, all that do;
        - ``"prumerge_select"``: before the language model, the patches that are outliers of the same attention by
          `factor` = 1.5 of the interquartile range;
        - ``"visionzip"``: before the language model, `dominant` = 54 patches of each image by the same attention, and
          the others merged into `contextual` = 10, each in the place of its target;
        - ``"vispruner"``: before the language model, `keep` = 64 of each image, `important` (default: half) of them by
          the same attention, the others for being different;
        - ``"vscan"``: before the language model, `keep` = 0.25 of each image, half of them the best of each `window` =
          (6, 6) by the attention of layer `shallow` = 6, half the best of all others by that of `deep`, into which what
          goes is merged; then `keep_inside` = 0.5 of those before `layer` = 16 of the language model (None: all);
        - ``"pyramid"``: before the language model, `keep` of the tokens of an image pyramid, each of whose levels goes
          through the tower, in the first placeholders of an image; `levels` = 3, `weights`, `saliency` and
          `level_embedding` as in :func:`pyramid_tokens`;
        - ``"tome"``, on a CLIP, SigLIP or ViT tower alone, or on that of LLaVA: `r` = 8 tokens merge in each layer, or
          a number for each;
        - a rule: `layer` = 2, whose queries and keys it gets and before which tokens go, `keep` = 0.5.

        `keep` is a share of the image tokens of each sample if it is a float, else a number of them; of each image, for
        methods before the language model. Of several, none is more than the one before. Tokens of InternVL are several
        patches and have the mean of their attention. LLaVA-NeXT's tiles are images of their own; what it adds for new
        lines stays, and methods that count on all patches of a tile are not for it, since it cuts padding off.

    Returns
    -------
    Handle
        ``remove()`` undoes it, as does the end of a ``with`` block; `stats` describes the last prompt, and there is one
        `stats` for all threads.

    Raises
    ------
    TypeError, ValueError
        For a model, method or option that is not supported, a handle on the model, its parts or its whole, and when the
        model runs: for padding on the right, a prompt in chunks, one that ends with an image, ``inputs_embeds`` alone,
        even of text, since nobody can tell images in them, images after the first forward of a cache, labels,
        ``logits_to_keep`` as indices, grad mode, flex attention, features that are not finite where some are chosen.

    Notes
    -----
    ``generate`` works as it is: batches with padding on the left, beams, dynamic and static caches, prompt lookup,
    another turn of text on the same cache. Each sample keeps what it would keep alone. Rotary positions are those of
    the whole prompt; a dropped token has keys and values in the layers before, and none after. Logits of the prompt are
    those of the rows that are left, the last one last. Scoring costs the projections to queries, keys and values of one
    more layer for each step. A prompt waits for the device once for the numbers of tokens, twice for methods before the
    language model and rules of one's own, and once more with a static cache; decoding never waits.

    A model that is to be compiled for decoding is compiled after `apply`; the prompt runs without compilation.

    Examples
    --------
    >>> import torch, transformers
    >>> import pyramid_ops.huggingface as hf
    >>> sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4)
    >>> config = transformers.LlavaConfig(
    ...     vision_config=transformers.CLIPVisionConfig(**sizes, image_size=56, patch_size=14),
    ...     text_config=transformers.LlamaConfig(**sizes, vocab_size=99),
    ...     image_token_id=98,
    ... )
    >>> model = transformers.LlavaForConditionalGeneration(config).eval()
    >>> ids = torch.tensor([[1, 2] + [98] * 16 + [3, 4]])
    >>> with hf.apply(model, "fastv", layer=2, keep=0.25) as handle:
    ...     tokens = model.generate(input_ids=ids, pixel_values=torch.rand(1, 3, 56, 56), max_new_tokens=3)
    >>> handle.stats["visual"], handle.stats["stages"][0]["tokens"]
    ([16], [8])
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if not hasattr(model, "base_model") or kind not in {**FAMILIES, **TOWERS}:
        got = repr(kind) if kind is not None and hasattr(model, "base_model") else type(model).__name__
        expected = ", ".join(map(repr, [*FAMILIES, *TOWERS]))
        raise ValueError(f"apply: model: expected one of {expected}, got {got}")
    check_free(model)
    if kind in TOWERS:
        if method != "tome":
            raise ValueError(f"apply: method: expected 'tome' for {kind!r}, got {method!r}")
        _check_options(TowerHandle, 1, {"layers"}, options)
        return TowerHandle(model, **options)
    family = family_of(model)
    depth = len(model.base_model.language_model.layers)
    if callable(method):
        return Handle(model, _made(custom, method, depth, **options), family)
    known = supported()[str(kind)]
    if method not in known:
        names = ", ".join(map(repr, known))
        raise ValueError(f"apply: method: expected one of {names} or a callable for {kind!r}, got {method!r}")
    if method in ENCODER_RULES:
        return Handle(model, _made(ENCODER_RULES[method], model, **options), family)
    return Handle(model, _made(RULES[method], depth, **options), family)


def _made(make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    _check_options(make, len(args), set(), options)
    return make(*args, **options)


def _check_options(make: Callable[..., Any], given: int, hidden: set[str], options: dict[str, Any]) -> None:
    known = dict(list(inspect.signature(make).parameters.items())[given:])
    names = [name for name in known if name not in hidden]
    for name in options:
        if name not in names:
            raise ValueError(f"apply: options: expected {', '.join(names)}, got {name!r}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in options:
            raise ValueError(f"apply: options: expected {name!r}, which has no default, got none")


def supported() -> dict[str, list[str]]:
    """The methods that each family of models has, by ``config.model_type``.

    Examples
    --------
    >>> import pyramid_ops.huggingface as hf
    >>> sorted({*hf.supported()["llava_next"]} - {*hf.supported()["qwen2_5_vl"]})
    ['fastervlm', 'hired', 'prumerge_select']
    """
    return {kind: ["tome"] for kind in TOWERS} | {
        name: sorted([*RULES, *family.selections]) for name, family in FAMILIES.items()
    }
