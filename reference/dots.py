"""Exact dot products of unit rows."""

import torch
from torch import Tensor

from .blocks import CACHE_ELEMENTS, each_block, work_rows
from .units import unit_vectors

# Fraction bits of the second limb of unit rows that are multiplied.
LOW_BITS = 10
# Rows that are multiplied at a time where half of all products are.
ROWS = 96


def grid_rows(
    x: Tensor, limbs: int, bits: int, multiple: int = 1, buffers: Tensor | None = None, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(unit rows of `x` `[B, N, D]`, times 2¹⁵, in a dtype in which their dot products are exact; norms `[B, N]`).

    The sum of both limbs is one rounding, as `bits` is at most 10. Zero rows of norm +inf follow up to a multiple of
    so many rows. `buffers` are work rows, in place of fresh ones, and `out` is for the unit rows.
    """
    batch, count, features = x.shape
    padding = -count % multiple
    rows = grid_buffer((batch, count + padding, features), limbs, x.device) if out is None else out
    norms = torch.empty(batch, count + padding, dtype=torch.float32, device=x.device)
    if padding:
        rows[:, count:], norms[:, count:] = 0, torch.inf
    u_rows, more_rows = work_rows(x, 2, CACHE_ELEMENTS) if buffers is None else buffers

    def grid(part: Tensor, out: Tensor, norm: Tensor) -> None:
        u = out if out.dtype == torch.float32 else u_rows[: len(part)]
        on_grid(part, limbs, bits, u, more_rows[: len(part)], norm)
        if u is not out:
            out.copy_(u)

    each_block(grid, CACHE_ELEMENTS, x, rows[:, :count], norms[:, :count])
    return rows, norms


def grid_buffer(shape: tuple[int, ...], limbs: int, device: torch.device) -> Tensor:
    """For unit rows of so many limbs, in a dtype in which their dot products are exact."""
    dtype = torch.float64 if limbs == 2 else _product_dtype(device.type)
    return torch.empty(shape, dtype=dtype, device=device)


def on_grid(x: Tensor, limbs: int, bits: int, rows: Tensor, work: Tensor, norms: Tensor) -> None:
    """`rows` become the unit rows of `x` `[R, D]`, times 2¹⁵ and rounded; zero where there are none."""
    # Added and taken away again, it rounds to multiples of 2⁴, or of 2^(4 − bits).
    magic = 12582912.0 * 2.0 ** (4 if limbs == 1 else 4 - bits)
    usable = unit_vectors(x, 2.0**-15, rows, work, norms)
    rows.add_(magic).sub_(magic)
    if not bool(usable.all()):
        rows[(~usable).nonzero()[:, 0]] = 0


def grid_products(queries: Tensor, keys: Tensor, out: Tensor | None = None) -> Tensor:
    """Dot products `[M, N]` of grid rows, in units of 2⁻³⁰: exact."""
    return torch.mm(queries, keys.mT, out=out)


def rounded(products: Tensor) -> Tensor:
    """Products of grid rows as integers, in place, halves up; those of one limb are."""
    return products.add_(0.5).floor_() if products.dtype == torch.float64 else products


def products(queries: Tensor, keys: Tensor, buffer: Tensor | None = None) -> Tensor:
    """int32 `[M, N]` of grid rows, in units of 2⁻³⁰, halves up."""
    return rounded(grid_products(queries, keys, buffer)).to(torch.int32)


def gram(rows: Tensor) -> Tensor:
    """Products of all grid rows with each other, of which half are multiplied."""
    count = len(rows)
    # Rows that are a power of two apart would be in each other's way in the cache.
    out = torch.empty(count, count + 8, dtype=torch.int32, device=rows.device)[:, :count]
    for i in range(0, count, ROWS):
        stop = i + ROWS
        out[i:stop, i:] = rounded(grid_products(rows[i:stop], rows[i:]))
        out[stop:, i:stop] = out[i:stop, stop:].mT
    return out


def own_dots(rows: Tensor) -> Tensor:
    """Products of grid rows with themselves as integers in float64: sums below 2⁵³ in units of 2⁻⁴², in any order."""
    rows = rows.double()
    return rounded((rows * rows).sum(-1, dtype=torch.float64))


def _product_dtype(device: str) -> torch.dtype:
    """float32, whose products of one limb are exact; float64 where ambient settings would round the operands."""
    onednn = torch.backends.mkldnn
    settings = (torch.backends.fp32_precision, onednn.fp32_precision, onednn.matmul.fp32_precision)  # type: ignore[attr-defined]
    return torch.float64 if torch.is_autocast_enabled(device) or "bf16" in settings else torch.float32
