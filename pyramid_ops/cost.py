"""What a vision-language model costs with fewer image tokens: operations, cache, by formula; nothing is run.

A multiplication and an addition are two operations. Attention is counted over all pairs of tokens, as kernels without
a causal skip and ``torch.utils.flop_counter`` do.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple, Optional

from . import _checks as check
from . import schedules
from .schedules import Schedule

__all__ = [
    "MODELS",
    "Language",
    "Model",
    "Vision",
    "kv_bytes",
    "prefill_flops",
    "report",
    "score_flops",
    "scoring_flops",
    "vision_flops",
]


class Language(NamedTuple):
    """A decoder with gated MLPs; widths in features."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int

    @property
    def head(self) -> int:
        return self.width // self.heads


class Vision(NamedTuple):
    """An encoder: the layers that run, widths in features, the side of a patch and of an image in pixels.

    `side` None: images of any size. `merged`²: patches of a token. `extra`: tokens beside patches, such as the class
    token. `gated` MLPs have three matrices, others two.
    """

    layers: int
    width: int
    inner: int
    patch: int
    side: Optional[int]
    merged: int = 1
    extra: int = 0
    gated: bool = False


class Model(NamedTuple):
    """A decoder and an encoder."""

    language: Language
    vision: Vision


_VICUNA_7B = Language(32, 4096, 32, 32, 11008, 32064)
_VICUNA_13B = Language(40, 5120, 40, 40, 13824, 32064)
_CLIP_L = Vision(23, 1024, 4096, 14, 336, extra=1)
_QWEN_VISION = Vision(32, 1280, 3420, 14, None, merged=2, gated=True)
#: Public configurations. LLaVA reads the layer before the last of CLIP.
MODELS = {
    "llava-1.5-7b": Model(_VICUNA_7B, _CLIP_L),
    "llava-1.5-13b": Model(_VICUNA_13B, _CLIP_L),
    "llava-onevision-7b": Model(Language(28, 3584, 28, 4, 18944, 152064), Vision(26, 1152, 4304, 14, 384)),
    "qwen2.5-vl-3b": Model(Language(36, 2048, 16, 2, 11008, 151936), _QWEN_VISION),
    "qwen2.5-vl-7b": Model(Language(28, 3584, 28, 4, 18944, 152064), _QWEN_VISION),
}


#: What may stand for a name.
NUMBERS = "layers,width,heads,kv_heads,inner,vocabulary"


def patches(vision: Vision, image: int) -> tuple[int, int]:
    """(patches of a square image, tokens that the language model gets)."""
    side = (vision.side or image) // vision.patch // vision.merged
    if side < 1:
        raise ValueError(f"cost: image: expected at least {vision.patch * vision.merged} pixels, got {image}")
    return (side * vision.merged) ** 2, side**2


def vision_flops(vision: Vision, count: int) -> int:
    """Operations of the encoder for so many patches, without the projector; attention over all, not in windows.

    >>> from pyramid_ops import cost
    >>> round(cost.vision_flops(cost.MODELS["llava-1.5-7b"].vision, 576) / 1e9)
    366
    """
    n, d = count + vision.extra, vision.width
    layer = 8 * n * d * d + 4 * n * n * d + (6 if vision.gated else 4) * n * d * vision.inner
    return vision.layers * layer + 2 * count * 3 * vision.patch**2 * d


def prefill_flops(language: Language, text: int, image: Sequence[int]) -> int:
    """Operations of the prompt: `text` tokens and those of the image in each layer; logits of the last token.

    >>> from pyramid_ops import cost
    >>> round(cost.prefill_flops(cost.MODELS["llava-1.5-7b"].language, 64, [576] * 32) / 1e12, 1)
    8.5
    """
    d, kv = language.width, language.kv_heads * language.head
    total = 2 * d * language.vocabulary
    for count in image:
        n = text + count
        total += 2 * n * d * (2 * d + 2 * kv) + 4 * n * n * d + 6 * n * d * language.inner
    return total


