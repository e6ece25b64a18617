"""What belongs to tokens, moved and merged by a plan."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.keeping import move_tokens_op
from ..ops.merging import fold_groups_op
from ..reference.arguments import Groups, Placed
from ..results import Keep, Merge
from .kept import checked_plan

__all__ = ["apply"]

#: Where tokens are by default, by the number of dimensions.
_TOKEN_DIM = {1: 0, 2: 1, 3: 1, 4: 2}
_LAYOUTS = tuple("T" + " F" * k for k in range(6))
Dims = Union[int, tuple[int, int]]


class _Job(NamedTuple):
    """A tensor as `[B or 1, outer, N, inner]`, and what becomes of it: a `shape` whose first dimension is the batch.

    `columns`: the inner dimension is one of tokens too.
    """

    rows: Tensor
    shape: list[int]
    batch_dim: int
    columns: bool
    mode: str
    fill: float


def apply(
    plan: Union[Keep, Merge],
    tensors: Union[Tensor, Sequence[Tensor]],
    *,
    dims: Union[Dims, Sequence[Optional[Dims]], None] = None,
    batch_dims: Union[int, Sequence[int]] = 0,
    align: Literal["left", "right"] = "left",
    weights: Optional[Tensor] = None,
    mode: Union[str, Sequence[str]] = "mean",
    fill: Union[float, Sequence[float]] = 0,
) -> Any:
    """All that belongs to tokens, by a plan: hidden states, positions, masks, keys and values.

    Parameters
    ----------
    plan : Keep or Merge
        From :func:`keep`, :func:`join`, :func:`tome` or :func:`then`.
    tensors : Tensor or sequence of Tensor
        One tensor, or any number of them, of any dtype of at most 8 bytes, such as hidden states ``[B, N, D]``, keys
        and values ``[B, H, N, d]``, positions ``[B, N]`` or ``[3, B, N]``, masks ``[B, 1, N, N]``. A batch size of 1
        serves every sample without being expanded, and so does a tensor ``[N]``. For packed tokens ``[T, …]`` and
        alike.
    dims : int, (int, int), or a sequence of them, optional
        The dimension of the tokens, one for all tensors or one for each. Default: 1, of ``[B, H, N, d]`` 2; 0 for
        packed tokens. A pair in place of a number, the last two dimensions, is for a mask whose rows and columns are
        both tokens.
    batch_dims : int or sequence of int
        The dimension of the batch: 1 for positions ``[3, B, N]``.
    align : "left" or "right"
        Which end the rows of a sample are at, where there are fewer than the plan has room for. Decoders pad on the
        left: "right". Not for packed tokens, which have no room between segments.
    weights : Tensor, optional
        float32 ``[B, N]`` or ``[T]`` (default: 1 each): the weight of each token in a mean, such as the tokens it
        already stands for.
    mode : "mean", "sum", "amax" or "owner", or a sequence of them
        What becomes of tokens that a Merge joins, for all tensors or for each: Σ w·x / Σ w, Σ x, the greatest, or the
        one that owns the row. Tensors that are not float16, bfloat16 or float32, and masks, are those of the owner.
    fill : number or sequence of numbers
        What unused rows hold; anything but NaN that the dtype can hold.

    Returns
    -------
    Tensor or list of Tensor
        As the tensors, with M rows in place of N tokens. Rows that are moved keep their bits, means and sums are those
        of :func:`pyramid_ops.merge_tokens`.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype, device or option, a tensor that has another number of tokens than the plan, or
        an input that requires grad.

    Notes
    -----
    One kernel launch for all tensors whose rows are equally long and two for each that is merged; no host
    synchronisation. Tensors that are merged and have heads before their tokens are copied once.

    Examples
    --------
    The keys and values of a cache, compacted in one line:

    >>> import torch
    >>> from pyramid_ops import plans
    >>> key, value, scores = torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8), torch.rand(2, 9)
    >>> key, value = plans.apply(plans.keep(scores, 4), [key, value])
    >>> key.shape
    torch.Size([2, 4, 4, 8])
    """
    op = "apply"
    checked_plan(op, "plan", plan)
    check.choice(op, "align", align, "left", "right")
    packed, right = plan.indices.dim() == 1, align == "right"
    if packed and right:
        raise ValueError(f"{op}: align: expected 'left' for packed tokens, got 'right'")
    if not isinstance(tensors, (Tensor, list, tuple)):
        raise TypeError(f"{op}: tensors: expected a tensor, or a list or tuple of them, got {check.describe(tensors)}")
    given: Sequence[Tensor] = [tensors] if isinstance(tensors, Tensor) else tensors
    if weights is not None:
        check.tensor(op, "weights", weights, "T" if packed else "B N", dtypes=(torch.float32,))
        shape = [plan.num_tokens] if packed else [plan.indices.shape[0], plan.num_tokens]
        check.same_size(op, "weights", weights, shape, plan.indices.device)
        weights = weights.resolve_neg()[None] if packed else weights.resolve_neg()
    one_pair = len(given) == 1 and isinstance(dims, tuple) and len(dims) == 2
    options = (
        _each(op, name, value, len(given))
        for name, value in (
            ("dims", [dims] if one_pair else dims),
            ("batch_dims", batch_dims),
            ("mode", mode),
            ("fill", fill),
        )
    )
    jobs = [_job(op, plan, k, *each) for k, each in enumerate(zip(given, *options, strict=True))]
    results = [
        _folded(plan, job, weights) if isinstance(plan, Merge) and job.mode != "owner" else job.rows for job in jobs
    ]
    indices = plan.indices[None] if packed else plan.indices
    counts = None if packed else plan.counts
    for columns, merged in ((False, False), (True, False), (False, True)):
        # Rows that are merged are where they belong already, but for their alignment.
        these = [
            k
            for k, job in enumerate(jobs)
            if job.columns == columns and (job.mode != "owner") == merged and (not merged or right or job.fill)
        ]
        if these:
            rows, fills = [results[k] for k in these], [jobs[k].fill for k in these]
            placed = Placed(indices.shape[1], right, columns)
            moved = move_tokens_op(rows, None if merged else indices, counts, placed, fills)
            for k, x in zip(these, moved, strict=True):
                results[k] = x
    results = [x.view(job.shape).movedim(0, job.batch_dim) for x, job in zip(results, jobs, strict=True)]
    return results[0] if isinstance(tensors, Tensor) else results


def _each(op: str, name: str, value: Any, count: int) -> list:
    """One value for all of `count` tensors, or a sequence of one for each."""
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{op}: {name}: expected one for each of {count} tensors, got {len(value)}")
    return list(value)


def _job(op: str, plan: Union[Keep, Merge], k: int, x: Tensor, dim: Any, batch_dim: Any, mode: str, fill: Any) -> _Job:
    name, packed = f"tensors[{k}]", plan.indices.dim() == 1
    check.tensor(op, name, x, *_LAYOUTS, dtypes=())
    if x.element_size() > 8 or x.device != plan.indices.device:
        raise TypeError(
            f"{op}: {name}: expected a dtype of at most 8 bytes on {plan.indices.device}, got {check.describe(x)}"
        )
    check.choice(op, f"mode[{k}]", mode, "mean", "sum", "amax", "owner")
    if dim is None:
        if x.dim() not in _TOKEN_DIM and not packed:
            raise ValueError(f"{op}: dims[{k}]: expected a dimension for {x.dim()} of them, got None")
        dim = 0 if packed else _TOKEN_DIM[x.dim()]
    *rows_dim, last = [_dim(op, f"dims[{k}]", d, x) for d in (dim if isinstance(dim, (list, tuple)) else [dim])]
    batch = _dim(op, f"batch_dims[{k}]", batch_dim, x)
    columns = bool(rows_dim)
    if columns and (rows_dim != [x.dim() - 2] or last != x.dim() - 1 or packed):
        raise ValueError(f"{op}: dims[{k}]: expected the last two dimensions of a dense tensor, got {dim!r}")
    first = rows_dim[0] if columns else last
    if any(x.shape[d] != plan.num_tokens for d in (first, last)):
        raise ValueError(
            f"{op}: {name}: expected {plan.num_tokens} tokens in dimension {dim} as the plan, got {check.describe(x)}"
        )
    # The batch in front, of size 1 for what has none.
    without = packed or (x.dim() == 1)
    if without and batch_dim:
        raise ValueError(f"{op}: batch_dims[{k}]: expected 0 where there is no batch, got {batch_dim!r}")
    if not without and batch in (first, last):
        raise ValueError(f"{op}: batch_dims[{k}]: expected another dimension than that of the tokens, got {batch_dim}")
    x = x.resolve_neg().resolve_conj()
    x = x[None] if without else x.movedim(batch, 0)
    first += without or first < batch
    samples = 1 if packed else plan.indices.shape[0]
    if x.shape[0] != 1 and x.shape[0] != samples:
        raise ValueError(f"{op}: {name}: expected a batch of 1 or {samples} in dimension {batch}, got {x.shape[0]}")
    before, after, slots = x.shape[1:first], x.shape[first + 1 :], plan.indices.shape[-1]
    rows = check.rows(x.reshape(x.shape[0], math.prod(before), plan.num_tokens, math.prod(after)))
    shape = [*([] if packed else [samples]), *before, slots, *([slots] if columns else after)]
    moves = isinstance(plan, Keep) or columns or x.dtype not in check.FLOATS
    return _Job(rows, shape, 0 if without else batch, columns, "owner" if moves else mode, _fill(op, k, fill, x))


def _dim(op: str, name: str, value: Any, x: Tensor) -> int:
    dim = check.integer(op, name, value, -x.dim())
    if dim >= x.dim():
        raise ValueError(f"{op}: {name}: expected less than {x.dim()}, got {dim}")
    return dim % x.dim()


def _fill(op: str, k: int, value: Any, x: Tensor) -> float:
    """A number that the dtype holds; −0 is 0."""
    name = f"fill[{k}]"
    number = (
        float(value) if isinstance(value, bool) or value in (math.inf, -math.inf) else check.number(op, name, value)
    )
    if x.dtype.is_floating_point or x.dtype.is_complex:
        if math.isfinite(number) and abs(number) > torch.finfo(x.dtype).max:
            raise ValueError(f"{op}: {name}: expected a number that {x.dtype} can hold, got {value}")
    else:
        low, high = (0, 1) if x.dtype == torch.bool else (torch.iinfo(x.dtype).min, torch.iinfo(x.dtype).max)
        # float64 cannot tell 2⁶³ from the greatest integer below it.
        if not low <= number <= high or number == 2.0**63 or number != int(number):
            raise ValueError(f"{op}: {name}: expected a number that {x.dtype} can hold, got {value}")
    return number + 0.0


def _folded(plan: Merge, job: _Job, weights: Optional[Tensor]) -> Tensor:
    """Tokens that a row joins, merged: `[B, outer, M, inner]`."""
    indices, members, bounds = (x if x.dim() == 2 else x[None] for x in (plan.indices, plan.members, plan.bounds))
    samples, (_, outer, count, inner) = indices.shape[0], job.rows.shape
    rows = job.rows.transpose(1, 2).reshape(job.rows.shape[0], count, outer * inner).expand(samples, -1, -1)
    weights = weights if job.mode == "mean" else None
    tokens, _ = fold_groups_op(rows, weights, Groups(indices, members, bounds), job.mode)
    return tokens.view(samples, indices.shape[1], outer, inner).transpose(1, 2)
