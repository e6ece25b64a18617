"""Choosing tokens: top-k in each level, the gather that follows, and both one level at a time."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor

from . import _checks as check
from ._dispatch import Op
from .budgets import allocate, token_total
from .numerics import feature_rows

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