def score_flops(tokens: int, rows: int, width: int, query: int, key: int) -> int:
    """Operations of scores in one layer: so many tokens projected to queries and keys, and the logits of some rows.

    `query` and `key` are their features over all heads; values that are projected with keys count there.

    >>> from pyramid_ops import cost
    >>> cost.score_flops(640, 1, 4096, 4096, 4096) // 10**9
    42
    """
    return 2 * tokens * width * (query + key) + 2 * rows * tokens * query


def scoring_flops(language: Language, text: int, schedule: Schedule) -> int:
    """Operations of scores: queries and keys of the layer once more, and the logits of the rows that score.

    >>> from pyramid_ops import cost, schedules
    >>> round(cost.scoring_flops(cost.MODELS["llava-1.5-7b"].language, 64, schedules.fastv(576, 32)) / 1e9)
    43
    """
    d, kv, total = language.width, language.kv_heads * language.head, 0
    for layer, rows in schedule.scored:
        n = text + (schedule.tokens[layer - 1] if layer else schedule.tokens[0])
        scoring = {"last": 1, "text": text, "all": n}[rows]
        total += score_flops(n, scoring, d, d, kv)
    return total


def kv_bytes(language: Language, text: int, image: Sequence[int], size: int = 2) -> int:
    """Bytes of keys and values of the prompt, `size` each number.

    >>> from pyramid_ops import cost
    >>> cost.kv_bytes(cost.MODELS["llava-1.5-7b"].language, 64, [576] * 32) / 2**20
    320.0
    """
    return sum(2 * (text + count) * language.kv_heads * language.head * size for count in image)


def _runs(counts: Sequence[int]) -> str:
    """Equal layers together: `0-7: 576, 8-15: 288`."""
    firsts = [k for k, count in enumerate(counts) if not k or count != counts[k - 1]]
    spans = zip(firsts, [*firsts[1:], len(counts)], strict=True)
    named = ((f"{a}" if b == a + 1 else f"{a}-{b - 1}", counts[a]) for a, b in spans)
    return ", ".join(f"{span}: {count}" for span, count in named)


def model_of(name: str) -> Model:
    """A model of the table, or of `layers,width,heads,kv_heads,inner,vocabulary` with CLIP-L as encoder."""
    if name in MODELS:
        return MODELS[name]
    if re.fullmatch(r"\d+(,\d+){5}", name):
        language = Language(*map(int, name.split(",")))
        if min(language) < 1 or language.width % language.heads or language.heads % language.kv_heads:
            raise ValueError(f"cost: model: expected heads that divide the width, and kv_heads those, got {name}")
        return Model(language, _CLIP_L)
    raise ValueError(f"cost: model: expected one of {', '.join(MODELS)}, or {NUMBERS}, got {name}")


def _schedule(name: str, tokens: int, layers: int, keep: int, budget: Optional[int]) -> Optional[Schedule]:
    if budget is not None:
        return schedules.at_budget(name, tokens, layers, check.integer("cost", "budget", budget, 0))
    options = {"keep": keep} if name in _BEFORE else {}
    return schedules.METHODS[name](tokens, layers, **options)


#: Methods that take `keep`, and that have nothing to choose for a budget.
_BEFORE, _FIXED = ("before", "vscan"), ("none", "falling")


def _fits(
    vision: Vision,
    methods: Sequence[str],
    tokens: int,
    image: Optional[int],
    keep: Optional[int],
    budget: Optional[int],
) -> None:
    """Every option has an effect."""
    op = "cost"
    if image is not None and vision.side not in (None, image):
        raise ValueError(f"{op}: image: expected {vision.side}, what this encoder reads of any image, got {image}")
    for name, value, useful in (
        ("keep", keep, [method for method in schedules.METHODS if method in _BEFORE]),
        ("budget", budget, [method for method in schedules.METHODS if method not in _FIXED]),
    ):
        if value is None:
            continue
        if not set(methods) & set(useful):
            raise ValueError(
                f"{op}: {name}: expected only with one of the methods {', '.join(useful)}, got {value} with "
                f"{', '.join(methods)}"
            )
        if check.integer(op, name, value, 0) > tokens:
            raise ValueError(f"{op}: {name}: expected at most the {tokens} image tokens, got {value}")
    if keep is not None and budget is not None:
        raise ValueError(f"{op}: keep: expected only without a budget, which chooses it, got {keep}")


