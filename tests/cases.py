"""Inputs of the generated bit test: for each op of the registry, the arguments of its two rooms."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pyramid_ops._dispatch import OPS
from pyramid_ops.numerics import low_limb_bits

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FEATURES = (*FLOATS, torch.uint8)
SIZES = (1, 2, 3, 7, 8, 31, 64, 65, 127, 128, 129, 255, 256, 257, 588, 768, 1000, 1023, 1024, 1152, 1536, 1537, 3072)
LARGE_SIZES = (3584, 4096, 4097, 5120, 16383, 16384)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def special_rows(features: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """`[2, 9, D]`: ordinary rows, large means, constants, ±0, subnormals, huge values, infinities, NaN."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        x = torch.randint(0, 256, (2, 9, features), generator=generator, dtype=torch.uint8)
        x[0, 1], x[0, 2] = 0, 255
        return x
    x = torch.randn(2, 9, features, generator=generator)
    x[0, 1] = 3.1
    x[0, 2] += 1e4
    x[0, 3] *= 1e-40
    x[0, 4] *= 1e37
    x[0, 5] = torch.finfo(dtype).max
    x[0, 6] = 0.0
    x[0, 7] = -0.0
    x[0, 8] = torch.where(x[0, 8] > 0, 0.0, -0.0)
    x[1, 0] *= 1e-20
    x[1, 1, features // 2] = torch.inf
    x[1, 2, features // 3] = -torch.inf
    x[1, 3, 0] = torch.nan
    x[1, 4, -1] = -torch.nan
    x[1, 5] = torch.inf
    x[1, 6] = torch.finfo(dtype).smallest_normal
    x[1, 7, -1] = 1e30
    return x.to(dtype)


def special_scores(batch: int, tokens: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Few distinct values and many ties: −0, 0, ±inf, NaN of both signs, subnormals, all-equal samples."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([0.0, -0.0, 1.5, -1.5, torch.inf, -torch.inf, torch.nan, -torch.nan, 1e-42, -1e-42, 3.0, 2.0])
    scores = values[torch.randint(0, len(values), (batch, tokens), generator=generator)]
    if seed % 2 and batch:
        scores[0] = 1.0
    return scores.to(dtype)


def rows(sizes=SIZES) -> Iterator:
    for features in sizes:
        for dtype in FEATURES:
            slow = features in LARGE_SIZES and (features, dtype) not in ((4097, torch.bfloat16), (16384, torch.float32))
            yield (
                pytest.param(special_rows(features, dtype), id=f"{features}-{name(dtype)}"),
                [pytest.mark.slow] if slow else [],
            )
    x = special_rows(128, torch.float32)
    yield pytest.param(x.transpose(0, 1), id="batch-stride"), []
    yield pytest.param(x[:, 1:, 8:40], id="sliced"), []
    yield pytest.param(x[:, ::2, 1:], id="unaligned"), []
    yield pytest.param(x[:, :0], id="no-tokens"), []
    yield pytest.param(x[:0], id="no-samples"), []
    yield pytest.param(x[:1, :1].expand(3, 5, 128), id="expanded"), []


def _with(param, marks: list, suffix: str, *args) -> object:
    return pytest.param((param.values[0], *args), id=f"{param.id}{suffix}", marks=marks)


def token_variance() -> Iterator:
    for param, marks in rows(SIZES + LARGE_SIZES):
        yield _with(param, marks, "", 1)
    for param, marks in rows((1, 3, 65)):
        yield _with(param, marks, "-correction0", 0)
        yield _with(param, marks, "-correction3", 3)


def token_norm() -> Iterator:
    for param, marks in rows(SIZES + LARGE_SIZES):
        yield _with(param, marks, "")


def unit_rows() -> Iterator:
    for param, marks in rows((1, 3, 64, 65, 256, 257, 1024, 1025, 1537, 3072)):
        for limbs in (1, 2):
            yield _with(param, marks, f"-limbs{limbs}", limbs, low_limb_bits(param.values[0].shape[2]))


GAUSSIAN = (0.05448868454964294, 0.24420134200323332, 0.40261994689424746, 0.24420134200323332, 0.05448868454964294)
FILTERS = {
    "gaussian": GAUSSIAN,
    "binomial": (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16),
    "box": (1.0,),
    "skewed": (-0.3, 0.7, 1.9),
    "wide": (0.01, 0.02, 0.1, 0.15, 0.44, 0.15, 0.1, 0.02, 0.01),
}


def filter_args(taps: tuple, padding: str, downsample: str, height: int, width: int) -> tuple:
    if downsample == "mean":
        mean = [(a + b) / 2 for a, b in zip([*taps, 0.0], [0.0, *taps], strict=True)]
        return mean, -(len(taps) // 2), padding, height // 2, width // 2
    return list(taps), -(len(taps) // 2), padding, (height + 1) // 2, (width + 1) // 2


def special_image(shape: tuple, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    x = 100 * torch.randn(shape, generator=generator)
    flat = x.view(-1)
    special = torch.tensor([torch.nan, torch.inf, -0.0, 1e-41, 3e38, -torch.inf])
    if len(flat) > 100:
        flat[torch.randperm(len(flat), generator=generator)[: len(special)]] = special
    return x.to(dtype)


def blur_downsample() -> Iterator:
    for size in ((1, 2), (2, 2), (2, 5), (3, 1), (7, 9), (18, 35), (33, 66)):
        for k, (filter_name, taps) in enumerate(FILTERS.items()):
            for padding in ("zeros", "reflect", "replicate"):
                for downsample in ("mean", "decimate"):
                    args = filter_args(taps, padding, downsample, *size)
                    if 0 in args[3:]:
                        continue
                    # All filters on small images; on larger ones each dtype meets each filter and padding once.
                    dtypes = FEATURES if size[0] <= 3 else (FEATURES[(k + len(padding) + len(downsample)) % 4],)
                    for dtype in dtypes:
                        image = special_image((1, 1, *size), dtype)
                        case = f"{size[0]}x{size[1]}-{filter_name}-{padding}-{downsample}-{name(dtype)}"
                        yield pytest.param((image, *args), id=case, marks=[])
    x = special_image((2, 3, 12, 10), torch.float32)
    for case, image in (
        ("channels-swapped", x.transpose(0, 1)),
        ("cropped", x[:, 1:, 1:9, 1:9]),
        ("transposed-batch", x.view(6, 1, 12, 10)[::2]),
        ("no-images", x[:0]),
        ("expanded", x[:1, :1].expand(2, 2, 12, 10)),
    ):
        args = filter_args(GAUSSIAN, "reflect", "mean", *image.shape[2:])
        yield pytest.param((image, *args), id=case, marks=[])


def levels(sizes: tuple, features: int, dtype: torch.dtype, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes))
    made = [torch.randn(batch, size, features, generator=generator) * 50 for size in sizes]
    for level in made:
        level[:, 1::3] = level[:, :1]  # ties
        if level.shape[1] > 4 and level.shape[2]:
            level[:, 2, 0] = torch.nan
            level[:, 4, -1] = torch.inf
    return [level.to(dtype) for level in made]


def select_topk_levels() -> Iterator:
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
                    yield pytest.param((made, scores, saliency, list(chosen), by_index), id=case, marks=[])
    made = levels((600, 300), 8, torch.float32, batch=1)
    scores = [special_scores(1, size, torch.float32, size) for size in (600, 300)]
    yield pytest.param((made, scores, "given", [20, 11], False), id="several-tiles", marks=[])
    made = [level.transpose(0, 1).contiguous().transpose(0, 1) for level in levels((20, 5), 24, torch.bfloat16)]
    yield pytest.param((made, [], "variance", [6, 3], False), id="strided", marks=[])
    made = [level[:, :, 1:] for level in levels((20, 5), 24, torch.float16)]
    yield pytest.param((made, [], "norm", [6, 3], False), id="unaligned", marks=[])
    made = levels((20, 5), 24, torch.float32, batch=0)
    yield pytest.param((made, [], "norm", [6, 3], False), id="no-samples", marks=[])


def gather_levels() -> Iterator:
    generator = torch.Generator().manual_seed(0)
    indices = torch.stack(
        (torch.randint(-1, 4, (2, 17), generator=generator), torch.randint(-2, 9, (2, 17), generator=generator)), 2
    )
    indices[0, 0] = torch.tensor([1 << 40, -(1 << 40)])
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        for width in (1, 3, 33, 1100):
            made = [
                torch.randint(0, 99, (batch, size, width), generator=generator).to(dtype)
                for size, batch in ((7, 2), (0, 2), (3, 2))
            ]
            yield pytest.param((made, indices), id=f"{width}-{name(dtype)}", marks=[])
    shared = [torch.randint(0, 99, (1, size, 3), generator=generator) for size in (6, 4)]
    yield pytest.param((shared, indices), id="one-batch", marks=[])
    yield pytest.param((shared, indices[:, :0]), id="no-indices", marks=[])
    yield pytest.param((shared, indices.transpose(0, 1).contiguous().transpose(0, 1)), id="strided-indices", marks=[])


def best_match() -> Iterator:
    for dtype in FEATURES:
        for features, queries, keys in ((1, 3, 2), (24, 17, 31), (65, 5, 130), (128, 130, 7), (5000, 3, 4)):
            if features == 5000 and dtype != torch.float32:
                continue
            q, k = special_rows(features, dtype, 1), special_rows(features, dtype, 2)
            q = q.repeat(1, -(-queries // 9), 1)[:, :queries]
            k = k.repeat(1, -(-keys // 9), 1)[:, :keys]
            for limbs in (1, 2):
                args = (q, k, None, None, None, queries, keys, limbs)
                yield pytest.param(args, id=f"{queries}x{keys}x{features}-{name(dtype)}-limbs{limbs}", marks=[])
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(2, size, 40, generator=generator) for size in (50, 300))
    mask = torch.rand(2, 300, generator=generator) > 0.3
    for limbs in (1, 2):
        yield pytest.param((q, k, mask, None, None, 50, 300, limbs), id=f"masked-limbs{limbs}", marks=[])
        none = torch.zeros(2, 300, dtype=torch.bool)
        yield pytest.param((q, k, none, None, None, 50, 300, limbs), id=f"all-masked-limbs{limbs}", marks=[])
    x = k.view(1, 600, 40)
    yield pytest.param((x[:, ::2], x[:, 1::2], None, None, None, 300, 300, 1), id="even-odd", marks=[])
    for case, q_offsets, k_offsets, longest in (
        ("segments", [0, 10, 10, 33, 50], [3, 3, 40, 200, 300], 300),
        ("clamped", [-5, 10, 30, 999], [0, 7, 200, 300], 300),
        ("short", [0, 20, 40], [0, 150, 300], 16),
        ("no-segments", [0], [0], 300),
    ):
        offsets = [torch.tensor(x, dtype=torch.int32) for x in (q_offsets, k_offsets)]
        for limbs in (1, 2):
            args = (q[:1], k[:1], mask[:1] if limbs == 1 else None, *offsets, min(longest, 50), longest, limbs)
            yield pytest.param(args, id=f"{case}-limbs{limbs}", marks=[])
    zero, negative = torch.zeros(1, 3, 1), -torch.ones(1, 40, 1)  # products of −0
    for limbs in (1, 2):
        yield pytest.param((zero, negative, None, None, None, 3, 40, limbs), id=f"zeros-limbs{limbs}", marks=[])
    yield pytest.param((q[:, :0], k, None, None, None, 0, 300, 1), id="no-queries", marks=[])
    yield pytest.param((q, k[:, :0], None, None, None, 50, 0, 2), id="no-keys", marks=[])
    yield pytest.param((q[:0], k[:0], None, None, None, 50, 300, 2), id="no-samples", marks=[])


def merge_tokens() -> Iterator:
    generator = torch.Generator().manual_seed(4)
    sizes = torch.tensor([0, 1, 2, 31, 32, 33, 0, 64, 97, 1, 5])
    offsets = torch.cat((sizes.new_zeros(1), sizes.cumsum(0))).expand(2, -1).contiguous()
    many, groups = int(sizes.sum()), len(sizes)
    members = torch.randint(0, 40, (2, many), generator=generator)
    members[0, 40], members[0, 41], members[0, 0] = -1, 99, 77
    first = torch.randint(-2, 44, (2, groups), generator=generator)
    first[1, 1:3] = -1
    for dtype in FEATURES:
        for mode in ("mean", "sum", "amax"):
            for width in (1, 33):
                x = special_rows(width, dtype, width).repeat(1, 5, 1)[:, :40]
                weights = torch.rand(2, 40, generator=generator) if width > 1 else None
                if weights is not None:
                    weights[0, ::5], weights[1, 3] = 0.0, torch.nan
                case = f"{width}-{mode}-{name(dtype)}"
                yield pytest.param((x, weights, first, members, offsets, mode), id=case, marks=[])
    x = torch.randn(2, 60, 40, generator=generator)[:, ::2, 4:30]
    yield pytest.param((x, None, first, members, offsets, "mean"), id="strided", marks=[])
    indices = [i.T.contiguous().T for i in (torch.rand(2, 30, generator=generator), first, members, offsets)]
    yield pytest.param((x, *indices, "mean"), id="strided-indices", marks=[])
    yield pytest.param((x, None, first, members[:, :0], offsets * 0, "mean"), id="no-members", marks=[])
    yield pytest.param((x[:, :0], None, first, members, offsets, "mean"), id="no-tokens", marks=[])
    yield pytest.param((x, None, first[:, :0], members, offsets[:, :1], "sum"), id="no-groups", marks=[])
    yield pytest.param((x[:0], None, first[:0], members[:0], offsets[:0], "sum"), id="no-samples", marks=[])


def region_variance() -> Iterator:
    for features in (1, 2, 3, 64, 65, 257, 768, 1024, 1537):
        for dtype in FEATURES:
            x = special_rows(features, dtype)
            for grid in ((3, 3, 1, 1), (3, 3, 3, 3), (9, 1, 4, 1), (1, 9, 1, 2)):
                if grid == (3, 3, 3, 3) or dtype == torch.float32 or features == 65:
                    case = f"{features}-{name(dtype)}-{'x'.join(map(str, grid))}"
                    yield pytest.param((x, [], *grid), id=case, marks=[])
    generator = torch.Generator().manual_seed(0)
    for tokens in (1, 2, 255, 256, 257, 513, 1000):
        x = torch.randn(1, tokens, 5, generator=generator) + 10 * torch.randn(1, tokens, 1, generator=generator)
        yield pytest.param((x, [], 1, tokens, 1, 1), id=f"{tokens}-tokens", marks=[])
        x[:, tokens // 2 :] = x[:, :1, :1]
        yield pytest.param((x, [], tokens, 1, min(2, tokens), 1), id=f"{tokens}-half-constant", marks=[])
    x = torch.randn(2, 77, 24, generator=generator) + 1e4
    for k, lengths in enumerate(([0, 77], [1, 40], [-3, 1 << 30], [2, 76])):
        counts = torch.tensor(lengths, dtype=(torch.int32, torch.int64)[k % 2])
        yield pytest.param((x, [counts], 1, 77, 1, 1), id=f"lengths-{k}", marks=[])
        yield pytest.param((x, [counts], 7, 11, 2, 3), id=f"lengths-{k}-regions", marks=[])
    yield pytest.param((x.transpose(0, 1)[:12], [], 1, 2, 1, 1), id="batch-stride", marks=[])
    yield pytest.param((x[:, 1:65, 3:], [], 8, 8, 4, 4), id="unaligned", marks=[])
    yield pytest.param((x[:0, :64], [], 8, 8, 4, 4), id="no-samples", marks=[])
    yield pytest.param((x[:1, :1].expand(3, 64, 24), [], 8, 8, 3, 5), id="expanded", marks=[])
    yield pytest.param((torch.full((1, 64, 24), -0.1), [], 8, 8, 3, 5), id="constant", marks=[])


def broadcast_regions() -> Iterator:
    generator = torch.Generator().manual_seed(0)
    for grid in ((1, 1, 1, 1), (4, 4, 4, 4), (7, 9, 3, 4), (5, 300, 2, 7), (64, 1, 63, 1), (33, 32, 1, 1)):
        for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
            scores = torch.randint(0, 99, (2, grid[2] * grid[3]), generator=generator).to(dtype)
            case = f"{'x'.join(map(str, grid))}-{name(dtype)}"
            yield pytest.param((scores, *grid), id=case, marks=[])
    scores = torch.randint(0, 99, (6, 12), generator=generator)
    yield pytest.param((scores.T[:, :4], 5, 6, 2, 2), id="transposed", marks=[])
    yield pytest.param((scores[:1].expand(3, 12), 5, 6, 3, 4), id="expanded", marks=[])
    yield pytest.param((scores[:0], 5, 6, 3, 4), id="no-samples", marks=[])


def special_pixels(shape: tuple, dtype: torch.dtype) -> Tensor:
    """Uniform, with values at and beside the edges of bins; floats outside [0, 1] and NaN too."""
    generator = torch.Generator().manual_seed(sum(shape))
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    x = torch.rand(shape, generator=generator)
    flat = x.view(-1)
    flat[::3] = torch.randint(0, 257, flat[::3].shape, generator=generator) / 256
    edges = [0.0, -0.0, 1.0, 1 - 2**-24, 0.5, 0.5 - 2**-25, -1.0, 3e38, -3e38, torch.inf, -torch.inf, 1e-42]
    flat[: len(edges)] = torch.tensor(edges)[: len(flat)]
    if len(flat) > 300:
        flat[-1], flat[len(flat) // 2] = torch.nan, -torch.nan
    return x.to(dtype)


def patch_entropy() -> Iterator:
    for dtype in FEATURES:
        for shape, patch in (((1, 1, 1, 1), 1), ((2, 3, 8, 4), 4), ((1, 2, 14, 28), 7), ((1, 3, 32, 16), 16)):
            for bins in (2, 33, 256, 1000):
                image = special_pixels(shape, dtype)
                case = f"{'x'.join(map(str, shape))}-{patch}-{bins}-{name(dtype)}"
                yield pytest.param((image, patch, bins), id=case, marks=[])
        yield pytest.param((special_pixels((1, 1, 60, 60), dtype), 60, 256), id=f"large-{name(dtype)}", marks=[])
        yield pytest.param(
            (special_pixels((1, 1, 6, 6), dtype)[..., 1:5, 2:], 2, 256), id=f"crop-{name(dtype)}", marks=[]
        )
    x = special_pixels((2, 3, 8, 8), torch.float32)
    yield pytest.param((x.transpose(0, 1), 4, 256), id="channels-swapped", marks=[])
    yield pytest.param((x[:1, :1].expand(2, 2, 8, 8), 4, 256), id="expanded", marks=[])
    yield pytest.param((x[:0], 4, 256), id="no-images", marks=[])
    yield pytest.param((x[..., :0], 4, 256), id="no-patches", marks=[])
    yield pytest.param((torch.full((1, 3, 4, 4), 0.3), 4, 256), id="constant", marks=[])


def pool_scores() -> Iterator:
    windows = ((1, 1), (2, 2), (2, 3), (5, 1), (4, 33))
    for k, grid in enumerate(((1, 1), (1, 7), (6, 1), (4, 6), (7, 9), (33, 32))):
        for j, window in enumerate(windows):
            for i, reduction in enumerate(("mean", "sum", "max")):
                scores = special_scores(2, grid[0] * grid[1], FLOATS[(i + j + k) % 3], 2 * k)
                if (i + j) % 2:
                    scores += torch.rand(scores.shape, generator=torch.Generator().manual_seed(k)).to(scores.dtype)
                case = f"{'x'.join(map(str, (*grid, *window)))}-{reduction}"
                yield pytest.param((scores, *grid, *window, reduction), id=case, marks=[])
    scores = special_scores(30, 24, torch.float32, 2)
    for reduction in ("mean", "max"):
        yield pytest.param((scores.T[:, :28], 4, 7, 2, 2, reduction), id=f"transposed-{reduction}", marks=[])
        yield pytest.param((scores[:1].expand(3, 24), 4, 6, 3, 4, reduction), id=f"expanded-{reduction}", marks=[])
        yield pytest.param((scores[:0], 4, 6, 2, 2, reduction), id=f"no-samples-{reduction}", marks=[])


def mixed_scores(batch: int, tokens: int, count: int, seed: int) -> list[Tensor]:
    """Of several dtypes and kinds: ties and what is not finite, ordinary, near overflow, subnormal, equal."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for k in range(count):
        kind, dtype = (seed + k) % 5, FLOATS[(seed + 2 * k) % 3]
        x = torch.randn(batch, tokens, generator=generator)
        if kind == 0:
            x = special_scores(batch, tokens, dtype, 2 * seed)
        elif kind == 2:
            x = x.clamp(-1, 1) * torch.finfo(dtype).max
        elif kind == 3:
            x *= 4 * torch.finfo(dtype).smallest_normal
        elif kind == 4:
            x[:, 1::2] = x[:, :1]
            x[:1] = 0.7
        made.append(x.to(dtype))
    return made


def combine_scores() -> Iterator:
    weights = [0.3, -1.0, 1.0, 0.0, 2.5]
    for normalize in (False, True):
        mode = "minmax" if normalize else "plain"
        for tokens in (1, 2, 127, 128, 129, 1024, 1025, 2500):
            for seed in range(5 if tokens == 129 else 2):
                count = 1 + (seed + tokens) % 4
                scores = mixed_scores(3, tokens, count, seed + tokens)
                args = (scores, weights[:count], normalize, None)
                yield pytest.param(args, id=f"{tokens}-{seed}-{mode}", marks=[])
        for k, (case, bounds) in enumerate(BOUNDS.items()):
            tokens = max(bounds[-1], 50) + k % 3
            args = (mixed_scores(1, tokens, 1 + k % 3, k), weights[: 1 + k % 3], normalize, int32(*bounds))
            yield pytest.param(args, id=f"{case}-{mode}", marks=[])
        generator = torch.Generator().manual_seed(0)
        for case, bounds in (
            ("outside", int32(-9, -3, 200, 999, 2000)),
            ("descending", torch.randint(-50, 900, (200,), generator=generator).int()),
            ("tiny", torch.arange(0, 900, dtype=torch.int32)),
            ("many-empty", (torch.arange(5000) // 9).int()),
        ):
            args = (mixed_scores(1, 800, 2, 7), weights[:2], normalize, bounds)
            yield pytest.param(args, id=f"{case}-{mode}", marks=[])
        x = mixed_scores(40, 300, 5, 1)[4]
        scores = [x[:30, ::10], x.T[:30, :30], x[:1, :30].expand(30, 30), x[5:35, 7:37].half()]
        yield pytest.param((scores, weights[:4], normalize, None), id=f"strided-{mode}", marks=[])
        yield pytest.param(([x[:0], x[:0]], weights[:2], normalize, None), id=f"no-samples-{mode}", marks=[])
        yield pytest.param(([x[:, :0]], weights[:1], normalize, None), id=f"no-tokens-{mode}", marks=[])
        yield pytest.param(([x[:1, :0]], weights[:1], normalize, int32(0, 3)), id=f"none-packed-{mode}", marks=[])


def special_weights(batch: int, levels: int, seed: int) -> Tensor:
    """Weights of all magnitudes, ties, zeros, and rows with what is no weight."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, levels, generator=generator)
    special = [0.0, -0.0, torch.nan, -torch.nan, torch.inf, -torch.inf, -1.0, 1e-45, 1e-39, 1e-38, 3e38, 1.0, 2.0**-30]
    values = torch.tensor(special)[torch.randint(0, len(special), (batch, levels), generator=generator)]
    x = torch.where(torch.rand(batch, levels, generator=generator) < 0.2, values, x)
    x[1::5] = values[1::5]
    x[2::5] = x[2::5, :1]
    x[3::5] *= 2.0 ** -(torch.arange(levels) * 7)
    x[4::5] = torch.tensor(special[:7])[torch.arange(levels) % 7]
    return x


def allocate_budgets_batch() -> Iterator:
    largest = (1 << 31) - 1
    for levels in (1, 2, 3, 4, 5, 8, 13, 64):
        generator = torch.Generator().manual_seed(levels)
        weights = special_weights(40, levels, levels)
        size = [(1 << 12) >> (2 * k % 14) for k in range(levels)]
        totals = torch.randint(-9, 2 * sum(size), (40,), generator=generator)
        sizes = torch.randint(-9, 300, (40, levels), generator=generator)
        free = [0] * levels, [largest] * levels
        bounds = [3 + k % 2 for k in range(levels)], [40 + 7 * k for k in range(levels)]
        for k, (low, high) in enumerate((free, bounds)):
            for total in (5, 273):
                args = (weights, [], total, [], size, low, high)
                yield pytest.param(args, id=f"{levels}-{total}-bounds{k}", marks=[])
            args = (weights, [totals], 0, [sizes.to(torch.int32)], [0] * levels, low, high)
            yield pytest.param(args, id=f"{levels}-tensors-bounds{k}", marks=[])
        args = (weights, [], largest, [], [largest] * levels, *free)
        yield pytest.param(args, id=f"{levels}-largest", marks=[])
        extremes = torch.tensor([-(1 << 62), (1 << 62), 5, largest])
        huge = extremes[torch.randint(0, 4, (40, levels), generator=generator)]
        args = (weights, [huge[:, 0].contiguous()], 0, [huge], [0] * levels, *free)
        yield pytest.param(args, id=f"{levels}-extreme-tensors", marks=[])
    for batch in (0, 1, 65):
        args = (special_weights(batch, 4, batch), [], 273, [], [4096, 1024, 256, 64], [0] * 4, [largest] * 4)
        yield pytest.param(args, id=f"batch-{batch}", marks=[])
    args = (special_weights(4, 9, 0).T, [], 20, [], [9, 9, 9, 9], [0] * 4, [largest] * 4)
    yield pytest.param(args, id="transposed", marks=[])


def adaptive_weights() -> Iterator:
    rows = [0.15, 0.2, 0.35, 0.3, 0.25, 0.3, 0.25, 0.2, 0.35, 0.3, 0.2, 0.15]
    limits = [-0.8472978603872036, 0.8472978603872034]
    special = [0.0, 0.0747298, 0.07472979, -1.0, 1e-3, 1.0, torch.inf, torch.nan, -torch.inf, -0.0, 3e38]
    variance = torch.tensor(special)
    lengths = torch.arange(-1, len(special) - 1)
    yield pytest.param((variance, [], 1, 0.1, 10.0, limits, rows), id="one-length", marks=[])
    yield pytest.param((variance, [lengths], 1, 0.1, 10.0, limits, rows), id="lengths", marks=[])
    yield pytest.param((variance, [lengths.int()], 1, -0.1, 3.0, [], rows[:5]), id="one-row", marks=[])
    yield pytest.param((variance[:0], [], 3, 0.1, 10.0, limits, rows), id="no-samples", marks=[])
    yield pytest.param(
        (torch.cat([variance] * 9)[::2], [], 3, -0.4, 7.0, [-1.0, 0.0, 1.0], rows), id="strided", marks=[]
    )


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


BOUNDS = {
    "no-segments": (0,),
    "empty": (0, 0, 0),
    "one": (0, 1),
    "small": (0, 0, 1, 3, 10, 41, 41),
    "powers": (0, 255, 511, 768, 768, 769),
    "primes": (3, 14, 311, 824),
    "several-tiles": (0, 2047, 4095, 6144),
    "backwards": (9, 4, -7, 60, 1000, 30, 45),
}


def segmented_topk() -> Iterator:
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
                args = (scores, int32(*bounds), numbers, tensor, 2100 if j != 2 else 100, capacity, by_index)
                yield pytest.param(args, id=f"{case}-{j}-{'index' if by_index else 'value'}", marks=[])
    scores = special_scores(1, 27001, torch.float32, 2)[0]
    for by_index in (False, True):
        order = "index" if by_index else "value"
        args = (scores, int32(0, 9000, 9000, 27000), [5000], None, 17000, 5000, by_index)
        yield pytest.param(args, id=f"several-programs-{order}", marks=[])
        args = (scores, int32(1, 27001), [0], int32(3), 27000, 3, by_index)
        yield pytest.param(args, id=f"one-segment-of-several-programs-{order}", marks=[])
    args = (scores[1:5201], int32(0, 5200), [4800], None, 5200, 4800, False)
    yield pytest.param(args, id="sorted", marks=[])
    yield pytest.param((scores[:0], int32(0, 3, 3), [2], None, 0, 2, False), id="no-scores", marks=[])


def select_topk_levels_packed() -> Iterator:
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
                args = (features, bounds, scores, saliency, numbers, tensor, most, capacity, by_index)
                yield pytest.param(args, id=f"{saliency}-{case}-{'index' if by_index else 'saliency'}", marks=[])
    features = [level[0] for level in levels((17000, 90), 4, torch.float32, batch=1)]
    args = (features, [int32(0, 16900), int32(7, 80)], [], "norm", [4, 3], None, 17000, 6, False)
    yield pytest.param(args, id="several-programs", marks=[])
    args = ([features[1], features[0][:0]], [int32(7, 80), int32(0, 0)], [], "norm", [4, 3], None, 90, 7, False)
    yield pytest.param(args, id="empty-level", marks=[])
    args = ([x[:, 1:] for x in features[1:]], [int32(7, 80, 90)], [], "norm", [4], None, 90, 4, True)
    yield pytest.param(args, id="strided", marks=[])
    yield pytest.param((features[1:], [int32(0)], [], "norm", [4], None, 90, 4, True), id="no-samples", marks=[])


def compact() -> Iterator:
    generator = torch.Generator().manual_seed(0)
    bounds, counts = int32(0, 30, 30, 31, 97, 80), int32(20, -5, 1 << 30, 17, 3)
    indices = torch.randint(-2, 70, (5, 33), generator=generator)
    indices[0, 3], indices[3, 5] = 1 << 40, -(1 << 40)

    def made(outer: int, width: int, dtype: torch.dtype, size: int = 97) -> Tensor:
        return torch.randint(0, 99, (outer, size, width), generator=generator).to(dtype)

    for i, dtype in enumerate((torch.uint8, torch.int16, torch.int32, torch.int64)):
        tensors = [made(1, (1, 3, 24, 1100)[i], dtype), made(3, 1, torch.int64), made(2, 16, torch.int16)]
        for case, taken in (("counts", counts), ("all", None)):
            yield pytest.param((tensors, indices, taken, bounds), id=f"{case}-{name(dtype)}", marks=[])
    x = made(97, 40, torch.int32, 4)
    yield pytest.param(([x.transpose(0, 1)], indices, counts, bounds), id="heads-inside", marks=[])
    yield pytest.param(([made(2, 40, torch.int16)[..., 1:8]], indices, counts, bounds), id="unaligned", marks=[])
    yield pytest.param(([made(2, 4, torch.int16, 0)], indices, counts, bounds), id="no-tokens", marks=[])
    yield pytest.param(([made(0, 4, torch.int16)], indices, counts, bounds), id="no-heads", marks=[])
    yield pytest.param(([made(2, 4, torch.int16)], indices[:, :0], counts, bounds), id="no-indices", marks=[])
    yield pytest.param(([made(2, 4, torch.int16)], indices[:0], None, bounds[:1]), id="no-segments", marks=[])
    many = torch.randint(0, 3, (258, 2), generator=generator)
    args = ([made(1, 1, torch.int16)], many, many[:, 0].int(), torch.arange(0, 259, dtype=torch.int32) // 4)
    yield pytest.param(args, id="many-segments", marks=[pytest.mark.slow])


def heads_of(shape: tuple, features: int, dtype: torch.dtype, seed: int) -> Tensor:
    """`[B, H, N, D]` with special rows among ordinary ones."""
    generator = torch.Generator().manual_seed(seed)
    x = (3 * torch.randn(*shape, features, generator=generator)).to(dtype)
    special = special_rows(features, dtype, seed).flatten(0, 1)
    flat = x.view(-1, features)
    where = torch.randperm(len(flat), generator=generator)[: min(len(special), len(flat) // 4)]
    flat[where] = special[: len(where)]
    return x


REDUCTIONS = [
    (h, q, first) for h in ("mean", "sum", "max", "rms") for q in ("mean", "sum", "max") for first in (True, False)
]


def attention_importance() -> Iterator:
    def args(q, k, *tensors, offsets=(None, None), span=None, causal=False, cap=0.0, limbs=1, reduction=REDUCTIONS[0]):
        tensors = (*tensors, *[None] * (4 - len(tensors)))
        span = (0, k.shape[2]) if span is None else span
        scale = 0.3 if cap else 1.4426950408889634 * q.shape[3] ** -0.5
        return (q, k, *tensors, *offsets, q.shape[2], k.shape[2], *span, causal, scale, cap, limbs, *reduction)

    for i, (queries, keys, features, heads, kv_heads) in enumerate(
        (
            (1, 1, 1, 1, 1),
            (1, 70, 24, 4, 2),
            (3, 200, 64, 2, 1),
            (20, 5, 8, 2, 2),
            (70, 90, 80, 3, 1),
            (33, 65, 300, 1, 1),
            (1, 70, 16, 16, 2),
            (2, 65, 130, 3, 1),
            (1, 40, 256, 2, 2),
            (1, 9, 257, 1, 1),
        )
    ):
        for j, dtype in enumerate(FLOATS):
            q = heads_of((2, heads, queries), features, dtype, 1)
            k = heads_of((2, kv_heads, keys), features, dtype, 2)
            for limbs in (1, 2):
                reduction = REDUCTIONS[(7 * i + 5 * j + 12 * limbs) % len(REDUCTIONS)]
                case = f"{queries}x{keys}x{features}-{heads}-{kv_heads}-{name(dtype)}-limbs{limbs}"
                marks = [pytest.mark.slow] if i > 5 and j != i % 3 else []
                yield pytest.param(
                    args(q, k, limbs=limbs, causal=limbs == 2, reduction=reduction), id=case, marks=marks
                )
    generator = torch.Generator().manual_seed(5)
    q, k = heads_of((1, 4, 40), 16, torch.float32, 3), heads_of((1, 2, 75), 16, torch.float32, 4)
    weights = torch.rand(1, 40, generator=generator) * 0.9
    positions = torch.randint(-3, 80, (1, 40), generator=generator).to(torch.int32)
    log_sum_exp = 5 * torch.rand(1, 4, 40, generator=generator)
    log_sum_exp[0, 1, 3:6] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    counts = torch.randint(0, 1 << 33, (1, 75), generator=generator)
    for i, reduction in enumerate(REDUCTIONS):
        for j, tensors in enumerate(
            (
                (),
                (positions, None, None, counts),
                (None, weights, None, counts),
                (positions, weights, log_sum_exp, counts),
            )
        ):
            causal, cap = bool((i + j) % 2), (0.0, 30.0)[(i + 2 * j) % 4 == 3]
            made = args(q, k, *tensors, causal=causal, cap=cap, limbs=1 + (i + j) % 2, reduction=reduction)
            marks = [pytest.mark.slow] if j in (1, 2) else []
            yield pytest.param(made, id=f"{'-'.join(map(str, reduction))}-{j}", marks=marks)
    left_out = torch.where(torch.arange(40) % 2 == 0, -1, 0).to(torch.int32)[None]
    yield pytest.param(args(12 * q, 4 * k, left_out, None, None, counts), id="left-out-of-large-logits", marks=[])
    # Few queries, whose logits are kept.
    part = slice(7, 10)
    for i, reduction in enumerate(REDUCTIONS):
        tensors = (positions[:, part], weights[:, part], log_sum_exp[:, :, part], counts)
        tensors = tuple(x if i >> j & 1 else None for j, x in enumerate(tensors))
        causal, cap = i % 3 == 0, 30.0 * (i % 5 == 0)
        made = args(q[:, :, part], k, *tensors, causal=causal, cap=cap, limbs=1 + i % 2, reduction=reduction)
        marks = [pytest.mark.slow] if i % 3 == 1 else []
        yield pytest.param(made, id=f"few-{'-'.join(map(str, reduction))}", marks=marks)
    few = [torch.tensor(x, dtype=torch.int32) for x in ([0, 8, 8, 9, 17, 40], [3, 3, 40, 70, 70, 75])]
    for i, reduction in enumerate(REDUCTIONS[::3]):
        made = list(args(q, k, offsets=few, causal=i % 2 == 0, limbs=1 + i % 2, reduction=reduction, span=(2, 60)))
        made[8] = 8  # of the longest segment the first queries
        yield pytest.param(tuple(made), id=f"few-packed-{'-'.join(map(str, reduction))}", marks=[])
    for case, q_offsets, k_offsets in (
        ("segments", [0, 10, 10, 33, 40], [3, 3, 40, 70, 75]),
        ("clamped", [-5, 10, 30, 999], [0, 7, 9, 75]),
        ("no-segments", [0], [0]),
    ):
        offsets = [torch.tensor(x, dtype=torch.int32) for x in (q_offsets, k_offsets)]
        for i, reduction in enumerate(REDUCTIONS[::5]):
            made = args(q, k, offsets=offsets, causal=i % 2 == 0, limbs=1 + i % 2, reduction=reduction, span=(2, 60))
            yield pytest.param(made, id=f"{case}-{'-'.join(map(str, reduction))}", marks=[])
    x = torch.randn(2, 50, 3, 24, generator=generator).transpose(1, 2)
    yield pytest.param(args(x, x[:, :1]), id="heads-inside", marks=[])
    yield pytest.param(args(x[:, :, ::2, 1:], x[:, :1, :, 1:]), id="unaligned", marks=[])
    yield pytest.param(args(x[:, :, -1:, 1:], x[:, :, :, 1:]), id="unaligned-few", marks=[])
    yield pytest.param(args(x[:, :, :0], x), id="no-queries", marks=[])
    yield pytest.param(args(x, x[:, :, :0]), id="no-keys", marks=[])
    yield pytest.param(args(x[:0], x[:0]), id="no-samples", marks=[])
    yield pytest.param(args(x, x, span=(30, 30)), id="no-columns", marks=[])
    many = torch.randn(1, 1, 1100, 8, generator=generator)
    yield pytest.param(args(many[:, :, :40], many, limbs=1), id="splits", marks=[])
    many = torch.randn(1, 2, 2100, 16, generator=generator)
    yield pytest.param(args(many[:, :, :2], many, limbs=1), id="splits-few", marks=[])


def text_relevance() -> Iterator:
    for dtype in FLOATS:
        for features, tokens, words in ((1, 3, 2), (24, 17, 31), (65, 130, 5), (128, 70, 33), (1100, 7, 3)):
            x, text = special_rows(features, dtype, 1), special_rows(features, dtype, 2)
            x = x.repeat(1, -(-tokens // 9), 1)[:, :tokens]
            text = text.repeat(1, -(-words // 9), 1)[:, :words]
            for reduction in ("max", "mean"):
                limbs = 1 + (features + len(reduction)) % 2 if dtype != torch.float32 else 2
                case = f"{tokens}x{words}x{features}-{reduction}-{name(dtype)}-limbs{limbs}"
                yield pytest.param((x, text, reduction, features**-0.5, limbs), id=case, marks=[])
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 70, 40, generator=generator)
    text = torch.randn(2, 40, 40, generator=generator) * torch.rand(2, 40, 1, generator=generator) ** 9
    masked = text.clone()
    masked[0, ::3], masked[1] = torch.nan, torch.nan
    for reduction in ("max", "mean"):
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
                yield pytest.param((*tensors, reduction, 0.3, limbs), id=f"{case}-{reduction}-limbs{limbs}", marks=[])


def attention_walk() -> Iterator:
    reductions = ("rms", "mean", "sum", "max")
    k = 0
    for dtype in FLOATS:
        shapes = (
            (1, 1, 1, 1),
            (3, 9, 2, 1),
            (24, 70, 4, 2),
            (130, 33, 3, 3),
            (3, 9, 4, 2),
            (24, 70, 2, 1),
            (130, 33, 1, 1),
        )
        for features, tokens, heads, kv_heads in shapes:
            marks = [pytest.mark.slow] if heads > 2 and tokens > 9 else []
            for limbs in (1, 2):
                q, key = (special_rows(features, dtype, seed) for seed in (1, 2))
                q, key = (x.repeat(1, -(-tokens * heads // 9), 1) for x in (q, key))
                q = q[:, : tokens * heads].view(2, heads, tokens, features)
                key = key[:, : tokens * kv_heads].view(2, kv_heads, tokens, features)
                reduction, k = reductions[k % 4], k + 1
                case = f"{heads}:{kv_heads}x{tokens}x{features}-{reduction}-{name(dtype)}-limbs{limbs}"
                yield pytest.param((q, key, k % 4, 3.0, limbs, reduction), id=case, marks=marks)
    generator = torch.Generator().manual_seed(6)
    for limbs, batch, heads in ((1, 1, 2), (2, 1, 2), (1, 2, 4), (2, 2, 4)):
        q, key = (torch.randn(batch, n, 70, 40, generator=generator) for n in (heads, heads // 2))
        unusable = torch.full_like(key, torch.nan)
        for case, tensors, steps, slope in (
            ("sharp", (q, key), 5, 20.0),
            ("flat", (q, key), 3, 1e-6),
            ("no-steps", (q, key), 0, 1.0),
            ("huge", (q * 1e30, key * 1e30), 2, 1e20),
            ("no-key", (q, unusable), 2, 1.0),
            ("strided", (q.transpose(1, 2)[:, :4, :, 1:], q.transpose(1, 2)[:, 4:6, :, 1:]), 2, 1.0),
            ("no-tokens", (q[:, :, :0], key[:, :, :0]), 2, 1.0),
            ("no-samples", (q[:0], key[:0]), 2, 1.0),
        ):
            args = (*tensors, steps, slope, limbs, reductions[steps % 4])
            marks = [pytest.mark.slow] if batch > 1 else []
            yield pytest.param(args, id=f"{case}-{batch}x{heads}-limbs{limbs}", marks=marks)


# The generators above, each under the name of its op.
CASES = {op: globals()[op] for op in OPS if op in globals()}
