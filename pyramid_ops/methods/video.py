"""Published methods that prune the frames of a video: features in, plans out."""

from typing import cast

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.pairs import paired_similarity
from ..plans.kept import keep as keep_tokens
from ..plans.kept import mask
from ..results import Keep

__all__ = ["drop_frames", "dycoke", "evs"]


def evs(x: Tensor, *, keep: int) -> Keep:
    """EVS: of a video the tokens stay that differ from those at the same place of the frame before.

    Rule: all of the first frame, and of the others the tokens with the least cosine to the frame before, K in all.

    Parameters
    ----------
    x : Tensor
        ``[B, frames, P, D]``: tokens of each frame, after the merger of the vision tower; float16, bfloat16 or float32.
    keep : int
        K, at least the P of the first frame: :func:`pyramid_ops.methods.retained.evs`.

    Returns
    -------
    Keep
        For ``[B, frames · P]`` tokens.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or value, or an input that requires grad.

    Notes
    -----
    Differs: vLLM subtracts the cosine from 1 in the dtype of the features, which makes near ones equal, bfloat16 most;
    here cosines are exact to 2⁻³⁰ of rows rounded to 2⁻²¹. Equal ones go to the earlier token, as there.
    Cost: 4 launches and 6 of PyTorch; no host synchronisation.

    References
    ----------
    Bagrov et al., "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference",
    arXiv 2510.14624; vLLM's ``compute_retention_mask``.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods, plans
    >>> x, keep = torch.randn(1, 8, 36, 32), methods.retained.evs(36, 8, 0.75)
    >>> plans.mask(methods.evs(x, keep=keep)).sum().item() == keep == 72
    True
    """
    _, frames, size = _frames("evs", x)
    if not size <= check.integer("evs", "keep", keep, 0) <= frames * size:
        raise ValueError(f"evs: keep: expected {size}, the first frame, to {frames * size}, got {keep}")
    scores, first = _blank(x)
    scores[:, 1:], first[:, 0] = _cosines(x[:, 1:], x[:, :-1]), True
    scores, first = scores.flatten(1), first.flatten(1)
    return keep_tokens(scores, keep - size, forced=first, capacity=keep, largest=False)


def dycoke(x: Tensor, *, keep: int) -> Keep:
    """DyCoke's merging in time: of most frames only the tokens stay that differ from an earlier one.

    Rule: frames 0, 4, 8, … stay whole. Of frame 2i + 1 the `keep` tokens stay with the least cosine to frame 2i, of
    frame 4j + 2 those with the least cosine to frame 4j.

    Parameters
    ----------
    x : Tensor
        ``[B, frames, P, D]``: tokens of each frame; float16, bfloat16 or float32.
    keep : int
        How many of P: int(P · (1 − ratio)), a ratio of 0.7 in the paper.

    Returns
    -------
    Keep
        For ``[B, frames · P]`` tokens; :func:`pyramid_ops.methods.retained.dycoke` of them.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or value, or an input that requires grad.

    Notes
    -----
    Differs: tokens of a frame stay in their order, the authors' by similarity. Their code drops the last of an odd
    number of frames, and keeps frame 4j + 2 whole where there is no frame 4j + 4: here the rule is the same to the end.
    Ties go to the lower index.
    Cost: 9 launches and 10 of PyTorch; no host synchronisation.

    References
    ----------
    Tao et al., "DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models", arXiv 2411.15024.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> plan = methods.dycoke(torch.randn(1, 8, 10, 32), keep=3)
    >>> plan.counts.tolist() == [methods.retained.dycoke(10, 8, keep=3)] == [2 * 10 + 6 * 3]
    True
    """
    batch, frames, size = _frames("dycoke", x)
    if check.integer("dycoke", "keep", keep, 0) > size:
        raise ValueError(f"dycoke: keep: expected at most the {size} tokens of a frame, got {keep}")
    scores, whole = _blank(x)
    pairs, fours = frames // 2, (frames + 1) // 4
    scores[:, 1::2] = _cosines(x[:, 1::2], x[:, : 2 * pairs : 2])
    scores[:, 2::4] = _cosines(x[:, 2::4], x[:, : 4 * fours : 4])
    whole[:, ::4] = True
    each = keep_tokens(scores.view(-1, size), keep, forced=whole.view(-1, size), largest=False)
    count = (frames + 3) // 4 * size + (frames - (frames + 3) // 4) * keep
    return keep_tokens(scores.flatten(1), candidates=mask(each).view(batch, -1), capacity=count)


def drop_frames(frames: Tensor, *, threshold: float = 0.9) -> Keep:
    """The described first stage of PruneVid: frames that are like the one before go.

    Rule: a frame stays where its cosine to the frame before is below 0.9; the first and the last do.

    Parameters
    ----------
    frames : Tensor
        ``[B, frames, D]``: a feature of each frame, such as the mean of its tokens; float16, bfloat16 or float32.
    threshold : float
        From where on frames are alike.

    Returns
    -------
    Keep
        For ``[B, frames]``; how many stay is in `counts` on the device. Tokens of frames go with them:
        ``plans.apply(plan, x.flatten(2))``.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.paired_similarity` and :func:`pyramid_ops.plans.keep`.

    Notes
    -----
    Differs: a variant that is described, not the paper's, which clusters frames. A frame with a NaN or an infinity is
    like none.
    Cost: 4 launches and 7 of PyTorch; no host synchronisation.

    References
    ----------
    Described for PruneVid (arXiv 2412.16117).

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> frames = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [0.0, 1.0]]])
    >>> methods.drop_frames(frames).indices
    tensor([[ 0,  2,  4, -1, -1]])
    """
    check.tensor("drop_frames", "frames", frames, "B F D", dtypes=check.FLOATS)
    threshold = check.float32("drop_frames", "threshold", threshold)
    scores, ends = (part[:, :, 0] for part in _blank(frames[:, :, None]))
    scores[:, 1:] = _cosines(frames[:, 1:, None], frames[:, :-1, None])[:, :, 0]
    ends[:, :1], ends[:, -1:] = True, True
    return keep_tokens(scores.contiguous(), threshold=threshold, forced=ends.contiguous(), largest=False)


def _frames(op: str, x: Tensor) -> tuple[int, int, int]:
    check.tensor(op, "x", x, "B frames P D", dtypes=check.FLOATS)
    if not x.shape[1]:
        raise ValueError(f"{op}: x: expected at least one frame, got {check.describe(x)}")
    return cast(tuple[int, int, int], tuple(x.shape[:3]))


def _blank(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and flags of `[B, F, P, D]` tokens, 0 and False."""
    shape = x.shape[:3]
    return torch.zeros(shape, device=x.device), torch.zeros(shape, dtype=torch.bool, device=x.device)


def _cosines(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of each row of `[B, F, P, D]` with the one at its place."""
    width = x.shape[3]
    return paired_similarity(x.reshape(-1, width), y.reshape(-1, width)).view(x.shape[:3])
