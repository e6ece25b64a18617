"""Descriptions of the ops in `ops/entropy.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import pyramid_ops

from ...ops.entropy import patch_entropy_op
from ..describe import Call, Case, Cases, Description
from ..inputs import FEATURES, Source, name


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


def patch_entropy_golden() -> Cases:
    for dtype in FEATURES:
        for patch, bins in ((4, 2), (7, 256), (14, 1000)):
            case = f"{patch}-{bins}-{name(dtype)}"
            source = Source(case)
            image = source.floats(2, 3, 28, 28, dtype=dtype, low=-6, high=0)
            if dtype != torch.uint8:
                image[0, :, :4, :3] = source.scores(3, 12, dtype).view(3, 4, 3)
            yield Case(case, (image, patch, bins))


def patch_entropy_bits() -> Cases:
    for dtype in FEATURES:
        for shape, patch in (((1, 1, 1, 1), 1), ((2, 3, 8, 4), 4), ((1, 2, 14, 28), 7), ((1, 3, 32, 16), 16)):
            for bins in (2, 33, 256, 1000):
                image = special_pixels(shape, dtype)
                case = f"{'x'.join(map(str, shape))}-{patch}-{bins}-{name(dtype)}"
                yield Case(case, (image, patch, bins))
        yield Case(f"large-{name(dtype)}", (special_pixels((1, 1, 60, 60), dtype), 60, 256))
        yield Case(f"crop-{name(dtype)}", (special_pixels((1, 1, 6, 6), dtype)[..., 1:5, 2:], 2, 256))
    x = special_pixels((2, 3, 8, 8), torch.float32)
    yield Case("channels-swapped", (x.transpose(0, 1), 4, 256))
    yield Case("expanded", (x[:1, :1].expand(2, 2, 8, 8), 4, 256))
    yield Case("no-images", (x[:0], 4, 256))
    yield Case("no-patches", (x[..., :0], 4, 256))
    for dtype in FEATURES:
        rows = special_pixels((33, 50), dtype)
        yield Case(f"rows-{name(dtype)}", (rows.T[None, :, :, None], 1, 256))
    yield Case("rows-apart", (special_pixels((9, 50), torch.float32)[::2, 3:40].T[None, :, :, None], 1, 33))
    yield Case("constant", (torch.full((1, 3, 4, 4), 0.3), 4, 256))


def patch_entropy_ones() -> Iterator[Call]:
    yield Call("patch_entropy", lambda: pyramid_ops.patch_entropy(torch.empty(1, 1, 1, 1), 1, bins=2))
    yield Call("patch_entropy-bytes", lambda: pyramid_ops.patch_entropy(torch.empty(1, 1, 2, 4, dtype=torch.uint8), 2))
    yield Call("patch_entropy-rows", lambda: pyramid_ops.patch_entropy(torch.empty(1, 1)))


def patch_entropy_compiled() -> Iterator[Call]:
    for dtype in (torch.float32, torch.bfloat16, torch.uint8):
        for patch, bins in ((16, 256), (14, 256), (64, 1024)):
            side = 1024 // patch * patch
            x = torch.empty(2, 3, 1024, 1024, dtype=dtype)[:, :, :side, :side]
            entropy = functools.partial(pyramid_ops.patch_entropy, x, patch, bins=bins)
            yield Call(f"patch_entropy, {patch}×{patch}, {bins} bins", entropy, dtype)
        entropy = functools.partial(pyramid_ops.patch_entropy, torch.empty(8192, 768, dtype=dtype))
        yield Call("patch_entropy, rows of 768, 256 bins", entropy, dtype)


def entropy(so_far: Any) -> None:
    """Entropy of the patches of an image."""
    patch = so_far.integer(1, 5)
    sides = [patch * so_far.integer(1, 3) for _ in range(2)]
    images = so_far.tensor(so_far.integer(0, 2), so_far.integer(1, 2), *sides, dtype=so_far.choice(*FEATURES))
    so_far.same(pyramid_ops.patch_entropy, images, patch, bins=so_far.choice(2, 33, 256))
    level = so_far.choice(*so_far.levels)
    so_far.same(pyramid_ops.patch_entropy, so_far.choice(level, level.flatten(0, 1)), bins=33)


DESCRIPTIONS = [
    Description(
        patch_entropy_op,
        patch_entropy_golden,
        patch_entropy_bits,
        patch_entropy_ones,
        patch_entropy_compiled,
        entropy,
        "test_patch_entropy",
        scattered=("_patch_entropy_kernel",),
    ),
]
