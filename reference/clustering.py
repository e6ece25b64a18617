"""Clusters around dense tokens."""

from typing import Optional

import torch
from torch import Tensor

from .arguments import Allowed, Amount, Choice, Nearest, Segments, Slots
from .arithmetic import exp2, sqrt
from .grouping import join_tokens
from .keeping import keep_tokens, mark_tokens
from .nearest import nearest

LOG2_E = 1.4426950216293335


def dpc_knn(
    x: Tensor, cu_seqlens: Optional[Tensor], neighbours: int, clusters: Amount, slots: Slots, limbs: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(centers, the row of each token's among them `[B, N]`, counts int32 `[S]`, offsets int32 `[S + 1]`).

    Centers are as those that `keep_tokens` keeps, of ascending offsets, by their scores. A token joins the nearest
    center, of equally near ones that of the lower index; a center is its own.
    """
    of = Segments(cu_seqlens, cu_seqlens, slots.max_seqlen, slots.max_seqlen)
    near = nearest(x, x, Allowed(None, None), of, Nearest(neighbours, True, True, False), limbs)
    exponent, density = _densities(*near, x.shape[2])
    denser, distance = nearest(x, x, Allowed(None, exponent), of, Nearest(1, True, True, False), limbs)
    usable = near[0][..., 0] >= 0
    scores = _scores(denser[..., 0], distance[..., 0], density)
    choice = Choice(usable, None, None, None, True)
    centers, counts, offsets, bounds = keep_tokens(scores, cu_seqlens, choice, clusters, slots, False)
    marked = mark_tokens(centers, x.shape[1])
    partners, _ = nearest(x, x, Allowed(marked, None), of, Nearest(1, True, True, False), limbs)
    rows = join_tokens(centers, partners[..., 0], None if cu_seqlens is None else bounds, x.shape[1])
    return centers, rows, counts, offsets


def _densities(indices: Tensor, squares: Tensor, features: int) -> tuple[Tensor, Tensor]:
    """(t, 2^t) `[B, N]` with t = −mean(d²) / D · log2 e of squared distances to neighbours, added from the nearest on.

    −inf without neighbours; 2^t is 0 from t = −126 down.
    """
    total = squares.new_zeros(squares.shape[:2])
    for number in range(squares.shape[2]):
        total = total + torch.where(indices[..., number] >= 0, squares[..., number], 0.0)
    many = (indices >= 0).sum(-1)
    exponent = (total / (many * features).clamp(min=1).to(torch.float32)) * -LOG2_E
    exponent = torch.where(many > 0, exponent, -torch.inf)
    normal = exponent > -126.0
    return exponent, torch.where(normal, exp2(torch.where(normal, exponent, 0.0), 5, 0), 0.0)


def _scores(denser: Tensor, squares: Tensor, density: Tensor) -> Tensor:
    """Distance to the nearest denser token times density; +inf without one that is denser."""
    product = sqrt(torch.where(density > 0, squares, 0.0)) * density
    return torch.where(denser >= 0, product, torch.inf)
