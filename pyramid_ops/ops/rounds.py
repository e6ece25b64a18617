"""Tokens that go because they are like others, some at a time."""

from collections.abc import Sequence
from typing import Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from .._packed import samples
from ..reference import rounds as reference
from ..reference.arguments import Amount, Slots
from ..results import Keep
from .ragged import checked_amount

__all__ = ["bipartite_prune"]

# Tokens of a sample, whose similarities take 2 GiB.
_MOST_TOKENS = 23170


def _bipartite_prune_fake(
    x: Tensor, cu_seqlens: Optional[Tensor], k: Amount, slots: Slots, *_: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    parts = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (parts, slots.capacity) if cu_seqlens is None else (1, parts * slots.capacity)
    offsets = x.new_empty(0 if cu_seqlens is None else parts + 1, dtype=torch.int32)
    tokens, counts = x.new_empty(shape, dtype=torch.int64), x.new_empty(parts, dtype=torch.int32)
    return tokens, counts, offsets, torch.empty_like(offsets)


bipartite_prune_op = Op(reference.bipartite_prune, _bipartite_prune_fake)


def bipartite_prune(
    x: Tensor,
    k: Union[int, Sequence[int], Tensor],
    *,
    step: int = 8,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    capacity: Optional[int] = None,
    precision: Optional[str] = None,
) -> Keep:
    """Rounds of ToMe's bipartite matching, in each of which the most similar tokens go, until k are left.

    In a round every other token of what is left, from the first on, finds the most cosine-similar one of the others;
    the `step` with the greatest similarity go. In the next round those of them that stay stand first, by descending
    similarity, then the others, as in ToMe.

    Parameters
    ----------
    x : Tensor
        ``[B, N, D]``, or packed ``[T, D]`` with `cu_seqlens`; uint8, float16, bfloat16 or float32; D from 1 to 16384.
        Of equally similar tokens the first goes: their order counts, such as that of a score (VisPruner).
    k : int, sequence of int, or Tensor
        How many shall be left: one number, one for each sample or segment, or int32, int64 or bool ``[B]`` on the
        device. Of fewer tokens all stay.
    step : int
        How many go in a round, at most half of those that are left, or the last one; in the last round what is left to
        go.
    cu_seqlens : Tensor, optional
        int32 or int64 ``[S + 1]``: segments of packed tokens, each a problem of its own. An offset outside the tensor
        is clamped, one below an earlier one counts as that one.
    max_seqlen : int, optional
        Length of the longest segment (default: all T); of a longer one only the first `max_seqlen` tokens count.
    capacity : int, optional
        Rows of each sample or segment in the plan. Default: the largest `k`, at most N; required where k is a tensor.
    precision : "grid", "high" or None
        As in :func:`best_match`.

    Returns
    -------
    Keep
        A plan for :func:`pyramid_ops.plans.apply` and ``mask``: ``indices`` of the tokens that are left, in their
        order, and ``counts``.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype, device or option; more than 23170 tokens of a sample; an input that requires
        grad.

    Notes
    -----
    Similarities are integers in units of 2⁻³⁰: dot products of rounded unit rows, exact in any order (see
    :func:`unit_rows`); of equals the first goes. So the same tokens on every device, for any tile or batch. A token
    whose norm is infinite or NaN is like none, and goes last; an all-zero one has similarity 0 to everything. Which set
    a token is in follows from the order of all similarities before, so two that rounding swaps change later rounds: of
    192 tokens that float64 leaves of 576, 68 are others in "high" on clustered rows, and 65 in eager float32; on random
    rows 84, and none in eager float32 (``python -m bench.accuracy greedy``). Source: VisPruner (arXiv 2412.01818),
    whose rounds multiply what is left anew.

    Memory: the similarities of each sample, 4 N² bytes, at most 2 GiB at a time. Four kernel launches up to 1024 tokens
    of a sample, five for packed ones. Of more, two for each round that there can be: down to the least `k` if it is on
    the host, else down to none. No host synchronisation.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> x = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.1], [0.8, 0.1]]])
    >>> pyramid_ops.bipartite_prune(x, 3, step=1).indices
    tensor([[0, 2, 3]])
    """
    op = "bipartite_prune"
    packed = cu_seqlens is not None
    rows, cu_seqlens, parts, longest = samples(op, x, cu_seqlens, max_seqlen)
    if longest > _MOST_TOKENS:
        raise ValueError(f"{op}: x: expected at most {_MOST_TOKENS} tokens of a sample, got {longest}")
    amount = checked_amount(op, k, rows, parts, "samples or segments")
    check.integer(op, "step", step, 1)
    if capacity is None:
        if amount.tensor is not None:
            raise ValueError(f"{op}: capacity: expected a number where k is a tensor, got None")
        capacity = min(longest, max(amount.numbers))
    elif check.integer(op, "capacity", capacity, 0) > longest:
        raise ValueError(f"{op}: capacity: expected at most {longest}, the tokens there are, got {capacity}")
    check.packed_size(op, "capacity", parts * capacity)
    slots, limbs = Slots(longest, capacity), check.limbs(op, precision, rows)
    found = bipartite_prune_op(rows, cu_seqlens, amount, slots, min(step, max(longest, 1)), limbs)
    tokens, counts, offsets, bounds = found
    if packed:
        return Keep(tokens[0], counts, rows.shape[1], offsets, bounds, longest)
    return Keep(tokens, counts, rows.shape[1])
