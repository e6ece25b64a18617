"""Choosing tokens: top-k of segments and of levels, the gather that follows, and both one level at a time."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Optional, Union

import numpy as np
import torch
from torch import Tensor

from . import _checks as check
from . import attention  # a module, since it imports this one
from ._dispatch import Op
from .budgets import allocate_again, token_total
from .numerics import feature_rows, level_rows
from .pyramid import _can_halve, _options, _step, _taps


class LevelSelection(NamedTuple):
    """Selected tokens ``[B, K, D]`` and where they came from: int64 ``[B, K, 2]``, (level, index in level)."""

    tokens: Tensor
    indices: Tensor


def _select_fake(
    levels: Sequence[Tensor], scores: Sequence[Tensor], saliency: str, budgets: Sequence[int], by_index: bool
) -> tuple[Tensor, Tensor]:
    batch, _, width = levels[0].shape
    total = sum(budgets)
    return levels[0].new_empty(batch, total, width), levels[0].new_empty(batch, total, 2, dtype=torch.int64)


_select_topk_levels = Op("selection", "select_topk_levels", _select_fake)
_gather_levels = Op(
    "selection",
    "gather_levels",
    lambda levels, indices: levels[0].new_empty(*indices.shape[:2], levels[0].shape[2]),
)


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


def _segmented_topk_fake(
    scores: Tensor,
    cu_seqlens: Tensor,
    k: Sequence[int],
    k_tensor: Optional[Tensor],
    max_seqlen: int,
    capacity: int,
    by_index: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    segments = cu_seqlens.shape[0] - 1
    return (
        scores.new_empty(segments, capacity),
        scores.new_empty(segments, capacity, dtype=torch.int64),
        cu_seqlens.new_empty(segments),
    )


def _select_packed_fake(
    levels: Sequence[Tensor],
    cu_seqlens: Sequence[Tensor],
    scores: Sequence[Tensor],
    saliency: str,
    budgets: Sequence[int],
    budget_tensor: Optional[Tensor],
    max_seqlen: int,
    capacity: int,
    by_index: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch = cu_seqlens[0].shape[0] - 1
    return (
        levels[0].new_empty(batch * capacity, levels[0].shape[1]),
        levels[0].new_empty(batch * capacity, 2, dtype=torch.int64),
        levels[0].new_empty(batch * capacity, 2, dtype=torch.int64),
        levels[0].new_empty(batch + 1, dtype=torch.int32),
        levels[0].new_empty(batch, len(levels), dtype=torch.int32),
    )


_segmented_topk = Op("selection", "segmented_topk", _segmented_topk_fake)
_select_topk_levels_packed = Op("selection", "select_topk_levels_packed", _select_packed_fake)


def select_topk_levels(
    pyramid_features: Sequence[Tensor],
    target_tokens: int = 273,
    level_weights: Optional[Sequence[float]] = (0.4, 0.3, 0.2, 0.1),
    *,
    saliency: Union[str, Sequence[Tensor]] = "variance",
    order: str = "saliency",
    budgets: Optional[Sequence[int]] = None,
) -> LevelSelection:
    """Keep the most salient tokens of each pyramid level: the drop-in for per-level ``topk`` + ``gather`` + ``cat``.

    Parameters
    ----------
    pyramid_features : list of Tensor
        ``[B, N_k, D]`` for each level, level 0 the finest; uint8, float16, bfloat16 or float32; D from 1 to 16384.
    target_tokens : int
        K, the number of tokens to keep in each sample.
    level_weights : sequence of float, or None
        Share of each level, see :func:`allocate_budgets`. None: one top-k over the union of all levels.
    saliency : "variance", "norm", "attention" or list of Tensor
        :func:`token_variance`, :func:`token_norm`, the mean attention a token receives from its level (the features as
        q and k of one head, see :func:`attention_importance`), or a score per token: float tensors ``[B, N_k]``.
    order : "saliency" or "index"
        Order of the tokens that are kept: levels in order and within a level by descending saliency or by index. For
        the union: by descending saliency over all levels, or by level, then index.
    budgets : sequence of int, optional
        Tokens to keep in each level, in place of `target_tokens` and `level_weights`.

    Returns
    -------
    LevelSelection
        ``tokens`` ``[B, K, D]`` in the dtype of the features, bits unchanged, and ``indices`` int64 ``[B, K, 2]``:
        (level, index in the level), as :func:`gather_levels` takes them.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or option, levels or scores that do not match, a budget above the size of its
        level, more tokens than the levels hold, or an input that requires grad.

    Notes
    -----
    The order is total: higher score first, among equal scores the lower level, then the lower index; −0 equals 0; NaN
    ranks above +inf. So the same tokens on every device, for any tile, batch or stride. Three kernel launches (with
    "attention" those of :func:`attention_importance` for each level too), no host synchronisation, levels are never
    concatenated. Levels that are not contiguous in their last dimension are copied first.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> levels = [torch.randn(2, n, 32) for n in (4096, 1024, 256, 64)]
    >>> tokens, indices = pyramid_ops.select_topk_levels(levels, target_tokens=273)
    >>> tokens.shape, indices.shape
    (torch.Size([2, 273, 32]), torch.Size([2, 273, 2]))
    >>> torch.equal(tokens, pyramid_ops.gather_levels(levels, indices))
    True
    """
    op = "select_topk_levels"
    levels = level_rows(op, "pyramid_features", pyramid_features, "B N D")
    sizes = [level.shape[1] for level in levels]
    check.choice(op, "order", order, "saliency", "index")
    scores: list[Tensor] = []
    if isinstance(saliency, str):
        check.choice(op, "saliency", saliency, "variance", "norm", "attention")
    if saliency == "attention":
        saliency = [attention.received(level) for level in levels]
    if not isinstance(saliency, str):
        scores = _check_scores(op, saliency, levels)
        saliency = "given"
    if budgets is not None:
        budgets = _check_budgets(op, budgets, sizes)
    elif level_weights is None:
        budgets = [token_total(op, "target_tokens", target_tokens, sizes)]
    else:
        budgets = allocate_again(op, "target_tokens", "level_weights", target_tokens, level_weights, sizes)
    return LevelSelection(*_select_topk_levels(levels, scores, saliency, budgets, order == "index"))


def _check_scores(op: str, saliency: Sequence[Tensor], levels: Sequence[Tensor], layout: str = "B N") -> list[Tensor]:
    if not isinstance(saliency, (list, tuple)):
        raise TypeError(
            f"{op}: saliency: expected 'variance', 'norm', 'attention' or a list of tensors, got "
            f"{check.describe(saliency)}"
        )
    scores = check.tensors(op, "saliency", saliency, layout, dtypes=check.FLOATS, packed=layout == "T")
    if len(scores) != len(levels):
        raise ValueError(f"{op}: saliency: expected one tensor for each of {len(levels)} levels, got {len(scores)}")
    for k, (score, level) in enumerate(zip(scores, levels, strict=True)):
        if score.shape != level.shape[:-1] or score.device != level.device:
            raise ValueError(
                f"{op}: saliency[{k}]: expected {list(level.shape[:-1])} on {level.device}, got {check.describe(score)}"
            )
    return [score.resolve_neg() for score in scores]


def _check_budgets(op: str, budgets: Sequence[int], sizes: Sequence[int]) -> list[int]:
    values = [check.integer(op, f"budgets[{k}]", b, 0) for k, b in enumerate(check.sequence(op, "budgets", budgets))]
    if len(values) != len(sizes):
        raise ValueError(f"{op}: budgets: expected one for each of {len(sizes)} levels, got {len(values)}")
    for k, (budget, size) in enumerate(zip(values, sizes, strict=True)):
        if budget > size:
            raise ValueError(f"{op}: budgets[{k}]: expected at most the {size} tokens of level {k}, got {budget}")
    return values


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
        if level.shape[0] not in (1, batch) or level.device != indices.device:
            raise ValueError(
                f"{op}: levels[{k}]: expected a batch size of 1 or {batch} on {indices.device}, got "
                f"{check.describe(level)}"
            )
    dtype, features = levels[0].dtype, levels[0].shape[2:]
    rows = [
        check.rows(level.reshape(*level.shape[:2], math.prod(features))).view(check.bits(dtype)) for level in levels
    ]
    return _gather_levels(rows, indices).view(dtype).reshape(batch, indices.shape[1], *features)


_MOST_INTEGERS = 256


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
        int32 ``[S + 1]``: segment s is ``scores[cu_seqlens[s] : cu_seqlens[s + 1]]``.
    k : int, sequence of int, or Tensor
        How many to take: one number, one for each segment, or int32 ``[S]`` on the device. A sequence holds at most
        256 numbers, and its length is compiled into the kernels; use a tensor for more.
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
    to 0, k to [0, min(length, capacity)], so none can make it fault. Two kernel launches for segments of up to 16384
    scores or more than 1024 segments, else six; more than 4096 slots in order of value are sorted. Scores that are not
    contiguous are copied first.

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
    size = check.packed_size(op, "scores", len(scores))
    cu_seqlens = check.cu_seqlens(op, "cu_seqlens", cu_seqlens, scores)
    segments = len(cu_seqlens) - 1
    max_seqlen = min(check.integer(op, "max_seqlen", max_seqlen, 0), size)
    check.choice(op, "order", order, "value", "index")
    k_tensor = None
    if isinstance(k, Tensor):
        k_tensor, k = check.device_integers(op, "k", k, scores, "S", segments), [0]
        if capacity is None:
            raise ValueError(f"{op}: capacity: expected a number where k is a tensor, got None")
    elif isinstance(k, (int, np.integer, torch.SymInt)):
        k = [check.integer(op, "k", k, 0)]
    else:
        k = _numbers(op, "k", k, segments, "segments") or [0]
    capacity = max(k) if capacity is None else check.integer(op, "capacity", capacity, 0)
    check.packed_size(op, "capacity", segments * capacity)
    return SegmentedTopK(*_segmented_topk(scores, cu_seqlens, k, k_tensor, max_seqlen, capacity, order == "index"))


def _numbers(op: str, name: str, values: Sequence[int], count: int, what: str) -> list[int]:
    numbers = [check.integer(op, f"{name}[{k}]", v, 0) for k, v in enumerate(check.sequence(op, name, values))]
    if len(numbers) != count:
        raise ValueError(f"{op}: {name}: expected one for each of {count} {what}, got {len(numbers)}")
    if len(numbers) > _MOST_INTEGERS:
        raise ValueError(
            f"{op}: {name}: expected at most {_MOST_INTEGERS} numbers, or an int32 tensor, got {len(numbers)}"
        )
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
        int32 ``[B + 1]`` for each level: the tokens of sample b are rows ``cu_seqlens[k][b]`` to
        ``cu_seqlens[k][b + 1]`` of level k.
    budgets : sequence of int, or Tensor
        Tokens to keep in each level of every sample, or int32 ``[B, L]`` on the device. A level that has fewer tokens
        gives all it has.
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
    16384 and there are at most 1024 segments. Levels that are not contiguous in their last dimension are copied first.

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
    levels = level_rows(op, "pyramid_features", pyramid_features, "T D")
    check.packed_size(op, "pyramid_features", sum(len(level) for level in levels))
    if not isinstance(cu_seqlens, (list, tuple)):
        raise TypeError(f"{op}: cu_seqlens: expected a list of tensors, got {check.describe(cu_seqlens)}")
    if len(cu_seqlens) != len(levels):
        raise ValueError(f"{op}: cu_seqlens: expected one for each of {len(levels)} levels, got {len(cu_seqlens)}")
    first = check.cu_seqlens(op, "cu_seqlens[0]", cu_seqlens[0], levels[0])
    batch = len(first) - 1
    bounds = [check.cu_seqlens(op, f"cu_seqlens[{k}]", x, levels[0], batch) for k, x in enumerate(cu_seqlens)]
    max_seqlen = min(check.integer(op, "max_seqlen", max_seqlen, 0), max(len(level) for level in levels))
    check.choice(op, "order", order, "saliency", "index")
    scores: list[Tensor] = []
    if isinstance(saliency, str):
        check.choice(op, "saliency", saliency, "variance", "norm", "attention")
    if saliency == "attention":
        saliency = [attention.received(x, cu, max_seqlen) for x, cu in zip(levels, bounds, strict=True)]
    if not isinstance(saliency, str):
        scores = _check_scores(op, saliency, levels, "T")
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
    selected = _select_topk_levels_packed(
        levels, bounds, scores, saliency, budgets, budget_tensor, max_seqlen, capacity, order == "index"
    )
    return PackedLevelSelection(*selected)


def progressive_select(
    images: Tensor,
    encode: Callable[[Tensor], Tensor],
    budgets: Sequence[int],
    *,
    target_tokens: Optional[int] = None,
    saliency: Union[str, Callable[[Tensor], Tensor]] = "variance",
    order: str = "saliency",
    sigma: float = 1.0,
    kernel_size: int = 5,
    taps: Optional[Sequence[float]] = None,
    padding: str = "zeros",
    downsample: str = "mean",
) -> LevelSelection:
    """Build, encode and select one pyramid level at a time, so that only one level's tokens are held at once.

    The same tokens and indices as :func:`gaussian_pyramid`, `encode` for each level and :func:`select_topk_levels`.

    Parameters
    ----------
    images : Tensor
        ``[B, C, H, W]`` as :func:`gaussian_pyramid` takes them; level 0.
    encode : callable
        Level images ``[B, C, H_k, W_k]`` to tokens ``[B, N_k, D]``; called once for each level, finest first.
    budgets : sequence of int
        Tokens to keep of each level, which gives the number of levels too.
    target_tokens : int, optional
        Keep the best of these over all levels by a final top-k over the union. Equal to
        ``select_topk_levels(levels, target_tokens, None)`` where each budget is at least the smaller of `target_tokens`
        and the size of its level; smaller budgets also bound what a level can hold.
    saliency : "variance", "norm", "attention" or callable
        As :func:`select_topk_levels`, or a function of the tokens of a level that returns scores ``[B, N_k]``.
    order : "saliency" or "index"
        As :func:`select_topk_levels`.
    sigma, kernel_size, taps, padding, downsample
        The filter, as :func:`gaussian_pyramid` takes it.

    Returns
    -------
    LevelSelection
        ``tokens`` ``[B, K, D]`` and ``indices`` int64 ``[B, K, 2]``, as :func:`select_topk_levels`.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or option, tokens that do not match the images or level 0, a budget above the
        size of its level, more levels than the images can be halved, or tokens that require grad.

    Notes
    -----
    Held at a time: the images of a level, its tokens, and the selected tokens of the levels before, which are
    sum(budgets) rows. With halved levels the finest holds three quarters of all tokens, so at most a quarter of them
    is saved, and of what `encode` itself needs for more than one level at a time.

    Examples
    --------
    >>> import functools, torch, pyramid_ops
    >>> encode = functools.partial(pyramid_ops.patchify, patch_size=16)
    >>> tokens, indices = pyramid_ops.progressive_select(torch.rand(1, 3, 128, 128), encode, (20, 8, 2))
    >>> tokens.shape, indices[0, -1].tolist()[0]
    (torch.Size([1, 30, 768]), 2)
    """
    op = "progressive_select"
    check.tensor(op, "images", images, "B C H W")
    budgets = [check.integer(op, f"budgets[{k}]", b, 0) for k, b in enumerate(check.sequence(op, "budgets", budgets))]
    if not budgets:
        raise ValueError(f"{op}: budgets: expected one for each level, got none")
    if target_tokens is not None:
        target_tokens = check.integer(op, "target_tokens", target_tokens, 0)
        if target_tokens > sum(budgets):
            raise ValueError(f"{op}: target_tokens: expected at most {sum(budgets)}, the budgets, got {target_tokens}")
    if not callable(encode):
        raise TypeError(f"{op}: encode: expected a function, got {check.describe(encode)}")
    if not callable(saliency):
        check.choice(op, "saliency", saliency, "variance", "norm", "attention")
    if saliency == "attention":
        saliency = attention.received
    check.choice(op, "order", order, "saliency", "index")
    taps = _taps(op, sigma, kernel_size, taps)
    _options(op, padding, downsample)

    kept: list[Tensor] = []
    places: list[Tensor] = []
    kept_scores: list[Tensor] = []
    for level, budget in enumerate(budgets):
        if level:
            if not _can_halve(images, downsample):
                raise ValueError(f"{op}: budgets: expected at most {level} levels for the images, got {len(budgets)}")
            images = _step(images, taps, padding, downsample)
        tokens = _encoded(op, level, encode(images), images, kept)
        if budget > tokens.shape[1]:
            raise ValueError(
                f"{op}: budgets[{level}]: expected at most the {tokens.shape[1]} tokens of level {level}, got {budget}"
            )
        scores = saliency if isinstance(saliency, str) else _check_scores(op, [saliency(tokens)], [tokens])
        # In either order equal scores stand by index, so the union breaks ties as if no level had been cut.
        selected, place = select_topk_levels([tokens], saliency=scores, order=order, budgets=[budget])
        if not isinstance(scores, str):
            kept_scores.append(gather_levels(scores, place))
        place[..., 0] = level
        kept.append(selected)
        places.append(place)
        del tokens, scores
    if target_tokens is None:
        return LevelSelection(torch.cat(kept, 1), torch.cat(places, 1))
    # A token's score does not depend on the other tokens, so the kept tokens give the scores again, bit for bit.
    final = saliency if isinstance(saliency, str) else kept_scores
    tokens, place = select_topk_levels(kept, target_tokens, None, saliency=final, order=order)
    return LevelSelection(tokens, gather_levels(places, place))


def _encoded(op: str, level: int, tokens: Tensor, images: Tensor, kept: Sequence[Tensor]) -> Tensor:
    name = f"encode(level {level})"
    check.tensor(op, name, tokens, "B N D")
    first = kept[0] if kept else tokens
    if tokens.shape[0] != images.shape[0] or tokens.device != images.device:
        raise ValueError(
            f"{op}: {name}: expected the batch size {images.shape[0]} and device {images.device} of the images, got "
            f"{check.describe(tokens)}"
        )
    if tokens.dtype != first.dtype or tokens.shape[2] != first.shape[2]:
        raise ValueError(
            f"{op}: {name}: expected the dtype and feature size of level 0 ({check.describe(first)}), got "
            f"{check.describe(tokens)}"
        )
    return feature_rows(op, name, tokens)
