"""Descriptions of the ops in `ops/ragged.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

import pyramid_ops

from ...ops.ragged import segmented_topk_op, select_topk_levels_packed_op
from ...reference.arguments import Amount, Slots
from ..describe import Call, Case, Cases, Description
from ..inputs import BOUNDS, FEATURES, FLOATS, Source, golden_levels, int32, name, offsets, offsets_to, special_scores
from .selection import levels


def segmented_topk_golden() -> Cases:
    for size in (3000, 40000):
        for dtype in FLOATS:
            for by_index in (False, True):
                case = f"{size}-{name(dtype)}" + "-by-index" * by_index
                source = Source(case)
                scores = torch.cat(
                    (source.scores(1, size // 3, dtype)[0], source.floats(size - size // 3, dtype=dtype))
                )
                offsets = offsets_to(5, 5, size // 2, size)
                yield Case(case, (scores, offsets, Amount(None, [7, 1, 300, 12]), Slots(size, 300), by_index))
                wanted = torch.tensor([-1, 3, 9, 1 << 20], dtype=torch.int32)
                yield Case(f"{case}-tensor", (scores, offsets, Amount(wanted, [0]), Slots(size, 20), by_index))


def select_topk_levels_packed_golden() -> Cases:
    sizes, bounds = (90, 30, 7), [offsets_to(40, 40, 90), offsets_to(10, 12, 30), offsets_to(0, 3, 7)]
    for i, saliency in enumerate(("variance", "norm", "given")):
        for dtype in FEATURES:
            case = f"{saliency}-{name(dtype)}"
            levels = [
                level.flatten(0, 1)[:size]
                for level, size in zip(golden_levels(case, sizes, 24, dtype), sizes, strict=True)
            ]
            source = Source(f"{case}-scores")
            scores = [source.scores(1, size, FLOATS[i])[0] for size in sizes] if saliency == "given" else []
            yield Case(case, (levels, bounds, scores, saliency, Amount(None, [9, 4, 2]), Slots(50, 15), i == 1))
            wanted = source.integers(-1, 20, 3, 3, dtype=torch.int32)
            yield Case(
                f"{case}-tensor", (levels, bounds, scores, saliency, Amount(wanted, [0] * 3), Slots(50, 12), i == 2)
            )


def segmented_topk_bits() -> Cases:
    for i, (case, bounds) in enumerate(BOUNDS.items()):
        segments, total = len(bounds) - 1, max(bounds[-1], 50)
        each = [(0, 3, 1, 16, 300, 2, 7)[s % 7] for s in range(segments)]
        device = int32(*[(-3, 5, 1 << 30, 16, 1, 300)[(s + i) % 6] for s in range(segments)])
        for j, (numbers, tensor, capacity) in enumerate(
            (([0], None, 0), ([1], None, 1), ([60], None, 59), (each or [0], None, 301), ([0], device, 64))
        ):
            for by_index in (False, True):
                dtype = FLOATS[(i + j + by_index) % 3]
                scores = special_scores(1, total, dtype, i + j)[0]
                slots = Slots(2100 if j != 2 else 100, capacity)
                args = (scores, int32(*bounds), Amount(tensor, numbers), slots, by_index)
                yield Case(f"{case}-{j}-{'index' if by_index else 'value'}", args)
    scores = special_scores(1, 27001, torch.float32, 2)[0]
    for by_index in (False, True):
        order = "index" if by_index else "value"
        args = (scores, int32(0, 9000, 9000, 27000), Amount(None, [5000]), Slots(17000, 5000), by_index)
        yield Case(f"several-programs-{order}", args)
        args = (scores, int32(1, 27001), Amount(int32(3), [0]), Slots(27000, 3), by_index)
        yield Case(f"one-segment-of-several-programs-{order}", args)
    for dtype in FLOATS:
        # Several tiles in one program, and the best key last.
        ties = special_scores(1, 7676, dtype, 3)[0]
        ties[-1] = torch.inf
        args = (ties, int32(0, 3583, 3583, 7676), Amount(None, [2, 0, 1303]), Slots(4093, 1303), False)
        yield Case(f"several-tiles-{name(dtype)}", args)
        args = (ties, int32(0, 4000, 7676), Amount(None, [48, 3]), Slots(5001, 301), dtype == torch.float16)
        yield Case(f"two-segments-of-several-tiles-{name(dtype)}", args)
    for dtype in FLOATS:
        args = (special_scores(1, 700, dtype, 4)[0], int32(0, 500, 700), Amount(None, [40]), Slots(500, 40), False)
        yield Case(f"two-segments-of-several-blocks-{name(dtype)}", args)
    args = (scores[1:5201], int32(0, 5200), Amount(None, [4800]), Slots(5200, 4800), False)
    yield Case("sorted", args)
    for capacity in (0, 2):
        args = (scores[:0], int32(0, 3, 3, 0), Amount(None, [capacity]), Slots(0, capacity), False)
        yield Case(f"no-scores-{capacity}", args)


def select_topk_levels_packed_bits() -> Cases:
    bounds = [int32(0, 40, 40, 47, 130), int32(0, 11, 12, 12, 35), int32(1, 3, 2, 9, 9)]
    budgets = int32(-1, 2, 1, 9, 9, 9, 300, 0, 1, 5, 40, 2).view(4, 3)
    lengths = (130, 35, 9)
    for i, (saliency, dtype) in enumerate(zip(("variance", "norm", "given"), FLOATS, strict=True)):
        features = [level[0] for level in levels(lengths, (24, 3, 130)[i], dtype, batch=1)]
        scores = [special_scores(1, n, FLOATS[i - 1], n)[0] for n in lengths] if saliency == "given" else []
        for by_index in (False, True):
            for case, numbers, tensor, most, capacity in (
                ("list", [5, 3, 1], None, 100, 9),
                ("device", [0], budgets, 100, 24),
                ("tight", [0], budgets, 20, 7),
                ("nothing", [0, 0, 0], None, 100, 0),
            ):
                args = (features, bounds, scores, saliency, Amount(tensor, numbers), Slots(most, capacity), by_index)
                yield Case(f"{saliency}-{case}-{'index' if by_index else 'saliency'}", args)
    features = [level[0] for level in levels((17000, 90), 4, torch.float32, batch=1)]
    args = (features, [int32(0, 16900), int32(7, 80)], [], "norm", Amount(None, [4, 3]), Slots(17000, 6), False)
    yield Case("several-programs", args)
    args = (
        [features[1], features[0][:0]],
        [int32(7, 80), int32(0, 0)],
        [],
        "norm",
        Amount(None, [4, 3]),
        Slots(90, 7),
        False,
    )
    yield Case("empty-level", args)
    args = ([x[:, 1:] for x in features[1:]], [int32(7, 80, 90)], [], "norm", Amount(None, [4]), Slots(90, 4), True)
    yield Case("strided", args)
    yield Case("no-samples", (features[1:], [int32(0)], [], "norm", Amount(None, [4]), Slots(90, 4), True))


def segmented_topk_ones() -> Iterator[Call]:
    bounds = torch.empty(2, dtype=torch.int32)
    for size, k in ((1, 1), (1, bounds[:1]), (513, [1]), (1 << 20, [1])):
        topk = functools.partial(pyramid_ops.segmented_topk, torch.empty(size), bounds, k, max_seqlen=size, capacity=1)
        yield Call(f"segmented_topk-{size}-{type(k).__name__}", topk)


def segmented_topk_compiled() -> Iterator[Call]:
    bounds, wanted = torch.empty(5, dtype=torch.int32), torch.empty(4, dtype=torch.int32)
    for dtype in (torch.float32, torch.bfloat16):
        topk = functools.partial(pyramid_ops.segmented_topk, torch.empty(1 << 20, dtype=dtype), bounds)
        yield Call("segmented_topk, 273 of 576", functools.partial(topk, 273, max_seqlen=576), dtype)
        ranked = functools.partial(topk, wanted, max_seqlen=1 << 20, capacity=8192, order="index")
        yield Call("segmented_topk, k on the device, of 2^20, by index", ranked, dtype)


def select_topk_levels_packed_ones() -> Iterator[Call]:
    bounds = torch.empty(2, dtype=torch.int32)
    for size in (1, 1 << 20):
        packed = [torch.empty(size, 1), torch.empty(1, 1)]
        select = functools.partial(pyramid_ops.select_topk_levels_packed, packed, [bounds] * 2, [1, 0])
        yield Call(f"select_topk_levels_packed-{size}", functools.partial(select, max_seqlen=size))


def select_topk_levels_packed_compiled() -> Iterator[Call]:
    bounds, budgets = torch.empty(5, dtype=torch.int32), torch.empty(4, 4, dtype=torch.int32)
    for dtype in (torch.float32, torch.bfloat16):
        packed = [torch.empty(size, 1024, dtype=dtype) for size in (40960, 10240, 2560, 640)]
        select = functools.partial(pyramid_ops.select_topk_levels_packed, packed, [bounds] * 4, budgets, capacity=273)
        for size in (4096, 40960):
            call = functools.partial(select, max_seqlen=size)
            yield Call(f"select_topk_levels_packed, 273 of up to {size}", call, dtype)


def pack(so_far: Any) -> None:
    """Segments of the scores, the best of each, and what they move."""
    if not so_far.scores or not so_far.levels[0].shape[0]:
        return
    scores, rows = so_far.scores[0].flatten(), so_far.levels[0].flatten(0, 1)
    bounds = offsets(so_far, len(scores))
    counts = torch.tensor([so_far.integer(-1, 9) for _ in bounds[1:]], dtype=torch.int32)
    k = so_far.choice(so_far.integer(0, 9), counts.clamp(min=0).tolist(), counts)
    options = {
        "max_seqlen": so_far.choice(len(scores), so_far.integer(0, 20)),
        "order": so_far.choice("value", "index"),
    }
    if isinstance(k, torch.Tensor) or so_far.choice(True, False):
        options["capacity"] = so_far.integer(0, 8)
    if not isinstance(k, int) and not len(k):
        return
    best = so_far.same(pyramid_ops.segmented_topk, scores, bounds, k, **options)
    kept = so_far.choice(best.counts, None)
    so_far.same(pyramid_ops.compact, [rows, scores], best.indices, kept, cu_seqlens=bounds)


def pack_levels(so_far: Any) -> None:
    """The best of packed levels, budgets on the host or on the device."""
    if not so_far.levels[0].shape[0]:
        return
    levels = [level.flatten(0, 1) for level in so_far.levels]
    samples = so_far.integer(0, 3)
    bounds = []
    for level in levels:
        ends = sorted(so_far.integer(0, len(level)) for _ in range(samples))
        bounds.append(torch.tensor([0, *ends], dtype=torch.int32))
    budgets = [so_far.integer(0, 6) for _ in levels]
    options = {"max_seqlen": so_far.choice(40, 7), "order": so_far.choice("saliency", "index")}
    if so_far.choice(True, False):
        budgets = torch.tensor([[so_far.integer(-1, 9) for _ in levels] for _ in range(samples)], dtype=torch.int32)
        budgets, options["capacity"] = budgets.view(samples, len(levels)), so_far.integer(0, 12)
    options["saliency"] = so_far.choice("variance", "norm")
    so_far.same(pyramid_ops.select_topk_levels_packed, levels, bounds, budgets, **options)


DESCRIPTIONS = [
    Description(
        segmented_topk_op,
        segmented_topk_golden,
        segmented_topk_bits,
        segmented_topk_ones,
        segmented_topk_compiled,
        pack,
        "test_segmented_topk",
        dtypes=FLOATS,
        scattered=(
            "_select_segment_kernel",
            "_count_kernel",
            "_take_chunk_kernel",
            "_order_kernel",
            "_rank_segment_kernel",
        ),
        limits={"rank_work": 0},
    ),
    Description(
        select_topk_levels_packed_op,
        select_topk_levels_packed_golden,
        select_topk_levels_packed_bits,
        select_topk_levels_packed_ones,
        select_topk_levels_packed_compiled,
        pack_levels,
        "test_select_topk_levels_packed",
    ),
]
