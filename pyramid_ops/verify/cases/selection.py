"""Descriptions of the ops in `ops/selection.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import pyramid_ops

from ...ops.selection import select_topk_levels_op
from ..describe import Call, Case, Cases, Description
from ..inputs import FEATURES, FLOATS, Source, golden_levels, special_scores


def levels(sizes: tuple, features: int, dtype: torch.dtype, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes))
    made = [torch.randn(batch, size, features, generator=generator) * 50 for size in sizes]
    for level in made:
        level[:, 1::3] = level[:, :1]  # ties
        if level.shape[1] > 4 and level.shape[2]:
            level[:, 2, 0] = torch.nan
            level[:, 4, -1] = torch.inf
    return [level.to(dtype) for level in made]


def select_topk_levels_golden() -> Cases:
    budgets: dict[tuple, tuple] = {
        (5,): ((0,), (1,), (5,)),
        (1, 1, 1): ((1, 0, 1), (2,)),
        (9, 0, 4): ((3, 0, 4), (7,), (13,)),
        (70, 17, 5, 1): ((9, 4, 2, 1), (33,)),
        (600, 300): ((20, 11),),
    }
    for k, (sizes, choices) in enumerate(budgets.items()):
        for j, chosen in enumerate(choices):
            for i, saliency in enumerate(("variance", "norm", "given")):
                if sum(sizes) > 500 and saliency != "given":
                    continue
                by_index = (i + j + k) % 2 == 1
                case = f"{'+'.join(map(str, sizes))}-{'+'.join(map(str, chosen))}-{saliency}"
                levels = golden_levels(case, sizes, (24, 130, 8)[(j + k) % 3], FEATURES[(i + j + k) % 4])
                source, dtype = Source(f"{case}-scores"), FLOATS[(i + j + k) % 3]
                scores = [source.scores(2, size, dtype) for size in sizes] if saliency == "given" else []
                yield Case(case + "-by-index" * by_index, (levels, scores, saliency, list(chosen), by_index))


def select_topk_levels_bits() -> Cases:
    budgets = {
        (5,): ((0,), (1,), (5,)),
        (1, 1, 1): ((1, 0, 1), (2,), (3,)),
        (9, 0, 4): ((3, 0, 4), (0, 0, 0), (7,), (13,)),
        (70, 17, 5, 1): ((9, 4, 2, 1), (0, 17, 0, 0), (33,)),
    }
    for k, (sizes, choices) in enumerate(budgets.items()):
        for j, chosen in enumerate(choices):
            for by_index in (False, True):
                for i, saliency in enumerate(("variance", "norm", "given")):
                    dtype = FEATURES[(k + j + i) % 4]
                    features = (1, 24, 130, 8)[(k + j + 2 * i + by_index) % 4]
                    made = levels(sizes, features, dtype)
                    given = FLOATS[(i + j) % 3]
                    scores = [special_scores(2, size, given, size + j) for size in sizes] if saliency == "given" else []
                    order = "index" if by_index else "saliency"
                    case = f"{'+'.join(map(str, sizes))}-{'+'.join(map(str, chosen))}-{saliency}-{order}"
                    yield Case(case, (made, scores, saliency, list(chosen), by_index))
    # Tiles of 2048 keys, a threshold that is far from all of them, and the best key last.
    for sizes, chosen in (((5000, 2604), [2500, 1303]), ((3583, 4093), [2, 5])):
        made = levels(sizes, 8, torch.float32, batch=1)
        scores = [special_scores(1, size, torch.float32, size) for size in sizes]
        for score in scores:
            score[0, -1] = torch.inf
        args = (made, scores, "given", chosen, False)
        yield Case(f"several-tiles-{sum(chosen)}", args, slow=sum(chosen) > 1000)
    made = [level.transpose(0, 1).contiguous().transpose(0, 1) for level in levels((20, 5), 24, torch.bfloat16)]
    yield Case("strided", (made, [], "variance", [6, 3], False))
    made = [level[:, :, 1:] for level in levels((20, 5), 24, torch.float16)]
    yield Case("unaligned", (made, [], "norm", [6, 3], False))
    made = levels((20, 5), 24, torch.float32, batch=0)
    yield Case("no-samples", (made, [], "norm", [6, 3], False))


def select_topk_levels_ones() -> Iterator[Call]:
    one, select = torch.empty(1, 1, 1), pyramid_ops.select_topk_levels
    levels = [torch.empty(2, size, 64) for size in (256, 1)]
    scores = [torch.empty(2, size, dtype=torch.float16) for size in (256, 1)]
    far = torch.empty(4).as_strided((1, 4, 1), (1 << 31, 1, 1))
    yield Call("select_topk_levels", lambda: select([one, one], budgets=[1, 1], saliency="norm"))
    yield Call("select_topk_levels-1-last", lambda: select(levels, budgets=[20, 1], saliency=scores))
    yield Call("select_topk_levels-1-first", lambda: select(levels[::-1], budgets=[1, 20]))
    yield Call("select_topk_levels-union", lambda: select(levels, 1, None, order="index"))
    yield Call("select_topk_levels-far", lambda: select([one, far], budgets=[1, 2], saliency="norm"))


def select_topk_levels_compiled() -> Iterator[Call]:
    for dtype in (torch.float32, torch.bfloat16):
        levels = [torch.empty(2, size, 1024, dtype=dtype) for size in (4096, 1024, 256, 64)]
        select = functools.partial(pyramid_ops.select_topk_levels, levels, 273)
        yield Call("select_topk_levels, 273 of 5440, D = 1024", select, dtype)
        yield Call("select_topk_levels, union", functools.partial(select, level_weights=None), dtype)
        small = [torch.empty(2, size, 1024, dtype=dtype) for size in (1024, 256, 64, 16)]
        select = functools.partial(pyramid_ops.select_topk_levels, small, 68)
        yield Call("select_topk_levels, 68 of 1360, D = 1024", select, dtype)


def select(so_far: Any) -> None:
    sizes = [level.shape[1] for level in so_far.levels]
    saliency = so_far.scores or so_far.choice("variance", "norm")
    options = {"saliency": saliency, "order": so_far.choice("saliency", "index")}
    if so_far.choice(True, False):
        options["budgets"] = [so_far.integer(0, size) for size in sizes]
    else:
        options.update(target_tokens=so_far.integer(0, sum(sizes)), level_weights=None)
    so_far.indices = so_far.same(pyramid_ops.select_topk_levels, so_far.levels, **options).indices


DESCRIPTIONS = [
    Description(
        select_topk_levels_op,
        select_topk_levels_golden,
        select_topk_levels_bits,
        select_topk_levels_ones,
        select_topk_levels_compiled,
        select,
        "test_select_topk_levels",
        limits={"rank_work": 0},
    ),
]
