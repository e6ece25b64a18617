"""Top-k over the levels of a pyramid."""

from collections.abc import Sequence
from typing import Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from ..reference import selection as reference
from ..results import LevelSelection
from .attention import received
from .budgets import allocate_again, token_total

__all__ = ["select_topk_levels"]

# Default weights for so many levels.
_FALLING = {1: (1.0,), 2: (4 / 7, 3 / 7), 3: (4 / 9, 3 / 9, 2 / 9), 4: (0.4, 0.3, 0.2, 0.1)}


def _select_topk_levels_fake(
    levels: Sequence[Tensor], scores: Sequence[Tensor], saliency: str, budgets: Sequence[int], by_index: bool
) -> tuple[Tensor, Tensor]:
    batch, _, width = levels[0].shape
    total = sum(budgets)
    return levels[0].new_empty(batch, total, width), levels[0].new_empty(batch, total, 2, dtype=torch.int64)


select_topk_levels_op = Op(reference.select_topk_levels, _select_topk_levels_fake)


def select_topk_levels(
    pyramid_features: Sequence[Tensor],
    target_tokens: int = 273,
    level_weights: Union[str, Sequence[float], None] = "falling",
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
    level_weights : "falling", sequence of float, or None
        Share of each level, see :func:`allocate_budgets`; a level of weight 0 gives no token. "falling", for one to
        four levels: the first so many of (0.4, 0.3, 0.2, 0.1), over their sum. None: one top-k over the union of all
        levels.
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
        level, more tokens than the levels hold, more than four levels without `level_weights` or `budgets`, or an
        input that requires grad.

    Notes
    -----
    The order is total: higher score first, among equal scores the lower level, then the lower index; −0 equals 0; NaN
    ranks above +inf. So the same tokens on every device, for any tile, batch or stride. Two kernel launches in order of
    saliency where the pairs of tokens within levels (for one top-k over all: of all tokens) are at most 2²⁴ in the
    batch, else three; with "attention" those of :func:`attention_importance` for each level too. No host
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
    levels = check.level_rows(op, "pyramid_features", pyramid_features, "B N D")
    sizes = [level.shape[1] for level in levels]
    check.choice(op, "order", order, "saliency", "index")
    scores: list[Tensor] = []
    if isinstance(saliency, str):
        check.choice(op, "saliency", saliency, "variance", "norm", "attention")
    if isinstance(saliency, str) and saliency == "attention":
        saliency = [received(level) for level in levels]
    if not isinstance(saliency, str):
        scores = level_scores(op, saliency, levels)
        saliency = "given"
    if budgets is not None:
        budgets = _check_budgets(op, budgets, sizes)
    elif level_weights is None:
        budgets = [token_total(op, "target_tokens", target_tokens, sizes)]
    else:
        if isinstance(level_weights, str):
            check.choice(op, "level_weights", level_weights, "falling")
            if len(levels) not in _FALLING:
                raise ValueError(
                    f"{op}: level_weights: expected one for each of {len(levels)} levels, got the default for at most 4"
                )
            level_weights = _FALLING[len(levels)]
        budgets = allocate_again(op, "target_tokens", "level_weights", target_tokens, level_weights, sizes)
    return LevelSelection(*select_topk_levels_op(levels, scores, saliency, budgets, order == "index"))


def level_scores(op: str, saliency: Sequence[Tensor], levels: Sequence[Tensor], layout: str = "B N") -> list[Tensor]:
    if not isinstance(saliency, (list, tuple)):
        raise TypeError(
            f"{op}: saliency: expected 'variance', 'norm', 'attention' or a list of tensors, got "
            f"{check.describe(saliency)}"
        )
    scores = check.tensors(op, "saliency", saliency, layout, dtypes=check.FLOATS, packed=layout == "T")
    if len(scores) != len(levels):
        raise ValueError(f"{op}: saliency: expected one tensor for each of {len(levels)} levels, got {len(scores)}")
    for k, (score, level) in enumerate(zip(scores, levels, strict=True)):
        check.same_size(op, f"saliency[{k}]", score, level.shape[:-1], level.device)
    return [score.resolve_neg() for score in scores]


def _check_budgets(op: str, budgets: Sequence[int], sizes: Sequence[int]) -> list[int]:
    values = [check.integer(op, f"budgets[{k}]", b, 0) for k, b in enumerate(check.sequence(op, "budgets", budgets))]
    if len(values) != len(sizes):
        raise ValueError(f"{op}: budgets: expected one for each of {len(sizes)} levels, got {len(values)}")
    for k, (budget, size) in enumerate(zip(values, sizes, strict=True)):
        if budget > size:
            raise ValueError(f"{op}: budgets[{k}]: expected at most the {size} tokens of level {k}, got {budget}")
    return values
