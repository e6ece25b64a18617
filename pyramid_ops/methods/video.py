"""Published methods that prune the frames of a video: features in, plans out."""

import itertools
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.clustering import dpc_knn
from ..ops.grouping import join_tokens_op
from ..ops.merging import assign_mean
from ..ops.pairs import paired_similarity
from ..ops.scoring import token_norm
from ..ops.units import unit_rows
from ..plans.applied import apply
from ..plans.joined import merge_by_rows, then
from ..plans.kept import keep as keep_tokens
from ..plans.kept import mask
from ..results import Keep, Merge

__all__ = ["drop_frames", "dycoke", "evs", "prunevid", "prunevid_windows"]

#: PruneVid clusters sets of more tokens than this.
_SMALL = 14


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


def prunevid_windows(clusters: Sequence[int]) -> list[int]:
    """PruneVid's segments of a video, on the host: clusters of frames made contiguous.

    Rule: of each cluster its longest run of frames stays, all of them if several are as long, none if they are single
    frames; a run of other frames joins the longer one of its neighbours, the earlier of equals. What is then a run is a
    window.

    Parameters
    ----------
    clusters : sequence of int
        The cluster of each frame: ``assignment`` of :func:`pyramid_ops.dpc_knn` of the means of frames, int(0.25 · T)
        clusters of T frames, with 7 neighbours.

    Returns
    -------
    list of int
        How many frames each window has, for :func:`prunevid`.

    Raises
    ------
    TypeError, ValueError
        For anything but a sequence of integers.

    Notes
    -----
    Differs: nothing, but the clusters: densities of frames that are equal are random in the authors' code.
    Cost: 0 launches; the clusters have to be read from the device, once a video.

    References
    ----------
    Huang et al., "PruneVid: Visual Token Pruning for Efficient Video Large Language Models", ACL 2025,
    arXiv 2412.16117.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> from pyramid_ops import methods
    >>> methods.prunevid_windows([0, 0, 0, 1, 0, 1, 1, 1, 2])
    [5, 4]
    """
    op = "prunevid_windows"
    labels = check.sequence(op, "clusters", clusters)
    labels = [check.integer(op, f"clusters[{t}]", label) for t, label in enumerate(labels)]
    longest: dict[int, int] = {}
    runs = [(label, len([*run])) for label, run in itertools.groupby(labels)]
    for label, length in runs:
        longest[label] = max(length, longest.get(label, 2))
    found: list[tuple[object, int]] = []
    for label, length in runs:
        stays = length == longest[label]
        if not stays and found and found[-1][0] is None:
            found[-1] = (None, found[-1][1] + length)
        else:
            found.append((label if stays else None, length))
    windows: list[tuple[object, int]] = []
    for place, (label, length) in enumerate(found):
        if label is None and windows:
            after = found[place + 1][1] if place + 1 < len(found) else 0
            label = windows[-1][0] if windows[-1][1] >= after else found[place + 1][0]
        elif label is None:
            label = found[1][0] if len(found) > 1 else 0
        if windows and windows[-1][0] == label:
            windows[-1] = (label, windows[-1][1] + length)
        else:
            windows.append((label, length))
    return [length for _, length in windows]


