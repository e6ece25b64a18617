"""Entropy of patches: against scikit-image and exact counts."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyramid_ops import patch_entropy, patchify
from pyramid_ops.verify.inputs import FEATURES, FLOATS
from tests.bits import assert_same_bits
from tests.ops.test_scoring import ulps


def entropy_of_counts(counts: np.ndarray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum() + 0.0)


@pytest.mark.parametrize("patch", [1, 2, 7, 16, 32])
def test_entropy_of_uint8_is_that_of_scikit_image(patch):
    shannon_entropy = pytest.importorskip("skimage.measure").shannon_entropy
    generator = torch.Generator().manual_seed(patch)
    images = torch.randint(0, 256, (2, 3, 2 * patch, 3 * patch), generator=generator, dtype=torch.uint8)
    images[1] //= 50
    patches = patchify(images, patch).flatten(0, 1).numpy()
    expected = torch.tensor([shannon_entropy(values) for values in patches], dtype=torch.float64).view(2, -1)
    entropy = patch_entropy(images, patch)
    assert entropy.shape == expected.shape
    torch.testing.assert_close(entropy.double(), expected, rtol=4e-7, atol=1e-15)


def exact_entropy(counts: list[int]) -> float:
    """Σ c/n · log2(n/c) without cancellation for c close to n."""
    total = sum(counts)
    logs = [-math.log1p((c - total) / total) if 2 * c > total else math.log(total / c) for c in counts if c]
    return math.fsum(c / total * log for c, log in zip([c for c in counts if c], logs, strict=True)) / math.log(2)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=256), st.integers(0, 60_000))
def test_entropy_is_within_8_ulp(counts, most):
    counts[0] += most
    side = max(1, math.isqrt(sum(counts)) + 1)
    counts[-1] += side * side - sum(counts)
    image = torch.tensor([value for value, count in enumerate(counts) for _ in range(count)], dtype=torch.uint8)
    entropy = patch_entropy(image.view(1, 1, side, side), side)
    expected = torch.tensor([[exact_entropy(counts)]], dtype=torch.float64)
    assert ulps(entropy, expected).max() <= 8


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bins", [2, 3, 10, 256, 1000, 1024])
def test_float_values_fall_into_bins_by_the_written_rule(dtype, bins):
    generator = torch.Generator().manual_seed(bins)
    images = (1.4 * torch.rand(2, 2, 8, 12, generator=generator) - 0.2).to(dtype)
    patches = patchify(images, 4).float().numpy()
    words = np.clip(np.floor(patches * np.float32(bins)), 0, bins - 1).astype(int)
    expected = [[entropy_of_counts(np.bincount(patch)) for patch in sample] for sample in words]
    torch.testing.assert_close(
        patch_entropy(images, 4, bins=bins).double(), torch.tensor(expected, dtype=torch.float64), rtol=4e-7, atol=1e-15
    )


def test_bytes_and_the_same_values_as_floats_agree():
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    for bins in (2, 16, 256):
        assert_same_bits(patch_entropy(images / 256, 16, bins=bins), patch_entropy(images, 16, bins=bins))


@pytest.mark.parametrize("dtype", FEATURES)
@pytest.mark.parametrize(("patch", "bins"), [(1, 2), (4, 256), (6, 33)])
def test_rows_are_patches(patch, bins, dtype):
    """Dense as patchify gives them, packed, and every other row and value of a larger tensor."""
    generator = torch.Generator().manual_seed(patch)
    images = (256 * torch.rand(2, 3, 12, 24, generator=generator) / (1 if dtype == torch.uint8 else 200)).to(dtype)
    rows, expected = patchify(images, patch), patch_entropy(images, patch, bins=bins)
    assert_same_bits(patch_entropy(rows, bins=bins), expected)
    packed = rows.flatten(0, 1)
    assert_same_bits(patch_entropy(packed, bins=bins), expected.flatten())
    apart = packed.repeat_interleave(2, 0).repeat_interleave(2, 1)[::2, ::2]
    assert_same_bits(patch_entropy(apart, bins=bins), expected.flatten())


def test_rows_of_images_of_different_sizes():
    images = [torch.rand(1, 3, 8, 12), torch.rand(1, 3, 4, 4)]
    packed = torch.cat([patchify(image, 4)[0] for image in images])
    assert_same_bits(patch_entropy(packed), torch.cat([patch_entropy(image, 4)[0] for image in images]))
    assert patch_entropy(packed[:0]).shape == (0,)


def test_entropy_is_exact_for_constant_and_uniform_patches():
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert_same_bits(patch_entropy(ramp, 16), torch.full((1, 1), 8.0))
    assert_same_bits(patch_entropy(ramp.flip(3), 16, bins=32), torch.full((1, 1), 5.0))
    assert_same_bits(patch_entropy(torch.full((1, 3, 32, 32), 0.7), 16), torch.zeros(1, 4))


def test_values_outside_the_range_and_nan():
    x = torch.zeros(1, 1, 2, 8)
    x[..., 0, 0], x[..., 0, 2], x[..., 0, 4], x[..., 1, 7] = torch.nan, torch.inf, -torch.inf, 1.0
    entropy = patch_entropy(x, 2)
    assert entropy[0, 0].isnan()
    same = entropy_of_counts(np.array([3, 1]))
    assert entropy[0, 1:].tolist() == pytest.approx([same, 0.0, same], rel=1e-6)


IMAGE = torch.zeros(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("images: expected a tensor", lambda: patch_entropy(None, 4)),
        (r"images: expected shape \[B, C, H, W\] or \[B, N, V\] or \[T, V\]", lambda: patch_entropy(IMAGE[0, 0, 0])),
        ("patch_size: expected None for rows, got 4 and float32", lambda: patch_entropy(IMAGE[0], 4)),
        ("patch_size: expected an integer, got None", lambda: patch_entropy(IMAGE)),
        ("images: expected 1 to 16777216 values in a patch, got 0", lambda: patch_entropy(IMAGE[0, :, :, :0])),
        ("images: expected dtype", lambda: patch_entropy(IMAGE.int(), 4)),
        ("images: expected sides that are multiples of 3", lambda: patch_entropy(IMAGE, 3)),
        ("patch_size: expected at least 1, got 0", lambda: patch_entropy(IMAGE, 0)),
        ("patch_size: expected an integer, got 4.0", lambda: patch_entropy(IMAGE, 4.0)),
        (
            "patch_size: expected 1 to 16777216 values in a patch",
            lambda: patch_entropy(torch.zeros(1, 1, 1, 1).expand(1, 2, 4096, 4096), 4096),
        ),
        ("patch_size: expected 1 to 16777216 values in a patch, got 0", lambda: patch_entropy(IMAGE[:, :0], 4)),
        ("bins: expected at least 2, got 1", lambda: patch_entropy(IMAGE, 4, bins=1)),
        ("bins: expected at most 1024, got 1025", lambda: patch_entropy(IMAGE, 4, bins=1025)),
    ],
)
def test_bad_entropy(message, call):
    with pytest.raises((TypeError, ValueError), match=f"^patch_entropy: {message}"):
        call()
