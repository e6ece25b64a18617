"""Inputs of the generated bit test: for each op of the registry, the arguments of its two rooms."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

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
            slow = features in LARGE_SIZES and dtype not in (torch.float32, torch.bfloat16)
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
        for features, queries, keys in ((1, 3, 2), (24, 17, 31), (65, 5, 130), (128, 130, 7)):
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
    yield pytest.param((x, None, first, members[:, :0], offsets * 0, "mean"), id="no-members", marks=[])
    yield pytest.param((x[:, :0], None, first, members, offsets, "mean"), id="no-tokens", marks=[])
    yield pytest.param((x, None, first[:, :0], members, offsets[:, :1], "sum"), id="no-groups", marks=[])
    yield pytest.param((x[:0], None, first[:0], members[:0], offsets[:0], "sum"), id="no-samples", marks=[])


CASES = {
    "best_match": best_match,
    "blur_downsample": blur_downsample,
    "gather_levels": gather_levels,
    "merge_tokens": merge_tokens,
    "select_topk_levels": select_topk_levels,
    "token_norm": token_norm,
    "token_variance": token_variance,
    "unit_rows": unit_rows,
}
