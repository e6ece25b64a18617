"""Rows moved by indices: of levels, and of many tensors by one index set."""

import math
from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from ..reference import gathering as reference
from ..results import Compaction

__all__ = ["compact", "gather_levels"]

_PACKED = ("T", "T F", "T F F", "T F F F", "T F F F F")
_DENSE = ("B N", "B N F", "B N F F", "B N F F F")


def _compact_fake(
    tensors: Sequence[Tensor], indices: Tensor, counts: Optional[Tensor], cu_seqlens: Optional[Tensor]
) -> tuple[list[Tensor], Tensor, Tensor]:
    segments, capacity = indices.shape
    rows = capacity if cu_seqlens is None else segments * capacity
    moved = [x.new_empty(*x.shape[:-2], rows, x.shape[-1]) for x in tensors]
    return moved, indices.new_empty(segments + 1, dtype=torch.int32), indices.new_empty(segments * capacity)


gather_levels_op = Op(
    reference.gather_levels,
    lambda levels, indices: levels[0].new_empty(*indices.shape[:2], levels[0].shape[2]),
)
compact_op = Op(reference.compact, _compact_fake)


def gather_levels(levels: Sequence[Tensor], indices: Tensor) -> Tensor:
    """Rows of per-level tensors at (level, index in level): positions, masks or features of selected tokens.

    Parameters
    ----------
    levels : list of Tensor
        Dense ``[B, N_k, ...]`` for each level, of any dtype of at most 8 bytes; a batch size of 1 serves every sample.
    indices : Tensor
        int64 ``[B, K, 2]`` as :func:`select_topk_levels` returns them. A pair that names no token, such as (−1, −1),
        gives zeros.

    Returns
    -------
    Tensor
        ``[B, K, ...]`` in the dtype of the levels, bits unchanged.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or dtype, levels that do not match, or an input that requires grad.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> positions = pyramid_ops.patch_positions([(4, 4), (2, 2)], 2)
    >>> pyramid_ops.gather_levels(positions, torch.tensor([[[0, 3], [1, 0]]])).tolist()
    [[[0, 1, 1], [1, 0, 0]]]
    """
    op = "gather_levels"
    check.tensor(op, "indices", indices, "B K 2", dtypes=(torch.int64,))
    if not isinstance(levels, (list, tuple)) or not levels or not isinstance(levels[0], Tensor):
        raise TypeError(f"{op}: levels: expected a non-empty list of tensors, got {check.describe(levels)}")
    layout = "B N" + " F" * max(levels[0].dim() - 2, 0)
    levels = check.tensors(op, "levels", levels, layout, dtypes=(), broadcast=True)
    batch = indices.shape[0]
    if indices.shape[2] != 2:
        raise ValueError(f"{op}: indices: expected shape [B, K, 2], got {check.describe(indices)}")
    if levels[0].element_size() > 8:
        raise TypeError(f"{op}: levels: expected a dtype of at most 8 bytes, got {check.describe(levels[0])}")
    for k, level in enumerate(levels):
        if (level.shape[0] != 1 and level.shape[0] != batch) or level.device != indices.device:
            raise ValueError(
                f"{op}: levels[{k}]: expected a batch size of 1 or {batch} on {indices.device}, got "
                f"{check.describe(level)}"
            )
    dtype, features = levels[0].dtype, levels[0].shape[2:]
    rows = [
        check.rows(level.reshape(*level.shape[:2], math.prod(features))).view(check.bits(dtype)) for level in levels
    ]
    return gather_levels_op(rows, indices.resolve_neg()).view(dtype).reshape(batch, indices.shape[1], *features)


