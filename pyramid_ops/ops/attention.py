"""Importance of tokens from attention, without the attention matrix."""

from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from .._op import Op
from .._packed import ascending
from ..reference import attention as reference
from ..reference.arguments import Chosen, Keys, Queries, Reduction, Segments, Softmax, Span
from .centering import center_keys_op, center_logits_op
from .queries import consecutive, index_list, query_positions

__all__ = ["attention_importance"]

LOG2_E = 1.4426950408889634


def _attention_importance_fake(query: Tensor, key: Tensor, *_: object) -> Tensor:
    return query.new_empty(query.shape[0], key.shape[2], dtype=torch.float32)


attention_importance_op = Op(reference.attention_importance, _attention_importance_fake)


def attention_importance(
    query: Tensor,
    key: Tensor,
    *,
    scale: Optional[float] = None,
    causal: bool = False,
    softcap: Optional[float] = None,
    temperature: float = 1.0,
    query_indices: Union[Sequence[int], Tensor, None] = None,
    query_mask: Optional[Tensor] = None,
    query_weights: Optional[Tensor] = None,
    key_mask: Optional[Tensor] = None,
    key_range: Union[tuple[int, int], Tensor, None] = None,
    head_reduction: str = "mean",
    query_reduction: str = "mean",
    reduce_first: str = "heads",
    cu_seqlens_q: Optional[Tensor] = None,
    cu_seqlens_k: Optional[Tensor] = None,
    max_seqlen_q: Optional[int] = None,
    max_seqlen_k: Optional[int] = None,
    log_sum_exp: Optional[Tensor] = None,
    center_keys: bool = False,
    precision: Optional[str] = None,
) -> Tensor:
    """The attention that each key receives, straight from q and k: no attention matrix is stored.

    With ``A = softmax(softcap(query @ key.T * scale) / temperature)`` over all keys in sight, the mean, sum or greatest
    A over queries and the mean, sum, greatest or root mean square over heads.

    Parameters
    ----------
    query, key : Tensor
        ``[B, H, Nq, D]`` and ``[B, Hkv, Nk, D]`` as attention takes them, or packed ``[Tq, H, D]`` and
        ``[Tk, Hkv, D]``; float16, bfloat16 or float32; H a multiple of Hkv: query head h uses key head h // (H // Hkv).
    scale : float, optional
        Default: 1 / √D.
    causal : bool
        Query i sees the keys j ≤ i + Nk − Nq: the last query sees all.
    softcap : float, optional
        Logits become softcap · tanh(logits / softcap).
    temperature : float
        Logits are divided by it, after the soft cap.
    query_indices : sequence of int, or Tensor, optional
        Queries that count (default: all). A list for every sample or segment alike, where negative numbers count from
        its end: ``[-1]`` is the last query. Or an int32 or int64 tensor ``[M]`` or ``[B, M]`` (packed: ``[S, M]``,
        within the segment) on the device, where entries outside the queries, such as −1, are unused slots.
    query_mask : Tensor, optional
        bool ``[B, Nq]``: the queries that count. Few of them cost little. Not for packed queries, which take weights.
    query_weights : Tensor, optional
        float32 ``[B, Nq]`` or ``[Tq]``, at least 0 and below 2¹²⁶: what each query counts. Anything else makes the
        scores of its sample or segment NaN.
    key_mask : Tensor, optional
        bool ``[B, Nk]`` or ``[Tk]``: the keys that there are (default: all). No query sees the others, such as padding,
        and they get 0.
    key_range : (int, int) or Tensor, optional
        First key and one past the last that scores are wanted for, such as the image's columns. The softmax runs over
        all keys all the same. Or int32 or int64 ``[B, 2]`` (packed: ``[S, 2]``, within the segment) on the device, one
        range for each: keys outside of it get 0.
    head_reduction : "mean", "sum", "max" or "rms"
    query_reduction : "mean", "sum" or "max"
        The mean divides by the queries that see the key, or by the sum of their weights; it is 0 if there are none.
        A greatest value is that of weight · A.
    reduce_first : "heads" or "queries"
        Which reduction comes first: a maximum and a mean do not commute.
    cu_seqlens_q, cu_seqlens_k : Tensor, optional
        int32 or int64 ``[S + 1]``: segments of packed rows. An offset outside the tensor is clamped, one below an
        earlier one counts as that one.
    max_seqlen_q, max_seqlen_k : int, optional
        Rows of the longest segment (default: all rows); rows of a segment past it are left out.
    log_sum_exp : Tensor, optional
        float32 ``[B, H, Nq]`` or ``[H, Tq]``, the natural logarithm of the sum of exp of each query's logits, as
        FlashAttention returns it: saves two of three passes. Probabilities are at most 1 then.
    center_keys : bool
        Subtract the mean key of each head first. Softmax does not change, but keys with a large common part keep more
        of their differences. Not with `softcap`.
    precision : "grid", "high" or None
        As in :func:`best_match`.

    Returns
    -------
    Tensor
        float32 ``[B, Nk]``, or ``[B, stop - start]`` of a pair `key_range`; packed ``[Tk]``, 0 outside of segments and
        range. A query that sees no key contributes 0.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or option, head counts that do not divide, a range or index outside, or an input
        that requires grad.

    Notes
    -----
    Cosines of unit rows are exact (:func:`unit_rows`), norms are multiplied back, 2^x is a written polynomial, and
    probabilities are added as integers in units of 2⁻³⁰: the same bits on every device, for any tile or batch. Query
    rows with a NaN or an infinity contribute 0, such keys get 0; norms and norms · scale above 2⁶⁰ count as 2⁶⁰.
    Memory is O(Nq + Nk) per head. No host synchronisation.

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> key = torch.tensor([[[[4.0, 0.0], [0.0, 4.0], [0.0, 0.0]]]])
    >>> query = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]])
    >>> pyramid_ops.attention_importance(query, key, query_indices=[-1]).argmax().item()
    0
    """
    op = "attention_importance"
    q, k, packed = checked_heads(op, query, key)
    check.choice(op, "head_reduction", head_reduction, "mean", "sum", "max", "rms")
    check.choice(op, "query_reduction", query_reduction, "mean", "sum", "max")
    check.choice(op, "reduce_first", reduce_first, "heads", "queries")
    check.flag(op, "causal", causal)
    check.flag(op, "center_keys", center_keys)
    base2, cap = base2_scale(op, q.shape[3] ** -0.5 if scale is None else scale, softcap, temperature)
    limbs = check.limbs(op, precision, q, k)
    offsets, longest = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
    segments, parts = checked_segments(op, q, k, packed, offsets, longest)
    pair = None if isinstance(key_range, Tensor) else key_range
    span = _checked_span(op, pair, segments.max_seqlen_k, packed)
    if center_keys and softcap is not None:
        raise ValueError(f"{op}: center_keys: expected without softcap, got both")
    of_keys = _checked_keys(op, key_mask, key_range, k, parts, packed)
    if sum(x is not None for x in (query_indices, query_mask, query_weights)) > 1:
        raise ValueError(f"{op}: query_indices, query_mask, query_weights: expected at most one of them, got more")
    query_weights = _checked_rows(op, "query_weights", query_weights, q, packed, "Nq")
    if query_mask is not None:
        if packed:
            raise ValueError(
                f"{op}: query_mask: expected dense queries, got {check.describe(query)} (weights of 0 and 1)"
            )
        check.tensor(op, "query_mask", query_mask, "B Nq", dtypes=(torch.bool,))
        check.same_size(op, "query_mask", query_mask, [q.shape[0], q.shape[2]], q.device)
    log_sum_exp = _checked_rows(op, "log_sum_exp", log_sum_exp, q, packed, "H Nq")
    if not (parts and q.shape[2] and k.shape[2]):
        scores = torch.zeros(k.shape[0], k.shape[2], dtype=torch.float32, device=k.device)
        return scores[0] if packed else scores[:, span.start : span.stop].contiguous()

    if query_indices is not None and not isinstance(query_indices, Tensor):
        query_indices = index_list(op, query_indices, segments.max_seqlen_q)
        view = None if packed else consecutive(query_indices, segments.max_seqlen_q, causal)
        if view is not None:
            q, segments = q[:, :, view], segments._replace(max_seqlen_q=len(query_indices))
            query_indices, log_sum_exp = None, None if log_sum_exp is None else log_sum_exp[:, :, view]
    chosen = Chosen(mask=query_mask, weights=query_weights)
    if query_indices is not None:
        from_end = not isinstance(query_indices, Tensor)
        chosen = Chosen(query_positions(op, query_indices, parts, packed, q.device), from_end)
    if center_keys:
        k, means = center_keys_op(k, of_keys.mask, segments.cu_seqlens_k, segments.max_seqlen_k)
        if log_sum_exp is not None:
            log_sum_exp = center_logits_op(log_sum_exp, q, means, segments.cu_seqlens_q, base2 / LOG2_E)
    of, softmax = Queries(log_sum_exp=log_sum_exp), Softmax(causal, base2, cap, limbs)
    reduction = Reduction(head_reduction, query_reduction, reduce_first == "heads")
    scores = attention_importance_op(q, k, of, segments, span, softmax, reduction, chosen, of_keys)
    if packed:
        return scores[0]
    return scores if span.stop - span.start == scores.shape[1] else scores[:, span.start : span.stop].contiguous()


