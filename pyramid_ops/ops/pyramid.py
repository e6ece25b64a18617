"""Image pyramids and patches."""

import math
from collections.abc import Sequence
from typing import Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from ..reference import pyramid as reference
from ..reference.arguments import Filter

__all__ = ["blur_downsample", "gaussian_pyramid", "patch_positions", "patchify"]


def _blur_downsample_fake(images: Tensor, blur: Filter, height: int, width: int) -> Tensor:
    return images.new_empty(*images.shape[:2], height, width)


blur_downsample_op = Op(reference.blur_downsample, _blur_downsample_fake)


def gaussian_pyramid(
    images: Tensor,
    num_levels: int = 4,
    *,
    sigma: float = 1.0,
    kernel_size: int = 5,
    taps: Optional[Sequence[float]] = None,
    padding: str = "zeros",
    downsample: str = "mean",
) -> list[Tensor]:
    """Blur and halve an image again and again: one fused stencil for each level.

    Parameters
    ----------
    images : Tensor
        ``[B, C, H, W]``; uint8, float16, bfloat16 or float32.
    num_levels : int
        Number of levels, the image itself included.
    sigma, kernel_size : float, int
        Standard deviation in pixels and odd width of a Gaussian, normalised to sum 1.
    taps : sequence of float, optional
        The one-dimensional filter, of odd length, used as it is, in place of the Gaussian.
    padding : "zeros", "reflect" or "replicate"
        What stands outside the image: 0, the mirror image without its edge pixel (OpenCV's ``BORDER_REFLECT_101``),
        or the edge pixel.
    downsample : "mean" or "decimate"
        After the blur, the mean of each 2×2 block (an odd last row or column is dropped), or every second sample
        from the first on (sizes round up).

    Returns
    -------
    list of Tensor
        `num_levels` tensors in the dtype of `images`, finest first; level 0 is `images` itself. Each level is computed
        from the returned, rounded level before it.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or option, an even number of taps, sigma ≤ 0, more levels than the image can be
        halved, or an input that requires grad.

    Notes
    -----
    Blur and halving are one separable filter with stride 2, horizontal first: the taps with themselves shifted by one
    and halved for "mean", the taps for "decimate". Products and sums are rounded to float32 one by one in ascending
    order, the result once to the dtype (uint8: half up, saturating): the same bits on every device. In float32, with up
    to 101 taps, within 1e-6 of the filter of \\|taps\\| applied to \\|x\\|.
    Images that are not contiguous in their last dimension are copied first.

    The same as, within that bound:

    * ``conv2d`` with the 5×5 Gaussian and zero padding, then ``avg_pool2d(2)``: the defaults;
    * ``cv2.pyrDown``: ``taps=[1/16, 4/16, 6/16, 4/16, 1/16], padding="reflect", downsample="decimate"``, equal to the
      bit for uint8;
    * ``kornia.geometry.pyrdown`` for even sizes: the same taps, ``padding="reflect", downsample="mean"``;
    * box mipmaps: ``taps=[1.0]``.

    References
    ----------
    P. J. Burt and E. H. Adelson, "The Laplacian Pyramid as a Compact Image Code", 1983.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> levels = pyramid_ops.gaussian_pyramid(torch.rand(2, 3, 64, 48), 3)
    >>> [tuple(level.shape) for level in levels]
    [(2, 3, 64, 48), (2, 3, 32, 24), (2, 3, 16, 12)]
    """
    op = "gaussian_pyramid"
    check.tensor(op, "images", images, "B C H W")
    num_levels = check.integer(op, "num_levels", num_levels, 1)
    taps = filter_taps(op, sigma, kernel_size, taps)
    check_filter(op, padding, downsample)
    levels = [images]
    for level in range(1, num_levels):
        if not can_halve(levels[-1], downsample):
            raise ValueError(
                f"{op}: num_levels: expected at most {level} for images of {images.shape[2]}×{images.shape[3]} and "
                f"downsample={downsample!r}, got {num_levels}"
            )
        levels.append(halve(levels[-1], taps, padding, downsample))
    return levels


def blur_downsample(
    images: Tensor,
    *,
    sigma: float = 1.0,
    kernel_size: int = 5,
    taps: Optional[Sequence[float]] = None,
    padding: str = "zeros",
    downsample: str = "mean",
) -> Tensor:
    """One step of :func:`gaussian_pyramid`, with the same numerics.

    Parameters
    ----------
    images : Tensor
        ``[B, C, H, W]``; uint8, float16, bfloat16 or float32.
    sigma, kernel_size, taps, padding, downsample
        The filter, as :func:`gaussian_pyramid` takes it.

    Returns
    -------
    Tensor
        ``[B, C, H // 2, W // 2]`` for "mean", ``[B, C, (H + 1) // 2, (W + 1) // 2]`` for "decimate".

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or option, images too small to halve, or an input that requires grad.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> pyramid_ops.blur_downsample(torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]]), taps=[1.0])
    tensor([[[[4.]]]])
    """
    op = "blur_downsample"
    check.tensor(op, "images", images, "B C H W")
    taps = filter_taps(op, sigma, kernel_size, taps)
    check_filter(op, padding, downsample)
    if not can_halve(images, downsample):
        raise ValueError(
            f"{op}: images: expected a height and width that downsample={downsample!r} can halve, got "
            f"{check.describe(images)}"
        )
    return halve(images, taps, padding, downsample)


