"""Top-k of packed segments, and over the levels of packed samples."""

from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from ..reference import ragged as reference
from ..reference.arguments import Amount, Slots
from ..results import PackedLevelSelection, SegmentedTopK
from .attention import received
from .selection import level_scores

__all__ = ["segmented_topk", "select_topk_levels_packed"]

_MOST_INTEGERS = 256


def _segmented_topk_fake(
    scores: Tensor,
    cu_seqlens: Tensor,
    k: Amount,
    slots: Slots,
    by_index: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    segments, capacity = cu_seqlens.shape[0] - 1, slots.capacity
    return (
        scores.new_empty(segments, capacity),
        scores.new_empty(segments, capacity, dtype=torch.int64),
        cu_seqlens.new_empty(segments),
    )


def _select_topk_levels_packed_fake(
    levels: Sequence[Tensor],
    cu_seqlens: Sequence[Tensor],
    scores: Sequence[Tensor],
    saliency: str,
    budgets: Amount,
    slots: Slots,
    by_index: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, capacity = cu_seqlens[0].shape[0] - 1, slots.capacity
    return (
        levels[0].new_empty(batch * capacity, levels[0].shape[1]),
        levels[0].new_empty(batch * capacity, 2, dtype=torch.int64),
        levels[0].new_empty(batch * capacity, 2, dtype=torch.int64),
        levels[0].new_empty(batch + 1, dtype=torch.int32),
        levels[0].new_empty(batch, len(levels), dtype=torch.int32),
    )


segmented_topk_op = Op(reference.segmented_topk, _segmented_topk_fake)
select_topk_levels_packed_op = Op(reference.select_topk_levels_packed, _select_topk_levels_packed_fake)


def segmented_topk(
    scores: Tensor,
    cu_seqlens: Tensor,
    k: Union[int, Sequence[int], Tensor],
    *,
    max_seqlen: int,
    capacity: Optional[int] = None,
    order: str = "value",
) -> SegmentedTopK:
    """The k best scores of each packed segment: ``torch.topk`` for ragged batches, one k or one for each segment.

    Parameters
    ----------
    scores : Tensor
        Packed ``[T]``; float16, bfloat16 or float32; at most 2³⁰ of them.
    cu_seqlens : Tensor
        int32 or int64 ``[S + 1]``: segment s is ``scores[cu_seqlens[s] : cu_seqlens[s + 1]]``.
    k : int, sequence of int, or Tensor
        How many to take: one number, one for each segment, or int32, int64 or bool ``[S]`` on the device. A sequence
        holds at most 256 numbers, and its length is compiled into the kernels; use a tensor for more.
    max_seqlen : int
        Length of the longest segment. Of a longer one only the first `max_seqlen` scores count.
    capacity : int, optional
        Slots of each segment in the result. Default: the largest `k`; required where k is a tensor.
    order : "value" or "index"
        Order of the result: by descending value or by ascending index.

    Returns
    -------
    SegmentedTopK
        ``values`` ``[S, capacity]`` in the dtype of the scores, bits unchanged, −inf in unused slots; ``indices`` int64
        ``[S, capacity]``, counted from the start of the segment, −1 in unused slots; ``counts`` int32 ``[S]``:
        min(k, length, capacity), the used slots, which come first. :func:`compact` moves rows by them.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype, device or option, or an input that requires grad.

    Notes
    -----
    The order is total: higher score first, among equal scores the lower index; −0 equals 0; NaN ranks above +inf. So
    the same result on every device, for any tile, batch or stride. To keep some tokens in any case, give them a score
    of +inf and count them in k. No host synchronisation: offsets on the device are clamped to [0, T], negative lengths
    to 0, k to [0, min(length, capacity)], so none can make it fault. In order of value one kernel launch if segments ·
    max_seqlen² is at most 2²⁴; else two for segments of up to 16384 scores or more than 1024 segments, and six for
    longer ones; more than 4096 slots in order of value are sorted then. Scores that are not contiguous are copied
    first, offsets and k that are not int32 converted.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> scores = torch.tensor([0.1, 0.9, 0.5, 0.3, 0.7])
    >>> bounds = torch.tensor([0, 3, 5], dtype=torch.int32)
    >>> top = pyramid_ops.segmented_topk(scores, bounds, [2, 1], max_seqlen=3)
    >>> top.indices.tolist(), top.counts.tolist()
    ([[1, 2], [1, -1]], [2, 1])
    """
    op = "segmented_topk"
    scores = check.tensor(op, "scores", scores, "T", dtypes=check.FLOATS).resolve_neg().contiguous()
    size = check.packed_size(op, "scores", scores.shape[0])
    cu_seqlens = check.cu_seqlens(op, "cu_seqlens", cu_seqlens, scores)
    segments = cu_seqlens.shape[0] - 1
    max_seqlen = min(check.integer(op, "max_seqlen", max_seqlen, 0), size)
    check.choice(op, "order", order, "value", "index")
    amount = checked_amount(op, k, scores, segments)
    if amount.tensor is not None and capacity is None:
        raise ValueError(f"{op}: capacity: expected a number where k is a tensor, got None")
    capacity = max(amount.numbers) if capacity is None else check.integer(op, "capacity", capacity, 0)
    check.packed_size(op, "capacity", segments * capacity)
    return SegmentedTopK(*segmented_topk_op(scores, cu_seqlens, amount, Slots(max_seqlen, capacity), order == "index"))


def checked_amount(
    op: str, k: Union[int, Sequence[int], Tensor], like: Tensor, segments: int, what: str = "segments", name: str = "k"
) -> Amount:
    """How many of each segment: one number, one for each, or a tensor on the device of `like`."""
    if isinstance(k, Tensor):
        return Amount(check.device_integers(op, name, k, like, "S", segments), [0])
    if not check.is_sequence(k):
        return Amount(None, [check.integer(op, name, k, 0)])
    return Amount(None, _numbers(op, name, k, segments, what) or [0])


def _numbers(op: str, name: str, values: Any, count: int, what: str) -> list[int]:
    numbers = [check.integer(op, f"{name}[{k}]", v, 0) for k, v in enumerate(check.sequence(op, name, values))]
    if len(numbers) != count:
        raise ValueError(f"{op}: {name}: expected one for each of {count} {what}, got {len(numbers)}")
    if len(numbers) > _MOST_INTEGERS:
        raise ValueError(f"{op}: {name}: expected at most {_MOST_INTEGERS} numbers, or a tensor, got {len(numbers)}")
    return numbers


def select_topk_levels_packed(
    pyramid_features: Sequence[Tensor],
    cu_seqlens: Sequence[Tensor],
    budgets: Union[Sequence[int], Tensor],
    *,
    max_seqlen: int,
    capacity: Optional[int] = None,
    saliency: Union[str, Sequence[Tensor]] = "variance",
    order: str = "saliency",
) -> PackedLevelSelection:
    """:func:`select_topk_levels` for ragged batches: images of any size, budgets of any kind.

    Parameters
    ----------
    pyramid_features : list of Tensor
        Packed ``[T_k, D]`` for each level, level 0 the finest; uint8, float16, bfloat16 or float32; D from 1 to 16384;
        at most 2³⁰ rows in all.
    cu_seqlens : list of Tensor
        int32 or int64 ``[B + 1]`` for each level: the tokens of sample b are rows ``cu_seqlens[k][b]`` to
        ``cu_seqlens[k][b + 1]`` of level k.
    budgets : sequence of int, or Tensor
        Tokens to keep in each level of every sample, or int32, int64 or bool ``[B, L]`` on the device. A level that has
        fewer tokens gives all it has.
    max_seqlen : int
        The most tokens of one sample in one level. Of more, only the first `max_seqlen` count.
    capacity : int, optional
        The most tokens to keep of a sample; of samples with larger budgets the coarser levels get what the finer ones
        leave. Default: the sum of the budgets; required where they are a tensor.
    saliency : "variance", "norm", "attention" or list of Tensor
        As :func:`select_topk_levels`, or a score per token: float tensors ``[T_k]``.
    order : "saliency" or "index"
        Order of the tokens that are kept in a level: by descending saliency or by index.

    Returns
    -------
    PackedLevelSelection
        ``tokens`` ``[B · capacity, D]`` in the dtype of the features, bits unchanged: sample after sample, in a sample
        level after level, without gaps; zeros past the last. ``indices`` int64 ``[B · capacity, 2]``: (level, index
        from the start of the sample in that level), (−1, −1) past the last; ``rows`` likewise, counted from the start
        of the level, as :func:`gather_levels` takes them for anything else per token. ``cu_seqlens`` int32
        ``[B + 1]``: where each sample starts. ``counts`` int32 ``[B, L]``: how many tokens each level gave.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype, device or option, levels, offsets or scores that do not match, or an input that
        requires grad.

    Notes
    -----
    Order, ties and bits are those of :func:`select_topk_levels`. No host synchronisation: offsets on the device are
    clamped to [0, T_k], negative lengths and budgets to 0. Three kernel launches, seven where `max_seqlen` is above
    16384 and there are at most 1024 segments. Levels that are not contiguous in their last dimension are copied first,
    offsets and budgets that are not int32 converted.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> levels = [torch.randn(90, 8), torch.randn(22, 8)]
    >>> bounds = [torch.tensor(b, dtype=torch.int32) for b in ([0, 64, 90], [0, 16, 22])]
    >>> budgets = torch.tensor([[20, 5], [9, 3]], dtype=torch.int32)
    >>> kept = pyramid_ops.select_topk_levels_packed(levels, bounds, budgets, max_seqlen=64, capacity=30)
    >>> kept.tokens.shape, kept.cu_seqlens.tolist(), kept.counts.tolist()
    (torch.Size([60, 8]), [0, 25, 37], [[20, 5], [9, 3]])
    >>> masks = [torch.ones(1, 90), torch.ones(1, 22)]
    >>> int(pyramid_ops.gather_levels(masks, kept.rows[None]).sum())
    37
    """
    op = "select_topk_levels_packed"
    levels = check.level_rows(op, "pyramid_features", pyramid_features, "T D")
    check.packed_size(op, "pyramid_features", sum(level.shape[0] for level in levels))
    if not isinstance(cu_seqlens, (list, tuple)):
        raise TypeError(f"{op}: cu_seqlens: expected a list of tensors, got {check.describe(cu_seqlens)}")
    if len(cu_seqlens) != len(levels):
        raise ValueError(f"{op}: cu_seqlens: expected one for each of {len(levels)} levels, got {len(cu_seqlens)}")
    first = check.cu_seqlens(op, "cu_seqlens[0]", cu_seqlens[0], levels[0])
    batch = first.shape[0] - 1
    bounds = [check.cu_seqlens(op, f"cu_seqlens[{k}]", x, levels[0], batch) for k, x in enumerate(cu_seqlens)]
    largest = max(level.shape[0] for level in levels)
    max_seqlen = min(check.integer(op, "max_seqlen", max_seqlen, 0), largest)
    check.choice(op, "order", order, "saliency", "index")
    scores: list[Tensor] = []
    if isinstance(saliency, str):
        check.choice(op, "saliency", saliency, "variance", "norm", "attention")
    if isinstance(saliency, str) and saliency == "attention":
        saliency = [received(x, cu, max_seqlen) for x, cu in zip(levels, bounds, strict=True)]
    if not isinstance(saliency, str):
        scores = level_scores(op, saliency, levels, "T")
        saliency = "given"
    budget_tensor = None
    if isinstance(budgets, Tensor):
        budget_tensor = check.device_integers(op, "budgets", budgets, levels[0], "B L", batch, len(levels))
        budgets = [0] * len(levels)
        if capacity is None:
            raise ValueError(f"{op}: capacity: expected a number where budgets are a tensor, got None")
    else:
        budgets = _numbers(op, "budgets", budgets, len(levels), "levels")
    capacity = sum(budgets) if capacity is None else check.integer(op, "capacity", capacity, 0)
    check.packed_size(op, "capacity", batch * capacity)
    selected = select_topk_levels_packed_op(
        levels, bounds, scores, saliency, Amount(budget_tensor, budgets), Slots(max_seqlen, capacity), order == "index"
    )
    return PackedLevelSelection(*selected)
