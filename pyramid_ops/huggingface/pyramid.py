"""The pyramid pipeline: an image's levels through a model's own tower, and the best tokens of all."""

from collections.abc import Callable, Sequence
from typing import Any, Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from .. import methods
from ..ops.pyramid import gaussian_pyramid
from ..results import LevelSelection

__all__ = ["pyramid_tokens", "select"]


def pyramid_tokens(
    model: Any,
    pixel_values: Tensor,
    *,
    keep: int,
    levels: int = 3,
    weights: Union[str, Sequence[float], None] = "falling",
    saliency: Any = "variance",
    level_embedding: Optional[Tensor] = None,
) -> LevelSelection:
    """The tokens of an image pyramid that a LLaVA model would read: no handle, no prompt.

    Parameters
    ----------
    model : transformers.LlavaModel or LlavaForConditionalGeneration
        Whose vision tower takes images of any size, with ``interpolate_pos_encoding``.
    pixel_values : Tensor
        ``[B, 3, H, W]``, as the model takes them: each level of it a multiple of the patch size.
    keep : int
        How many tokens of an image.
    levels : int
        Levels of the pyramid, each half the size of the one before.
    weights, saliency : optional
        As in :func:`pyramid_ops.methods.pyramid_select`.
    level_embedding : Tensor, optional
        ``[levels, D]``: added to the tokens of each level, as a model that was trained with it has it.

    Returns
    -------
    LevelSelection
        Tokens ``[B, keep, D]``, level by level and in a level in their order, and (level, index in the level).

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.gaussian_pyramid` and :func:`pyramid_ops.methods.pyramid_select`, and for a level that
        patches do not divide.

    Examples
    --------
    See :func:`apply`, whose method "pyramid" gives these tokens to the language model.
    """
    encode = model.base_model.get_image_features
    vision = model.config.vision_config
    patch, own = vision.patch_size, vision.image_size
    size = [own, own] if isinstance(own, int) else list(own)
    other = {} if list(pixel_values.shape[-2:]) == size else {"interpolate_pos_encoding": True}
    finest = torch.stack(list(encode(pixel_values=pixel_values, return_dict=True, **other).pooler_output))
    return select(encode, finest, pixel_values, patch, {}, keep, levels, weights, saliency, level_embedding)


def select(
    encode: Callable[..., Any],
    finest: Tensor,
    pixel_values: Tensor,
    patch: int,
    given: dict[str, Any],
    keep: int,
    levels: int,
    weights: Any,
    saliency: Any,
    level_embedding: Optional[Tensor],
) -> LevelSelection:
    """With the features of the finest level, which are there already."""
    op = "pyramid"
    step = patch << (check.integer(op, "levels", levels, 1) - 1)
    if pixel_values.shape[-1] % step or pixel_values.shape[-2] % step:
        raise ValueError(f"{op}: levels: expected images of a multiple of {step}, got {check.describe(pixel_values)}")
    tokens = [finest]
    for image in gaussian_pyramid(pixel_values, levels)[1:]:
        coarse = encode(pixel_values=image, interpolate_pos_encoding=True, return_dict=True, **given)
        tokens.append(torch.stack(list(coarse.pooler_output)))
    kept = methods.pyramid_select(tokens, keep=keep, weights=weights, saliency=saliency, order="index")
    if level_embedding is None:
        return kept
    if not isinstance(level_embedding, Tensor):
        raise TypeError(f"{op}: level_embedding: expected a tensor, got {check.describe(level_embedding)}")
    if level_embedding.shape != (levels, finest.shape[2]):
        expected = f"[{levels}, {finest.shape[2]}]"
        raise ValueError(f"{op}: level_embedding: expected {expected}, got {check.describe(level_embedding)}")
    return kept._replace(tokens=kept.tokens + level_embedding.to(kept.tokens)[kept.indices[..., 0]])
