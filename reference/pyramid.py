"""Separable blur and downsampling by two."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import Filter
from .arithmetic import narrow
from .blocks import CACHE_ELEMENTS


def blur_downsample(images: Tensor, blur: Filter, height: int, width: int) -> Tensor:
    """out[y, x] = Σ_i taps[i] · (Σ_j taps[j] · images[2y + offset + i, 2x + offset + j]).

    Both sums in ascending order from the first product on; products and sums rounded to float32 one by one; the
    result is rounded to the dtype of `images` once.
    """
    taps, offset, padding = blur
    out = images.new_empty(*images.shape[:2], height, width)
    planes, outs = (images.flatten(0, 1)[None], out.flatten(0, 1)[None]) if images.is_contiguous() else (images, out)
    rows = min(height, max(1, CACHE_ELEMENTS // (2 * images.shape[3])))
    group = max(1, min(planes.shape[1], CACHE_ELEMENTS // (2 * rows * images.shape[3])))
    inputs = 2 * (rows - 1) + len(taps)
    even, odd = images.new_empty(2, group, inputs, width + len(taps) // 2 + 1, dtype=torch.float32)
    filtered = images.new_empty(group, inputs, width, dtype=torch.float32)
    product = torch.empty_like(filtered)
    # Column x of the result meets tap i at position 2x + offset + i, which is column x + shift of its parity.
    sources = [((even, odd)[(offset + i) % 2], (offset % 2 + i) // 2) for i in range(len(taps))]
    for sample, result in zip(planes, outs, strict=True):
        for plane in range(0, len(sample), group):
            x = sample[plane : plane + group]
            for row in range(0, height, rows):
                to = result[plane : plane + group, row : row + rows]
                p, n = to.shape[:2]
                m = 2 * (n - 1) + len(taps)
                _take(x, 2 * row + offset, offset // 2 * 2, padding, even[:p, :m])
                _take(x, 2 * row + offset, offset // 2 * 2 + 1, padding, odd[:p, :m])
                columns = [source[:p, :m, shift : shift + width] for source, shift in sources]
                _weighted_sum(columns, taps, filtered[:p, :m], product[:p, :m])
                lines = [filtered[:p, i : i + 2 * n - 1 : 2] for i in range(len(taps))]
                total = to if to.dtype == torch.float32 else torch.empty_like(to, dtype=torch.float32)
                _weighted_sum(lines, taps, total, product[:p, :n])
                if total is not to:
                    to.copy_(narrow(total, to.dtype))
    return out


def _weighted_sum(terms: Sequence[Tensor], taps: Sequence[float], out: Tensor, product: Tensor) -> None:
    torch.mul(terms[0], taps[0], out=out)
    for term, tap in zip(terms[1:], taps[1:], strict=True):
        torch.mul(term, tap, out=product)
        out += product


def _source(position: int, size: int, padding: str) -> int:
    """The pixel that stands at `position` outside the image."""
    if padding == "reflect":
        period = max(2 * size - 2, 1)
        position = abs(position) % period
        return min(position, period - position)
    return min(max(position, 0), size - 1)


def _take(x: Tensor, row: int, column: int, padding: str, out: Tensor) -> None:
    """`out[p, i, j]` = the padded planes `x` `[P, H, W]` at (row + i, column + 2j), widened to float32."""
    height, width = x.shape[1:]
    top, bottom = (min(max(0, edge - row), out.shape[1]) for edge in (0, height))
    left, right = (min(max(0, (edge - column + 1) // 2), out.shape[2]) for edge in (0, width))
    body = slice(row + top, row + bottom)
    out[:, top:bottom, left:right] = x[:, body, column + 2 * left : column + 2 * right : 2]
    for j in [*range(left), *range(right, out.shape[2])]:
        out[:, top:bottom, j] = 0 if padding == "zeros" else x[:, body, _source(column + 2 * j, width, padding)]
    for i in [*range(top), *range(bottom, out.shape[1])]:
        if padding == "zeros":
            out[:, i] = 0
        else:
            _take(x, _source(row + i, height, padding), column, padding, out[:, i : i + 1])
