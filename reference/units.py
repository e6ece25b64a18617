"""Unit rows on a grid where dot products are exact, and norms."""

import torch
from torch import Tensor

from .arithmetic import narrow, round_to_integer
from .blocks import CACHE_ELEMENTS, each_block, work_rows
from .rows import scaled_norm


def unit_vectors(x: Tensor, unit: float, scaled: Tensor, work: Tensor, norm: Tensor) -> Tensor:
    """Which rows have a direction; `scaled` becomes the unit rows, in so many parts of 1, and `norm` their norms.

    The reciprocal of the norm is rounded, then its products: one division for each row.
    """
    length, unscale = scaled_norm(x, scaled, work)
    torch.mul(length, unscale, out=norm)
    scaled *= (torch.full_like(length, 1 / unit) / length)[:, None]
    return (norm > 0) & (norm < torch.inf)


def unit_rows(x: Tensor, limbs: int, bits: int) -> tuple[Tensor, Tensor]:
    """(units `[B, N, limbs, D]`, norms `[B, N]`); the second limb has `bits` fraction bits."""
    batch, tokens, features = x.shape
    units = torch.empty(batch, tokens, limbs, features, dtype=torch.float16, device=x.device)
    norms = torch.empty(batch, tokens, dtype=torch.float32, device=x.device)
    buffers = work_rows(x, 2, CACHE_ELEMENTS)

    def unit(rows: Tensor, out: Tensor, norm: Tensor) -> None:
        u, work = buffers[:, : len(rows)]
        usable = unit_vectors(rows, 2.0**-11, u, work, norm)
        u = torch.where(usable[:, None], u, 0.0)
        high = round_to_integer(u)
        out[:, 0] = narrow(high * 2.0**-11, torch.float16)
        if limbs == 2:
            low = round_to_integer((u - high) * 2.0**bits)
            out[:, 1] = narrow(low * 2.0**-bits, torch.float16)

    each_block(unit, CACHE_ELEMENTS, x, units, norms)
    return units, norms
