"""A threshold of the scores of each segment."""

from fractions import Fraction
from typing import Literal, Optional

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from ..reference import thresholds as reference
from ..reference.arguments import Rule

__all__ = ["segment_threshold"]

# Of a quantile's fraction: more digits than are written, and exact in float32.
_DENOMINATOR = 1 << 20


def _segment_threshold_fake(
    scores: Tensor, candidates: Optional[Tensor], cu_seqlens: Optional[Tensor], max_seqlen: int, rule: Rule
) -> Tensor:
    segments = scores.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return scores.new_empty(segments, dtype=torch.float32)


segment_threshold_op = Op(reference.segment_threshold, _segment_threshold_fake)


def segment_threshold(
    scores: Tensor,
    cu_seqlens: Optional[Tensor] = None,
    rule: Literal["mean", "quantile", "iqr"] = "mean",
    *,
    q: float = 0.5,
    factor: float = 1.5,
    max_seqlen: Optional[int] = None,
    candidates: Optional[Tensor] = None,
) -> Tensor:
    """A threshold for each sample or packed segment from its own scores: how many tokens are above it is up to them.

    Parameters
    ----------
    scores : Tensor
        ``[B, N]``, or packed ``[T]`` with `cu_seqlens`; float16, bfloat16 or float32; at most 2³⁰ for each sample.
    cu_seqlens : Tensor, optional
        int32 or int64 ``[S + 1]``: segment s is ``scores[cu_seqlens[s] : cu_seqlens[s + 1]]``. Offsets are clamped to
        [0, T], negative lengths to 0.
    rule : "mean", "quantile" or "iqr"
        The mean; the quantile at `q`; or Q3 + `factor` · (Q3 − Q1), where Q1 and Q3 are the quantiles at 1/4 and 3/4:
        what is above are outliers.
    q : float
        From 0 to 1, for "quantile". It stands for the nearest fraction with a denominator of at most 2²⁰: 0.9 is 9/10.
    factor : float
        For "iqr", finite in float32.
    max_seqlen : int, optional
        Length of the longest segment (default: T). Of a longer one only the first `max_seqlen` scores count.
    candidates : Tensor, optional
        bool in the shape of the scores: those that count (default: all).

    Returns
    -------
    Tensor
        float32 ``[B]`` or ``[S]``. NaN where no score counts, and where one that counts is NaN: no score is above it.
        ``scores > threshold[:, None]`` are the candidates for what comes next.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype, device, value or option, or an input that requires grad.

    Notes
    -----
    The mean is a float32 sum over their number: lane j of 256 adds the scores j, j + 256, …, what does not count being
    +0, then adjacent lanes are added in pairs, adjacent sums in pairs, and so on. A quantile lies between the order
    statistics a and b around place (n − 1) · q, of which t is the fraction, as ``torch.quantile`` and ``np.quantile``
    interpolate: a + (b − a) · t, or b − (b − a) · (1 − t) from t = 1/2 on, in float32; exactly a where t is 0 or b
    equals a. Where b − a is not finite it is a · (1 − t) + b · t, so an infinity stays one beside a number. −0 equals
    0. One launch: a program selects from each segment by radix, without a sort. The same bits on every device, for any
    tile, batch or stride. No host synchronisation. Scores that are not contiguous in their last dimension are copied
    first.

    References
    ----------
    SparseVLM (arXiv 2410.04417) takes as raters the text tokens above their mean: "mean" of
    ``text_relevance(..., reduction="softmax")``. LLaVA-PruMerge (arXiv 2403.15388) keeps as many tokens as are above
    "iqr".

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> scores = torch.tensor([[1.0, 2.0, 3.0, 4.0, 50.0]])
    >>> pyramid_ops.segment_threshold(scores), pyramid_ops.segment_threshold(scores, rule="iqr")
    (tensor([12.]), tensor([7.]))
    >>> bounds = torch.tensor([0, 3, 5])
    >>> pyramid_ops.segment_threshold(scores[0], bounds, "quantile", q=0.25)
    tensor([ 1.5000, 15.5000])
    """
    op = "segment_threshold"
    check.tensor(op, "scores", scores, "B N" if cu_seqlens is None else "T", dtypes=check.FLOATS)
    check.packed_size(op, "scores", scores.shape[-1])
    check.choice(op, "rule", rule, "mean", "quantile", "iqr")
    q, factor = check.number(op, "q", q), check.float32(op, "factor", factor)
    if not 0 <= q <= 1:
        raise ValueError(f"{op}: q: expected a number from 0 to 1, got {q}")
    if candidates is not None:
        check.tensor(op, "candidates", candidates, "B N" if cu_seqlens is None else "T", dtypes=(torch.bool,))
        check.same_size(op, "candidates", candidates, scores.shape, scores.device)
    if cu_seqlens is None:
        if max_seqlen is not None:
            raise ValueError(f"{op}: max_seqlen: expected only with cu_seqlens, got {max_seqlen}")
    else:
        cu_seqlens = check.cu_seqlens(op, "cu_seqlens", cu_seqlens, scores)
        scores, candidates = scores[None], None if candidates is None else candidates[None]
    scores = check.rows(scores)
    max_seqlen = check.longest(op, "max_seqlen", max_seqlen, scores.shape[1])
    place = Fraction(q).limit_denominator(_DENOMINATOR) if rule == "quantile" else Fraction(0)
    options = Rule(rule, place.numerator, place.denominator, factor)
    return segment_threshold_op(scores, candidates, cu_seqlens, max_seqlen, options)
