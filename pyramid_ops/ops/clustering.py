"""Clusters around dense tokens."""

from collections.abc import Sequence
from typing import Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from .._packed import ascending
from ..reference import clustering as reference
from ..reference.arguments import Amount, Slots
from ..results import Clusters
from .nearest import MOST_KEYS, MOST_NEIGHBOURS
from .ragged import checked_amount

__all__ = ["dpc_knn"]


def _dpc_knn_fake(
    x: Tensor, cu_seqlens: Optional[Tensor], neighbours: int, clusters: Amount, slots: Slots, limbs: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    segments = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (segments, slots.capacity) if cu_seqlens is None else (1, segments * slots.capacity)
    centers, assignment = (x.new_empty(size, dtype=torch.int64) for size in (shape, x.shape[:2]))
    counts, offsets = (x.new_empty(size, dtype=torch.int32) for size in (segments, segments + 1))
    return centers, assignment, counts, offsets


dpc_knn_op = Op(reference.dpc_knn, _dpc_knn_fake)


def dpc_knn(
    x: Tensor,
    clusters: Union[int, Sequence[int], Tensor],
    k: int,
    *,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    capacity: Optional[int] = None,
) -> Clusters:
    """Cluster tokens around density peaks (DPC-KNN): centers are dense and far from what is denser.

    Parameters
    ----------
    x : Tensor
        ``[B, N, D]`` or packed ``[T, D]``; uint8, float16, bfloat16 or float32; D from 1 to 16384, at most 2^20 tokens
        of a sample or segment.
    clusters : int, sequence of int, or Tensor
        How many clusters of each sample or segment: one number, one for each, or int32, int64 or bool ``[B]`` on the
        device. Where a sample has fewer usable tokens, as many as these.
    k : int
        Neighbours that a density is of, 1 to 64; a token is the first of its own.
    cu_seqlens : Tensor, optional
        int32 or int64 ``[S + 1]``: segments of packed tokens. An offset outside the tensor is clamped, one below an
        earlier one counts as that one.
    max_seqlen : int, optional
        Length of the longest segment (default: all T); of a longer one only the first `max_seqlen` tokens count.
    capacity : int, optional
        Places for the centers of each sample or segment, of which no more are chosen. Default: the largest of
        `clusters`, at most N or `max_seqlen`; required where they are a tensor.

    Returns
    -------
    Clusters
        The centers of each sample, best first, the cluster of each token, and how many clusters there are. Rows with a
        norm that is NaN or infinite are no centers and in no cluster.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype, device or option, more neighbours or tokens than that, a capacity above N or
        `max_seqlen`, or an input that requires grad.

    Notes
    -----
    With d the distances of :func:`nearest` ("euclidean"): the density of a token is ρ = exp(−mean(d²) / D) over its k
    nearest tokens, fewer where there are no more; δ is the distance to the nearest token that is denser, of equally
    dense ones of lower index. Centers have the greatest δ · ρ, a tie goes to the lower index; the densest token, which
    has no δ, is the first. Each token joins its nearest center, of equally near ones that of lower index; a center is
    its own, also where another is its duplicate. Densities compare by mean(d²), before exp can round or underflow to 0.

    What the authors' code does at random, noise of 1e-6 on densities, is decided by index here. Where features are so
    large that every density is 0 in float32, as in that code, all but the densest tie: divide them first. All steps on
    single numbers are float32 in a written order, so the same bits on every device, for any tile, batch or stride. No
    matrix of all pairs: distances are kept for as many tokens as fill 256 MB. 13 kernel launches and a fill where that
    is all of them; no host synchronisation.

    References
    ----------
    Du, Ding, Jia, Study on density peaks clustering based on k-nearest neighbors, 2016. As in SparseVLM (arXiv
    2410.04417, means by :func:`assign_mean`), PruneVid and TCFormer.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> x = torch.tensor([[0.0, 0.1], [5.0, 5.0], [0.1, 0.0], [5.0, 5.2], [0.0, 0.0], [5.1, 5.0]])
    >>> found = pyramid_ops.dpc_knn(x[None], 2, k=3)
    >>> found.centers.tolist(), found.assignment.tolist()
    ([[4, 1]], [[0, 1, 0, 1, 0, 1]])
    >>> pyramid_ops.assign_mean(x[None], found.assignment, 2).tokens[0]
    tensor([[0.0333, 0.0333],
            [5.0333, 5.0667]])
    """
    op = "dpc_knn"
    rows = check.feature_rows(op, "x", x)
    packed, size, segments = x.dim() == 2, rows.shape[1], rows.shape[0]
    check.packed_size(op, "x", rows.shape[0] * size)
    if packed != (cu_seqlens is not None):
        expected = "offsets with packed tokens" if packed else "none with tokens [B, N, D]"
        raise ValueError(f"{op}: cu_seqlens: expected {expected}, got {check.describe(cu_seqlens)}")
    if cu_seqlens is not None:
        cu_seqlens = ascending(check.cu_seqlens(op, "cu_seqlens", cu_seqlens, rows))
        segments = cu_seqlens.shape[0] - 1
    elif max_seqlen is not None:
        raise ValueError(f"{op}: max_seqlen: expected only with cu_seqlens, got {max_seqlen}")
    longest = check.longest(op, "max_seqlen", max_seqlen, size)
    if longest > MOST_KEYS:
        raise ValueError(f"{op}: {'max_seqlen' if packed else 'x'}: expected at most 2^20 tokens, got {longest}")
    k = check.integer(op, "k", k, 1)
    if k > MOST_NEIGHBOURS:
        raise ValueError(f"{op}: k: expected at most {MOST_NEIGHBOURS}, got {k}")
    amount = checked_amount(op, clusters, rows, segments, "samples or segments", "clusters")
    if capacity is None:
        if amount.tensor is not None:
            raise ValueError(f"{op}: capacity: expected a number where clusters are a tensor, got None")
        capacity = min(longest, max(amount.numbers))
    elif check.integer(op, "capacity", capacity, 0) > longest:
        raise ValueError(f"{op}: capacity: expected at most {longest}, the tokens there are, got {capacity}")
    check.packed_size(op, "capacity", segments * capacity)
    limbs = check.limbs(op, "high")
    found = dpc_knn_op(rows, cu_seqlens, k, amount, Slots(longest, capacity), limbs)
    centers, assignment, counts, offsets = found
    if packed:
        return Clusters(centers[0], assignment[0], counts, offsets)
    return Clusters(centers, assignment, counts)
