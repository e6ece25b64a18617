"""Choosing tokens: top-k in each level, the gather that follows, and both one level at a time."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor

from . import _checks as check
from ._dispatch import Op
from .budgets import allocate, token_total
from .numerics import feature_rows
from .pyramid import _can_halve, _options, _step, _taps

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


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
    saliency : "variance", "norm" or list of Tensor
        :func:`token_variance`, :func:`token_norm`, or a score per token: float tensors ``[B, N_k]``.
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
    ranks above +inf. So the same tokens on every device, for any tile, batch or stride. Three kernel launches, no host
    synchronisation, levels are never concatenated. Levels that are not contiguous in their last dimension are copied
    first.

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
    levels = check.tensors(op, "pyramid_features", pyramid_features, "B N D")
    levels = [feature_rows(op, f"pyramid_features[{k}]", level) for k, level in enumerate(levels)]
    sizes = [level.shape[1] for level in levels]
    check.choice(op, "order", order, "saliency", "index")
    scores: list[Tensor] = []
    if isinstance(saliency, str):
        check.choice(op, "saliency", saliency, "variance", "norm")
    else:
        scores = _check_scores(op, saliency, levels)
        saliency = "given"
    if budgets is not None:
        budgets = _check_budgets(op, budgets, sizes)
    elif level_weights is None:
        budgets = [token_total(op, "target_tokens", target_tokens, sizes)]
    else:
        budgets = allocate(op, "target_tokens", "level_weights", target_tokens, level_weights, sizes)
    return LevelSelection(*_select_topk_levels(levels, scores, saliency, budgets, order == "index"))


def _check_scores(op: str, saliency: Sequence[Tensor], levels: Sequence[Tensor]) -> list[Tensor]:
    if not isinstance(saliency, (list, tuple)):
        raise TypeError(
            f"{op}: saliency: expected 'variance', 'norm' or a list of tensors, got {check.describe(saliency)}"
        )
    scores = check.tensors(op, "saliency", saliency, "B N", dtypes=_FLOATS)
    if len(scores) != len(levels):
        raise ValueError(f"{op}: saliency: expected one tensor for each of {len(levels)} levels, got {len(scores)}")
    for k, (score, level) in enumerate(zip(scores, levels, strict=True)):
        if score.shape != level.shape[:2] or score.device != level.device:
            raise ValueError(
                f"{op}: saliency[{k}]: expected {list(level.shape[:2])} on {level.device}, got {check.describe(score)}"
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
    layout = "B N " + " ".join("F" * max(levels[0].dim() - 2, 0))
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
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    rows = [check.rows(level.reshape(*level.shape[:2], math.prod(features))).view(bits) for level in levels]
    return _gather_levels(rows, indices).view(dtype).reshape(batch, indices.shape[1], *features)


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
    saliency : "variance", "norm" or callable
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
        check.choice(op, "saliency", saliency, "variance", "norm")
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
