"""Plans of tokens that stay, made from scores."""

from collections.abc import Sequence
from typing import Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.keeping import keep_tokens_op, mark_tokens_op
from ..ops.ragged import checked_amount
from ..reference.arguments import Amount, Choice, Slots
from ..results import Keep, Merge

__all__ = ["keep", "mask"]


def keep(
    scores: Tensor,
    k: Union[int, Sequence[int], Tensor, None] = None,
    *,
    candidates: Optional[Tensor] = None,
    forced: Optional[Tensor] = None,
    threshold: Union[float, Tensor, None] = None,
    largest: bool = True,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    capacity: Optional[int] = None,
    order: str = "index",
) -> Keep:
    """Which tokens stay: the k best of each sample, those above a threshold, and those that have to.

    Parameters
    ----------
    scores : Tensor
        ``[B, N]``, or packed ``[T]`` with `cu_seqlens`; float16, bfloat16 or float32; at most 2³⁰ of them.
    k : int, sequence of int, or Tensor, optional
        How many candidates to keep: one number, one for each sample or segment, or int32, int64 or bool ``[B]`` on the
        device. Default: all that are left by `candidates` and `threshold`. A sequence holds at most 256 numbers.
    candidates : Tensor, optional
        bool, like the scores: the tokens that may be chosen (default: all), such as those of an image.
    forced : Tensor, optional
        bool, like the scores: tokens that stay in any case and are not counted in `k`, such as text.
    threshold : float or Tensor, optional
        Only candidates with a score above it may be chosen: a number, or float32 ``[B]`` on the device, such as
        :func:`pyramid_ops.segment_threshold` gives. A NaN is above nothing, and nothing is above a NaN.
    largest : bool
        Whether greater scores are better. If not, `threshold` keeps what is below it, and a NaN is the worst score.
    cu_seqlens : Tensor, optional
        int32 or int64 ``[S + 1]``: segments of packed scores. An offset outside the tensor is clamped, one below an
        earlier one counts as that one.
    max_seqlen : int, optional
        Length of the longest segment (default: all T); of a longer one only the first `max_seqlen` tokens count.
    capacity : int, optional
        Rows of each sample or segment in the plan. Where more tokens would stay, the best do, forced ones first. Of
        more forced ones than rows the last are lost, without an error, since their number is on the device. Default:
        `k` or the largest `k` where it is known on the host and nothing is forced, else N or `max_seqlen`.
    order : "index" or "value"
        Order of the rows: as the tokens are in the input; or forced ones first, the others from the best to the worst.

    Returns
    -------
    Keep
        With rows for ``B · capacity`` tokens: :func:`apply` moves tensors by it, :func:`mask` makes a mask of it.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype, device or option, a capacity above N or `max_seqlen`, or an input that requires
        grad.

    Notes
    -----
    The order is total: score, then the lower index; −0 equals 0; NaN ranks above +inf. So the same tokens on every
    device, for any tile, batch or stride. Three kernel launches where N or `max_seqlen` is at most 16384, else eight;
    no host synchronisation.

    Examples
    --------
    FastV: after the second layer, the image tokens that the last token attends to.

    >>> import torch, pyramid_ops
    >>> from pyramid_ops import plans
    >>> query, key, hidden = torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8), torch.randn(2, 9, 32)
    >>> image = torch.tensor([[False, True, True, True, True, True, True, False, False]] * 2)
    >>> scores = pyramid_ops.attention_importance(query, key, query_indices=[-1], causal=True)
    >>> plan = plans.keep(scores, 3, candidates=image, forced=~image, capacity=6)
    >>> hidden, positions = plans.apply(plan, [hidden, torch.arange(9).expand(2, 9)])
    >>> hidden.shape, plan.counts.tolist()
    (torch.Size([2, 6, 32]), [6, 6])
    """
    op = "keep"
    packed = cu_seqlens is not None
    check.tensor(op, "scores", scores, "T" if packed else "B N", dtypes=check.FLOATS)
    rows = (scores[None] if packed else scores).resolve_neg().contiguous()
    check.packed_size(op, "scores", rows.numel())
    size, segments = rows.shape[1], rows.shape[0]
    if cu_seqlens is not None:
        cu_seqlens = check.cu_seqlens(op, "cu_seqlens", cu_seqlens, rows)
        segments = cu_seqlens.shape[0] - 1
    elif max_seqlen is not None:
        raise ValueError(f"{op}: max_seqlen: expected only with cu_seqlens, got {max_seqlen}")
    longest = check.longest(op, "max_seqlen", max_seqlen, size)
    check.choice(op, "order", order, "index", "value")
    choice = Choice(
        _like(op, "candidates", candidates, scores),
        _like(op, "forced", forced, scores),
        *_threshold(op, threshold, rows, segments),
        check.flag(op, "largest", largest),
    )
    amount = Amount(None, [longest]) if k is None else checked_amount(op, k, rows, segments, "samples or segments")
    if capacity is None:
        known = amount.tensor is None and forced is None
        capacity = min(longest, max(amount.numbers)) if known else longest
    elif check.integer(op, "capacity", capacity, 0) > longest:
        raise ValueError(f"{op}: capacity: expected at most {longest}, the tokens there are, got {capacity}")
    check.packed_size(op, "capacity", segments * capacity)
    slots = Slots(longest, capacity)
    tokens, counts, offsets, bounds = keep_tokens_op(rows, cu_seqlens, choice, amount, slots, order == "index")
    if packed:
        return Keep(tokens[0], counts, size, offsets, bounds, longest)
    return Keep(tokens, counts, size)


