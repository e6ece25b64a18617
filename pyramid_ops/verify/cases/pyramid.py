"""Descriptions of the ops in `ops/pyramid.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import pyramid_ops

from ...ops.pyramid import blur_downsample_op
from ...reference.arguments import Filter
from ..describe import Call, Case, Cases, Description
from ..inputs import FEATURES, Source, name

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
        return Filter(mean, -(len(taps) // 2), padding), height // 2, width // 2
    return Filter(list(taps), -(len(taps) // 2), padding), (height + 1) // 2, (width + 1) // 2


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


def blur_downsample_golden() -> Cases:
    def case(filter_name: str, padding: str, downsample: str, dtype: torch.dtype, *shape: int) -> Case:
        label = f"{'x'.join(map(str, shape))}-{filter_name}-{padding}-{downsample}-{name(dtype)}"
        image = Source(label).image(*shape, dtype=dtype)
        return Case(label, (image, *filter_args(FILTERS[filter_name], padding, downsample, *shape[2:])))

    for i, filter_name in enumerate(FILTERS):
        for j, padding in enumerate(("zeros", "reflect", "replicate")):
            for k, downsample in enumerate(("mean", "decimate")):
                size = ((1, 2, 7, 9), (1, 1, 2, 3))[(i + j + k) // 4 % 2]
                yield case(filter_name, padding, downsample, FEATURES[(i + j + k) % 4], *size)
    for dtype in FEATURES:
        yield case("gaussian", "reflect", "mean", dtype, 2, 1, 33, 66)
        yield case("gaussian", "zeros", "decimate", dtype, 1, 1, 35, 130)
    yield case("box", "replicate", "decimate", torch.float32, 1, 1, 1, 2)


def blur_downsample_bits() -> Cases:
    for size in ((1, 2), (2, 2), (2, 5), (3, 1), (7, 9), (18, 35), (33, 66)):
        for k, (filter_name, taps) in enumerate(FILTERS.items()):
            for padding in ("zeros", "reflect", "replicate"):
                for downsample in ("mean", "decimate"):
                    args = filter_args(taps, padding, downsample, *size)
                    if 0 in args[1:]:
                        continue
                    # All filters on small images; on larger ones each dtype meets each filter and padding once.
                    dtypes = FEATURES if size[0] <= 3 else (FEATURES[(k + len(padding) + len(downsample)) % 4],)
                    for dtype in dtypes:
                        image = special_image((1, 1, *size), dtype)
                        case = f"{size[0]}x{size[1]}-{filter_name}-{padding}-{downsample}-{name(dtype)}"
                        yield Case(case, (image, *args))
    # A tile between both edges: its columns need no padding.
    for padding in ("reflect", "replicate"):
        for dtype in FEATURES:
            narrow = 128 if dtype == torch.float32 else 256
            for filter_name, downsample, width in (
                ("gaussian", "mean", 8 * narrow + 6),
                ("wide", "decimate", 530),
                ("box", "decimate", narrow),
            ):
                image = special_image((1, 1, 5, width), dtype)
                args = filter_args(FILTERS[filter_name], padding, downsample, 5, width)
                yield Case(f"5x{width}-{filter_name}-{padding}-{downsample}-{name(dtype)}", (image, *args))
    x = special_image((2, 3, 12, 10), torch.float32)
    for case, image in (
        ("channels-swapped", x.transpose(0, 1)),
        ("cropped", x[:, 1:, 1:9, 1:9]),
        ("transposed-batch", x.view(6, 1, 12, 10)[::2]),
        ("no-images", x[:0]),
        ("expanded", x[:1, :1].expand(2, 2, 12, 10)),
    ):
        args = filter_args(GAUSSIAN, "reflect", "mean", *image.shape[2:])
        yield Case(case, (image, *args))


def blur_downsample_ones() -> Iterator[Call]:
    for shape in ((1, 1, 2, 2), (1, 1, 2, 64), (1, 3, 64, 2), (1, 3, 64, 48)):
        for taps in ([1.0], [0.1] * 3, [0.1] * 11):
            step = functools.partial(pyramid_ops.blur_downsample, torch.empty(shape), taps=taps, padding="reflect")
            yield Call(f"blur_downsample-{shape[2]}-{shape[3]}-{len(taps)}", step)


def blur_downsample_compiled() -> Iterator[Call]:
    for dtype in (torch.float32, torch.bfloat16, torch.uint8):
        x = torch.empty(2, 3, 1024, 1024, dtype=dtype)
        for padding in ("zeros", "reflect", "replicate"):
            for downsample in ("mean", "decimate"):
                step = functools.partial(pyramid_ops.blur_downsample, x, padding=padding, downsample=downsample)
                yield Call(f"blur_downsample, 5 taps, {padding}, {downsample}", step, dtype)


def from_images(so_far: Any) -> None:
    count = so_far.choice(2, 2, 1, 3)
    patch = so_far.integer(1, 2)
    batch, channels = so_far.choice(*[(1, 1), (1, 1), (1, 2), (2, 1)] * 4, (0, 1))
    sides = [so_far.choice(1, 1, 2, 3) * patch << (count - 1) for _ in range(2)]
    images = so_far.tensor(batch, channels, *sides, dtype=so_far.choice(*FEATURES))
    taps = so_far.choice(None, [1.0], [0.25, 0.5, 0.25], [0.0625, 0.25, 0.375, 0.25, 0.0625], [-0.3, 0.7, 1.9])
    options = {"taps": taps, "padding": so_far.choice("zeros", "reflect", "replicate")}
    levels = so_far.same(
        pyramid_ops.gaussian_pyramid, images, count, downsample=so_far.choice("mean", "decimate"), **options
    )
    so_far.levels = [so_far.same(pyramid_ops.patchify, level, patch) for level in levels]


DESCRIPTIONS = [
    Description(
        blur_downsample_op,
        blur_downsample_golden,
        blur_downsample_bits,
        blur_downsample_ones,
        blur_downsample_compiled,
        from_images,
        "test_gaussian_pyramid",
    ),
]