def prunevid(
    x: Tensor, windows: Sequence[int], *, threshold: float = 0.8, ratio: float = 0.5, neighbours: int = 7
) -> tuple[Merge, Tensor]:
    """PruneVid before the language model: what stands still is merged in time, and what is alike in space.

    Rule: in a window a place is static where the mean cosine of its tokens at different times exceeds 0.8; they become
    their mean. The static places of a window, and the others of each frame, are sets: one of n > 14 is clustered by
    DPC-KNN into int(0.5 · n), and each cluster becomes its mean.

    Parameters
    ----------
    x : Tensor
        ``[B, frames, P, D]``: tokens of each frame; float16, bfloat16 or float32.
    windows : sequence of int
        How many frames each window has, all frames in sum: :func:`prunevid_windows`, or a fixed number.
    threshold, ratio : float
        From where on places are static, and which share of a set is left.
    neighbours : int
        Of the densities of DPC-KNN.

    Returns
    -------
    (Merge, Tensor)
        A plan for ``[B, frames · P]`` tokens: of each window the static set, then those of its frames, each in the
        order of the centers, or of the places where it is not clustered. int32 ``[B, windows + frames]``: how many
        rows each set has, from which come the `groups` of :func:`prunevid_llm`.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or value, windows that are not all frames, or an input that requires grad.

    Notes
    -----
    A row of a static place is owned by its token in the first frame of the window. Windows of one frame have no static
    places. A mean is of all tokens at once, which is that of means in time, up to rounding.
    Differs: cosines are of rows rounded to 2⁻²¹; the authors break ties of densities by random noise of 1e-6, here they
    go to the lower index. They take one video.
    Cost: 39 launches and 58 of PyTorch for eight frames in four windows, two more for each window; no host
    synchronisation.

    References
    ----------
    Huang et al., "PruneVid: Visual Token Pruning for Efficient Video Large Language Models", ACL 2025,
    arXiv 2412.16117.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods, plans
    >>> x = torch.randn(1, 8, 36, 32)
    >>> x[:, 1:4, :20] = x[:, :1, :20]
    >>> plan, sizes = methods.prunevid(x, [4, 4])
    >>> sizes.tolist()
    [[10, 8, 8, 8, 8, 0, 18, 18, 18, 18]]
    >>> plans.apply(plan, x.flatten(1, 2))[:, : plan.counts[0]].shape
    torch.Size([1, 114, 32])
    """
    op = "prunevid"
    batch, frames, size = _frames(op, x)
    lengths = check.sequence(op, "windows", windows)
    lengths = [check.integer(op, f"windows[{i}]", length, 1) for i, length in enumerate(lengths)]
    if sum(lengths) != frames:
        raise ValueError(f"{op}: windows: expected {frames} frames in all, got {lengths}")
    threshold, ratio = check.number(op, "threshold", threshold), check.number(op, "ratio", ratio)
    count, flat = len(lengths), x.flatten(1, 2)
    window, limits = torch.empty(frames, dtype=torch.int64, device=x.device), torch.empty(count, device=x.device)
    for i, (start, length) in enumerate(zip([0, *itertools.accumulate(lengths)], lengths, strict=False)):
        window[start : start + length] = i
        # |mean|² = (1 + (n − 1) · mean cosine) / n of n unit rows; of a single one there is no other.
        limits[i] = math.sqrt(max(0.0, threshold * (length - 1) + 1) / length) if length > 1 else math.inf
    place, frame = torch.arange(size, device=x.device), torch.arange(frames, device=x.device)
    over_time = (window[:, None] * size + place).flatten().expand(batch, -1)
    high, low = unit_rows(flat, limbs=2)[0].float().unbind(2)
    norms = token_norm(assign_mean(high + low * 2.0**-11, over_time, count * size).tokens)
    still = norms.view(batch, count, size) > limits[:, None]
    means = assign_mean(flat, over_time, count * size).tokens.view(batch, count, size, x.shape[3])
    # Sets of windows, then those of frames: of each the frame it begins with, and its place in the plan.
    number = torch.arange(count, device=x.device)
    first = torch.searchsorted(window, number)
    begins = torch.cat([first, frame])[:, None] * size
    at = torch.cat([first + number, frame + window + 1])
    there = torch.cat([still, ~still[:, window]], 1)
    owners, rows = _clustered(torch.cat([means, x], 1).flatten(0, 1), there.flatten(0, 1), ratio, neighbours)
    owners, rows = (part.view(batch, count + frames, size) for part in (owners, rows))
    tokens = torch.empty_like(owners)
    tokens[:, at] = torch.where(owners < 0, -1, owners + begins)
    rows = torch.where(rows < 0, -1, rows + at[:, None] * size)
    fixed, moving = rows[:, window], rows[:, count:]
    used = keep_tokens(torch.zeros(tokens.flatten(1).shape, device=x.device), candidates=(tokens >= 0).flatten(1))
    plan = Keep(tokens.flatten(1), used.counts, frames * size)
    with_gaps = merge_by_rows(plan, torch.where(moving < 0, fixed, moving).flatten(1))
    return cast(Merge, then(with_gaps, used)), (tokens >= 0).sum(2, dtype=torch.int32)


def _clustered(x: Tensor, there: Tensor, ratio: float, neighbours: int) -> tuple[Tensor, Tensor]:
    """(the token that owns each row, the row of each token) of sets of tokens `[S, P, D]`, clustered if they are large.

    Both `[S, P]`, −1 for none.
    """
    size = x.shape[1]
    some = keep_tokens(torch.zeros(there.shape, device=x.device), candidates=there)
    large = some.counts > _SMALL
    many = torch.where(large, (some.counts.double() * ratio).to(torch.int32), some.counts)
    # A row that is not there is infinite, and so in no cluster.
    found = dpc_knn(apply(some, x, fill=math.inf), many, neighbours, capacity=size)
    merge = cast(Merge, then(some, merge_by_rows(Keep(found.centers, found.counts, size), found.assignment)))
    alone = join_tokens_op(some.indices, None, None, size)
    owners = torch.where(large[:, None], merge.indices, some.indices)
    return owners, torch.where(large[:, None], merge.rows, alone)


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
