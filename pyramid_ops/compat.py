"""ToMe's and tomesd's functions under their own names, arguments and results, on the ops of this library.

``from pyramid_ops.compat import bipartite_soft_matching, merge_source, merge_wavg`` takes the place of ``tome.merge``,
``bipartite_soft_matching_random2d`` that of ``tomesd.merge``. Inference only: inputs must not require grad.
"""

from collections.abc import Callable
from typing import Optional

import torch
from torch import Tensor

from . import _checks as check
from .plans.halves import bipartite_plan, tome_matching
from .plans.merged import merge_tokens, unmerge_tokens
from .results import MergePlan

__all__ = [
    "bipartite_soft_matching",
    "bipartite_soft_matching_random2d",
    "kth_bipartite_soft_matching",
    "merge_source",
    "merge_wavg",
]


def _do_nothing(x: Tensor, mode: Optional[str] = None) -> Tensor:
    return x


_do_nothing.plan = None  # type: ignore[attr-defined]


def _callables(plan: MergePlan) -> tuple[Callable, Callable]:
    def merge(x: Tensor, mode: str = "mean") -> Tensor:
        return merge_tokens(x, plan, mode=mode).tokens

    def unmerge(x: Tensor) -> Tensor:
        return unmerge_tokens(x, plan)

    merge.plan = plan  # type: ignore[attr-defined]
    return merge, unmerge


