"""Descriptions of the ops in `ops/keeping.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

from ...ops.keeping import keep_tokens_op, mark_tokens_op, move_tokens_op
from ...plans.applied import apply
from ...plans.kept import keep, mask
from ...reference.arguments import Amount, Choice, Placed, Slots
from ..describe import Call, Case, Cases, Description
from ..inputs import BITS, BOUNDS, FLOATS, Source, int32, name, offsets, offsets_to, special_scores

ALL = Choice(None, None, None, None, True)


def keep_tokens_golden() -> Cases:
    for dtype in FLOATS:
        for packed in (False, True):
            for by_index in (False, True):
                case = f"{name(dtype)}{'-packed' * packed}{'-by-index' * by_index}"
                source = Source(case)
                scores = source.scores(1, 120, dtype).view(1 if packed else 4, -1)
                candidates, forced = (source.integers(0, 5, *scores.shape) > most for most in (0, 3))
                wanted = source.integers(-1, 30, 4, dtype=torch.int32)
                choice = Choice(candidates, forced, source.floats(4), None, by_index)
                cu_seqlens = offsets_to(40, 40, 61, 120) if packed else None
                yield Case(case, (scores, cu_seqlens, choice, Amount(wanted, [0]), Slots(50, 25), by_index))


def keep_tokens_bits() -> Cases:
    for i, dtype in enumerate(FLOATS):
        scores = special_scores(3, 300, dtype, i)
        flags = special_scores(2, 900, torch.float32, i + 7).view(2, 3, 300) > 0
        thresholds = torch.tensor([0.0, torch.nan, -torch.inf])
        for case, choice, k in (
            ("all", ALL, Amount(None, [300])),
            ("least", ALL._replace(largest=False), Amount(None, [5, 0, 299])),
            ("candidates", ALL._replace(candidates=flags[0]), Amount(int32(3, -1, 1 << 30), [0])),
            ("forced", ALL._replace(forced=flags[1]), Amount(None, [40])),
            ("threshold", ALL._replace(threshold=0.5), Amount(None, [60])),
            ("below", Choice(flags[0], flags[1], thresholds, None, False), Amount(None, [7])),
            ("above", Choice(flags[0], flags[1], thresholds, None, True), Amount(int32(3, 0, 99), [0])),
        ):
            for by_index in (False, True):
                slots = Slots(300 if i else 257, (120, 7, 300)[i])
                args = (scores, None, choice, k, slots, by_index)
                yield Case(f"{case}-{name(dtype)}-{'index' if by_index else 'value'}", args)
    for i, (case, bounds) in enumerate(BOUNDS.items()):
        segments, total = len(bounds) - 1, max(bounds[-1], 50)
        scores = special_scores(1, total, FLOATS[i % 3], i)
        flags = special_scores(2, total, torch.float32, i).view(2, 1, total) > 0
        choice = Choice(flags[0], flags[1] & flags[0], torch.linspace(-1, 1, segments), None, bool(i % 2))
        device = int32(*[(-3, 5, 1 << 30, 16, 1, 300)[(s + i) % 6] for s in range(segments)])
        for by_index in (False, True):
            args = (scores, int32(*bounds), choice, Amount(device, [0]), Slots(min(total, 2000), 64), by_index)
            yield Case(f"{case}-{'index' if by_index else 'value'}", args)
    scores = special_scores(1, 16500, torch.float32, 2)
    choice = ALL._replace(forced=scores.isnan(), threshold=-1.0)
    for cu_seqlens, capacity in ((None, 3), (int32(1, 16450), 5000)):
        args = (scores, cu_seqlens, choice, Amount(None, [16500]), Slots(16500, capacity), False)
        yield Case(f"several-programs-{capacity}", args)
    yield Case("no-tokens", (scores[:, :0], None, ALL, Amount(None, [2]), Slots(0, 2), False))
    yield Case("no-slots", (scores, int32(3, 9, 5), ALL, Amount(None, [0]), Slots(9, 0), False))
    yield Case("no-samples", (scores[:0], None, ALL, Amount(None, [2]), Slots(9, 2), False))
    yield Case("no-segments", (scores, int32(4), ALL, Amount(None, [2]), Slots(9, 2), True))


def keep_tokens_ones() -> Iterator[Call]:
    bounds = torch.empty(2, dtype=torch.int32)
    flags = torch.empty(1, 1, dtype=torch.bool)
    for k in (1, bounds[:1], None):
        yield Call(f"keep-{type(k).__name__}", functools.partial(keep, torch.empty(1, 1), k, forced=flags))
    yield Call("keep-packed", lambda: keep(torch.empty(1), 1, cu_seqlens=bounds, threshold=1.0, order="value"))
    yield Call("keep-long", lambda: keep(torch.empty(1, 1 << 20), 1, threshold=torch.empty(1)))


def keep_tokens_compiled() -> Iterator[Call]:
    bounds, wanted = torch.empty(5, dtype=torch.int32), torch.empty(4, dtype=torch.int32)
    for dtype in (torch.float32, torch.bfloat16):
        scores, flags = torch.empty(4, 640, dtype=dtype), torch.empty(4, 640, dtype=torch.bool)
        call = functools.partial(keep, scores, 144, candidates=flags, forced=~flags)
        yield Call("keep, 144 of the image in 640", call, dtype)
        packed = functools.partial(keep, torch.empty(1 << 16, dtype=dtype), wanted, cu_seqlens=bounds, order="value")
        call = functools.partial(packed, max_seqlen=16384, capacity=2048, threshold=torch.empty(4), largest=False)
        yield Call("keep, packed, by value", call, dtype)


def keeping(so_far: Any) -> None:
    """Some tokens of the scores and of what belongs to them, then some of those."""
    if not so_far.scores or not so_far.scores[0].shape[1]:
        return
    scores = so_far.scores[0]
    options: dict[str, Any] = {"order": so_far.choice("index", "value"), "largest": so_far.choice(True, False)}
    level = so_far.levels[0]
    if so_far.choice(True, False):
        scores, level = scores.flatten(), level.flatten(0, 1)
        options["cu_seqlens"] = offsets(so_far, len(scores))
        options["capacity"] = so_far.integer(0, min(20, len(scores)))
    for flag in ("candidates", "forced"):
        if so_far.choice(True, False):
            options[flag] = scores > so_far.choice(0.0, 0.5, 1.0)
    k = so_far.choice(so_far.integer(0, 9), None)
    plan = so_far.same(keep, scores, k, threshold=so_far.choice(None, 0.25), **options)
    so_far.same(mask, plan)
    align = "left" if "cu_seqlens" in options else so_far.choice("left", "right")
    tensors = [scores, level] if scores.shape == level.shape[:-1] else [scores]
    so_far.same(
        apply, plan, tensors, align=align, fill=so_far.choice(0, -1, torch.inf) if level.is_floating_point() else 0
    )


def tensors(size: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    bits = torch.arange(size * 7, dtype=torch.int64).repeat(1 + torch.Size(shape).numel() // (7 * size))
    bits = (bits * 0x9E3779B97F4A7C15 >> 13)[: torch.Size(shape).numel()]
    return bits.to(dtype).view(shape)


def move_tokens_golden() -> Cases:
    tokens = torch.tensor([[3, 0, 5, 9, -1], [7, 7, 2, 1, 4]])
    for dtype in BITS:
        for right in (False, True):
            xs = [tensors(8, dtype, *shape) for shape in ((2, 1, 8, 5), (1, 3, 8, 5), (2, 2, 8, 1))]
            args = (xs, tokens, int32(4, 5), Placed(5, right, False), [0.0, 1.0, 77.0])
            yield Case(f"{name(dtype)}-{'right' if right else 'left'}", args)


def move_tokens_bits() -> Cases:
    tokens = torch.tensor([[3, 0, 5, 64, -1, 63, 1 << 40], [7, 7, 2, 1, 4, -(1 << 40), 0]])
    counts = int32(4, 9)
    for dtype in BITS:
        for right in (False, True):
            fills = [0.0, 1.0, 77.0, 0.0]
            xs = [
                tensors(64, dtype, *shape) for shape in ((2, 1, 64, 40), (2, 3, 64, 40), (1, 2, 64, 1), (1, 1, 64, 1))
            ]
            for case, given, at in (("", tokens, counts), ("-all", tokens, None), ("-first", None, counts)):
                args = (xs, given, at, Placed(7, right, False), fills)
                yield Case(f"{name(dtype)}-{'right' if right else 'left'}{case}", args)
            squares = [tensors(64, dtype, *shape) for shape in ((2, 1, 64, 64), (1, 3, 64, 64))]
            args = (squares, tokens, counts, Placed(7, right, True), fills[:2])
            yield Case(f"{name(dtype)}-{'right' if right else 'left'}-columns", args)
    many = torch.arange(600).flip(0).expand(2, -1).contiguous()
    x = torch.randn(2, 600, 3, 20).transpose(1, 2)
    yield Case("strided", ([x, x[:1, :, :, 3:11]], many[:, :513], None, Placed(513, False, False), [0.0, -torch.inf]))
    halves = [torch.randn(2, 1, 600, width).to(torch.bfloat16) for width in (1024, 1, 7)]
    yield Case("wide", (halves, many, int32(600, 2), Placed(600, True, False), [-torch.inf, 1e-3, 0.0]))
    masks = torch.randn(2, 1, 300, 300)
    yield Case("wide-columns", ([masks], many[:, 300:501], int32(200, 0), Placed(201, True, True), [-torch.inf]))
    flags = torch.randn(2, 600, 1, 600)[:, :, 0, None] > 0
    yield Case("flags", ([flags.transpose(1, 2)], many[:, :5], None, Placed(5, False, False), [1.0]))
    yield Case(
        "doubles", ([torch.randn(1, 1, 600, 2).double()], many[:, :5], int32(3, 0), Placed(5, True, False), [0.1])
    )
    yield Case("no-tokens", ([x[:, :, :0]], many[:, :5], None, Placed(5, False, False), [2.0]))
    yield Case("no-slots", ([x], many[:, :0], None, Placed(0, False, False), [2.0]))
    yield Case("no-samples", ([x[:0]], many[:0, :5], None, Placed(5, False, False), [2.0]))


def move_tokens_ones() -> Iterator[Call]:
    plan = keep(torch.empty(1, 1), 1)
    yield Call("apply", lambda: apply(plan, [torch.empty(1, 1, 1), torch.empty(1, 1, 1, 1), torch.empty(1)]))
    yield Call("apply-mask", lambda: apply(plan, torch.empty(1, 1, 1, 1), dims=(2, 3), align="right", fill=1))


def move_tokens_compiled() -> Iterator[Call]:
    plan = keep(torch.empty(4, 640), 144)
    for dtype in (torch.float32, torch.bfloat16):
        hidden, cache = torch.empty(4, 640, 4096, dtype=dtype), torch.empty(4, 8, 640, 128, dtype=dtype)
        positions = torch.empty(3, 4, 640, dtype=torch.int64)
        call = functools.partial(apply, plan, [hidden, cache, cache, positions], dims=[1, 2, 2, 2], align="right")
        yield Call("apply, hidden, keys, values, positions", functools.partial(call, batch_dims=[0, 0, 0, 1]), dtype)
        masks = torch.empty(4, 1, 640, 640, dtype=dtype)
        yield Call("apply, mask", functools.partial(apply, plan, masks, dims=(2, 3), fill=-torch.inf), dtype)


def mark_tokens_golden() -> Cases:
    source = Source("mark")
    yield Case("", (source.integers(-2, 80, 3, 30), 77))


def mark_tokens_bits() -> Cases:
    generator = torch.Generator().manual_seed(0)
    for count, size in ((1, 1), (30, 77), (1030, 2000)):
        yield Case(f"{count}-{size}", (torch.randint(-2, size + 2, (3, count), generator=generator), size))
    tokens = torch.randint(-2, 9, (3, 8), generator=generator)
    yield Case("strided", (tokens[:, ::2], 7))
    yield Case("no-tokens", (tokens[:, :0], 7))
    yield Case("nothing", (tokens, 0))
    yield Case("far", (tokens + (1 << 40), 7))


def mark_tokens_ones() -> Iterator[Call]:
    yield Call("mask", functools.partial(mask, keep(torch.empty(1, 1), 1)))


def mark_tokens_compiled() -> Iterator[Call]:
    yield Call("mask, 144 of 640", functools.partial(mask, keep(torch.empty(4, 640), 144)))


DESCRIPTIONS = [
    Description(
        keep_tokens_op,
        keep_tokens_golden,
        keep_tokens_bits,
        keep_tokens_ones,
        keep_tokens_compiled,
        keeping,
        "test_keep",
        dtypes=FLOATS,
        scattered=("_keep_keys_kernel", "_keep_tokens_kernel", "_select_segment_kernel"),
    ),
    Description(
        move_tokens_op,
        move_tokens_golden,
        move_tokens_bits,
        move_tokens_ones,
        move_tokens_compiled,
        keeping,
        "test_keep",
        dtypes=BITS,
        scattered=("_move_tokens_kernel",),
    ),
    Description(
        mark_tokens_op,
        mark_tokens_golden,
        mark_tokens_bits,
        mark_tokens_ones,
        mark_tokens_compiled,
        keeping,
        "test_keep",
        dtypes=(torch.int64,),
        scattered=("_mark_tokens_kernel",),
    ),
]
