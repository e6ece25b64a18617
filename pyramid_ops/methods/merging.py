"""Published methods that merge image tokens after the vision encoder: scores and features in, plans out."""

from typing import cast

import torch
from torch import Tensor

from .. import _checks as check
from ..plans.applied import apply
from ..plans.halves import tome
from ..plans.joined import join, then
from ..plans.kept import keep as keep_tokens
from ..plans.kept import mask
from ..results import Keep, Merge

__all__ = ["aim_merge", "visionzip", "vscan"]


def aim_merge(x: Tensor, *, rounds: int = 2) -> list[Merge]:
    """AIM before the language model: tokens of a frame merged in pairs, to a half and to a quarter.

    Rule: ToMe's bipartite matching of all N tokens, r = ⌊N / 2⌋; a merged token is the mean of the destination and its
    sources; then again with what is left.

    Parameters
    ----------
    x : Tensor
        ``[B, N, D]``: tokens of each frame or image; float16, bfloat16, float32 or uint8.
    rounds : int
        How often: 2 leave about a quarter.

    Returns
    -------
    list of Merge
        A plan for each round, for the tokens that the one before gives: to be applied one after the other, so that
        means are those of the paper. :func:`pyramid_ops.plans.then` makes one plan of them, with means of all tokens.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.plans.tome`.

    Notes
    -----
    Rows are in ToMe's order: what was not merged, by descending similarity, then destinations.
    Differs: equal similarities go to the lower index, where the authors' are up to ``argsort``; sums are in a written
    order.
    Cost: 12 launches; no N × N matrix, no host synchronisation.

    References
    ----------
    Zhong et al., "AIM: Adaptive Inference of Multi-Modal LLMs via Token Merging and Pruning", arXiv 2412.03248.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods, plans
    >>> frames = torch.randn(3, 196, 32)
    >>> for plan in methods.aim_merge(frames):
    ...     frames = plans.apply(plan, frames)
    >>> frames.shape
    torch.Size([3, 49, 32])
    """
    made: list[Merge] = []
    for _ in range(check.integer("aim_merge", "rounds", rounds, 1)):
        x = apply(made[-1], x) if made else x
        made.append(tome(x, x.shape[1] // 2))
    return made


def visionzip(attention: Tensor, metric: Tensor, *, dominant: int, contextual: int) -> tuple[Keep, Merge]:
    """VisionZip: the patches that dominate the class token's attention stay, the others are merged into a few.

    Rule: dominant are the top patches of the attention. Of the n others in their order, every ⌊n / contextual⌋-th is a
    target, and each one else joins the target with the greatest cosine of `metric`.

    Parameters
    ----------
    attention : Tensor
        ``[B, N]``: from :func:`class_attention` at the layer before the last.
    metric : Tensor
        ``[B, N, D]``: the keys of that layer, averaged over heads.
    dominant, contextual : int
        How many tokens of each kind.

    Returns
    -------
    (Keep, Merge)
        The dominant tokens in their order and the contextual ones, which the model reads after them: as one plan
        ``plans.concat(*both)``.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.plans.keep` and :func:`pyramid_ops.plans.join`, and for more tokens than there are.

    Notes
    -----
    Differs: the authors keep the class token too, and take as a contextual token the target plus the mean of those that
    join it; :func:`pyramid_ops.plans.apply` takes the mean of all. Theirs is::

        joined = plan.rows.masked_fill(plans.mask(plan), -1)
        plans.apply(plan, x, mode="owner") + pyramid_ops.assign_mean(x, joined, contextual).tokens

    Equal similarities go to the lower target. Only where all samples have N patches: the stride is one number.
    Cost: 19 launches and 6 of PyTorch, on small tensors; no N × N matrix, no host synchronisation.

    References
    ----------
    Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", arXiv 2412.04467: 54 + 10.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods, plans
    >>> attention, metric, x = torch.rand(2, 16), torch.randn(2, 16, 8), torch.randn(2, 16, 32)
    >>> both = methods.visionzip(attention, metric, dominant=4, contextual=2)
    >>> plans.apply(plans.concat(*both), x).shape
    torch.Size([2, 6, 32])
    """
    op = "visionzip"
    check.tensor(op, "attention", attention, "B N", dtypes=check.FLOATS)
    batch, size = attention.shape
    check.tensor(op, "metric", metric, "B N D")
    check.same_size(op, "metric", metric[..., 0], attention.shape, attention.device)
    others = size - check.integer(op, "dominant", dominant, 0)
    if others < 1:
        raise ValueError(f"{op}: dominant: expected less than {size}, the tokens, got {dominant}")
    if check.integer(op, "contextual", contextual, 1) > others:
        raise ValueError(f"{op}: contextual: expected at most {others}, the other tokens, got {contextual}")
    first = keep_tokens(attention, dominant)
    rest = keep_tokens(attention, others, candidates=~mask(first))
    targets = torch.arange(0, others, others // contextual, device=attention.device)[:contextual]
    counts = torch.full((batch,), contextual, dtype=torch.int32, device=attention.device)
    chosen = Keep(targets.expand(batch, -1).contiguous(), counts, others)
    return first, cast(Merge, then(rest, join(apply(rest, metric), chosen)))


def vscan(
    x: Tensor,
    shallow: Tensor,
    deep: Tensor,
    *,
    keep: int,
    grid: tuple[int, int],
    window: tuple[int, int] = (6, 6),
) -> Merge:
    """VScan after the encoder: patches that matter in their window and in the image stay, the others join them.

    Rule: of each window the top ⌊⌊K / 2⌋ / windows⌋ of a shallow layer stay, of all others the top of a deep one, K in
    all. Each one else joins the one that stays with the greatest cosine: (x + Σ joined) / (1 + n).

    Parameters
    ----------
    x : Tensor
        ``[B, N, D]``: the patches; float16, bfloat16, float32 or uint8.
    shallow, deep : Tensor
        ``[B, N]``: :func:`class_attention` of a shallow layer and of the layer before the last.
    keep : int
        K, the tokens that are left.
    grid : (int, int)
        Rows and columns of patches, N in all.
    window : (int, int)
        Rows and columns of a window, which divide those of the grid.

    Returns
    -------
    Merge
        With K rows in the order of the patches.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or value, or an input that requires grad.

    Notes
    -----
    Without a class token the paper takes the attention that a patch receives from all.
    Differs: ties go to the lower index. Half of K that the windows do not share equally goes to the deep layer.
    Cost: 14 launches and 5 of PyTorch; no N × N matrix, no host synchronisation.

    References
    ----------
    Zhang et al., "VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models",
    arXiv 2505.22654.

    Examples
    --------
    >>> import torch
    >>> from pyramid_ops import methods, plans
    >>> x, shallow, deep = torch.randn(2, 144, 32), torch.rand(2, 144), torch.rand(2, 144)
    >>> plans.apply(methods.vscan(x, shallow, deep, keep=24, grid=(12, 12)), x).shape
    torch.Size([2, 24, 32])
    """
    op = "vscan"
    check.tensor(op, "deep", deep, "B N", dtypes=check.FLOATS)
    batch, size = deep.shape
    check.tensor(op, "shallow", shallow, "B N", dtypes=check.FLOATS)
    check.same_size(op, "shallow", shallow, [batch, size], deep.device)
    (rows, columns), (high, wide) = check.pair(op, "grid", grid), check.pair(op, "window", window)
    if rows * columns != size or rows % high or columns % wide:
        raise ValueError(
            f"{op}: window: expected one that divides a grid of {size} patches, got {high}×{wide} of {rows}×{columns}"
        )
    if check.integer(op, "keep", keep, 0) > size:
        raise ValueError(f"{op}: keep: expected at most the {size} patches, got {keep}")
    down, across = rows // high, columns // wide
    each = keep // 2 // (down * across)
    cells = shallow.reshape(batch, down, high, across, wide).transpose(2, 3).reshape(-1, high * wide)
    cells = mask(keep_tokens(cells, each)).view(batch, down, across, high, wide)
    local = cells.transpose(2, 3).reshape(batch, size)
    rest = keep - each * down * across
    return join(x, keep_tokens(deep, rest, candidates=~local, forced=local, capacity=keep))