def bipartite_soft_matching(
    metric: Tensor, r: int, class_token: bool = False, distill_token: bool = False
) -> tuple[Callable, Callable]:
    """``tome.merge.bipartite_soft_matching``: (merge, unmerge) that remove r tokens, at most half of them.

    Parameters
    ----------
    metric : Tensor
        ``[B, N, C]``; float16, bfloat16, float32 or uint8.
    r : int
        Tokens to remove; 0 or less: nothing is merged.
    class_token, distill_token : bool
        Whether the sequence begins with such tokens, which are not merged away or into.

    Returns
    -------
    merge, unmerge : callable
        ``merge(x, mode="mean")`` with mode "mean", "sum" or "amax", and ``unmerge(x)``. ``merge.plan`` is the
        :class:`~pyramid_ops.MergePlan`, None where nothing is merged.

    Notes
    -----
    As in :func:`pyramid_ops.tome_matching`. `unmerge` also undoes the place of a distillation token, which the original
    does not.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops.compat import bipartite_soft_matching, merge_wavg
    >>> x = torch.randn(2, 10, 8)
    >>> merge, unmerge = bipartite_soft_matching(x, 3, class_token=True)
    >>> x, size = merge_wavg(merge, x)
    >>> x.shape, size.shape, unmerge(x).shape
    (torch.Size([2, 7, 8]), torch.Size([2, 7, 1]), torch.Size([2, 10, 8]))
    """
    op = "bipartite_soft_matching"
    _metric_rows(op, metric)
    protected = check.flag(op, "class_token", class_token) + check.flag(op, "distill_token", distill_token)
    r = min(check.integer(op, "r", r), (metric.shape[1] - protected) // 2)
    if r <= 0:
        return _do_nothing, _do_nothing
    return _callables(tome_matching(metric, r, class_token=class_token, distill_token=distill_token))


def kth_bipartite_soft_matching(metric: Tensor, k: int) -> tuple[Callable, Callable]:
    """``tome.merge.kth_bipartite_soft_matching``: every k-th token stays, the others merge into the most similar one.

    Parameters
    ----------
    metric : Tensor
        ``[B, N, C]``.
    k : int
        Tokens k − 1, 2k − 1, … stay, at most N; 1 or less: nothing is merged. As in the original, the last N mod k
        tokens are left out of the output.

    Returns
    -------
    merge, unmerge : callable
        As :func:`bipartite_soft_matching`; `unmerge` gives N − N mod k tokens.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops.compat import kth_bipartite_soft_matching
    >>> merge, unmerge = kth_bipartite_soft_matching(torch.randn(2, 10, 8), 3)
    >>> merge(torch.randn(2, 10, 4)).shape
    torch.Size([2, 3, 4])
    """
    op = "kth_bipartite_soft_matching"
    rows = _metric_rows(op, metric)
    k = check.integer(op, "k", k)
    if k <= 1:
        return _do_nothing, _do_nothing
    tokens = rows.shape[1]
    if k > tokens:
        raise ValueError(f"{op}: k: expected at most the {tokens} tokens of metric, got {k}")
    count = tokens // k * k
    token = torch.arange(count, device=rows.device).view(-1, k)
    a, b = token[:, : k - 1].flatten(), token[:, k - 1]
    plan = bipartite_plan(rows[:, a], rows[:, b], a, b, a.shape[0], check.limbs(op, None, rows))
    merge, unmerge = _callables(plan)

    def merge_first(x: Tensor, mode: str = "mean") -> Tensor:
        return merge(_of(op, x, tokens)[:, :count], mode)

    merge_first.plan = plan  # type: ignore[attr-defined]
    merge_first.count, merge_first.tokens = count, tokens  # type: ignore[attr-defined]
    return merge_first, unmerge


def bipartite_soft_matching_random2d(
    metric: Tensor,
    w: int,
    h: int,
    sx: int,
    sy: int,
    r: int,
    no_rand: bool = False,
    generator: Optional[torch.Generator] = None,
    *,
    choices: Optional[Tensor] = None,
    seed: int = 0,
) -> tuple[Callable, Callable]:
    """``tomesd.merge.bipartite_soft_matching_random2d``: one destination in each cell of sx × sy tokens.

    Parameters
    ----------
    metric : Tensor
        ``[B, h * w, C]``, row by row.
    w, h, sx, sy : int
        Width and height of the token grid and of a cell.
    r : int
        Tokens to remove, at most those that are not destinations; 0 or less: nothing is merged. Else the grid has to
        hold a cell, where the original fails without a word.
    no_rand : bool
        The destination is the top left token of its cell.
    generator : torch.Generator, optional
        Draws the destinations as the original does; its numbers differ between devices.
    choices : Tensor, optional
        int64 ``[h // sy, w // sx]``: the destination's place in its cell, row by row; in place of a random choice.
    seed : int
        Without `generator` and `choices`: destinations are a hash of (seed, cell), the same on every device.

    Returns
    -------
    merge, unmerge : callable
        As :func:`bipartite_soft_matching`; tokens come out unmerged first, then destinations row by row.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops.compat import bipartite_soft_matching_random2d
    >>> merge, unmerge = bipartite_soft_matching_random2d(torch.randn(1, 24, 8), 6, 4, 2, 2, 12, seed=1)
    >>> merge(torch.randn(1, 24, 8)).shape
    torch.Size([1, 12, 8])
    """
    op = "bipartite_soft_matching_random2d"
    rows = _metric_rows(op, metric)
    sides = (("w", w), ("h", h), ("sx", sx), ("sy", sy))
    w, h, sx, sy = (check.integer(op, name, value, 1) for name, value in sides)
    r, seed = check.integer(op, "r", r), check.integer(op, "seed", seed)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"{op}: generator: expected a torch.Generator, got {check.describe(generator)}")
    if rows.shape[1] != w * h:
        raise ValueError(f"{op}: metric: expected {h} · {w} tokens, got {check.describe(metric)}")
    if r <= 0:
        return _do_nothing, _do_nothing
    down, across = h // sy, w // sx
    if not (down and across):
        raise ValueError(f"{op}: sx, sy: expected a cell within the grid of {w}×{h} tokens, got {sx}×{sy}")
    if check.flag(op, "no_rand", no_rand):
        choices = torch.zeros(down, across, dtype=torch.int64, device=rows.device)
    elif choices is not None:
        check.tensor(op, "choices", choices, "h//sy w//sx", dtypes=(torch.int64,))
        check.same_size(op, "choices", choices, (down, across), rows.device)
        choices = choices.clamp(0, sx * sy - 1)
    elif generator is not None:
        choices = torch.randint(sx * sy, (down, across), generator=generator, device=generator.device).to(rows.device)
    else:
        choices = _hash(seed, down * across, rows.device).view(down, across) % (sx * sy)
    y = torch.arange(down, device=rows.device)[:, None] * sy + torch.div(choices, sx, rounding_mode="floor")
    x = torch.arange(across, device=rows.device) * sx + choices % sx
    is_destination = torch.zeros(h * w, dtype=torch.int64, device=rows.device)
    is_destination.scatter_(0, (y * w + x).flatten(), 1)
    # Destinations first, each set in ascending order.
    order = is_destination.argsort(descending=True, stable=True)
    a, b = order[down * across :], order[: down * across]
    return _callables(bipartite_plan(rows[:, a], rows[:, b], a, b, min(r, a.shape[0]), check.limbs(op, None, rows)))


