"""Clusters around dense tokens."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.arguments import Allowed, Amount, Choice, Nearest, Segments, Slots
from .arithmetic import cdiv, exp2
from .grouping import join_tokens
from .keeping import keep_tokens, mark_tokens
from .launch import launch
from .nearest import rows_of, search
from .tiles import flat_tiles


@triton.jit(do_not_specialize=["count", "k"])
def _density_kernel(
    indices_ptr, squares_ptr, exponents_ptr, densities_ptr, usable_ptr, count, k, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """t = −mean(d²) / D · log2 e and 2^t of squared distances to neighbours, added from the nearest on."""
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = token < count
    total = tl.zeros((BLOCK,), tl.float32)
    many = tl.zeros((BLOCK,), tl.int32)
    for number in range(0, k):
        there = tl.load(indices_ptr + token * k + number, mask=mask, other=-1) >= 0
        total += tl.load(squares_ptr + token * k + number, mask=there, other=0.0)
        many += there.to(tl.int32)
    exponent = tl.div_rn(total, tl.maximum(many * D, 1).to(tl.float32)) * -1.4426950216293335
    exponent = tl.where(many > 0, exponent, float("-inf"))
    normal = exponent > -126.0
    tl.store(exponents_ptr + token, exponent, mask=mask)
    tl.store(densities_ptr + token, tl.where(normal, exp2(tl.where(normal, exponent, 0.0), 5, 0), 0.0), mask=mask)
    tl.store(usable_ptr + token, (many > 0).to(tl.uint8), mask=mask)


@triton.jit
def _separation_kernel(denser_ptr, squares_ptr, densities_ptr, scores_ptr, count, BLOCK: tl.constexpr):
    """Distance to the nearest denser token times density; +inf without one that is denser."""
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = token < count
    density = tl.load(densities_ptr + token, mask=mask, other=0.0)
    square = tl.load(squares_ptr + token, mask=mask, other=0.0)
    product = tl.sqrt_rn(tl.where(density > 0, square, 0.0)) * density
    found = tl.load(denser_ptr + token, mask=mask, other=0) >= 0
    tl.store(scores_ptr + token, tl.where(found, product, float("inf")), mask=mask)


def dpc_knn(
    x: Tensor, cu_seqlens: Optional[Tensor], neighbours: int, clusters: Amount, slots: Slots, limbs: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of = Segments(cu_seqlens, cu_seqlens, slots.max_seqlen, slots.max_seqlen)
    units, one = rows_of(x, limbs, True), Nearest(1, True, True, False)
    indices, squares, kept = search(units, units, Allowed(None, None), of, one._replace(k=neighbours))
    exponents, densities, scores = (torch.empty_like(units.norms) for _ in range(3))
    usable = torch.empty(units.norms.shape, dtype=torch.bool, device=x.device)
    count, tiles = usable.numel(), flat_tiles()
    programs = cdiv(count, tiles["BLOCK"])
    if programs:
        launch(
            _density_kernel, programs,
            indices, squares, exponents, densities, usable.view(torch.uint8), count, neighbours, D=x.shape[2], **tiles,
        )  # fmt: skip
    denser, squares, _ = search(units, units, Allowed(None, exponents), of, one, kept)
    if programs:
        launch(_separation_kernel, programs, denser, squares, densities, scores, count, **tiles)
    choice = Choice(usable, None, None, None, True)
    centers, counts, offsets, bounds = keep_tokens(scores, cu_seqlens, choice, clusters, slots, False)
    marked = mark_tokens(centers, x.shape[1])
    partners, _, _ = search(units, units, Allowed(marked, None), of, one, kept)
    rows = join_tokens(centers, partners[..., 0], None if cu_seqlens is None else bounds, x.shape[1])
    return centers, rows, counts, offsets
