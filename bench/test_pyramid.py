"""Pyramids against the plain formula, kornia and OpenCV."""

import pytest
import torch
import torch.nn.functional as F

import pyramid_ops
from bench.conftest import CUDA, DEVICE

BINOMIAL = [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16]
SHAPES = [(1, 3, 512, 512), (2, 3, 1024, 1024), (1, 3, 4096, 4096)]
if CUDA:
    SHAPES += [(8, 3, 1024, 1024), (64, 3, 1024, 1024), (16, 3, 2048, 2048)]


def pyramid_bytes(images: torch.Tensor, num_levels: int = 4) -> int:
    """Level 0 read, every later level written."""
    return images.nbytes + sum(images.nbytes >> (2 * level) for level in range(1, num_levels))


def eager(images, weight):
    levels = [images]
    for _ in range(3):
        images = F.avg_pool2d(F.conv2d(images, weight, padding=2, groups=3), 2)
        levels.append(images)
    return levels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_gaussian_pyramid(compare, shape, dtype):
    images = torch.rand(shape, device=DEVICE).to(dtype)
    g = torch.exp(-0.5 * torch.arange(-2, 3) ** 2)
    weight = ((g / g.sum())[:, None] * (g / g.sum())).expand(3, 1, 5, 5).to(DEVICE, dtype).contiguous()
    providers = {"pyramid_ops": lambda x, w: pyramid_ops.gaussian_pyramid(x, 4), "eager": eager}
    compare(providers, (images, weight), pyramid_bytes(images))


def kornia_pyramid(images):
    kornia = pytest.importorskip("kornia")
    for _ in range(3):
        images = kornia.geometry.pyrdown(images)
    return images


def test_pyrdown_like_kornia(compare):
    pytest.importorskip("kornia")
    images = torch.rand(2, 3, 1024, 1024, device=DEVICE)
    ours = lambda x: pyramid_ops.gaussian_pyramid(x, 4, taps=BINOMIAL, padding="reflect")  # noqa: E731
    compare({"pyramid_ops": ours, "eager": kornia_pyramid}, (images,), pyramid_bytes(images))


@pytest.mark.skipif(CUDA, reason="OpenCV runs on the CPU")
def test_pyrdown_like_opencv(compare):
    cv2 = pytest.importorskip("cv2")
    images = torch.randint(0, 256, (1, 1, 2048, 2048), dtype=torch.uint8)
    binomial = torch.tensor(BINOMIAL)
    weight = (binomial[:, None] * binomial)[None, None]

    def opencv(x, w):
        level = x[0, 0].numpy()
        for _ in range(3):
            level = cv2.pyrDown(level)
        return level

    def eager_uint8(x, w):
        for _ in range(3):
            y = F.conv2d(F.pad(x.float(), (2, 2, 2, 2), mode="reflect"), w)[..., ::2, ::2]
            x = (y + 0.5).floor().clamp(0, 255).to(torch.uint8)
        return x

    options = {"taps": BINOMIAL, "padding": "reflect", "downsample": "decimate"}
    ours = lambda x, w: pyramid_ops.gaussian_pyramid(x, 4, **options)  # noqa: E731
    compare({"pyramid_ops": ours, "eager": eager_uint8, "OpenCV": opencv}, (images, weight), pyramid_bytes(images))
