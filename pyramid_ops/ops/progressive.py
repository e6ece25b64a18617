"""Selection one pyramid level at a time."""

from collections.abc import Callable, Sequence
from typing import Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from ..results import LevelSelection
from .attention import received
from .gathering import gather_levels
from .pyramid import can_halve, check_filter, filter_taps, halve
from .selection import level_scores, select_topk_levels

__all__ = ["progressive_select"]


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
        saliency = received
    check.choice(op, "order", order, "saliency", "index")
    taps = filter_taps(op, sigma, kernel_size, taps)
    check_filter(op, padding, downsample)

    kept: list[Tensor] = []
    places: list[Tensor] = []
    kept_scores: list[Tensor] = []
    for level, budget in enumerate(budgets):
        if level:
            if not can_halve(images, downsample):
                raise ValueError(f"{op}: budgets: expected at most {level} levels for the images, got {len(budgets)}")
            images = halve(images, taps, padding, downsample)
        tokens = _encoded(op, level, encode(images), images, kept)
        if budget > tokens.shape[1]:
            raise ValueError(
                f"{op}: budgets[{level}]: expected at most the {tokens.shape[1]} tokens of level {level}, got {budget}"
            )
        scores = saliency if isinstance(saliency, str) else level_scores(op, [saliency(tokens)], [tokens])
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
    return check.feature_rows(op, name, tokens)
