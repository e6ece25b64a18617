"""What the pyramid means: OpenCV, kornia, torch, float64, stated bounds, bad input."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pyramid_ops import blur_downsample, gather_levels, gaussian_pyramid, patch_positions, patchify
from pyramid_ops.verify.cases.pyramid import GAUSSIAN
from pyramid_ops.verify.inputs import FEATURES, FLOATS
from tests.bits import assert_same_bits

BINOMIAL = [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16]
PADDINGS = {"zeros": "constant", "reflect": "reflect", "replicate": "edge"}


def image(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, generator=generator, dtype=dtype)
    return (100 * torch.randn(shape, generator=generator)).to(dtype)


def plain(x: torch.Tensor, taps, padding: str, downsample: str, absolute: bool = False) -> np.ndarray:
    """The definition in float64: pad, blur rows and columns, then halve. `absolute`: of |x| with |taps|."""
    x = x.double().numpy()
    taps = np.asarray(taps, np.float64)
    if absolute:
        x, taps = np.abs(x), np.abs(taps)
    half = len(taps) // 2
    x = np.pad(x, ((0, 0), (0, 0), (half, half), (half, half)), mode=PADDINGS[padding])
    x = sum(tap * x[..., k : x.shape[-1] - 2 * half + k] for k, tap in enumerate(taps))
    x = sum(tap * x[..., k : x.shape[-2] - 2 * half + k, :] for k, tap in enumerate(taps))
    if downsample == "decimate":
        return x[..., ::2, ::2]
    height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    x = x[..., :height, :width]
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


@pytest.mark.parametrize("downsample", ["mean", "decimate"])
@pytest.mark.parametrize("padding", list(PADDINGS))
@pytest.mark.parametrize("taps", [GAUSSIAN, BINOMIAL, [1.0], [0.3, -0.5, 1.4], [0.1, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1]])
@pytest.mark.parametrize("size", [(2, 2), (9, 14), (40, 31)])
def test_error_is_within_1e_6_of_the_filtered_magnitude(size, taps, padding, downsample):
    x = image(2, 3, *size)
    actual = blur_downsample(x, taps=taps, padding=padding, downsample=downsample).double().numpy()
    error = np.abs(actual - plain(x, taps, padding, downsample))
    assert (error <= 1e-6 * plain(x, taps, padding, downsample, absolute=True)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("padding", list(PADDINGS))
def test_half_precision_is_float32_rounded_once(dtype, padding):
    x = image(1, 2, 18, 21, dtype=dtype)
    assert_same_bits(blur_downsample(x, padding=padding), blur_downsample(x.float(), padding=padding).to(dtype))


@pytest.mark.parametrize("size", [(64, 64), (63, 41), (1, 9), (2, 2), (5, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_opencv_pyrdown_to_the_bit_on_uint8(size, channels):
    cv2 = pytest.importorskip("cv2")
    x = image(1, channels, *size, dtype=torch.uint8)
    expected = cv2.pyrDown(np.ascontiguousarray(x[0].permute(1, 2, 0).numpy()))
    expected = torch.from_numpy(expected.reshape(*expected.shape[:2], channels)).permute(2, 0, 1)[None]
    assert_same_bits(blur_downsample(x, taps=BINOMIAL, padding="reflect", downsample="decimate"), expected)


def test_opencv_pyramid_to_the_bit_on_uint8():
    cv2 = pytest.importorskip("cv2")
    x = image(1, 1, 203, 150, dtype=torch.uint8)
    levels = gaussian_pyramid(x, 5, taps=BINOMIAL, padding="reflect", downsample="decimate")
    expected = x[0, 0].numpy()
    for level in levels[1:]:
        expected = cv2.pyrDown(expected)
        assert_same_bits(level[0, 0], torch.from_numpy(expected))


def test_opencv_pyrdown_on_float32():
    cv2 = pytest.importorskip("cv2")
    x = image(1, 1, 65, 44)
    expected = torch.from_numpy(cv2.pyrDown(x[0, 0].numpy()))
    actual = blur_downsample(x, taps=BINOMIAL, padding="reflect", downsample="decimate")[0, 0]
    bound = torch.from_numpy(plain(x, BINOMIAL, "reflect", "decimate", absolute=True))[0, 0]
    assert ((actual - expected).abs() <= 1e-6 * bound).all()


@pytest.mark.parametrize("size", [(32, 48), (10, 6)])
def test_kornia_pyrdown_on_even_sizes(size):
    kornia = pytest.importorskip("kornia")
    x = image(2, 3, *size)
    expected = kornia.geometry.pyrdown(x)
    actual = blur_downsample(x, taps=BINOMIAL, padding="reflect", downsample="mean")
    bound = torch.from_numpy(plain(x, BINOMIAL, "reflect", "mean", absolute=True))
    assert ((actual - expected).abs() <= 1e-6 * bound).all()


@pytest.mark.parametrize("size", [(64, 64), (33, 47)])
def test_defaults_are_gaussian_conv_and_average_pooling(size):
    x = image(2, 3, *size)
    g = torch.exp(-0.5 * torch.arange(-2, 3).double() ** 2)
    g = g / g.sum()
    weight = (g[:, None] * g[None]).expand(3, 1, 5, 5)
    expected = F.avg_pool2d(F.conv2d(x.double(), weight, padding=2, groups=3), 2)
    bound = F.avg_pool2d(F.conv2d(x.double().abs(), weight, padding=2, groups=3), 2)
    assert ((blur_downsample(x).double() - expected).abs() <= 1e-6 * bound).all()


def test_box_mipmaps():
    x = image(1, 2, 16, 24)
    torch.testing.assert_close(blur_downsample(x, taps=[1.0]), F.avg_pool2d(x, 2), rtol=1e-5, atol=1e-4)
    constant = torch.full((1, 1, 8, 8), 0.3)
    assert_same_bits(blur_downsample(constant, taps=[1.0]), torch.full((1, 1, 4, 4), 0.3))


def test_reflection_repeats_on_images_smaller_than_the_filter():
    x = image(1, 1, 3, 2)
    taps = [0.05, 0.1, 0.1, 0.1, 0.3, 0.1, 0.1, 0.1, 0.05]
    padded = np.pad(x[0, 0].double().numpy(), 4, mode="reflect")
    blurred = sum(a * b * padded[i : i + 3, j : j + 2] for i, a in enumerate(taps) for j, b in enumerate(taps))
    actual = blur_downsample(x, taps=taps, padding="reflect", downsample="decimate")
    np.testing.assert_allclose(actual[0, 0].numpy(), blurred[::2, ::2], rtol=1e-5, atol=1e-4)


def test_level_zero_is_the_image_and_levels_follow_from_rounded_levels():
    x = image(1, 3, 40, 24, dtype=torch.bfloat16)
    levels = gaussian_pyramid(x, 4)
    assert levels[0] is x
    for above, below in itertools.pairwise(levels):
        assert below.dtype == x.dtype
        assert_same_bits(below, blur_downsample(above))


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["mean", "decimate"]))
def test_sizes(height, width, downsample):
    x = torch.zeros(1, 1, height, width, dtype=torch.uint8)
    levels = 1
    while (min(height, width) >= 2) if downsample == "mean" else (max(height, width) >= 2):
        height, width = (height // 2, width // 2) if downsample == "mean" else ((height + 1) // 2, (width + 1) // 2)
        levels += 1
    pyramid = gaussian_pyramid(x, levels, downsample=downsample)
    assert pyramid[-1].shape[2:] == (height, width)
    with pytest.raises(ValueError, match=f"^gaussian_pyramid: num_levels: expected at most {levels} for images of"):
        gaussian_pyramid(x, levels + 1, downsample=downsample)


@pytest.mark.parametrize("dtype", FEATURES)
def test_channels_last_and_cropped_images(dtype):
    x = image(2, 3, 20, 30, dtype=dtype)
    expected = gaussian_pyramid(x, 3)[1:]
    last = x.to(memory_format=torch.channels_last)
    assert_same_bits(gaussian_pyramid(last, 3)[1:], expected)
    wide = torch.cat((x, x), 3)[..., :30]
    assert_same_bits(gaussian_pyramid(wide, 3)[1:], expected)


def test_uint8_rounds_half_up_and_saturates():
    x = torch.tensor([[[[0, 1], [0, 1]]]], dtype=torch.uint8)
    assert blur_downsample(x, taps=[1.0]).item() == 1
    x = torch.full((1, 1, 2, 2), 200, dtype=torch.uint8)
    assert blur_downsample(x, taps=[2.0]).item() == 255
    assert blur_downsample(x, taps=[-1.5, 0.0, 0.0], padding="replicate").item() == 255


def test_batch_and_planes_do_not_matter():
    x = image(3, 2, 70, 90)
    for b in range(3):
        for c in range(2):
            assert_same_bits(blur_downsample(x)[b, c], blur_downsample(x[b, c][None, None])[0, 0])


@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8, torch.int64, torch.bool])
def test_patchify_equals_unfold(dtype):
    x = image(2, 3, 12, 20).to(dtype)
    patches = patchify(x, 4)
    expected = F.unfold(x.double(), 4, stride=4).transpose(1, 2)
    assert patches.shape == (2, 15, 48)
    assert patches.dtype == dtype
    assert torch.equal(patches.double(), expected)


def test_patchify_never_returns_a_view():
    for shape, patch in (((2, 1, 4, 4), 1), ((2, 3, 4, 4), 4), ((1, 1, 8, 4), 4)):
        x = torch.ones(shape)
        patchify(x, patch).zero_()
        assert x.all()


def test_very_narrow_and_very_wide_gaussians():
    x = image(1, 1, 8, 8)
    assert_same_bits(blur_downsample(x, sigma=1e-200), blur_downsample(x, taps=[0, 0, 1, 0, 0]))
    assert_same_bits(blur_downsample(x, sigma=1e300), blur_downsample(x, taps=[0.2] * 5))


def test_positions_follow_selected_patches():
    levels = gaussian_pyramid(image(2, 1, 16, 24), 3)
    tokens = [patchify(level, 2) for level in levels]
    positions = patch_positions(levels, 2)
    assert [tuple(p.shape) for p in positions] == [(1, 96, 3), (1, 24, 3), (1, 6, 3)]
    indices = torch.tensor([[[0, 95], [1, 7], [2, 0]], [[0, 13], [2, 5], [1, 23]]])
    picked, where = gather_levels(tokens, indices), gather_levels(positions, indices)
    for b in range(2):
        for i in range(3):
            level, row, column = where[b, i].tolist()
            patch = levels[level][b, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(picked[b, i], patch.flatten())
    assert_same_bits(patch_positions([(16, 24)], 2)[0], positions[0])


X = torch.ones(1, 1, 8, 8)
BAD = [
    (TypeError, "images: expected a tensor", lambda op: op("photo.png")),
    (ValueError, r"images: expected shape \[B, C, H, W\]", lambda op: op(torch.ones(3, 8, 8))),
    (TypeError, "images: expected dtype", lambda op: op(X.double())),
    (TypeError, "images: expected dtype", lambda op: op(X.to(torch.int32))),
    (ValueError, "images: expected no gradient", lambda op: op(X.clone().requires_grad_())),
    (ValueError, "sigma: expected a positive number, got 0", lambda op: op(X, sigma=0)),
    (ValueError, "sigma: expected a positive number, got -1", lambda op: op(X, sigma=-1.0)),
    (ValueError, "sigma: expected a float64 number", lambda op: op(X, sigma=10**400)),
    (ValueError, "sigma: expected a finite number, got nan", lambda op: op(X, sigma=float("nan"))),
    (TypeError, "sigma: expected a number, got '1'", lambda op: op(X, sigma="1")),
    (ValueError, "kernel_size: expected an odd number, got 4", lambda op: op(X, kernel_size=4)),
    (ValueError, "kernel_size: expected at least 1, got 0", lambda op: op(X, kernel_size=0)),
    (TypeError, "kernel_size: expected an integer, got 5.0", lambda op: op(X, kernel_size=5.0)),
    (ValueError, "taps: expected an odd number of taps, got 2", lambda op: op(X, taps=[0.5, 0.5])),
    (ValueError, "taps: expected an odd number of taps, got 0", lambda op: op(X, taps=[])),
    (ValueError, r"taps\[1\]: expected a finite number, got inf", lambda op: op(X, taps=[0, float("inf"), 0])),
    (ValueError, r"taps\[0\]: expected a float32 number, got 1e\+39", lambda op: op(X, taps=[1e39])),
    (TypeError, "taps: expected a list or tuple of numbers", lambda op: op(X, taps=torch.ones(3))),
    (TypeError, r"taps\[0\]: expected a number", lambda op: op(X, taps=["a"])),
    (ValueError, "padding: expected one of 'zeros', 'reflect', 'replicate', got 'circular'",
     lambda op: op(X, padding="circular")),
    (ValueError, "downsample: expected one of 'mean', 'decimate', got None", lambda op: op(X, downsample=None)),
]  # fmt: skip


@pytest.mark.parametrize("op", [gaussian_pyramid, blur_downsample])
@pytest.mark.parametrize(("error", "message", "call"), BAD)
def test_bad_input(op, error, message, call):
    with pytest.raises(error, match=f"^{op.__name__}: {message}"):
        call(op)


@pytest.mark.parametrize("levels", [0, -1, 5, 2.0, True])
def test_bad_number_of_levels(levels):
    with pytest.raises((TypeError, ValueError), match="^gaussian_pyramid: num_levels: expected"):
        gaussian_pyramid(X, levels)


def test_an_image_that_cannot_be_halved():
    with pytest.raises(ValueError, match="^blur_downsample: images: expected a height and width"):
        blur_downsample(torch.ones(1, 1, 1, 8))
    assert blur_downsample(torch.ones(1, 1, 1, 8), downsample="decimate").shape == (1, 1, 1, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: patchify(X, 3), "patchify: images: expected sides that are multiples of 3, got 8×8"),
        (lambda: patchify(X, 0), "patchify: patch_size: expected at least 1, got 0"),
        (lambda: patchify(X[0], 2), r"patchify: images: expected shape \[B, C, H, W\]"),
        (lambda: patch_positions(X, 2), "patch_positions: images: expected a list or tuple"),
        (lambda: patch_positions([(8, 8, 1)], 2), r"patch_positions: images\[0\]: expected \(height, width\)"),
        (lambda: patch_positions([(8, 8)], 2, device="gpu"), "patch_positions: device: expected a device of torch"),
        (lambda: patch_positions([(8, 8)], 2, device=1.5), "patch_positions: device: expected a device of torch"),
        (lambda: patch_positions([(8, 8), (4, 5)], 2), r"patch_positions: images\[1\]: expected sides"),
    ],
)
def test_bad_patches(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        call()