def filter_taps(op: str, sigma: float, kernel_size: int, taps: Optional[Sequence[float]]) -> list[float]:
    if taps is None:
        sigma = check.number(op, "sigma", sigma)
        if sigma <= 0:
            raise ValueError(f"{op}: sigma: expected a positive number, got {sigma}")
        if check.integer(op, "kernel_size", kernel_size, 1) % 2 == 0:
            raise ValueError(f"{op}: kernel_size: expected an odd number, got {kernel_size}")
        half = kernel_size // 2
        steps = [x / sigma for x in range(-half, half + 1)]
        weights = [math.exp(-0.5 * step * step) for step in steps]
        total = math.fsum(weights)
        return [weight / total for weight in weights]
    values = [check.number(op, f"taps[{k}]", tap) for k, tap in enumerate(check.sequence(op, "taps", taps))]
    if len(values) % 2 == 0:
        raise ValueError(f"{op}: taps: expected an odd number of taps, got {len(values)}")
    for k, value in enumerate(values):
        if abs(value) > check.FLOAT32_MAX:
            raise ValueError(f"{op}: taps[{k}]: expected a float32 number, got {value}")
    return values


def check_filter(op: str, padding: str, downsample: str) -> None:
    check.choice(op, "padding", padding, "zeros", "reflect", "replicate")
    check.choice(op, "downsample", downsample, "mean", "decimate")


def can_halve(images: Tensor, downsample: str) -> bool:
    height, width = images.shape[2:]
    if downsample == "mean":
        return height >= 2 and width >= 2
    return min(height, width) >= 1 and max(height, width) >= 2


def halve(images: Tensor, taps: Sequence[float], padding: str, downsample: str) -> Tensor:
    height, width = images.shape[2:]
    offset = -(len(taps) // 2)
    if downsample == "mean":
        taps = [(a + b) / 2 for a, b in zip([*taps, 0.0], [0.0, *taps], strict=True)]
        size = height // 2, width // 2
    else:
        size = (height + 1) // 2, (width + 1) // 2
    return blur_downsample_op(check.rows(images), Filter(taps, offset, padding), *size)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into square patches, one token each: a pure copy.

    Parameters
    ----------
    images : Tensor
        ``[B, C, H, W]`` of any dtype, H and W multiples of the patch size.
    patch_size : int
        Side P of a patch in pixels.

    Returns
    -------
    Tensor
        ``[B, N, C·P·P]``: patches row by row, features in channel, row, column order (that of a ``Conv2d`` patch
        embedding's flattened weights).

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, a size that is no multiple of the patch size, or an input that requires grad.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> pyramid_ops.patchify(torch.arange(16).view(1, 1, 4, 4), 2)[0, 1]
    tensor([2, 3, 6, 7])
    """
    op = "patchify"
    check.tensor(op, "images", images, "B C H W", dtypes=())
    patch = check.integer(op, "patch_size", patch_size, 1)
    rows, columns = check.patch_grid(op, "images", images.shape[2], images.shape[3], patch)
    batch, channels = images.shape[:2]
    blocks = images.reshape(batch, channels, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5)
    patches = torch.empty(blocks.shape, dtype=images.dtype, device=images.device)
    return patches.copy_(blocks).view(batch, rows * columns, channels * patch * patch)


def patch_positions(
    images: Sequence[Union[Tensor, tuple[int, int]]], patch_size: int, *, device: Optional[torch.device] = None
) -> list[Tensor]:
    """Where each patch of each level stands, in the form that :func:`gather_levels` takes.

    Parameters
    ----------
    images : sequence of Tensor or (height, width)
        The levels, or their sizes in pixels.
    patch_size : int
        Side of a patch in pixels.
    device : optional
        Device of the result; the device of the first level if it is a tensor, else the CPU.

    Returns
    -------
    list of Tensor
        int64 ``[1, N_k, 3]`` for each level: (level, row, column) of the patch in the grid of its level.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or a size that is no multiple of the patch size.

    Examples
    --------
    >>> import pyramid_ops
    >>> pyramid_ops.patch_positions([(4, 4), (2, 2)], 2)[0].tolist()
    [[[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]]
    """
    op = "patch_positions"
    if not isinstance(images, (list, tuple)):
        raise TypeError(f"{op}: images: expected a list or tuple of images or sizes, got {check.describe(images)}")
    patch = check.integer(op, "patch_size", patch_size, 1)
    if device is None:
        device = images[0].device if images and isinstance(images[0], Tensor) else torch.device("cpu")
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{op}: device: expected a device of torch, got {device!r}") from error
    positions = []
    for level, image in enumerate(images):
        if isinstance(image, Tensor):
            check.tensor(op, f"images[{level}]", image, "B C H W", dtypes=())
        size = check.sequence(op, f"images[{level}]", tuple(image.shape[2:]) if isinstance(image, Tensor) else image)
        if len(size) != 2:
            raise ValueError(f"{op}: images[{level}]: expected (height, width), got {image!r}")
        height, width = (check.integer(op, f"images[{level}]", side, 0) for side in size)
        rows, columns = check.patch_grid(op, f"images[{level}]", height, width, patch)
        index = torch.arange(rows * columns, device=device)
        position = torch.stack((torch.full_like(index, level), index // max(columns, 1), index % max(columns, 1)), 1)
        positions.append(position[None])
    return positions
