"""The nearest keys of each query."""

from typing import Optional

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from ..reference import nearest as reference
from ..reference.arguments import Allowed, Segments
from ..reference.arguments import Nearest as Wanted
from ..results import Nearest
from .matching import queries_and_keys

__all__ = ["nearest"]

MOST_NEIGHBOURS, MOST_KEYS = 64, 1 << 20


def _nearest_fake(
    queries: Tensor, keys: Tensor, allowed: Allowed, segments: Segments, wanted: Wanted, limbs: int
) -> tuple[Tensor, Tensor]:
    shape = (*queries.shape[:2], wanted.k)
    return queries.new_empty(shape, dtype=torch.int64), queries.new_empty(shape, dtype=torch.float32)


nearest_op = Op(reference.nearest, _nearest_fake)


def nearest(
    queries: Tensor,
    keys: Tensor,
    k: int = 1,
    *,
    metric: str = "cosine",
    exclude_self: bool = False,
    rank: Optional[Tensor] = None,
    key_mask: Optional[Tensor] = None,
    largest: bool = True,
    cu_seqlens_q: Optional[Tensor] = None,
    cu_seqlens_k: Optional[Tensor] = None,
    max_seqlen_q: Optional[int] = None,
    max_seqlen_k: Optional[int] = None,
    precision: Optional[str] = None,
) -> Nearest:
    """The k nearest keys of each query by cosine similarity or Euclidean distance, without the matrix of all pairs.

    Parameters
    ----------
    queries, keys : Tensor
        ``[B, Nq, D]`` and ``[B, Nk, D]``, or packed ``[Tq, D]`` and ``[Tk, D]``; uint8, float16, bfloat16 or float32;
        D from 1 to 16384, at most 2^20 keys of a sample or segment. Where both are one tensor, it is read once.
    k : int
        How many keys of each query, 0 to 64.
    metric : "cosine" or "euclidean"
        What is near: a great cosine similarity, or a small squared Euclidean distance.
    exclude_self : bool
        Leave out the key in the query's own place: key i of the sample or segment for query i.
    rank : Tensor, optional
        float32, float16 or bfloat16 ``[B, N]`` or ``[T]`` for as many queries as keys, a number of each row, NaN above
        +inf: a query has only keys of a higher one than its own, or of the same one and a lower place, which leaves
        out itself.
    key_mask : Tensor, optional
        bool ``[B, Nk]`` or ``[Tk]``: keys that a query may have.
    largest : bool
        The nearest keys: the greatest similarities or the smallest distances. If False the farthest: the smallest
        similarities or the greatest distances.
    cu_seqlens_q, cu_seqlens_k : Tensor, optional
        int32 or int64 ``[S + 1]``: segment s of packed rows is ``[cu_seqlens[s], cu_seqlens[s + 1])``. Queries have
        keys of the same segment. Offsets outside the tensor are clamped. A query is of one segment at most, and where
        offsets descend, of one that a search finds.
    max_seqlen_q, max_seqlen_k : int, optional
        Rows of the longest segment (default: all rows); rows of a segment past it are left out.
    precision : "grid", "high" or None
        As in :func:`best_match`; for Euclidean distances only "high", which is their default.

    Returns
    -------
    Nearest
        ``indices`` int64 ``[B, Nq, k]`` or ``[Tq, k]``, within the sample or segment, the nearest (or, if not
        `largest`, the farthest) first, among equals the lower index first. ``values`` float32: exact dot products of
        the rounded unit rows, to multiples of 2⁻³⁰, or squared distances. Where there are fewer than k keys to have,
        −1 and the value past the last one: −inf where values descend, +inf where they ascend. Rows with a norm that is
        NaN or infinite have no neighbours and are none. An all-zero row has similarity 0 to everything.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or option, inputs that do not match, "grid" with Euclidean distances, more keys
        or neighbours than that, or an input that requires grad.

    Notes
    -----
    ‖a − b‖² is (‖a‖ − ‖b‖)² + ‖a‖ ‖b‖ (u·u + v·v − 2 u·v), u and v the rounded unit rows: the last factor is an exact
    integer in units of 2⁻³⁰, in which nothing cancels, so that distances of near duplicates are right, those of
    duplicates 0, and none is negative. It is rounded to float32 once; norms, products and the sum are float32. Equal
    float32 distances are ties.

    At most 256 MB of scores exist at a time. Launches: unit rows of each tensor
    (twice as many for distances), then two for each such block. With k = 1 and cosine the answer is that of
    :func:`best_match`, which keeps no scores and is faster. The same bits on every device, for any tile, batch or
    stride. No host synchronisation.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> x = torch.tensor([[1.0, 0.0], [3.0, 0.5], [0.0, 2.0], [1.5, 0.0]])
    >>> pyramid_ops.nearest(x, x, 2, exclude_self=True).indices.tolist()
    [[3, 1], [0, 3], [1, 0], [0, 1]]
    >>> pyramid_ops.nearest(x, x, 1, metric="euclidean", exclude_self=True).values.flatten()
    tensor([0.2500, 2.5000, 5.0000, 0.2500])
    """
    op = "nearest"
    offsets = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    q, kv, key_mask, segments = queries_and_keys(op, queries, keys, key_mask, *offsets)
    k = check.integer(op, "k", k, 0)
    if k > MOST_NEIGHBOURS:
        raise ValueError(f"{op}: k: expected at most {MOST_NEIGHBOURS}, got {k}")
    if segments.max_seqlen_k > MOST_KEYS:
        name = "keys" if cu_seqlens_k is None else "max_seqlen_k"
        raise ValueError(f"{op}: {name}: expected at most 2^20 keys at a time, got {segments.max_seqlen_k}")
    euclidean = check.choice(op, "metric", metric, "cosine", "euclidean") == "euclidean"
    flags = (check.flag(op, "largest", largest), check.flag(op, "exclude_self", exclude_self))
    if euclidean and precision is None:
        precision = "high"
    limbs = check.limbs(op, precision, q, kv)
    if euclidean and limbs == 1:
        raise ValueError(f"{op}: precision: expected 'high' with Euclidean distances, got {precision!r}")
    if rank is not None:
        check.tensor(op, "rank", rank, "T" if queries.dim() == 2 else "B N", dtypes=check.FLOATS)
        check.same_size(op, "rank", rank, queries.shape[:-1], q.device)
        if q.shape[1] != kv.shape[1]:
            raise ValueError(f"{op}: rank: expected only with as many queries as keys, got {q.shape[1]}, {kv.shape[1]}")
        rank = rank.resolve_neg() if queries.dim() == 3 else rank.resolve_neg()[None]
    indices, values = nearest_op(q, kv, Allowed(key_mask, rank), segments, Wanted(k, euclidean, *flags), limbs)
    return Nearest(indices, values) if queries.dim() == 3 else Nearest(indices[0], values[0])
