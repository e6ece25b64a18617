"""Exact dot products of unit rows."""

import torch
from torch import Tensor

from .blocks import CACHE_ELEMENTS, each_block, work_rows
from .units import unit_vectors

# Fraction bits of the second limb of unit rows that are multiplied.
LOW_BITS = 10


def grid_rows(
    x: Tensor, limbs: int, bits: int, multiple: int = 1, buffers: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(unit rows of `x` `[B, N, D]`, times 2¹⁵, in a dtype in which their dot products are exact; norms `[B, N]`).

    The sum of both limbs is one rounding, as `bits` is at most 10. Zero rows of norm +inf follow up to a multiple of
    so many rows. `buffers` are work rows, in place of fresh ones.
    """
    batch, count, features = x.shape
    padding = -count % multiple
    dtype = torch.float64 if limbs == 2 else _product_dtype(x.device.type)
    rows = torch.empty(batch, count + padding, features, dtype=dtype, device=x.device)
    norms = torch.empty(batch, count + padding, dtype=torch.float32, device=x.device)
    rows[:, count:], norms[:, count:] = 0, torch.inf
    # Added and taken away again, it rounds to multiples of 2⁴, or of 2^(4 − bits).
    magic = 12582912.0 * 2.0 ** (4 if limbs == 1 else 4 - bits)
    u_rows, more_rows = work_rows(x, 2, CACHE_ELEMENTS) if buffers is None else buffers

    def grid(part: Tensor, out: Tensor, norm: Tensor) -> None:
        u, work = u_rows[: len(part)], more_rows[: len(part)]
        usable = unit_vectors(part, 2.0**-15, u, work, norm)
        torch.add(u, magic, out=work)
        if out.dtype == torch.float32:
            torch.sub(work, magic, out=out)
        else:
            out.copy_(work.sub_(magic))
        if not bool(usable.all()):
            out[(~usable).nonzero()[:, 0]] = 0

    each_block(grid, CACHE_ELEMENTS, x, rows[:, :count], norms[:, :count])
    return rows, norms


def grid_products(queries: Tensor, keys: Tensor, out: Tensor | None = None) -> Tensor:
    """Dot products `[M, N]` of grid rows, in units of 2⁻³⁰: exact."""
    return torch.mm(queries, keys.mT, out=out)


def rounded(products: Tensor) -> Tensor:
    """Products of grid rows as integers, in place, halves up; those of one limb are."""
    return products.add_(0.5).floor_() if products.dtype == torch.float64 else products


def own_dots(rows: Tensor) -> Tensor:
    """Products of grid rows with themselves as integers in float64: sums below 2⁵³ in units of 2⁻⁴², in any order."""
    rows = rows.double()
    return rounded((rows * rows).sum(-1, dtype=torch.float64))


def _product_dtype(device: str) -> torch.dtype:
    """float32, whose products of one limb are exact; float64 where ambient settings would round the operands."""
    onednn = torch.backends.mkldnn
    settings = (torch.backends.fp32_precision, onednn.fp32_precision, onednn.matmul.fp32_precision)  # type: ignore[attr-defined]
    return torch.float64 if torch.is_autocast_enabled(device) or "bf16" in settings else torch.float32
