"""For each op the arguments of its golden digests."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..ops.units import low_limb_bits
from .inputs import FEATURES, FLOATS, FORMATS, Source, name

Cases = Iterator[tuple[str, tuple]]


def _rows(few: bool = False) -> Iterator[tuple[str, Tensor]]:
    # Each size and dtype is a kernel of its own, which a GPU has to compile.
    pairs = [(features, dtype) for features in ((65,) if few else (1, 65, 1024, 1537)) for dtype in FEATURES]
    if not few:
        pairs += zip((2, 3, 257, 588, 768, 1152, 3072, 4097, 16384), FLOATS * 3, strict=True)
    for features, dtype in pairs:
        case = f"{features}-{name(dtype)}"
        yield case, Source(case).rows(features, dtype)
    x = Source("strided").rows(130, torch.float32)
    yield "strided", x.transpose(0, 1)
    yield "unaligned", x[:, ::2, 1:]
    yield "no-tokens", x[:, :0]


def _token_variance() -> Cases:
    for case, x in _rows():
        yield case, (x, 1)
    for case, x in _rows(few=True):
        for correction in (0, 3):
            yield f"{case}-correction{correction}", (x, correction)


def _token_norm() -> Cases:
    for case, x in _rows():
        yield case, (x,)


def _unit_rows() -> Cases:
    for case, x in _rows():
        yield case, (x, 2, low_limb_bits(x.shape[2]))
    for case, x in _rows(few=True):
        yield f"{case}-limbs1", (x, 1, 0)


_GAUSSIAN = (0.05448868454964294, 0.24420134200323332, 0.40261994689424746, 0.24420134200323332, 0.05448868454964294)


_FILTERS = {
    "gaussian": _GAUSSIAN,
    "binomial": (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16),
    "box": (1.0,),
    "skewed": (-0.3, 0.7, 1.9),
    "wide": (0.01, 0.02, 0.1, 0.15, 0.44, 0.15, 0.1, 0.02, 0.01),
}


def _blur_downsample() -> Cases:
    def case(filter_name: str, padding: str, downsample: str, dtype: torch.dtype, *shape: int) -> tuple[str, tuple]:
        taps = list(_FILTERS[filter_name])
        if downsample == "mean":
            taps = [(a + b) / 2 for a, b in zip([*taps, 0.0], [0.0, *taps], strict=True)]
        height, width = ((side + (downsample == "decimate")) // 2 for side in shape[2:])
        label = f"{'x'.join(map(str, shape))}-{filter_name}-{padding}-{downsample}-{name(dtype)}"
        image = Source(label).image(*shape, dtype=dtype)
        return label, (image, taps, -(len(_FILTERS[filter_name]) // 2), padding, height, width)

    for i, filter_name in enumerate(_FILTERS):
        for j, padding in enumerate(("zeros", "reflect", "replicate")):
            for k, downsample in enumerate(("mean", "decimate")):
                size = ((1, 2, 7, 9), (1, 1, 2, 3))[(i + j + k) // 4 % 2]
                yield case(filter_name, padding, downsample, FEATURES[(i + j + k) % 4], *size)
    for dtype in FEATURES:
        yield case("gaussian", "reflect", "mean", dtype, 2, 1, 33, 66)
        yield case("gaussian", "zeros", "decimate", dtype, 1, 1, 35, 130)
    yield case("box", "replicate", "decimate", torch.float32, 1, 1, 1, 2)


def _levels(case: str, sizes: Sequence[int], features: int, dtype: torch.dtype) -> list[Tensor]:
    source = Source(case)
    levels = [source.floats(2, size, features, dtype=dtype) for size in sizes]
    for level in levels:
        level[:, 1::3] = level[:, :1].clone()  # ties
        if level.shape[1] > 4 and dtype != torch.uint8:
            level[:, 2, 0], level[:, 4, -1] = math.nan, math.inf
    return levels


def _select_topk_levels() -> Cases:
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
                levels = _levels(case, sizes, (24, 130, 8)[(j + k) % 3], FEATURES[(i + j + k) % 4])
                source, dtype = Source(f"{case}-scores"), FLOATS[(i + j + k) % 3]
                scores = [source.scores(2, size, dtype) for size in sizes] if saliency == "given" else []
                yield case + "-by-index" * by_index, (levels, scores, saliency, list(chosen), by_index)


def _gather_levels() -> Cases:
    source = Source("indices")
    indices = torch.stack((source.integers(-1, 4, 2, 17), source.integers(-2, 9, 2, 17)), 2)
    indices[0, 0] = torch.tensor([1 << 40, -(1 << 40)])
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        for width in (1, 33, 1100):
            case = f"{width}-{name(dtype)}"
            source = Source(case)
            yield case, ([source.integers(0, 255, 2, size, width, dtype=dtype) for size in (7, 0, 3)], indices)
    yield "one-batch", ([Source("one-batch").integers(0, 255, 1, size, 3) for size in (6, 4)], indices)


def _offsets(*ends: int) -> Tensor:
    return torch.tensor([0, *ends], dtype=torch.int32)


def _best_match() -> Cases:
    for features in (1, 65, 130):
        for dtype in FEATURES:
            for limbs in (1, 2):
                case = f"{features}-{name(dtype)}-limbs{limbs}"
                source = Source(case)
                keys = torch.cat([source.rows(features, dtype) for _ in range(4)], 1)
                yield case, (source.rows(features, dtype), keys, None, None, None, 9, 36, limbs)
    source = Source("packed")
    x, mask = source.floats(1, 60, 24), source.bits(1, 60) % 4 > 0
    for limbs in (1, 2):
        offsets = (_offsets(0, 17, 40, 60), _offsets(9, 9, 50, 70))
        yield f"packed-limbs{limbs}", (x, x.flip(1), mask, *offsets, 20, 30, limbs)


def _fold_groups() -> Cases:
    sizes = (0, 1, 2, 31, 32, 33, 97, 5)
    offsets = torch.tensor([sum(sizes[:k]) for k in range(len(sizes) + 1)]).expand(2, -1).contiguous()
    for mode in ("mean", "sum", "amax"):
        for dtype in FEATURES:
            for weighted in (False, True):
                case = f"{mode}-{name(dtype)}" + "-weighted" * weighted
                source = Source(case)
                x = torch.cat([source.rows(33, dtype) for _ in range(3)], 1)
                weights = source.floats(2, 27, signed=False) if weighted else None
                first, members = source.integers(-2, 29, 2, len(sizes)), source.integers(-1, 28, 2, sum(sizes))
                yield case, (x, weights, first, members, offsets, mode)


def _segmented_topk() -> Cases:
    for size in (3000, 40000):
        for dtype in FLOATS:
            for by_index in (False, True):
                case = f"{size}-{name(dtype)}" + "-by-index" * by_index
                source = Source(case)
                scores = torch.cat(
                    (source.scores(1, size // 3, dtype)[0], source.floats(size - size // 3, dtype=dtype))
                )
                offsets = _offsets(5, 5, size // 2, size)
                yield case, (scores, offsets, None, [7, 1, 300, 12], size, 300, by_index)
                wanted = torch.tensor([-1, 3, 9, 1 << 20], dtype=torch.int32)
                yield f"{case}-tensor", (scores, offsets, wanted, [0], size, 20, by_index)


def _select_topk_levels_packed() -> Cases:
    sizes, bounds = (90, 30, 7), [_offsets(40, 40, 90), _offsets(10, 12, 30), _offsets(0, 3, 7)]
    for i, saliency in enumerate(("variance", "norm", "given")):
        for dtype in FEATURES:
            case = f"{saliency}-{name(dtype)}"
            levels = [
                level.flatten(0, 1)[:size] for level, size in zip(_levels(case, sizes, 24, dtype), sizes, strict=True)
            ]
            source = Source(f"{case}-scores")
            scores = [source.scores(1, size, FLOATS[i])[0] for size in sizes] if saliency == "given" else []
            yield case, (levels, bounds, scores, saliency, None, [9, 4, 2], 50, 15, i == 1)
            wanted = source.integers(-1, 20, 3, 3, dtype=torch.int32)
            yield f"{case}-tensor", (levels, bounds, scores, saliency, wanted, [0] * 3, 50, 12, i == 2)


def _compact() -> Cases:
    source = Source("compact")
    offsets, counts = _offsets(20, 20, 50), torch.tensor([3, 9, -1], dtype=torch.int32)
    indices = source.integers(-2, 35, 3, 8)
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        tensors = [source.integers(0, 255, *shape, dtype=dtype) for shape in ((1, 50, 33), (3, 50, 1), (4, 50, 16))]
        yield name(dtype), (tensors, indices, counts, offsets)
        yield f"{name(dtype)}-all", (tensors[:1], indices, None, offsets)


def _region_variance() -> Cases:
    for features in (1, 65, 1024):
        for dtype in FEATURES:
            x = Source(f"{features}-{name(dtype)}").rows(features, dtype)
            for grid in ((3, 3, 1, 1), (3, 3, 3, 2), (9, 1, 4, 1)):
                yield f"{features}-{name(dtype)}-{'x'.join(map(str, grid))}", (x, None, *grid)
    x = Source("lengths").floats(2, 600, 24)
    yield "lengths", (x, torch.tensor([600, 37]), 20, 30, 2, 3)


def _broadcast_regions() -> Cases:
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        scores = Source(name(dtype)).integers(0, 255, 2, 12, dtype=dtype)
        yield name(dtype), (scores, 7, 9, 3, 4)


def _patch_entropy() -> Cases:
    for dtype in FEATURES:
        for patch, bins in ((4, 2), (7, 256), (14, 1000)):
            case = f"{patch}-{bins}-{name(dtype)}"
            source = Source(case)
            image = source.floats(2, 3, 28, 28, dtype=dtype, low=-6, high=0)
            if dtype != torch.uint8:
                image[0, :, :4, :3] = source.scores(3, 12, dtype).view(3, 4, 3)
            yield case, (image, patch, bins)


def _allocate_budgets_batch() -> Cases:
    most = (1 << 31) - 1
    for levels in (1, 3, 4, 13):
        source = Source(f"{levels}")
        weights = source.floats(20, levels, low=-20, high=1, signed=False)
        weights[1::4] = source.scores(5, levels, torch.float32)
        bounds = ([0] * levels, [most] * levels), ([3] * levels, [40 + 7 * k for k in range(levels)])
        for k, (low, high) in enumerate(bounds):
            size = [4096 >> (2 * level % 14) for level in range(levels)]
            yield f"{levels}-bounds{k}", (weights, None, 273, None, size, low, high)
            tensors = source.integers(-9, 900, 20), 0, source.integers(-9, 300, 20, levels, dtype=torch.int32)
            yield f"{levels}-tensors-bounds{k}", (weights, *tensors, [0] * levels, low, high)


def _adaptive_weights() -> Cases:
    rows = [0.15, 0.2, 0.35, 0.3, 0.25, 0.3, 0.25, 0.2, 0.35, 0.3, 0.2, 0.15]
    source = Source("difficulty")
    variance = torch.cat((source.scores(1, 20, torch.float32)[0], source.floats(20, signed=False)))
    limits = [-0.8472978603872036, 0.8472978603872034]
    yield "one-length", (variance, None, 3, 0.1, 10.0, limits, rows)
    yield "lengths", (variance, source.integers(-3, 50, 40), 0, -0.1, 3.0, limits, rows)


def _pool_scores() -> Cases:
    for grid in ((4, 6), (7, 9)):
        for window in ((2, 2), (3, 4)):
            for reduction in ("mean", "sum", "max"):
                for dtype in FLOATS:
                    case = f"{'x'.join(map(str, grid + window))}-{reduction}-{name(dtype)}"
                    source = Source(case)
                    scores = source.floats(3, grid[0] * grid[1], dtype=dtype)
                    scores[0] = source.scores(1, grid[0] * grid[1], dtype)[0]
                    yield case, (scores, *grid, *window, reduction)


def _combine_scores() -> Cases:
    for normalize in (False, True):
        for dtype in FLOATS:
            case = f"{'minmax' if normalize else 'plain'}-{name(dtype)}"
            source = Source(case)
            _, _, bias, _ = FORMATS[dtype]
            scores = [
                source.floats(3, 1500, dtype=dtype),
                source.floats(3, 1500, low=-9, high=0),
                source.floats(3, 1500, dtype=dtype, low=bias - 3, high=bias + 1),
            ]
            scores[1][0], scores[0][1] = source.scores(1, 1500, torch.float32)[0], 0.5
            weights = [0.3, -1.0, 0.1]
            yield case, (scores, weights, normalize, None)
            yield f"{case}-packed", ([x[:1] for x in scores], weights, normalize, _offsets(5, 5, 6, 700, 1400))


#: For each op of the registry its cases: a name, and arguments as the functions of the two rooms take them.
def _attention_importance() -> Cases:
    reductions = [(h, q) for h in ("mean", "sum", "max", "rms") for q in ("mean", "sum", "max")]
    for i, (heads, queries) in enumerate(reductions):
        for heads_first in (True, False):
            for limbs in (1, 2):
                dtype = FLOATS[(i + limbs + heads_first) % 3]
                case = f"{heads}-{queries}-{'heads' if heads_first else 'queries'}-limbs{limbs}"
                source = Source(case)
                q = torch.stack([source.rows(24, dtype) for _ in range(4)], 1)
                k = torch.cat([source.rows(24, dtype) for _ in range(4)], 1)[:, None]
                sizes = (9, 36, 2, 36, (i + limbs) % 2 == 0, 0.25, (0.0, 20.0)[i % 4 == 3], limbs)
                yield case, (q, k, *[None] * 6, *sizes, heads, queries, heads_first)
    source = Source("packed")
    q, k = source.floats(1, 2, 60, 40, low=-1, high=2), source.floats(1, 1, 70, 40, low=-1, high=2)
    weights, offsets = (
        source.floats(1, 60, low=-6, high=0, signed=False),
        (_offsets(0, 17, 40, 60), _offsets(9, 9, 50, 70)),
    )
    positions, counts = source.integers(-2, 60, 1, 60, dtype=torch.int32), source.integers(0, 1 << 33, 1, 70)
    lse = source.floats(1, 2, 60, low=0, high=5)
    for limbs in (1, 2):
        args = (q, k, positions, weights, lse, counts, *offsets, 23, 41, 0, 40, limbs == 2, 0.25, 0.0, limbs)
        yield f"packed-limbs{limbs}", (*args, "mean", "mean", True)
        yield f"packed-max-limbs{limbs}", (*args, "max", "mean", True)


def _text_relevance() -> Cases:
    for features in (24, 130):
        for dtype in FLOATS:
            for limbs in (1, 2):
                case = f"{features}-{name(dtype)}-limbs{limbs}"
                source = Source(case)
                tokens, text = source.rows(features, dtype), source.rows(features, dtype)
                yield f"max-{case}", (tokens, text, "max", 0.25, limbs)
                yield f"mean-{case}", (tokens, text[:, :7], "mean", 0.25, limbs)


def _attention_walk() -> Cases:
    for heads in ("rms", "mean", "sum", "max"):
        for limbs in (1, 2):
            dtype = FLOATS[(len(heads) + limbs) % 3]
            case = f"{heads}-{name(dtype)}-limbs{limbs}"
            source = Source(case)
            q = torch.stack([source.rows(24, dtype) for _ in range(4)], 1)
            k = torch.stack([source.rows(24, dtype) for _ in range(2)], 1)
            yield case, (q, k, False, 0.5, 0.0, limbs, 3, heads)


CASES: dict[str, Callable[[], Cases]] = {
    "adaptive_weights": _adaptive_weights,
    "allocate_budgets_batch": _allocate_budgets_batch,
    "attention_importance": _attention_importance,
    "attention_walk": _attention_walk,
    "best_match": _best_match,
    "blur_downsample": _blur_downsample,
    "broadcast_regions": _broadcast_regions,
    "combine_scores": _combine_scores,
    "compact": _compact,
    "gather_levels": _gather_levels,
    "fold_groups": _fold_groups,
    "patch_entropy": _patch_entropy,
    "pool_scores": _pool_scores,
    "region_variance": _region_variance,
    "segmented_topk": _segmented_topk,
    "select_topk_levels": _select_topk_levels,
    "select_topk_levels_packed": _select_topk_levels_packed,
    "text_relevance": _text_relevance,
    "token_norm": _token_norm,
    "token_variance": _token_variance,
    "unit_rows": _unit_rows,
}