def _like(op: str, name: str, flags: Optional[Tensor], scores: Tensor) -> Optional[Tensor]:
    if flags is None:
        return None
    check.tensor(op, name, flags, "T" if scores.dim() == 1 else "B N", dtypes=(torch.bool,))
    check.same_size(op, name, flags, scores.shape, scores.device)
    return flags.contiguous()


def _threshold(
    op: str, threshold: Union[float, Tensor, None], rows: Tensor, segments: int
) -> tuple[Optional[Tensor], Optional[float]]:
    if not isinstance(threshold, Tensor):
        return None, None if threshold is None else check.float32(op, "threshold", threshold)
    check.tensor(op, "threshold", threshold, "S", dtypes=(torch.float32,))
    check.same_size(op, "threshold", threshold, [segments], rows.device)
    return threshold.resolve_neg().contiguous(), None


def mask(plan: Union[Keep, Merge]) -> Tensor:
    """Which tokens stay, or own a row, as a mask: what serving engines take.

    Parameters
    ----------
    plan : Keep or Merge
        From :func:`keep`, :func:`join`, :func:`tome` or :func:`then`.

    Returns
    -------
    Tensor
        bool ``[B, N]``, or ``[T]`` for packed tokens.

    Raises
    ------
    TypeError
        For anything but a plan.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import plans
    >>> plans.mask(plans.keep(torch.tensor([[0.1, 0.9, 0.5, 0.7]]), 2))
    tensor([[False,  True, False,  True]])
    """
    indices = checked_plan("mask", "plan", plan).indices
    marked = mark_tokens_op(indices if indices.dim() == 2 else indices[None], plan.num_tokens)
    return marked if indices.dim() == 2 else marked[0]


def checked_plan(op: str, name: str, plan: Union[Keep, Merge]) -> Union[Keep, Merge]:
    """A plan whose tensors agree in shape, dtype and device, as one that was put together by hand may not."""
    if not isinstance(plan, (Keep, Merge)):
        raise TypeError(f"{op}: {name}: expected a Keep or Merge, got {check.describe(plan)}")
    check.tensor(op, f"{name}.indices", plan.indices, "B M", "M", dtypes=(torch.int64,))
    dense = plan.indices.dim() == 2
    check.integer(op, f"{name}.num_tokens", plan.num_tokens, 0)
    check.tensor(op, f"{name}.counts", plan.counts, "B", dtypes=(torch.int32,))
    tensors = {"counts": (plan.counts, [plan.indices.shape[0]] if dense else list(plan.counts.shape))}
    if not dense:
        offsets = [plan.counts.shape[0] + 1]
        for field, offset in (("cu_seqlens", plan.cu_seqlens), ("source_cu_seqlens", plan.source_cu_seqlens)):
            check.tensor(op, f"{name}.{field}", offset, "S+1", dtypes=(torch.int32,))
            tensors[field] = offset, offsets  # type: ignore[assignment]
        check.integer(op, f"{name}.max_seqlen", plan.max_seqlen, 0)
    if isinstance(plan, Merge):
        *batch, rows = plan.indices.shape
        shapes = {"rows": plan.num_tokens, "members": plan.num_tokens, "bounds": rows + 1}
        for field, size in shapes.items():
            x = check.tensor(op, f"{name}.{field}", getattr(plan, field), "B N", "T", dtypes=(torch.int64,))
            tensors[field] = x, [*batch, size]
    for field, (x, shape) in tensors.items():
        check.same_size(op, f"{name}.{field}", x, shape, plan.indices.device)
    return plan
