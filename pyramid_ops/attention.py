"""Importance of tokens from attention, without the attention matrix."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional, Union

import torch
from torch import Tensor

from . import _checks as check
from ._dispatch import Op
from .merging import _merge_tokens, assign_mean, limbs_of
from .numerics import MAX_FEATURES

LOG2_E = 1.4426950408889634
INT32_MAX = (1 << 31) - 1
INFINITY = 0x7F800000  # as bits
# Weights from here on, negative ones and NaN make scores NaN.
MAX_WEIGHT = 2.0**126


def _attention_importance_fake(
    query: Tensor,
    key: Tensor,
    positions: Optional[Tensor],
    weights: Optional[Tensor],
    log_sum_exp: Optional[Tensor],
    counts: Optional[Tensor],
    cu_seqlens_q: Optional[Tensor],
    cu_seqlens_k: Optional[Tensor],
    max_seqlen_q: int,
    max_seqlen_k: int,
    key_start: int,
    key_stop: int,
    causal: bool,
    scale: float,
    cap: float,
    limbs: int,
    head_reduction: str,
    query_reduction: str,
    heads_first: bool,
) -> Tensor:
    return query.new_empty(query.shape[0], key.shape[2], dtype=torch.float32)


_attention_importance = Op("attention", "attention_importance", _attention_importance_fake)


def attention_importance(
    query: Tensor,
    key: Tensor,
    *,
    scale: Optional[float] = None,
    causal: bool = False,
    softcap: Optional[float] = None,
    temperature: float = 1.0,
    query_indices: Union[Sequence[int], Tensor, None] = None,
    query_weights: Optional[Tensor] = None,
    key_range: Optional[tuple[int, int]] = None,
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
    query_weights : Tensor, optional
        float32 ``[B, Nq]`` or ``[Tq]``, at least 0 and below 2¹²⁶: what each query counts. Anything else makes the
        scores of its sample or segment NaN.
    key_range : (int, int), optional
        First key and one past the last that scores are wanted for, such as the image's columns. The softmax runs over
        all keys all the same.
    head_reduction : "mean", "sum", "max" or "rms"
    query_reduction : "mean", "sum" or "max"
        The mean divides by the queries that see the key, or by the sum of their weights; it is 0 if there are none.
        A greatest value is that of weight · A.
    reduce_first : "heads" or "queries"
        Which reduction comes first: a maximum and a mean do not commute.
    cu_seqlens_q, cu_seqlens_k : Tensor, optional
        int32 ``[S + 1]``: segments of packed rows. Offsets outside the tensor are clamped.
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
        float32 ``[B, Nk]``, or ``[B, stop - start]`` of `key_range`; packed ``[Tk]``, 0 outside of segments and range.
        A query that sees no key contributes 0.

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
    q, k, packed = _heads(op, query, key)
    device, features = q.device, q.shape[3]
    check.choice(op, "head_reduction", head_reduction, "mean", "sum", "max", "rms")
    check.choice(op, "query_reduction", query_reduction, "mean", "sum", "max")
    check.choice(op, "reduce_first", reduce_first, "heads", "queries")
    for name, flag in (("causal", causal), ("center_keys", center_keys)):
        if not isinstance(flag, bool):
            raise TypeError(f"{op}: {name}: expected a bool, got {check.describe(flag)}")
    slope, cap = _slope(op, features**-0.5 if scale is None else scale, softcap, temperature)
    limbs = limbs_of(op, precision, q, k)
    if (cu_seqlens_q is None) != (not packed) or (cu_seqlens_k is None) != (not packed):
        expected = "offsets of both packed tensors" if packed else "offsets only with packed [T, H, D] rows"
        raise ValueError(f"{op}: cu_seqlens_q, cu_seqlens_k: expected {expected}, got {check.describe(query)}")
    longest = []
    for name, value, x in (("max_seqlen_q", max_seqlen_q, q), ("max_seqlen_k", max_seqlen_k, k)):
        if value is not None and not packed:
            raise ValueError(f"{op}: {name}: expected only with cu_seqlens_q and cu_seqlens_k, got {value}")
        longest.append(x.shape[2] if value is None else min(check.integer(op, name, value, 0), x.shape[2]))
    longest_q, longest_k = longest
    segments = q.shape[0]
    if cu_seqlens_q is not None and cu_seqlens_k is not None:
        cu_seqlens_q = check.cu_seqlens(op, "cu_seqlens_q", cu_seqlens_q, q)
        cu_seqlens_k = check.cu_seqlens(op, "cu_seqlens_k", cu_seqlens_k, k, len(cu_seqlens_q) - 1)
        segments = len(cu_seqlens_q) - 1
    start, stop = _range(op, key_range, longest_k, packed)
    if center_keys and softcap is not None:
        raise ValueError(f"{op}: center_keys: expected without softcap, got both")
    if query_weights is not None:
        if query_indices is not None:
            raise ValueError(f"{op}: query_weights: expected without query_indices, got both")
        check.tensor(op, "query_weights", query_weights, "Tq" if packed else "B Nq", dtypes=(torch.float32,))
        _same_size(op, "query_weights", query_weights, [q.shape[2]] if packed else [q.shape[0], q.shape[2]], device)
    if log_sum_exp is not None:
        check.tensor(op, "log_sum_exp", log_sum_exp, "H Tq" if packed else "B H Nq", dtypes=(torch.float32,))
        shape = list(q.shape[1:3] if packed else q.shape[:3])
        _same_size(op, "log_sum_exp", log_sum_exp, shape, device)
        log_sum_exp = log_sum_exp[None] if packed else log_sum_exp
    if not (segments and q.shape[2] and k.shape[2]):
        scores = torch.zeros(k.shape[0], k.shape[2], dtype=torch.float32, device=device)
        return scores[0] if packed else scores[:, start:stop].contiguous()

    positions = weights = counts = unscale = None
    if query_indices is not None and not isinstance(query_indices, Tensor):
        query_indices = _index_list(op, query_indices, longest_q)
        rows = [index % longest_q for index in query_indices]
        if (
            not packed
            and rows == list(range(rows[0], rows[0] + len(rows)))
            and (not causal or rows[-1] == longest_q - 1)
        ):
            # Consecutive queries that see what they would see alone are a view: nothing is gathered.
            q, longest_q, query_indices = q[:, :, rows[0] : rows[-1] + 1], len(rows), None
            log_sum_exp = None if log_sum_exp is None else log_sum_exp[:, :, rows[0] : rows[-1] + 1]
    size_q, size_k = q.shape[0] * q.shape[2], k.shape[0] * k.shape[2]
    if center_keys or query_indices is not None or query_weights is not None:
        at = _Segments(*_segments(q, cu_seqlens_q, longest_q), *_segments(k, cu_seqlens_k, longest_k))
    if center_keys:
        k, means = _center(k, at.of(keys=True, size=k.shape[2])[0], segments if packed else 1)
        if log_sum_exp is not None:
            log_sum_exp = log_sum_exp - _mean_logits(q, means, at.of(keys=False, size=q.shape[2])[0], slope / LOG2_E)
    if query_indices is not None:
        place, last = _take(at, _indices(op, query_indices, segments, packed, device), causal)
        segment = torch.arange(segments, device=device)[:, None].expand_as(last)
        longest_q = last.shape[1]
        if packed:
            place = (place + at.start_q[:, None]).clamp(max=size_q - 1).view(1, -1)
            cu_seqlens_q = torch.arange(segments + 1, dtype=torch.int32, device=device) * longest_q
        positions = last.to(torch.int32).view_as(place)
        from_head = place[:, None].expand(-1, q.shape[1], -1)
        q = q.gather(2, from_head[..., None].expand(-1, -1, -1, features))
        log_sum_exp = None if log_sum_exp is None else log_sum_exp.gather(2, from_head)
    elif query_weights is not None:
        weights, unscale = _scale_weights(at, query_weights[None] if packed else query_weights)
        if query_reduction == "mean":
            unscale = torch.where(unscale > 0, 1.0, unscale)
        segment, place = at.of(keys=False, size=size_q)
        last = place + (at.count_k - at.count_q)[segment] if causal else torch.full_like(place, INT32_MAX)
        last = torch.where((place >= 0) & (place < at.count_q[segment]), last, -1)
    if query_reduction == "mean" and (positions is not None or weights is not None):
        counts = _counts(at, segment.flatten(), last.flatten(), weights, size_k).view(k.shape[0], k.shape[2])
    scores = _attention_importance(
        *(q, k, positions, weights, log_sum_exp, counts, cu_seqlens_q, cu_seqlens_k, longest_q, longest_k),
        *(start, stop, causal, slope, cap, limbs, head_reduction, query_reduction, reduce_first == "heads"),
    )
    if unscale is not None:
        scores = scores * unscale[at.of(keys=True, size=size_k)[0]].view_as(scores)
    if packed:
        return scores[0]
    return scores if stop - start == scores.shape[1] else scores[:, start:stop].contiguous()


def received(x: Tensor, cu_seqlens: Optional[Tensor] = None, longest: Optional[int] = None) -> Tensor:
    """Mean attention that each token of `[B, N, D]` or packed `[T, D]` receives, the features being q and k."""
    head = (x if x.dtype in check.FLOATS else x.to(torch.float16)).unsqueeze(1)
    if cu_seqlens is None:
        return attention_importance(head, head)
    return attention_importance(
        head, head, cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens, max_seqlen_q=longest, max_seqlen_k=longest
    )


def _heads(op: str, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Checked q and k as `[B, H, N, D]` with contiguous rows, and whether they are packed."""
    for name, x in (("query", query), ("key", key)):
        check.tensor(op, name, x, "B H N D", "T H D", dtypes=check.FLOATS)
        if not 1 <= x.shape[-1] <= MAX_FEATURES:
            raise ValueError(f"{op}: {name}: expected 1 to {MAX_FEATURES} features, got {check.describe(x)}")
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


