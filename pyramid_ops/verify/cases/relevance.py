"""Descriptions of the ops in `ops/relevance.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import pyramid_ops

from ...ops.relevance import text_relevance_op
from ...reference.arguments import Masks, Segments, Similarity
from ..describe import Call, Case, Cases, Description
from ..inputs import FLOATS, Source, few_features, int32, name, offsets_to, special_rows

ALL = Masks()
REDUCTIONS = ("max", "mean", "var", "count", "softmax")


def _args(
    tokens: Tensor,
    text: Tensor,
    reduction: str,
    scale: float,
    limbs: int,
    *,
    masks: Masks = ALL,
    bounds: tuple = (None, None),
    longest: tuple = (None, None),
    cosine: bool = False,
    threshold: float = 0.0,
) -> tuple:
    most = [x.shape[1] if size is None else size for x, size in zip((tokens, text), longest, strict=True)]
    return tokens, text, masks, Segments(*bounds, *most), Similarity(cosine, scale, threshold, limbs), reduction


def text_relevance_golden() -> Cases:
    for features in (24, 130):
        for dtype in FLOATS:
            for limbs in (1, 2):
                case = f"{features}-{name(dtype)}-limbs{limbs}"
                source = Source(case)
                tokens, text = source.rows(features, dtype), source.rows(features, dtype)
                yield Case(f"max-{case}", _args(tokens, text, "max", 0.25, limbs))
                yield Case(f"mean-{case}", _args(tokens, text[:, :7], "mean", 0.25, limbs))
    for reduction in REDUCTIONS:
        for limbs in (1, 2):
            case = f"{reduction}-packed-limbs{limbs}"
            source, dtype = Source(case), FLOATS[(len(reduction) + limbs) % 3]
            tokens, text = (source.rows(40, dtype).view(1, 18, 40) for _ in range(2))
            masks = Masks(*[source.bits(1, 18) % 4 > 0 for _ in range(2)])
            options: dict[str, Any] = {"masks": masks, "bounds": (offsets_to(3, 3, 14, 17), offsets_to(7, 9, 10, 18))}
            yield Case(case, _args(tokens, text, reduction, 0.25, limbs, **options, longest=(9, 7)))
            if reduction != "softmax":
                options = {"masks": masks, "cosine": True, "threshold": 0.02}
                yield Case(f"{case}-cosine", _args(tokens, text, reduction, 1.5, limbs, **options))


def text_relevance_bits() -> Cases:
    for dtype in FLOATS:
        for features, tokens, words in ((1, 3, 2), (24, 17, 31), (65, 130, 5), (128, 70, 33), (1100, 7, 3)):
            x, text = special_rows(features, dtype, 1), special_rows(features, dtype, 2)
            x = x.repeat(1, -(-tokens // 9), 1)[:, :tokens]
            text = text.repeat(1, -(-words // 9), 1)[:, :words]
            for reduction in ("max", "mean"):
                limbs = 1 + (features + len(reduction)) % 2 if dtype != torch.float32 else 2
                case = f"{tokens}x{words}x{features}-{reduction}-{name(dtype)}-limbs{limbs}"
                yield Case(case, _args(x, text, reduction, features**-0.5, limbs))
    yield from _of_values()
    yield from _of_options()


def _of_values() -> Cases:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 70, 40, generator=generator)
    text = torch.randn(2, 40, 40, generator=generator) * torch.rand(2, 40, 1, generator=generator) ** 9
    masked = text.clone()
    masked[0, ::3], masked[1] = torch.nan, torch.nan
    for reduction in REDUCTIONS:
        for limbs in (1, 2):
            for case, tensors in (
                ("masked", (x, masked)),
                ("tiny", (x * 1e-38, text * 1e-30)),
                ("subnormal", (x, text * 1e-40)),
                ("huge", (x * 1e30, text * 1e30)),
                ("opposite", (x[:, :1].expand(2, 5, 40), -x[:, :1] * torch.arange(3)[:, None])),
                ("strided", (x.transpose(0, 1)[:9, :, 1:], text.transpose(0, 1)[:9, :, 1:])),
                ("no-tokens", (x[:, :0], text)),
                ("no-text", (x, text[:, :0])),
                ("no-samples", (x[:0], text[:0])),
            ):
                slow = reduction == "softmax" or (case == "tiny" and reduction in ("var", "count"))
                yield Case(f"{case}-{reduction}-limbs{limbs}", _args(*tensors, reduction, 0.3, limbs), slow)


def _of_options() -> Cases:
    generator = torch.Generator().manual_seed(7)
    for i, reduction in enumerate(REDUCTIONS):
        for j, dtype in enumerate(FLOATS):
            limbs, features = 1 + (i + j) % 2, (24, 65, 3)[(i + j) % 3]
            x, text = (special_rows(features, dtype, seed).repeat(1, 9, 1)[:, :n] for seed, n in ((1, 75), (2, 40)))
            masks = Masks(*[torch.rand(2, len(y[0]), generator=generator) < 0.7 for y in (x, text)])
            case = f"{reduction}-{name(dtype)}-limbs{limbs}"
            options = {"masks": masks, "cosine": reduction != "softmax" and j > 0, "threshold": 0.1 * j}
            yield Case(f"masks-{case}", _args(x, text, reduction, 0.3, limbs, **options))
            options["masks"] = Masks(
                *[y.view(1, -1) if y is not None and (i + j + k) % 3 else None for k, y in enumerate(masks)]
            )
            packed = (x.reshape(1, -1, features), text.reshape(1, -1, features))
            bounds = (int32(-3, 70, 70, 71, 99, 150), int32(3, 40, 47, 47, 50, 999))
            for most in ((None, None), (67, 30), (0, 80)):
                made = _args(*packed, reduction, 0.3, limbs, **options, bounds=bounds, longest=most)
                yield Case(f"packed-{most[0]}-{case}", made, reduction == "softmax" and j == 0)
        made = _args(*packed, reduction, 1.0, 1, bounds=(int32(0), int32(0)))
        yield Case(f"no-segments-{reduction}", made)
    # Constant text has no variance, and one that is nearly so has little.
    row = torch.randn(1, 1, 24, generator=generator)
    text = row.repeat(1, 300, 1)
    for limbs in (1, 2):
        yield Case(f"constant-var-limbs{limbs}", _args(row.repeat(1, 20, 1), text, "var", 1.0, limbs))
        text = text + 1e-3 * torch.randn(text.shape, generator=generator)
        yield Case(f"nearly-constant-var-limbs{limbs}", _args(row.repeat(1, 20, 1), text, "var", 1.0, limbs))


def text_relevance_ones() -> Iterator[Call]:
    one, bounds = torch.empty(1, 1, 1), torch.empty(2, dtype=torch.int32)
    offsets = {"cu_seqlens_tokens": bounds, "cu_seqlens_text": bounds}
    for reduction, precision in (("max", "high"), ("mean", "grid"), ("var", "high"), ("count", "grid")):
        relevance = functools.partial(pyramid_ops.text_relevance, reduction=reduction, precision=precision)
        if reduction == "count":
            relevance = functools.partial(relevance, threshold=1, metric="cosine", token_mask=one[0] > 0)
        yield Call(f"text_relevance-{reduction}", functools.partial(relevance, one, one, text_mask=one[0] > 0))
        if reduction != "count":
            yield Call(f"text_relevance-{reduction}-packed", functools.partial(relevance, one[0], one[0], **offsets))


def text_relevance_compiled() -> Iterator[Call]:
    tokens, words = (torch.empty(2, count, 1024, dtype=torch.bfloat16) for count in (4096, 77))
    for precision, reduction in (("grid", "max"), ("high", "mean"), ("high", "var"), ("grid", "count")):
        relevance = functools.partial(pyramid_ops.text_relevance, tokens, words, reduction=reduction)
        if reduction == "count":
            relevance = functools.partial(relevance, threshold=0.3, metric="cosine")
        call = functools.partial(relevance, precision=precision)
        yield Call(f"text_relevance, {precision}, {reduction}, D = 1024", call, torch.bfloat16)
    offsets = torch.empty(3, dtype=torch.int32)
    options = {"cu_seqlens_tokens": offsets, "cu_seqlens_text": offsets, "precision": "grid"}
    options |= {"token_mask": torch.empty(8192) > 0, "text_mask": torch.empty(154) > 0}
    packed = functools.partial(pyramid_ops.text_relevance, tokens.flatten(0, 1), words.flatten(0, 1), **options)
    yield Call("text_relevance, grid, max, packed, masks, D = 1024", packed, torch.bfloat16)
    softmax = functools.partial(packed, reduction="softmax")
    yield Call("text_relevance, grid, softmax, packed, masks, D = 1024", softmax, torch.bfloat16)


def relate(so_far: Any) -> None:
    level = so_far.choice(*so_far.levels)
    batch, features = level.shape[0], few_features(so_far, level)
    dtype = so_far.choice(*FLOATS)
    counts = so_far.integer(0, 25), so_far.integer(0, 25)
    shapes: list[tuple[int, ...]] = [(batch, count) for count in counts]
    options = {"reduction": so_far.choice(*REDUCTIONS), "precision": so_far.choice("grid", "high")}
    if so_far.choice(True, False):
        shapes = [(count,) for count in counts]
        segments = so_far.integer(0, 3)
        for part, count in zip(("tokens", "text"), counts, strict=True):
            ends = [so_far.integer(-1, count + 1) for _ in range(segments + 1)]
            options[f"cu_seqlens_{part}"] = torch.tensor(ends, dtype=torch.int32)
            options[f"max_seqlen_{part}"] = so_far.choice(None, so_far.integer(0, 20))
    for part, shape in zip(("token", "text"), shapes, strict=True):
        if so_far.choice(True, False):
            options[f"{part}_mask"] = so_far.tensor(*shape, dtype=torch.float32, kinds=("plain", "ties")) > 0
    if options["reduction"] == "count":
        options["threshold"] = so_far.choice(0, -0.5, 0.1)
    if options["reduction"] != "softmax":
        options["metric"] = so_far.choice("dot", "cosine")
    tokens, text = (so_far.tensor(*shape, features, dtype=dtype) for shape in shapes)
    so_far.same(pyramid_ops.text_relevance, tokens, text, **options)


DESCRIPTIONS = [
    Description(
        text_relevance_op,
        text_relevance_golden,
        text_relevance_bits,
        text_relevance_ones,
        text_relevance_compiled,
        relate,
        "test_text_relevance",
        dtypes=FLOATS,
        scattered=("_positions_kernel",),
        dots=("_relevance_kernel",),
    ),
]
