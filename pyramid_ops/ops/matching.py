"""The most similar token, without the similarity matrix."""

from typing import Optional

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from ..reference import matching as reference
from ..reference.arguments import Segments
from ..results import BestMatch

__all__ = ["best_match"]


def _best_match_fake(queries: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    shape = queries.shape[:2]
    return queries.new_empty(shape, dtype=torch.int64), queries.new_empty(shape, dtype=torch.float32)


best_match_op = Op(reference.best_match, _best_match_fake)


def best_match(
    queries: Tensor,
    keys: Tensor,
    *,
    key_mask: Optional[Tensor] = None,
    cu_seqlens_q: Optional[Tensor] = None,
    cu_seqlens_k: Optional[Tensor] = None,
    max_seqlen_q: Optional[int] = None,
    max_seqlen_k: Optional[int] = None,
    precision: Optional[str] = None,
) -> BestMatch:
    """For each query row the key row with the greatest cosine similarity, without the similarity matrix.

    Parameters
    ----------
    queries, keys : Tensor
        ``[B, Nq, D]`` and ``[B, Nk, D]``, or packed ``[Tq, D]`` and ``[Tk, D]``; uint8, float16, bfloat16 or float32;
        D from 1 to 16384.
    key_mask : Tensor, optional
        bool ``[B, Nk]`` or ``[Tk]``: keys that may be matched.
    cu_seqlens_q, cu_seqlens_k : Tensor, optional
        int32 or int64 ``[S + 1]``: segment s of packed rows is ``[cu_seqlens[s], cu_seqlens[s + 1])``. Queries match
        keys of the same segment. Offsets outside the tensor are clamped. Where offsets descend and a query is in
        several segments, it gets the best of their matches.
    max_seqlen_q, max_seqlen_k : int, optional
        Rows of the longest segment (default: all rows); rows of a segment past it are left out.
    precision : "grid", "high" or None
        Unit rows are rounded to multiples of 2⁻¹¹ ("grid": tensor cores at full float16 speed) or of 2⁻²¹ ("high": four
        products). None: "high" if an input is float32, else "grid".

    Returns
    -------
    BestMatch
        ``indices`` int64 ``[B, Nq]`` or ``[Tq]``, within the segment; among equally similar keys the lowest.
        ``similarity`` float32: the exact dot product of the rounded unit rows, to multiples of 2⁻³⁰. A query without a
        key to match gets −1 and −inf: no key in the segment, none that `key_mask` leaves, or a norm that is NaN or
        infinite. Such keys are never matched. An all-zero row has similarity 0 to everything.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or option, inputs that do not match, or an input that requires grad.

    Notes
    -----
    Dot products of rounded unit rows are exact in any order (see :func:`unit_rows`), so the result has the same bits on
    every device, for any tile, batch or stride. Memory is O(Nq + Nk). No host synchronisation.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> keys = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 5.0]])
    >>> pyramid_ops.best_match(torch.tensor([[0.1, 9.0], [3.0, 0.0]]), keys).indices.tolist()
    [1, 0]
    """
    op = "best_match"
    offsets = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    q, k, key_mask, segments = queries_and_keys(op, queries, keys, key_mask, *offsets)
    indices, similarity = best_match_op(q, k, key_mask, segments, check.limbs(op, precision, q, k))
    return BestMatch(indices, similarity) if queries.dim() == 3 else BestMatch(indices[0], similarity[0])


def queries_and_keys(
    op: str,
    queries: Tensor,
    keys: Tensor,
    key_mask: Optional[Tensor],
    cu_seqlens_q: Optional[Tensor],
    cu_seqlens_k: Optional[Tensor],
    max_seqlen_q: Optional[int],
    max_seqlen_k: Optional[int],
) -> tuple[Tensor, Tensor, Optional[Tensor], Segments]:
    """What is checked as `[B, Nq, D]`, `[B, Nk, D]` and `[B, Nk]`; the keys are the queries where they are given so."""
    packed = isinstance(queries, Tensor) and queries.dim() == 2
    q = check.feature_rows(op, "queries", queries)
    k = q if keys is queries else check.feature_rows(op, "keys", keys)
    if keys.dim() != queries.dim() or k.shape[0] != q.shape[0] or k.shape[2] != q.shape[2] or k.device != q.device:
        raise ValueError(
            f"{op}: keys: expected the batch size, feature size and device of queries ({check.describe(queries)}), got "
            f"{check.describe(keys)}"
        )
    if key_mask is not None:
        check.tensor(op, "key_mask", key_mask, "Tk" if packed else "B Nk", dtypes=(torch.bool,))
        check.same_size(op, "key_mask", key_mask, keys.shape[:-1], k.device)
        key_mask = key_mask[None] if packed else key_mask
    if (cu_seqlens_q is None) != (cu_seqlens_k is None):
        missing = "cu_seqlens_q" if cu_seqlens_q is None else "cu_seqlens_k"
        raise ValueError(f"{op}: {missing}: expected with the other offsets, got None")
    longest = []
    for name, value, x in (("max_seqlen_q", max_seqlen_q, q), ("max_seqlen_k", max_seqlen_k, k)):
        if value is not None and cu_seqlens_q is None:
            raise ValueError(f"{op}: {name}: expected only with cu_seqlens_q and cu_seqlens_k, got {value}")
        longest.append(check.longest(op, name, value, x.shape[1]))
    if cu_seqlens_q is not None and cu_seqlens_k is not None:
        if not packed:
            raise ValueError(
                f"{op}: cu_seqlens_q: expected only with packed [T, D] rows, got {check.describe(queries)}"
            )
        cu_seqlens_q = check.cu_seqlens(op, "cu_seqlens_q", cu_seqlens_q, q)
        cu_seqlens_k = check.cu_seqlens(op, "cu_seqlens_k", cu_seqlens_k, k, cu_seqlens_q.shape[0] - 1)
    return q, k, key_mask, Segments(cu_seqlens_q, cu_seqlens_k, *longest)