def _of(op: str, x: Tensor, tokens: int) -> Tensor:
    """`x` of as many tokens as the metric had, of which the plan has fewer."""
    check.tensor(op, "x", x, "B N C", dtypes=())
    if x.shape[1] != tokens:
        raise ValueError(f"{op}: x: expected {tokens} tokens as the metric, got {check.describe(x)}")
    return x


def _metric_rows(op: str, metric: Tensor) -> Tensor:
    check.tensor(op, "metric", metric, "B N C")
    return check.feature_rows(op, "metric", metric)


def _hash(seed: int, count: int, device: torch.device) -> Tensor:
    """`count` numbers in [0, 2^31): two rounds of multiply and shift (constants of MurmurHash3) in 63-bit integers."""
    x = (torch.arange(count, dtype=torch.int64, device=device) + (seed & 0x7FFFFFFF) * 0x9E3779B1) & 0xFFFFFFFF
    for factor, shift in ((0x85EBCA6B, 13), (0xC2B2AE35, 16)):
        x = ((x ^ (x >> 16)) * factor) & 0xFFFFFFFF
        x = x ^ (x >> shift)
    return x & 0x7FFFFFFF


def merge_wavg(merge: Callable, x: Tensor, size: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:
    """``tome.merge.merge_wavg``: (mean weighted by token size, new sizes).

    Parameters
    ----------
    merge : callable
        From one of the functions above.
    x : Tensor
        ``[B, N, C]``.
    size : Tensor, optional
        ``[B, N, 1]``: tokens that each token stands for (default: 1 each).

    Returns
    -------
    x : Tensor
        ``[B, M, C]``, computed in float32 and rounded once.
    size : Tensor
        ``[B, M, 1]`` in the dtype of `x`, as in the original; float32 where that is uint8.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops.compat import bipartite_soft_matching, merge_wavg
    >>> merge, _ = bipartite_soft_matching(torch.tensor([[[1.0], [2.0]]]), 1)
    >>> merge_wavg(merge, torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[3.0], [1.0]]]))
    (tensor([[[1.2500]]]), tensor([[[4.]]]))
    """
    op = "merge_wavg"
    check.tensor(op, "x", x, "B N C")
    if size is None:
        size = torch.ones_like(x[..., :1], dtype=x.dtype if x.dtype.is_floating_point else torch.float32)
    check.tensor(op, "size", size, "B N 1")
    check.same_size(op, "size", size, [*x.shape[:2], 1], x.device)
    if merge is _do_nothing:
        return x, size
    plan = _plan(op, merge)
    x = _of(op, x, getattr(merge, "tokens", x.shape[1]))
    count = getattr(merge, "count", x.shape[1])
    tokens, sizes = merge_tokens(x[:, :count], plan, size[:, :count, 0].float())
    return tokens, sizes[..., None].to(x.dtype if x.dtype.is_floating_point else torch.float32)


def _plan(op: str, merge: Callable) -> MergePlan:
    plan = getattr(merge, "plan", None)
    if not isinstance(plan, MergePlan):
        raise TypeError(f"{op}: merge: expected what a matching of this module returns, got {check.describe(merge)}")
    return plan


def merge_source(merge: Callable, x: Tensor, source: Optional[Tensor] = None) -> Tensor:
    """``tome.merge.merge_source``: which original tokens each token stands for, as a dense 0/1 matrix.

    Parameters
    ----------
    merge : callable
        From one of the functions above.
    x : Tensor
        ``[B, N, C]``; its size matters where `source` is None, which gives float32.
    source : Tensor, optional
        ``[B, N, N0]`` from an earlier call.

    Returns
    -------
    Tensor
        ``[B, M, N0]``. :func:`pyramid_ops.merge_indices` tells the same in ``[B, N]``.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops.compat import bipartite_soft_matching, merge_source
    >>> x = torch.randn(1, 4, 8)
    >>> merge_source(bipartite_soft_matching(x, 1)[0], x).sum().item()
    4.0
    """
    op = "merge_source"
    check.tensor(op, "x", x, "B N C")
    if merge is not _do_nothing:
        _plan(op, merge)
    if source is None:
        source = torch.eye(x.shape[1], dtype=torch.float32, device=x.device).expand(x.shape[0], -1, -1)
    check.tensor(op, "source", source, "B N N0")
    return merge(source, mode="amax")