def _slope(op: str, scale: float, softcap: Optional[float], temperature: float) -> tuple[float, float]:
    """(what a product of norms is multiplied by, cap): see the reference."""
    numbers = [("scale", scale), ("temperature", temperature)]
    numbers += [] if softcap is None else [("softcap", softcap)]
    for name, value in numbers:
        if check.number(op, name, value) <= 0:
            raise ValueError(f"{op}: {name}: expected a number above 0, got {value}")
    slope, cap = scale * LOG2_E / temperature, 0.0
    if softcap is not None:
        slope, cap = scale * 2 * LOG2_E / softcap, softcap * LOG2_E / temperature
    if not (slope < 2.0**120 and cap < 2.0**100):
        raise ValueError(
            f"{op}: scale: expected logits that float32 can hold, got scale {scale}, temperature {temperature}, "
            f"softcap {softcap}"
        )
    return slope, cap


def _range(op: str, key_range: Any, longest: int, packed: bool) -> tuple[int, int]:
    if key_range is None:
        return 0, longest
    values = check.sequence(op, "key_range", key_range)
    if len(values) != 2:
        raise ValueError(f"{op}: key_range: expected (start, stop), got {key_range!r}")
    start, stop = (check.integer(op, "key_range", value, 0) for value in values)
    if start > stop or (stop > longest and not packed):
        raise ValueError(f"{op}: key_range: expected 0 <= start <= stop <= {longest}, got {key_range!r}")
    return start, min(stop, longest)