def checked_segments(
    op: str,
    q: Tensor,
    k: Tensor,
    packed: bool,
    offsets: tuple[Optional[Tensor], Optional[Tensor]],
    longest: tuple[Optional[int], Optional[int]],
    names: tuple[str, str] = ("q", "k"),
) -> tuple[Segments, int]:
    """Ascending offsets and longest segments of rows `[B, …, N, D]`, and how many segments or samples there are."""
    (cu_q, cu_k), bounds = offsets, [f"cu_seqlens_{name}" for name in names]
    if (cu_q is None) != (not packed) or (cu_k is None) != (not packed):
        layout = "[T, H, D]" if q.dim() == 4 else "[T, D]"
        expected = "offsets of both packed tensors" if packed else f"offsets only with packed {layout} rows"
        raise ValueError(f"{op}: {', '.join(bounds)}: expected {expected}, got {check.describe(q)}")
    most = []
    for name, value, x in zip(names, longest, (q, k), strict=True):
        if value is not None and not packed:
            raise ValueError(f"{op}: max_seqlen_{name}: expected only with {' and '.join(bounds)}, got {value}")
        most.append(check.longest(op, f"max_seqlen_{name}", value, x.shape[-2]))
    if cu_q is None or cu_k is None:
        return Segments(None, None, *most), q.shape[0]
    cu_q = check.cu_seqlens(op, bounds[0], cu_q, q)
    parts = cu_q.shape[0] - 1
    cu_k = check.cu_seqlens(op, bounds[1], cu_k, k, parts)
    return Segments(ascending(cu_q), ascending(cu_k), *most), parts


