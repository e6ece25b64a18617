"""Entropy of the pixels of patches."""

from typing import Optional

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from ..reference import entropy as reference

__all__ = ["patch_entropy"]

_LARGEST_PATCH = 1 << 24
_MOST_BINS = 1024


patch_entropy_op = Op(
    reference.patch_entropy,
    lambda images, patch_size, bins: images.new_empty(
        images.shape[0], (images.shape[2] // patch_size) * (images.shape[3] // patch_size), dtype=torch.float32
    ),
)


def patch_entropy(images: Tensor, patch_size: Optional[int] = None, *, bins: int = 256) -> Tensor:
    """Shannon entropy of the pixel values of each patch, in bits, all channels together.

    Patches of images, or rows with the values of a patch each, such as those of images of different sizes one after
    another.

    Parameters
    ----------
    images : Tensor
        ``[B, C, H, W]``, H and W multiples of the patch size, or packed rows ``[T, V]``, or ``[B, N, V]`` as
        :func:`patchify` returns them, V at most 2²⁴; uint8, or float16, bfloat16 or float32 in [0, 1].
    patch_size : int, optional
        Side P of a patch of images in pixels; C · P · P at most 2²⁴. None for rows.
    bins : int
        Number of bins of the histogram, 2 to 1024. uint8 values fall into bin ⌊v · bins / 256⌋: each value into its own
        if there are 256. Floats fall into ⌊x · bins⌋ (the product rounded to float32), those below 0 into the first
        bin, 1 and above into the last.

    Returns
    -------
    Tensor
        float32 ``[B, N]``, patches in the order of :func:`patchify`, of packed rows ``[T]``; from 0, a constant patch,
        to log2(bins). Within 8 ulp of the exact entropy of the histogram. NaN where a patch holds a NaN.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or dtype, a size that is no multiple of the patch size, a patch that is too large, a
        patch size for rows, a number of bins out of range, or an input that requires grad.

    Notes
    -----
    Σ (c / n) · log2(n / c) over the counts c of the bins, n = C · P · P or V. Counts are integers; the logarithm is a
    written polynomial of (n − c·2ᵏ) / (n + c·2ᵏ), exact for powers of two; terms are added in a tree of adjacent bins:
    the same bits on every device. With uint8 and 256 bins it is ``skimage.measure.shannon_entropy`` of each patch.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> image = torch.tensor([[0, 0, 1, 2], [0, 0, 3, 4]], dtype=torch.uint8).view(1, 1, 2, 4)
    >>> pyramid_ops.patch_entropy(image, 2)
    tensor([[0., 2.]])
    >>> pyramid_ops.patch_entropy(torch.tensor([[0, 0, 0, 0], [1, 2, 3, 4]], dtype=torch.uint8))
    tensor([0., 2.])
    """
    op = "patch_entropy"
    check.tensor(op, "images", images, "B C H W", "B N V", "T V")
    if images.dim() < 4:
        if patch_size is not None:
            raise ValueError(f"{op}: patch_size: expected None for rows, got {patch_size} and {check.describe(images)}")
        # Rows are patches of one pixel, whose channels are their values.
        rows = images if images.dim() == 3 else images[None]
        entropy = patch_entropy(rows.transpose(1, 2)[..., None], 1, bins=bins)
        return entropy if images.dim() == 3 else entropy[0]
    patch = check.integer(op, "patch_size", patch_size, 1)
    if check.integer(op, "bins", bins, 2) > _MOST_BINS:
        raise ValueError(f"{op}: bins: expected at most {_MOST_BINS}, got {bins}")
    check.patch_grid(op, "images", images.shape[2], images.shape[3], patch)
    values = images.shape[1] * patch * patch
    if not 1 <= values <= _LARGEST_PATCH:
        name = "patch_size" if patch > 1 else "images"
        raise ValueError(f"{op}: {name}: expected 1 to {_LARGEST_PATCH} values in a patch, got {values}")
    return patch_entropy_op(check.rows(images), patch, int(bins))