def _same_size(op: str, name: str, x: Tensor, shape: list[int], device: torch.device) -> None:
    if list(x.shape) != shape or x.device != device:
        raise ValueError(f"{op}: {name}: expected {shape} on {device}, got {check.describe(x)}")


def _indices(op: str, indices: Any, segments: int, packed: bool, device: torch.device) -> Tensor:
    """int64 `[S, M]` on the device; of a list the negative numbers stay, less one: they count from the end."""
    if isinstance(indices, Tensor):
        check.tensor(op, "query_indices", indices, "M", "S M" if packed else "B M", dtypes=(torch.int32, torch.int64))
        if indices.device != device or (indices.dim() == 2 and indices.shape[0] != segments):
            raise ValueError(
                f"{op}: query_indices: expected [M] or [{segments}, M] on {device}, got {check.describe(indices)}"
            )
        index = indices.to(torch.int64)
        return torch.where(index < 0, INT32_MAX, index).expand(segments, -1)
    # Slices of a range, since a copy from the host would wait for the device.
    low = min(indices)
    numbers = torch.arange(low, max(indices) + 1, device=device)
    return torch.cat([numbers[index - low : index - low + 1] for index in indices]).expand(segments, -1)


def _index_list(op: str, indices: Any, longest: int) -> list[int]:
    values = [check.integer(op, "query_indices", i, -longest) for i in check.sequence(op, "query_indices", indices)]
    for value in values:
        if value >= longest:
            raise ValueError(f"{op}: query_indices: expected less than {longest}, got {value}")
    if not values:
        raise ValueError(f"{op}: query_indices: expected at least one index, got {indices!r}")
    return values


