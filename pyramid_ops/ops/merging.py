"""Means, sums and maxima of groups of tokens."""

from typing import Optional

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from ..reference import merging as reference
from ..reference.arguments import Groups
from ..results import MergedTokens
from .grouping import cluster_rows_op, group_tokens_op

__all__ = ["assign_mean"]


def _fold_groups_fake(x: Tensor, weights: Optional[Tensor], groups: Groups, mode: str) -> tuple[Tensor, Tensor]:
    shape = groups.first.shape
    return x.new_empty(*shape, x.shape[2]), x.new_empty(shape, dtype=torch.float32)


fold_groups_op = Op(reference.fold_groups, _fold_groups_fake)


def token_rows(op: str, name: str, x: Tensor, like: Optional[Tensor] = None) -> Tensor:
    """Checked tokens as `[B, N, D]` with contiguous rows."""
    check.tensor(op, name, x, "B N D", "T D")
    if like is not None and x.shape[:-1] != like.shape:
        raise ValueError(f"{op}: {name}: expected {check.shape(*like.shape, 'D')} as the plan, got {check.describe(x)}")
    return check.rows(x if x.dim() == 3 else x[None])


def token_weights(op: str, name: str, weights: Optional[Tensor], x: Tensor) -> Optional[Tensor]:
    if weights is None:
        return None
    check.tensor(op, name, weights, "B N" if x.dim() == 3 else "T", dtypes=(torch.float32,))
    check.same_size(op, name, weights, x.shape[:-1], x.device)
    return check.rows(weights if x.dim() == 3 else weights[None]).contiguous()


def assign_mean(
    x: Tensor,
    assignment: Tensor,
    num_clusters: int,
    *,
    weights: Optional[Tensor] = None,
    mode: str = "mean",
    cu_seqlens: Optional[Tensor] = None,
    cu_clusters: Optional[Tensor] = None,
) -> MergedTokens:
    """Weighted mean of the tokens of each cluster, for any assignment; or their sum, or maximum.

    Parameters
    ----------
    x : Tensor
        ``[B, N, D]`` or packed ``[T, D]``; uint8, float16, bfloat16 or float32; any D.
    assignment : Tensor
        int64 ``[B, N]`` or ``[T]``: the cluster of each token. Tokens with a number outside [0, num_clusters), such as
        −1, belong to none.
    num_clusters : int
        Clusters of each sample; of packed tokens all clusters, or more.
    weights : Tensor, optional
        float32 ``[B, N]`` or ``[T]`` (default: 1 each).
    mode : "mean", "sum" or "amax"
        The mean Σ w·x / Σ w and the sum Σ w·x are weighted; the maximum is not.
    cu_seqlens, cu_clusters : Tensor, optional
        int32 or int64 ``[S+1]``, both or none, for packed tokens whose clusters are counted within their segment, as
        :func:`best_match` counts keys: token t of segment s is in cluster ``cu_clusters[s] + assignment[t]``, if that
        is below ``cu_clusters[s + 1]``, else in none. Default: clusters of all tokens are counted together.

    Returns
    -------
    MergedTokens
        ``tokens`` ``[B, num_clusters, D]`` or ``[num_clusters, D]`` in the dtype of `x`; 0 in an empty cluster, and
        for a mean where Σ w is 0. ``sizes`` float32 ``[B, num_clusters]`` or ``[num_clusters]``: Σ w.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or number, or an input that requires grad.

    Notes
    -----
    Added up in a written order, as in :func:`merge_tokens`: the same bits on every device. Clusters may hold any number
    of tokens. Offsets outside ``[0, T]`` and ``[0, num_clusters]`` are clamped.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> x = torch.tensor([[1.0], [3.0], [10.0]])
    >>> means, sizes = pyramid_ops.assign_mean(x, torch.tensor([0, 0, 2]), 3)
    >>> means.tolist(), sizes.tolist()
    ([[2.0], [0.0], [10.0]], [2.0, 0.0, 1.0])
    >>> tokens, clusters = torch.tensor([0, 2, 3]), torch.tensor([0, 1, 3])
    >>> pyramid_ops.assign_mean(x, torch.tensor([0, 0, 1]), 3, cu_seqlens=tokens, cu_clusters=clusters).tokens.tolist()
    [[2.0], [0.0], [10.0]]
    """
    op = "assign_mean"
    tokens = token_rows(op, "x", x)
    check.choice(op, "mode", mode, "mean", "sum", "amax")
    weights = token_weights(op, "weights", weights, x)
    check.tensor(op, "assignment", assignment, "B N" if x.dim() == 3 else "T", dtypes=(torch.int64,))
    check.same_size(op, "assignment", assignment, x.shape[:-1], x.device)
    clusters = check.integer(op, "num_clusters", num_clusters, 0)
    if (cu_seqlens is None) != (cu_clusters is None):
        raise ValueError(f"{op}: cu_clusters: expected with cu_seqlens, got one of them only")
    if cu_seqlens is not None:
        if x.dim() == 3:
            raise ValueError(f"{op}: cu_seqlens: expected with packed tokens [T, D], got {check.describe(x)}")
        bounds = check.cu_seqlens(op, "cu_seqlens", cu_seqlens, x)
        of_clusters = check.cu_seqlens(op, "cu_clusters", cu_clusters, x, bounds.shape[0] - 1)
        check.packed_size(op, "x", x.shape[0])
        check.packed_size(op, "num_clusters", clusters)
        assignment = cluster_rows_op(assignment, bounds, of_clusters, clusters)
    group = assignment if x.dim() == 3 else assignment[None]
    members, offsets = group_tokens_op(group, None, clusters)
    none = torch.full((group.shape[0], clusters), -1, dtype=torch.int64, device=x.device)
    means, totals = fold_groups_op(tokens, weights, Groups(none, members, offsets), mode)
    return MergedTokens(means, totals) if x.dim() == 3 else MergedTokens(means[0], totals[0])
