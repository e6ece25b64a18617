"""What ops return."""

from typing import NamedTuple, Optional

from torch import Tensor

__all__ = [
    "BestMatch",
    "Compaction",
    "LevelSelection",
    "MergePlan",
    "MergedTokens",
    "PackedLevelSelection",
    "PooledScores",
    "SegmentedTopK",
]


class BestMatch(NamedTuple):
    """For each query the index of its best key, int64, and their cosine similarity, float32; (−1, −inf) for none."""

    indices: Tensor
    similarity: Tensor


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