def report(
    model: str,
    *,
    methods: Sequence[str] = ("none",),
    image: Optional[int] = None,
    text: int = 64,
    keep: Optional[int] = None,
    tokens: Optional[int] = None,
    budget: Optional[int] = None,
) -> str:
    """Tokens by layer, operations and cache of a model for each method, beside those without any.

    Parameters
    ----------
    model : str
        A name of :data:`MODELS`, or ``layers,width,heads,kv_heads,inner,vocabulary`` with CLIP-L as encoder.
    methods : sequence of str
        Names of :data:`pyramid_ops.schedules.METHODS`.
    image : int, optional
        Side of the image in pixels, for encoders that take any. Default: 336, or what the encoder reads.
    text : int
        Tokens of text.
    keep : int, optional
        Image tokens that are left before the language model, for "before" and "vscan". Default: a ninth.
    tokens : int, optional
        Image tokens before any reduction, of several images or tiles that are encoded one by one. Default: those of
        one image.
    budget : int, optional
        Image tokens that a layer may read on average, for :func:`pyramid_ops.schedules.at_budget`. Default: the numbers
        that the authors chose.

    Returns
    -------
    str
        One paragraph a method.

    Raises
    ------
    TypeError, ValueError
        For an unknown model or method, a number that cannot be, or an option without an effect: `keep` or `budget`
        where no method takes it, `image` where the encoder has one size.

    Examples
    --------
    >>> from pyramid_ops import cost
    >>> print(cost.report("llava-1.5-7b", methods=["pyramiddrop"]))
    llava-1.5-7b: 576 image and 64 text tokens, vision tower 0.37 TFLOP
    pyramiddrop
      image tokens by layer  0-7: 576, 8-15: 288, 16-23: 144, 24-31: 72
      prefill                4.48 TFLOP, 53 % of 8.50
      of it for scores       0.08 TFLOP
      keys and values        167 MiB, 52 % of 320
    """
    op = "cost"
    language, vision = model_of(model)
    side = (vision.side or 336) if image is None else check.integer(op, "image", image, 1)
    count, all_tokens = patches(vision, side)
    text, images = check.integer(op, "text", text, 1), 1
    if tokens is not None:
        images, all_tokens = -(-check.integer(op, "tokens", tokens, 1) // all_tokens), tokens
    for name in methods:
        if name not in schedules.METHODS:
            raise ValueError(f"{op}: method: expected one of {', '.join(schedules.METHODS)}, got {name}")
    _fits(vision, methods, all_tokens, image, keep, budget)
    left = max(all_tokens // 9, 1) if keep is None else keep
    whole = [all_tokens] * language.layers
    base, cache = prefill_flops(language, text, whole), kv_bytes(language, text, whole)
    vision_part = f"vision tower {images * vision_flops(vision, count) / 1e12:.2f} TFLOP"
    lines = [f"{model}: {all_tokens} image and {text} text tokens, {vision_part}"]
    for name in methods:
        schedule = _schedule(name, all_tokens, language.layers, left, budget)
        if schedule is None:
            lines += [name, f"  none with at most {budget} image tokens a layer"]
            continue
        scores = scoring_flops(language, text, schedule)
        flops, kept = prefill_flops(language, text, schedule.tokens) + scores, kv_bytes(language, text, schedule.tokens)
        lines += [
            name,
            f"  image tokens by layer  {_runs(schedule.tokens)}",
            f"  prefill                {flops / 1e12:.2f} TFLOP, {100 * flops / base:.0f} % of {base / 1e12:.2f}",
            f"  of it for scores       {scores / 1e12:.2f} TFLOP",
            f"  keys and values        {kept / 2**20:.0f} MiB, {100 * kept / cache:.0f} % of {cache / 2**20:.0f}",
        ]
    return "\n".join(lines)
