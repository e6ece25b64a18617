"""What ops return."""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

__all__ = [
    "BestMatch",
    "Clusters",
    "Compaction",
    "Keep",
    "LevelSelection",
    "Merge",
    "MergePlan",
    "MergedTokens",
    "Nearest",
    "PackedLevelSelection",
    "PooledScores",
    "SegmentedTopK",
]


class BestMatch(NamedTuple):
    """For each query the index of its best key, int64, and their cosine similarity, float32; (−1, −inf) for none."""

    indices: Tensor
    similarity: Tensor


class Clusters(NamedTuple):
    """Clusters of tokens, on their device; made by :func:`dpc_knn`.

    Attributes
    ----------
    centers : Tensor
        int64 ``[B, C]``: the tokens that are centers, best first, −1 in unused places, which are the last. For packed
        tokens ``[S · C]``, rows of the packed tensor, segment after segment without gaps.
    assignment : Tensor
        int64 ``[B, N]`` or ``[T]``: the place of each token's center in `centers`; −1 for a token of no cluster.
    counts : Tensor
        int32 ``[B]`` or ``[S]``: how many clusters there are.
    cu_seqlens : Tensor or None
        int32 ``[S + 1]``: where the centers of each segment begin, of packed tokens.
    """

    centers: Tensor
    assignment: Tensor
    counts: Tensor
    cu_seqlens: Optional[Tensor] = None


class Nearest(NamedTuple):
    """For each query the indices of its k nearest keys, int64, and similarities or squared distances, float32.

    The nearest first; −1 and ∓inf where there is none.
    """

    indices: Tensor
    values: Tensor


class MergePlan(NamedTuple):
    """Which tokens merge into which, on the device of the tokens; made by :func:`tome_matching`.

    For packed tokens the first four are ``[T]``, segment after segment, and −1 (−inf) in the unused slots at the end.

    Attributes
    ----------
    sources : Tensor
        int64 ``[B, r]``: the tokens that are merged away, by descending similarity, among equals the lower index first.
    destinations : Tensor
        int64 ``[B, r]``: the token that each source merges into; −1 where it has none and is dropped.
    unmerged : Tensor
        int64 ``[B, U]``: the other tokens that could have been sources, in the order of ToMe.
    similarities : Tensor
        float32 ``[B, r]``: cosine similarity of source and destination.
    rows : Tensor
        int64 ``[B, N]`` or ``[T]``: the output row of each token in ToMe's order; −1 for a dropped token.
    num_rows : int
        Output rows of a sample; T for packed tokens, of which ``cu_seqlens[-1]`` are used.
    cu_seqlens : Tensor or None
        int32 ``[S + 1]``: where the segments of packed outputs begin.
    """

    sources: Tensor
    destinations: Tensor
    unmerged: Tensor
    similarities: Tensor
    rows: Tensor
    num_rows: int
    cu_seqlens: Optional[Tensor] = None


class Keep(NamedTuple):
    """Which tokens stay, on their device; made by :func:`pyramid_ops.plans.keep`.

    Attributes
    ----------
    indices : Tensor
        int64 ``[B, M]``: the tokens that stay of each sample, −1 in unused rows, which are the last. For packed tokens
        ``[M]``, rows of the packed tensor, segment after segment without gaps.
    counts : Tensor
        int32 ``[B]`` or ``[S]``: how many stay.
    num_tokens : int
        Tokens of a sample, or of the packed tensor, that the plan is for.
    cu_seqlens : Tensor or None
        int32 ``[S + 1]``: where the segments of the rows begin, of packed tokens.
    source_cu_seqlens : Tensor or None
        int32 ``[S + 1]``: where the segments of the tokens begin.
    max_seqlen : int or None
        The most tokens of a segment that count.
    """

    indices: Tensor
    counts: Tensor
    num_tokens: int
    cu_seqlens: Optional[Tensor] = None
    source_cu_seqlens: Optional[Tensor] = None
    max_seqlen: Optional[int] = None


class Merge(NamedTuple):
    """Which tokens become one, on their device; made by :func:`pyramid_ops.plans.join` and ``tome``.

    The first six attributes are those of :class:`Keep`: `indices` are the tokens that own the rows.

    Attributes
    ----------
    rows : Tensor
        int64 ``[B, N]`` or packed ``[T]``: the row that each token becomes part of; −1 for one that is dropped.
    members : Tensor
        int64 ``[B, N]`` or ``[T]``: the tokens that join others, by row, then ascending; −1 past the last.
    bounds : Tensor
        int64 ``[B, M + 1]`` or ``[M + 1]``: the members of row m are those from ``bounds[m]`` to ``bounds[m + 1]``.
    """

    indices: Tensor
    counts: Tensor
    num_tokens: int
    cu_seqlens: Optional[Tensor]
    source_cu_seqlens: Optional[Tensor]
    max_seqlen: Optional[int]
    rows: Tensor
    members: Tensor
    bounds: Tensor

    @property
    def sizes(self) -> Tensor:
        """float32 ``[B, M]`` or ``[M]``: how many tokens each row stands for."""
        return (self.bounds.diff() + (self.indices >= 0)).to(torch.float32)


class MergedTokens(NamedTuple):
    """Merged tokens ``[B, M, D]`` in the dtype of the input, and what each stands for: float32 ``[B, M]``."""

    tokens: Tensor
    sizes: Tensor


class LevelSelection(NamedTuple):
    """Selected tokens ``[B, K, D]`` and where they came from: int64 ``[B, K, 2]``, (level, index in level)."""

    tokens: Tensor
    indices: Tensor


class SegmentedTopK(NamedTuple):
    """Best scores ``[S, capacity]``, int64 indices in the segment ``[S, capacity]`` and int32 counts ``[S]``."""

    values: Tensor
    indices: Tensor
    counts: Tensor


class PackedLevelSelection(NamedTuple):
    """Packed tokens ``[B · capacity, D]``, where they came from and their packed rows, offsets, counts ``[B, L]``."""

    tokens: Tensor
    indices: Tensor
    rows: Tensor
    cu_seqlens: Tensor
    counts: Tensor


class Compaction(NamedTuple):
    """Moved tensors, int32 ``cu_seqlens`` ``[S + 1]`` and int64 ``positions`` ``[S · capacity]`` or ``[B, K]``."""

    tensors: list[Tensor]
    cu_seqlens: Tensor
    positions: Tensor


class PooledScores(NamedTuple):
    """Packed float32 scores ``[capacity]``, int32 offsets ``[S + 1]`` and grids ``[S, 2]`` of merged tokens."""

    scores: Tensor
    cu_seqlens: Tensor
    grids: Tensor
