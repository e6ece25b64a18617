"""Tokens picked one after another, each the best beside those before it."""

from collections.abc import Sequence
from typing import Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from .._packed import samples
from ..reference import greedy as reference
from ..reference.arguments import Amount, Slots
from ..results import Keep
from .ragged import checked_amount

__all__ = ["greedy_select"]

# Tokens of a sample, whose similarities take 2 GiB but for "maxmin", and picks whose sums of columns stay exact.
_MOST_TOKENS, _MOST_PICKS = {"maxmin": 1 << 28, "dpp": 23170, "coverage": 16384}, 4096


def _greedy_select_fake(
    x: Tensor,
    relevance: Optional[Tensor],
    candidates: Optional[Tensor],
    cu_seqlens: Optional[Tensor],
    k: Amount,
    slots: Slots,
    *_: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    parts = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (parts, slots.capacity) if cu_seqlens is None else (1, parts * slots.capacity)
    offsets = x.new_empty(0 if cu_seqlens is None else parts + 1, dtype=torch.int32)
    return (
        x.new_empty(shape, dtype=torch.int64),
        x.new_empty(parts, dtype=torch.int32),
        offsets,
        torch.empty_like(offsets),
    )


greedy_select_op = Op(reference.greedy_select, _greedy_select_fake)


def greedy_select(
    x: Tensor,
    k: Union[int, Sequence[int], Tensor],
    *,
    rule: str = "maxmin",
    relevance: Optional[Tensor] = None,
    candidates: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    capacity: Optional[int] = None,
    order: str = "pick",
    precision: str = "high",
) -> Keep:
    """Tokens that differ from each other, picked one after another by the cosines of their features.

    Parameters
    ----------
    x : Tensor
        ``[B, N, D]``, or packed ``[T, D]`` with `cu_seqlens`; uint8, float16, bfloat16 or float32; D from 1 to 16384.
    k : int, sequence of int, or Tensor
        How many to pick: one number, one for each sample or segment, or int32, int64 or bool ``[B]`` on the device. No
        more are picked than there are candidates.
    rule : "maxmin", "dpp" or "coverage"
        What the next pick i maximises beside the picks P so far, with similarities S and relevance r:

        - "maxmin" (DivPrune): its least distance to a pick, min over j in P of (S_ii + S_jj) / 2 − S_ij. The first pick
          is the token whose nearest other is farthest or, with `relevance`, the most relevant; relevance has no other
          part.
        - "dpp" (CDPruner): the determinant of r_i S_ij r_j over the picks: r_i² · (what S_ii leaves of itself beside
          the picks).
        - "coverage" (SCOPE, facility location): r_i · Σ_j max(0, S_ij − max(0, max over p in P of S_pj)).
    relevance : Tensor, optional
        ``[B, N]`` or ``[T]``; float16, bfloat16 or float32. Default: all 1.
    candidates : Tensor, optional
        bool ``[B, N]`` or ``[T]``: the tokens that there are (default: all). The others are left out of sums too.
    cu_seqlens : Tensor, optional
        int32 or int64 ``[S + 1]``: segments of packed tokens, each a problem of its own. An offset outside the tensor
        is clamped, one below an earlier one counts as that one.
    max_seqlen : int, optional
        Length of the longest segment (default: all T); of a longer one only the first `max_seqlen` tokens count.
    capacity : int, optional
        Rows of each sample or segment in the plan. Default: the largest `k`, at most N; required where k is a tensor.
    order : "pick" or "index"
        Order of the rows: as they were picked, or as the tokens are in the input.
    precision : "high" or "grid"
        Unit rows are rounded to multiples of 2⁻²¹ or of 2⁻¹¹. On similar tokens, such as those of a video, the latter
        picks others.

    Returns
    -------
    Keep
        A plan for :func:`pyramid_ops.plans.apply` and ``mask``: ``indices`` and ``counts`` of the tokens picked, no
        token twice.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype, device or option; more than 23170 tokens of a sample for "dpp", 16384 for
        "coverage", more than 4096 picks for "dpp"; an input that requires grad.

    Notes
    -----
    Similarities are integers in units of 2⁻³⁰: dot products of rounded unit rows, exact in any order (see
    :func:`unit_rows`). What is left of a token ("dpp") is an integer in units of 2⁻⁶⁰, by a Cholesky factor in units of
    2⁻³⁰ whose sums are exact; at most 2⁻²⁴ counts as nothing. Gains are rounded to float32; a tie goes to the lower
    index; a NaN gain is the greatest. So the same picks on every device, for any tile or batch. A token whose norm is
    infinite or NaN is never picked; an all-zero one has similarity 0 to everything. The authors' loops of DivPrune and
    CDPruner may pick a token twice; this one does not.

    Memory: the similarities of each sample, 4 N² bytes, at most 2 GiB at a time, and for "dpp" the factor, 4 k N bytes;
    on the CPU twice as much for "dpp", of the rows that were needed.
    Dense in the order of the picks, four kernel launches for "maxmin" and three for "dpp" of up to 2¹⁸ numbers of the
    factor. Else one for each pick: for more of them, for "coverage", and for "maxmin" of more than 23170 tokens, of
    which no similarities are kept. No host synchronisation.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> x = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.1]]])
    >>> pyramid_ops.greedy_select(x, 2).indices
    tensor([[3, 0]])
    >>> pyramid_ops.greedy_select(x, 3, rule="dpp", relevance=torch.tensor([[1.0, 2.0, 1.0, 0.5]])).indices
    tensor([[1, 2, 0]])
    """
    op = "greedy_select"
    packed = cu_seqlens is not None
    rows, cu_seqlens, parts, longest = samples(op, x, cu_seqlens, max_seqlen)
    check.choice(op, "rule", rule, "maxmin", "dpp", "coverage")
    check.choice(op, "order", order, "pick", "index")
    layout = "T" if packed else "B N"
    for name, value, dtypes in (("relevance", relevance, check.FLOATS), ("candidates", candidates, (torch.bool,))):
        if value is not None:
            check.tensor(op, name, value, layout, dtypes=dtypes)
            check.same_size(op, name, value, x.shape[:-1], x.device)
    relevance, candidates = (
        None if value is None else (value[None] if packed else value).resolve_neg().contiguous()
        for value in (relevance, candidates)
    )
    amount = checked_amount(op, k, rows, parts, "samples or segments")
    if capacity is None:
        if amount.tensor is not None:
            raise ValueError(f"{op}: capacity: expected a number where k is a tensor, got None")
        capacity = min(longest, max(amount.numbers))
    elif check.integer(op, "capacity", capacity, 0) > longest:
        raise ValueError(f"{op}: capacity: expected at most {longest}, the tokens there are, got {capacity}")
    check.packed_size(op, "capacity", parts * capacity)
    _refuse(op, rule, longest, capacity)
    limbs = check.limbs(op, check.choice(op, "precision", precision, "high", "grid"))
    slots = Slots(longest, capacity)
    args = (rows, relevance, candidates, cu_seqlens, amount, slots, rule, order == "index", limbs)
    tokens, counts, offsets, bounds = greedy_select_op(*args)
    if packed:
        return Keep(tokens[0], counts, rows.shape[1], offsets, bounds, longest)
    return Keep(tokens, counts, rows.shape[1])


def _refuse(op: str, rule: str, longest: int, picks: int) -> None:
    if longest > _MOST_TOKENS[rule]:
        raise ValueError(
            f"{op}: x: expected at most {_MOST_TOKENS[rule]} tokens of a sample for rule {rule!r}, got {longest}"
        )
    if rule == "dpp" and picks > _MOST_PICKS:
        raise ValueError(f"{op}: k: expected at most {_MOST_PICKS} picks for rule 'dpp', got {picks}")