def compact(
    tensors: Sequence[Tensor],
    indices: Tensor,
    counts: Optional[Tensor] = None,
    *,
    cu_seqlens: Optional[Tensor] = None,
    token_dims: Union[int, Sequence[int], None] = None,
) -> Compaction:
    """Keep the same tokens in any number of tensors, dense or packed: the step after a selection inside a decoder.

    Parameters
    ----------
    tensors : list of Tensor
        Of any dtype of at most 8 bytes, which need not be the same; one dimension of each counts tokens.

        Dense (without `cu_seqlens`), of 2 to 5 dimensions, the first of which is the batch: hidden states
        ``[B, N, D]``, masks and positions ``[B, N]``, keys and values ``[B, H, N, d]``. A batch size of 1 serves every
        sample. Positions ``[3, B, N]`` go in, and come out, as ``positions.movedim(1, 0)``.

        Packed (with `cu_seqlens`), of 1 to 5 dimensions: hidden states ``[T, D]``, masks ``[T]``, positions ``[T]`` or
        ``[3, T]``, keys and values ``[H, T, d]`` or ``[T, H, d]``.
    indices : Tensor
        int64 ``[B, K]`` or ``[S, capacity]``: which tokens each sample or segment keeps, counted from its start, as
        :func:`segmented_topk` returns them. Tokens go to where they stand in it, so ``order="index"`` keeps their
        order.
    counts : Tensor, optional
        int32, int64 or bool ``[B]`` or ``[S]``: how many of the indices of each sample or segment count. Default: all.
    cu_seqlens : Tensor, optional
        int32 or int64 ``[S + 1]``: the bounds of the segments of packed tensors.
    token_dims : int or sequence of int, optional
        Which dimension of the tensors counts tokens, counted with that of the batch: one for all, or one for each, such
        as ``(1, 1, 2, 2)``. Default: 1 of dense tensors, 0 of packed ones of 1 or 2 dimensions.

    Returns
    -------
    Compaction
        ``tensors``: each in its dtype, bits unchanged. Dense ones have K tokens, with zeros in the slots past the count
        of a sample and where an index is outside ``[0, N)``. Packed ones have S · capacity tokens, segment after
        segment without gaps, zeros past the last token and where an index is outside its segment.

        ``cu_seqlens`` int32 ``[B + 1]`` or ``[S + 1]``: the counts added up, which is where each packed segment starts
        now. ``positions`` int64 ``[B, K]`` or ``[S · capacity]``: 0, 1, 2, … in each sample or segment, zeros in unused
        slots, for decoders that number the kept tokens anew; to keep the old positions, have them among the tensors.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype, device or dimension, tensors that differ in N or T, K above N, more than 2³⁰
        tokens, an input that requires grad, or a tensor of 3 or more dimensions with `cu_seqlens` and without
        `token_dims`: it may as well be dense.

    Notes
    -----
    No host synchronisation; offsets on the device are clamped to [0, T], counts to [0, capacity]. One launch, and one
    for each tensor; offsets and counts that are not int32 are converted first. What is kept is copied, nothing else,
    unless several dimensions between batch and tokens, or after the tokens, cannot be seen as one, or the last of those
    after is not contiguous: such a tensor is copied first. Keys and values ``[B, H, N, d]`` are not, be they contiguous
    or a transposed view of ``[B, N, H, d]``.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> hidden, positions = torch.arange(10.0).view(5, 2), torch.arange(15).view(3, 5)
    >>> bounds = torch.tensor([0, 3, 5], dtype=torch.int32)
    >>> top = pyramid_ops.segmented_topk(hidden[:, 0], bounds, [2, 1], max_seqlen=3, order="index")
    >>> kept = pyramid_ops.compact([hidden, positions], *top[1:], cu_seqlens=bounds, token_dims=(0, 1))
    >>> kept.tensors[0].tolist(), kept.cu_seqlens.tolist()
    ([[2.0, 3.0], [4.0, 5.0], [8.0, 9.0], [0.0, 0.0]], [0, 2, 3])
    >>> kept.tensors[1].tolist(), kept.positions.tolist()
    ([[1, 2, 4, 0], [6, 7, 9, 0], [11, 12, 14, 0]], [0, 1, 0, 0])
    >>> hidden, keys = torch.arange(6.0).view(2, 3, 1), torch.arange(12.0).view(2, 2, 3, 1)
    >>> indices, counts = torch.tensor([[0, 2], [1, 0]]), torch.tensor([2, 1])
    >>> kept = pyramid_ops.compact([hidden, keys], indices, counts, token_dims=(1, 2))
    >>> kept.tensors[0][..., 0].tolist(), kept.tensors[1][..., 0].tolist()
    ([[0.0, 2.0], [4.0, 0.0]], [[[0.0, 2.0], [3.0, 5.0]], [[7.0, 0.0], [10.0, 0.0]]])
    """
    op = "compact"
    if not isinstance(tensors, (list, tuple)):
        raise TypeError(f"{op}: tensors: expected a list or tuple of tensors, got {check.describe(tensors)}")
    if not tensors:
        raise ValueError(f"{op}: tensors: expected at least one tensor, got an empty {type(tensors).__name__}")
    dense = cu_seqlens is None
    check.tensor(op, "indices", indices, "B K" if dense else "S K", dtypes=(torch.int64,))
    segments, capacity = indices.shape
    bounds = None if dense else check.cu_seqlens(op, "cu_seqlens", cu_seqlens, indices, segments)
    if counts is not None:
        counts = check.device_integers(op, "counts", counts, indices, "B" if dense else "S", segments)
    given: Any = int(dense) if token_dims is None else token_dims
    dims = check.sequence(op, "token_dims", given) if check.is_sequence(given) else [given]
    dims = dims * len(tensors) if len(dims) == 1 else dims
    if len(dims) != len(tensors):
        raise ValueError(f"{op}: token_dims: expected one for each of {len(tensors)} tensors, got {len(dims)}")
    rows: list[Tensor] = []
    shapes: list[tuple[int, ...]] = []
    for k, (x, dim) in enumerate(zip(tensors, dims, strict=True)):
        check.tensor(op, f"tensors[{k}]", x, *(_DENSE if dense else _PACKED), dtypes=())
        dim = check.integer(op, f"token_dims[{k}]", dim, -x.dim())
        if dim >= x.dim():
            raise ValueError(f"{op}: token_dims[{k}]: expected less than {x.dim()}, got {dim}")
        if x.element_size() > 8:
            raise TypeError(f"{op}: tensors[{k}]: expected a dtype of at most 8 bytes, got {check.describe(x)}")
        dim %= x.dim()
        before, size, after = x.shape[int(dense) : dim], x.shape[dim], x.shape[dim + 1 :]
        check.packed_size(op, f"tensors[{k}]", size)
        if x.device != indices.device or (rows and size != rows[0].shape[-2]):
            expected = f"{rows[0].shape[-2]} tokens " if rows else ""
            raise ValueError(f"{op}: tensors[{k}]: expected {expected}on {indices.device}, got {check.describe(x)}")
        if dense:
            if not dim:
                raise ValueError(f"{op}: token_dims[{k}]: expected a dimension other than that of the batch, got 0")
            if x.shape[0] != 1 and x.shape[0] != segments:
                raise ValueError(
                    f"{op}: tensors[{k}]: expected a batch size of 1 or {segments} in dimension 0, got "
                    f"{check.describe(x)}"
                )
            if capacity > size:
                raise ValueError(f"{op}: indices: expected at most {size} for each sample, got {capacity}")
        elif token_dims is None and x.dim() > 2:
            raise ValueError(
                f"{op}: tensors[{k}]: expected token_dims with cu_seqlens and 3 or more dimensions, got None for "
                f"{check.describe(x)} (packed [T, H, d] takes token_dims=0, dense [B, N, ...] goes without cu_seqlens)"
            )
        x = x.resolve_neg().resolve_conj()
        x = x.expand(segments, *x.shape[1:]) if dense else x
        samples = (segments,) if dense else ()
        x = x.reshape(*samples, math.prod(before), size, math.prod(after))
        rows.append(check.rows(x).view(check.bits(x.dtype)))
        shapes.append((*samples, *before, capacity if dense else segments * capacity, *after))
    check.packed_size(op, "indices", segments * capacity)
    moved, offsets, positions = compact_op(rows, indices.resolve_neg().contiguous(), counts, bounds)
    results = [x.view(old.dtype).view(shape) for x, old, shape in zip(moved, tensors, shapes, strict=True)]
    return Compaction(results, offsets, positions.view(segments, capacity) if dense else positions)