def _checked_span(op: str, key_range: Any, longest: int, packed: bool) -> Span:
    if key_range is None:
        return Span(0, longest)
    values = check.sequence(op, "key_range", key_range)
    if len(values) != 2:
        raise ValueError(f"{op}: key_range: expected (start, stop), got {key_range!r}")
    start, stop = (check.integer(op, f"key_range[{i}]", value, 0) for i, value in enumerate(values))
    if start > stop or (stop > longest and not packed):
        raise ValueError(f"{op}: key_range: expected 0 <= start <= stop <= {longest}, got {key_range!r}")
    return Span(start, min(stop, longest))


def _checked_keys(op: str, mask: Optional[Tensor], ranges: Any, k: Tensor, parts: int, packed: bool) -> Keys:
    if mask is not None:
        check.tensor(op, "key_mask", mask, "Tk" if packed else "B Nk", dtypes=(torch.bool,))
        check.same_size(op, "key_mask", mask, k.shape[2:3] if packed else [k.shape[0], k.shape[2]], k.device)
        mask = mask[None] if packed else mask
    if not isinstance(ranges, Tensor):
        return Keys(mask, None)
    check.tensor(op, "key_range", ranges, "S 2" if packed else "B 2", dtypes=(torch.int32, torch.int64))
    check.same_size(op, "key_range", ranges, [parts, 2], k.device)
    return Keys(mask, ranges)


