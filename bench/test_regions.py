"""Region scores and patch entropy against torch."""

import pytest
import torch

import pyramid_ops
from bench.conftest import CUDA, DEVICE

SHAPES = [(1, 24, 1024), (2, 64, 1024), (2, 64, 64)]
if CUDA:
    SHAPES += [(16, 64, 1024), (4, 256, 1024)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_region_variance(compare, shape, dtype):
    """4×4 regions of a square grid; eager in the dtype of the features."""
    batch, side, features = shape
    x = torch.randn(batch, side * side, features, device=DEVICE).to(dtype)
    cell = side // 4

    def eager(x):
        return x.view(batch, 4, cell, 4, cell, features).permute(0, 1, 3, 2, 4, 5).flatten(3).var(-1).flatten(1)

    ours = lambda x: pyramid_ops.region_variance(x, (side, side))  # noqa: E731
    compare({"pyramid_ops": ours, "eager": eager}, (x,), x.nbytes + 64 * batch)


def test_broadcast_regions(compare):
    scores = torch.randn(2, 16, device=DEVICE)
    eager = lambda x: x.view(2, 4, 4).repeat_interleave(64, 1).repeat_interleave(64, 2).flatten(1)  # noqa: E731
    ours = lambda x: pyramid_ops.broadcast_regions(x, (256, 256))  # noqa: E731
    compare({"pyramid_ops": ours, "eager": eager}, (scores,), scores.nbytes + 2 * 65536 * 4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("side", [512, 1024, *([4096] if CUDA else [])])
def test_patch_entropy(compare, side, dtype):
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, device=DEVICE)
    images = images if dtype == torch.uint8 else images / 256

    def eager(images):
        x = pyramid_ops.patchify(images, 16)
        bins = x.long() if x.dtype == torch.uint8 else (x * 256).long().clamp(0, 255)
        p = torch.zeros(*x.shape[:2], 256, device=x.device).scatter_add_(2, bins, torch.ones_like(bins).float())
        p = p / x.shape[2]
        return -torch.where(p > 0, p * p.log2(), 0.0).sum(-1)

    ours = lambda x: pyramid_ops.patch_entropy(x, 16)  # noqa: E731
    compare({"pyramid_ops": ours, "eager": eager}, (images,), images.nbytes + 2 * (side // 16) ** 2 * 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(8, 576, 1024), (1, 16384, 1024)], ids=lambda shape: "x".join(map(str, shape)))
def test_channel_variance(compare, shape, dtype):
    features = torch.randn(shape, device=DEVICE).to(dtype)
    eager = lambda x: x.var(1)  # noqa: E731
    floor = features.nbytes + 4 * shape[0] * shape[2]
    compare({"pyramid_ops": pyramid_ops.channel_variance, "eager": eager}, (features,), floor)
