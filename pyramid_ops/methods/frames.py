"""Published methods that give each frame or segment of a video its own share of tokens: features in."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.budgets import allocate_budgets_batch
from ..ops.channels import channel_variance
from ..ops.clustering import dpc_knn
from ..ops.matching import best_match
from ..ops.merging import assign_mean
from ..ops.pairs import paired_similarity
from ..ops.pooling import pool_scores, pool_tokens
from ..ops.scoring import token_norm
from ..ops.units import unit_rows
from ..plans.applied import apply
from ..plans.kept import keep as keep_tokens
from ..plans.kept import mask
from ..results import Keep

__all__ = ["fastvid", "fastvid_windows", "vidcom2"]


def vidcom2(x: Tensor, *, keep: int, temperature: float = 0.01) -> Keep:
    """VidCom2: frames that are unlike the video share more of the tokens, and of each the least common ones stay.

    Rule: of the channels the half with the least variance counts. With d the distance of a token's unit vector to the
    mean of all, or of those of its frame, g = Σ exp(−d² / 2a) over a = 1/8, 1/4, 1/2, 1, 2. Frame f gets a share of K
    in proportion to 1 + p_f − 1 / frames, p = softmax(−mean g of its tokens to the video / 0.01), and keeps the tokens
    with the least g to the video + g to the frame.

    Parameters
    ----------
    x : Tensor
        ``[B, frames, P, D]``: tokens of each frame; float16, bfloat16 or float32.
    keep : int
        K, at least a token of each frame: :func:`pyramid_ops.methods.retained.vidcom2`.
    temperature : float
        Of the softmax.

    Returns
    -------
    Keep
        For ``[B, frames · P]`` tokens, K of them in their order.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or value, or an input that requires grad.

    Notes
    -----
    Differs: shares are rounded to the sum K, the largest remainder up, where the authors round each, so that the sum
    depends on the video. Means and cosines are those of this library, in written order, but the exponentials and the
    softmax are PyTorch's, in float32: on another device a score may differ in its last bit, and with it the choice
    between near ones. Ties go to the lower index. A token of zeros is at the distance of a unit vector orthogonal to
    the mean.
    Cost: 22 launches and 30 of PyTorch; no host synchronisation.

    References
    ----------
    Liu et al., "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models",
    EMNLP 2025, arXiv 2505.14454.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> keep = methods.retained.vidcom2(36, 8, 0.25)
    >>> methods.vidcom2(torch.randn(1, 8, 36, 32), keep=keep).counts.tolist() == [keep] == [72]
    True
    """
    op = "vidcom2"
    batch, frames, size, width = _sizes(op, x)
    if not frames <= check.integer(op, "keep", keep, 0) <= frames * size:
        raise ValueError(f"{op}: keep: expected {frames}, one of each frame, to {frames * size}, got {keep}")
    if not check.number(op, "temperature", temperature) > 0:
        raise ValueError(f"{op}: temperature: expected a positive number, got {temperature}")
    flat, grid = x.flatten(1, 2), (frames, size)
    steady = mask(keep_tokens(channel_variance(flat), width // 2, largest=False))
    narrow = torch.where(steady[:, None], flat, 0)
    high, low = unit_rows(narrow, limbs=2)[0].float().unbind(2)
    units = high + low * 2.0**-11
    whole, own = pool_tokens(units, grid, (1, 1)), pool_tokens(units, grid, (frames, 1)).view(-1, 1, width)
    cosines = [paired_similarity(narrow, whole), paired_similarity(narrow.view(-1, size, width), own)]
    lengths = torch.stack([token_norm(whole).expand(batch, frames), token_norm(own).view(batch, frames)])
    near = torch.stack([part.view(batch, frames, size) for part in cosines])
    to_video, to_frame = _gaussian(near, lengths[..., None])
    unlike = -pool_scores(to_video.flatten(1), grid, window=(1, size))
    shares = torch.softmax(unlike / temperature, 1) + (1 - 1 / frames)
    budgets = allocate_budgets_batch(keep, shares, [size] * frames, minimum=1)
    scores = (to_video + to_frame).flatten(0, 1)
    chosen = mask(keep_tokens(scores, budgets.view(-1), largest=False))
    scores, chosen = (part.view(batch, frames * size) for part in (scores, chosen))
    return keep_tokens(scores, candidates=chosen, capacity=keep)


def _gaussian(cosine: Tensor, length: Tensor) -> Tensor:
    """Σ exp(−d² / 2a) over a = 1/8, 1/4, …, 2, d the distance of a unit vector to one of a length at a cosine."""
    apart = (1 + length * length - 2 * length * cosine).clamp(min=0)
    power = total = torch.exp(apart * -0.25)
    for _ in range(4):
        power = power * power
        total = total + power
    return total


def fastvid_windows(similarity: Sequence[float], *, segments: int = 8, threshold: float = 0.9) -> list[int]:
    """FastVID's segments of a video, on the host: cut where frames are least alike.

    Rule: between two frames is a cut if their cosine is one of the `segments` − 1 least, or below 0.9.

    Parameters
    ----------
    similarity : sequence of float
        Of each frame with the next: :func:`pyramid_ops.paired_similarity` of features of whole frames.
    segments : int
        How many there are at least, or one for each frame.
    threshold : float
        Below which frames are in different segments.

    Returns
    -------
    list of int
        How many frames each segment has, for :func:`fastvid`.

    Raises
    ------
    TypeError, ValueError
        For anything but a sequence of numbers, and fewer than one segment.

    Notes
    -----
    Differs: ties go to the earlier cut. The authors' feature of a frame is that of SigLIP's pooling head.
    Cost: 0 launches; the similarities have to be read from the device, once a video.

    References
    ----------
    Shen et al., "FastVID: Dynamic Density Pruning for Fast Video Large Language Models", NeurIPS 2025,
    arXiv 2503.11187.

    Examples
    --------
    >>> from pyramid_ops import methods
    >>> methods.fastvid_windows([0.99, 0.5, 0.98, 0.97, 0.96], segments=3)
    [2, 3, 1]
    """
    op = "fastvid_windows"
    values = check.sequence(op, "similarity", similarity)
    values = [check.number(op, f"similarity[{t}]", value) for t, value in enumerate(values)]
    threshold = check.number(op, "threshold", threshold)
    least = sorted(range(len(values)), key=lambda t: values[t])[: check.integer(op, "segments", segments, 1) - 1]
    cuts = sorted({*least, *(t for t, value in enumerate(values) if value < threshold)})
    return [stop - start for start, stop in itertools.pairwise([-1, *cuts, len(values)])]


def fastvid(
    x: Tensor,
    attention: Tensor,
    windows: Sequence[int],
    *,
    salient: int,
    context: int,
    step: int = 4,
    beta: float = 0.6,
) -> tuple[Tensor, Keep]:
    """FastVID: of each frame the salient tokens stay, and of each segment some that are dense take in the others.

    Rule: the `salient` tokens of a frame with the greatest attention stay as they are. Of a segment of L frames every
    `step`-th, from its last one backwards, has anchors: of A such frames each the ⌊context · L / A⌋ others at the
    greatest density peaks (DPC-KNN of 4 neighbours). All others of the segment join the most cosine-similar anchor of
    each such frame, those of a frame with just `context` anchors only its own; an anchor with the mean m of n that
    join it becomes w · anchor + (1 − w) · m, w = max(1 / (n + 1), 0.6).

    Parameters
    ----------
    x : Tensor
        ``[B, frames, P, D]``: tokens of each frame; float16, bfloat16 or float32.
    attention : Tensor
        ``[B, frames, P]``; float16, bfloat16 or float32: what the pooling head, or the class token, of the vision
        tower gives each.
    windows : sequence of int
        How many frames each segment has, all frames in sum: :func:`fastvid_windows`, or a fixed number.
    salient, context : int
        How many tokens of each kind a frame has: of int(P · ratio) the share d = 0.4, rounded down, is context.
    step : int
        Of `step` frames the last has anchors.
    beta : float
        The least share of an anchor in its token.

    Returns
    -------
    (Tensor, Keep)
        ``[B, K, D]``, tokens in the dtype of `x`, and a plan for ``[B, frames · P]`` that moves their positions: an
        anchor may take in what others do, so this is no merge. K is :func:`pyramid_ops.methods.retained.fastvid`.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or value, windows that are not all frames, more tokens than there are, or an input that
        requires grad.

    Notes
    -----
    A token with a NaN or an infinity is no anchor and joins none; where a frame lacks anchors, rows are not used.
    Differs: the authors break ties of densities by random noise of 1e-6, here they go to the lower index. Similarities,
    densities and means are those of this library; the two products, their sum and w are PyTorch's, each rounded once in
    float32, then to the dtype of `x`: the same bits on every device but where a compiler fuses them. The authors take
    one video.
    Cost: 79 launches and 61 of PyTorch for segments of three lengths, 22 and 16 for each; no host synchronisation.

    References
    ----------
    Shen et al., "FastVID: Dynamic Density Pruning for Fast Video Large Language Models", NeurIPS 2025,
    arXiv 2503.11187.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods
    >>> x, attention = torch.randn(1, 8, 36, 32), torch.rand(1, 8, 36)
    >>> tokens, plan = methods.fastvid(x, attention, [5, 3], salient=6, context=4)
    >>> tokens.shape[1] == plan.indices.shape[1] == methods.retained.fastvid([5, 3], 6, 4) == 80
    True
    """
    op = "fastvid"
    batch, frames, size, width = _sizes(op, x)
    check.tensor(op, "attention", attention, "B frames P", dtypes=check.FLOATS)
    check.same_size(op, "attention", attention, x.shape[:3], x.device)
    lengths = check.sequence(op, "windows", windows)
    lengths = [check.integer(op, f"windows[{i}]", length, 1) for i, length in enumerate(lengths)]
    if sum(lengths) != frames:
        raise ValueError(f"{op}: windows: expected {frames} frames in all, got {lengths}")
    check.integer(op, "step", step, 1)
    beta = check.number(op, "beta", beta)
    if not 0 <= beta <= 1:
        raise ValueError(f"{op}: beta: expected a number from 0 to 1, got {beta}")
    if check.integer(op, "salient", salient, 0) > size:
        raise ValueError(f"{op}: salient: expected at most the {size} tokens of a frame, got {salient}")
    others = size - salient
    most = max(_anchors(length, check.integer(op, "context", context, 0), step) for length in lengths)
    if others < most:
        raise ValueError(f"{op}: context: expected at most {others} anchors of a frame, all but salient, got {most}")
    rows, total = x.reshape(-1, size, width), frames * size
    best = keep_tokens(attention.reshape(-1, size), salient)
    rest = keep_tokens(attention.reshape(-1, size), others, candidates=~mask(best))
    place = (torch.arange(len(rows) * size, device=x.device) % total).view(-1, size)
    found = [[part.reshape(batch, frames * salient, *part.shape[2:]) for part in apply(best, [rows, place])]]
    tokens, at = (part.view(batch, frames, others, *part.shape[2:]) for part in apply(rest, [rows, place]))
    starts = list(itertools.accumulate([0, *lengths]))
    for length in sorted({*lengths}) if context else []:
        here = [slice(start, start + length) for start, n in zip(starts, lengths, strict=False) if n == length]
        own, own_at = (torch.stack([part[:, where] for where in here], 1) for part in (tokens, at))
        found.append(_contexts(own, own_at, context, step, beta))
    values, indices = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    there = indices >= 0
    order = torch.where(there, indices, total).argsort(1)
    plan = Keep(order, there.sum(1, dtype=torch.int32), order.shape[1])
    return apply(plan, values), Keep(apply(plan, indices, fill=-1), plan.counts, total)


def _anchors(length: int, context: int, step: int) -> int:
    """How many anchors each frame that has some has, in a segment of so many frames."""
    return context * length // -(-length // step)


def _contexts(x: Tensor, at: Tensor, context: int, step: int, beta: float) -> list[Tensor]:
    """Tokens and places `[B, M, …]` of the anchors of segments of one length `[B, segments, frames, P, D]`."""
    (batch, segments, length, size, width), count = x.shape, _anchors(x.shape[2], context, step)
    anchored = slice((length - 1) % step, None, step)
    own, own_at = (part[:, :, anchored].reshape(-1, size, *part.shape[4:]) for part in (x, at))
    found = dpc_knn(own, count, 4)
    kept = Keep(found.centers, found.counts, size)
    anchors, places = apply(kept, own), apply(kept, own_at, fill=-1)
    joining = own
    if count > context:
        frames = -(-length // step)
        joining = x.flatten(2, 3)[:, :, None].expand(-1, -1, frames, -1, -1).flatten(0, 2)
    partner = best_match(joining, anchors, key_mask=places >= 0, precision="high").indices
    means, sizes = assign_mean(joining, partner, count)
    weight = (1 / (sizes + 1)).clamp(min=beta)[..., None]
    values = (weight * anchors.float() + (1 - weight) * means.float()).to(x.dtype)
    rows = segments * -(-length // step) * count
    return [values.view(batch, rows, width), places.view(batch, rows)]


def _sizes(op: str, x: Tensor) -> tuple[int, int, int, int]:
    check.tensor(op, "x", x, "B frames P D", dtypes=check.FLOATS)
    if not x.shape[1] or not x.shape[2]:
        raise ValueError(f"{op}: x: expected at least one frame of one token, got {check.describe(x)}")
    return x.shape[0], x.shape[1], x.shape[2], x.shape[3]