def _checked_rows(op: str, name: str, x: Optional[Tensor], q: Tensor, packed: bool, layout: str) -> Optional[Tensor]:
    """A number for each query, or for each of every head, with a batch dimension."""
    if x is None:
        return None
    check.tensor(op, name, x, layout.replace("N", "T") if packed else f"B {layout}", dtypes=(torch.float32,))
    sizes = q.shape[1:3] if layout == "H Nq" else q.shape[2:3]
    check.same_size(op, name, x, sizes if packed else (q.shape[0], *sizes), q.device)
    x = x.resolve_neg()
    return x[None] if packed else x


def received(x: Tensor, cu_seqlens: Optional[Tensor] = None, longest: Optional[int] = None) -> Tensor:
    """Mean attention that each token of `[B, N, D]` or packed `[T, D]` receives, the features being q and k."""
    head = (x if x.dtype in check.FLOATS else x.to(torch.float16)).unsqueeze(1)
    if cu_seqlens is None:
        return attention_importance(head, head)
    return attention_importance(
        head, head, cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens, max_seqlen_q=longest, max_seqlen_k=longest
    )


def checked_heads(op: str, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Checked q and k as `[B, H, N, D]` with contiguous rows, and whether they are packed."""
    for name, x in (("query", query), ("key", key)):
        check.tensor(op, name, x, "B H N D", "T H D", dtypes=check.FLOATS)
        check.features(op, name, x)
    packed = query.dim() == 3
    heads = 1 if query.dim() == 3 else query.shape[0]
    if key.dim() != query.dim() or key.shape[-1] != query.shape[-1] or key.device != query.device:
        raise ValueError(
            f"{op}: key: expected the layout, feature size and device of query ({check.describe(query)}), got "
            f"{check.describe(key)}"
        )
    if not packed and key.shape[0] != heads:
        raise ValueError(f"{op}: key: expected batch size {heads} as query, got {check.describe(key)}")
    h, kv = (x.shape[1] for x in (query, key))
    if not h or not kv or h % kv:
        raise ValueError(f"{op}: key: expected a number of heads that divides the {h} of query, got {kv}")
    q, k = (check.rows(x.movedim(0, 1)[None] if packed else x) for x in (query, key))
    return q, k, packed


def _positive(op: str, name: str, value: Any) -> float:
    number = check.number(op, name, value)
    if number <= 0:
        raise ValueError(f"{op}: {name}: expected a number above 0, got {value}")
    return number


def base2_scale(op: str, scale: float, softcap: Optional[float], temperature: float) -> tuple[float, float]:
    """(what a product of norms is multiplied by, cap): see the reference."""
    scale, temperature = _positive(op, "scale", scale), _positive(op, "temperature", temperature)
    base2, cap = scale * LOG2_E / temperature, 0.0
    if softcap is not None:
        softcap = _positive(op, "softcap", softcap)
        base2, cap = scale * 2 * LOG2_E / softcap, softcap * LOG2_E / temperature
    if not (base2 < 2.0**120 and cap < 2.0**100):
        raise ValueError(
            f"{op}: scale: expected logits that float32 can hold, got scale {scale}, temperature {temperature}, "
            f"softcap {softcap}"
        )
    return base2, cap