class _Segments(NamedTuple):
    """Where the queries and keys of each sample or segment are, if samples are laid one after another: int64 `[S]`."""

    start_q: Tensor
    count_q: Tensor
    start_k: Tensor
    count_k: Tensor

    def of(self, keys: bool, size: int) -> tuple[Tensor, Tensor]:
        """(segment, place in it) of each of `size` rows; a place outside of the segment for a row of none."""
        start = self.start_k if keys else self.start_q
        row = torch.arange(size, device=start.device)
        segment = (torch.searchsorted(start, row, right=True) - 1).clamp(min=0)
        return segment, row - start[segment]


def _segments(x: Tensor, cu_seqlens: Optional[Tensor], longest: int) -> tuple[Tensor, Tensor]:
    if cu_seqlens is None:
        start = torch.arange(x.shape[0], device=x.device) * x.shape[2]
        return start, torch.full_like(start, x.shape[2])
    offsets = cu_seqlens.to(torch.int64).clamp(0, x.shape[2])
    return offsets[:-1], (offsets[1:] - offsets[:-1]).clamp(0, longest)


def _take(at: _Segments, index: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """(place of each chosen query in its segment, the last key that it sees: −1 for an unused slot), `[S, M]`."""
    index = torch.where(index < 0, index + at.count_q[:, None], index)
    used = (index >= 0) & (index < at.count_q[:, None])
    last = index + (at.count_k - at.count_q)[:, None] if causal else torch.full_like(index, INT32_MAX)
    return torch.where(used, index, 0), torch.where(used, last, -1).clamp(min=-1)


def _scale_weights(at: _Segments, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(weights below 1 by a power of two of each segment, its inverse `[S]`: NaN where there is what is no weight)."""
    segment, place = at.of(keys=False, size=weights.numel())
    inside = (place >= 0) & (place < at.count_q[segment])
    valid = (weights >= 0) & (weights < MAX_WEIGHT)
    weights = torch.where(valid, weights.abs(), 0.0)
    bits = torch.where(inside, torch.where(valid, weights, torch.inf).flatten().view(torch.int32), 0)
    none = torch.zeros(len(at.start_q), dtype=torch.int32, device=weights.device)
    top = none.scatter_reduce(0, segment, bits, "amax")
    exponent = (top >> 23).clamp(max=252)
    unscale = torch.where(top < INFINITY, ((exponent + 1) << 23).view(torch.float32), torch.nan)
    return weights * ((253 - exponent) << 23).view(torch.float32)[segment].view_as(weights), unscale


def _counts(at: _Segments, segment: Tensor, last: Tensor, weights: Optional[Tensor], keys: int) -> Tensor:
    """How many queries see each of the keys, or the sum of their weights in units of 2⁻³⁰: int64.

    `segment` and `last`, the last key that it sees, of each query.
    """
    ones = torch.ones_like(last) if weights is None else (weights.flatten() * 2.0**30 + 0.5).to(torch.int64)
    last = last.minimum(at.count_k[segment] - 1)
    place = torch.where(last >= 0, at.start_k[segment] + last, keys)
    seen = torch.zeros(keys + 1, dtype=torch.int64, device=last.device).scatter_add(0, place, ones)
    seen[keys] = 0
    after = seen.flip(0).cumsum(0).flip(0)
    of_key, _ = at.of(keys=True, size=keys)
    return after[:-1] - after[(at.start_k + at.count_k)[of_key]]


def _center(k: Tensor, segment: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """(keys less the mean of their segment `[B, Hkv, Nk, D]`; the means `[B, Hkv, S, D]`), float32.

    The mean is that of the rows without NaN and infinities.
    """
    rows = k.reshape(-1, *k.shape[2:]).to(torch.float32)
    finite = (rows.abs() < torch.inf).all(2)
    means = assign_mean(rows, torch.where(finite, segment, -1), segments).tokens.view(*k.shape[:2], segments, -1)
    return rows.view(k.shape) - means[:, :, segment], means


def _mean_logits(q: Tensor, means: Tensor, segment: Tensor, scale: float) -> Tensor:
    """Dot products `[B, H, Nq]` of queries, times `scale`, and the mean key of their segment, in a written order."""
    of_head = torch.arange(q.shape[1], device=q.device) // (q.shape[1] // means.shape[1])
    products = q.to(torch.float32) * scale * means[:, of_head][:, :, segment]
    features = torch.arange(q.shape[3], device=q.device)[None]
    none = torch.full((1, 1), -1, dtype=torch.int64, device=q.device)
    bounds = torch.arange(2, device=q.device)[None] * q.shape[3]
    rows = products.reshape(-1, q.shape[3]).T[None]
    # By the op, since a compiler would fuse a product and a sum here.
    return _merge_tokens(rows.contiguous(), None, none, features, bounds, "sum")[0].view(q.shape[:3])


def _text_relevance_fake(tokens: Tensor, text: Tensor, reduction: str, scale: float, limbs: int) -> Tensor:
    return tokens.new_empty(tokens.shape[:2], dtype=torch.float32)


_text_relevance = Op("attention", "text_relevance", _text_relevance_fake)


def text_relevance(
    tokens: Tensor,
    text: Tensor,
    *,
    reduction: str = "max",
    scale: Optional[float] = None,
    text_mask: Optional[Tensor] = None,
    precision: Optional[str] = None,
) -> Tensor:
    """How much each visual token matches the text, or each text token the visual ones: without the N × T matrix.

    Parameters
    ----------
    tokens, text : Tensor
        ``[B, N, D]`` and ``[B, T, D]``, visual and text tokens; float16, bfloat16 or float32; D from 1 to 16384.
    reduction : "max", "mean" or "softmax"
        The greatest or the mean over text tokens of ``tokens @ text.T * scale``: the relevance of visual tokens to an
        instruction. Or the mean over visual tokens of its softmax over the text, by which SparseVLM chooses its raters:
        the text tokens above their mean.
    scale : float, optional
        Above 0. Default: 1 / √D, for "softmax" 1.
    text_mask : Tensor, optional
        bool ``[B, T]``: the text tokens that count (default: all).
    precision : "grid", "high" or None
        As in :func:`best_match`.

    Returns
    -------
    Tensor
        float32 ``[B, N]``, for "softmax" ``[B, T]``.

        "max" and "mean": NaN for a visual token with a NaN or an infinity. Such text tokens do not count. Where no text
        token of a sample does, the greatest is −inf and the mean 0.

        "softmax": 0 for a text token that does not count. A visual token with a NaN or an infinity, or one that sees
        no text, adds 0 to the mean over all N.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or option, or an input that requires grad.

    Notes
    -----
    Cosines of unit rows are exact (:func:`unit_rows`) and norms are multiplied back. The mean is a sum of integers in
    units of 2⁻³⁰ of (a power of two above) the largest text norm, the softmax is that of :func:`attention_importance`:
    the same bits on every device, for any tile or batch. Norms and norms · scale above 2⁶⁰ count as 2⁶⁰. No host
    synchronisation.

    References
    ----------
    Pyramid Token Pruning (arXiv 2509.15704): "max". SparseVLM (arXiv 2410.04417): "softmax".

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> tokens = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    >>> text = torch.tensor([[[0.0, 3.0], [4.0, 0.0], [0.0, 9.0]]])
    >>> mask = torch.tensor([[True, True, False]])
    >>> pyramid_ops.text_relevance(tokens, text, scale=1.0, text_mask=mask)
    tensor([[4., 6.]])
    """
    op = "text_relevance"
    for name, x in (("tokens", tokens), ("text", text)):
        check.tensor(op, name, x, "B N D" if name == "tokens" else "B T D", dtypes=check.FLOATS)
        if not 1 <= x.shape[2] <= MAX_FEATURES:
            raise ValueError(f"{op}: {name}: expected 1 to {MAX_FEATURES} features, got {check.describe(x)}")
    batch, count, features = tokens.shape
    length = text.shape[1]
    if text.shape[0] != batch or text.shape[2] != features or text.device != tokens.device:
        raise ValueError(
            f"{op}: text: expected the batch size, feature size and device of tokens ({check.describe(tokens)}), got "
            f"{check.describe(text)}"
        )
    softmax = check.choice(op, "reduction", reduction, "max", "mean", "softmax") == "softmax"
    if scale is None:
        scale = 1.0 if softmax else features**-0.5
    slope, _ = _slope(op, scale, None, 1.0)
    limbs = limbs_of(op, precision, tokens, text)
    if text_mask is not None:
        check.tensor(op, "text_mask", text_mask, "B T", dtypes=(torch.bool,))
        _same_size(op, "text_mask", text_mask, [batch, length], tokens.device)
        # Rows with a NaN are of no use, as keys and as text.
        text = torch.where(text_mask[:, :, None], text, torch.nan)
    tokens, text = check.rows(tokens), check.rows(text)
    if not softmax:
        return _text_relevance(tokens, text, reduction, float(scale), limbs)
    return _attention_importance(
        *(tokens[:, None], text[:, None], None, None, None, None, None, None, count, length, 0, length, False),
        *(slope, 0.0, limbs, "sum", "mean", True),
    )


def _attention_walk_fake(
    query: Tensor, key: Tensor, steps: int, scale: float, limbs: int, head_reduction: str
) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], dtype=torch.float32)


_attention_walk = Op("attention", "attention_walk", _attention_walk_fake)


def attention_walk(
    query: Tensor,
    key: Tensor,
    *,
    steps: int = 5,
    temperature: float = 0.1,
    scale: Optional[float] = None,
    head_reduction: str = "rms",
    precision: Optional[str] = None,
) -> Tensor:
    """Importance that flows along attention: a few steps of p ← p · A from uniform p, without the attention matrix.

    With ``A = softmax(query @ key.T * scale / temperature)`` over all tokens, p of each head starts as 1 / N.

    Parameters
    ----------
    query, key : Tensor
        ``[B, H, N, D]`` and ``[B, Hkv, N, D]`` as attention takes them; float16, bfloat16 or float32; H a multiple of
        Hkv: query head h uses key head h // (H // Hkv).
    steps : int
        At least 0: with 0, p stays 1 / N.
    temperature : float
        Logits are divided by it: below 1 it sharpens attention.
    scale : float, optional
        Default: 1 / √D.
    head_reduction : "rms", "mean", "sum" or "max"
        How p of heads become one score.
    precision : "grid", "high" or None
        As in :func:`best_match`.

    Returns
    -------
    Tensor
        float32 ``[B, N]``: over the tokens each head's p adds up to 1, less what tokens with a NaN or an infinity take
        away: such keys get 0, such queries pass nothing on.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape, dtype or option, head counts that do not divide, or an input that requires grad.

    Notes
    -----
    Attention is that of :func:`attention_importance`. Before each step p of each head is scaled by a power of two to
    just below 1, and p · A is added up as integers in units of 2⁻³⁰: the same bits on every device, for any tile or
    batch. The softmax is prepared once; a step is one pass over the N × N logits. Memory is O(N) per head. No host
    synchronisation.

    References
    ----------
    AIM (arXiv 2412.03248).

    Examples
    --------
    >>> import torch, pyramid_ops
    >>> x = torch.tensor([[[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]]])
    >>> pyramid_ops.attention_walk(x, x, steps=0).tolist() == [[torch.tensor(1 / 3).item()] * 3]
    True
    >>> pyramid_ops.attention_walk(x, x[:, :, [0, 2, 2]]).argmax().item()
    0
    """
    op = "attention_walk"
    for name, x in (("query", query), ("key", key)):
        check.tensor(op, name, x, "B H N D", dtypes=check.FLOATS)
    q, k, _ = _heads(op, query, key)
    if k.shape[2] != q.shape[2]:
        raise ValueError(f"{op}: key: expected {q.shape[2]} tokens as query, got {check.describe(key)}")
    steps = check.integer(op, "steps", steps, 0)
    slope, _ = _slope(op, q.shape[3] ** -0.5 if scale is None else scale, None, temperature)
    check.choice(op, "head_reduction", head_reduction, "rms", "mean", "sum", "max")
    return _attention_walk(q, k, steps, slope, limbs_of(op, precision, q, k), head_reduction)
