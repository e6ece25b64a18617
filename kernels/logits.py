"""Attention logits from dot products of unit rows: what the kernels of attention and relevance share."""

import triton
import triton.language as tl

from .arithmetic import bounds, exp2

# The largest norm, times scale too, that counts, so that logits are finite; the logit of no key.
LARGEST = tl.constexpr(2.0**60)
MASKED = tl.constexpr(-(2.0**121))


@triton.jit
def segment_rows(cu_seqlens_ptr, used_ptr, segment, size, longest, PACKED: tl.constexpr):
    """(first row in the sample's heads, rows) of a segment, or of a sample; where it says so, of `used` rows only.

    Packed segments without offsets have `longest` rows each.
    """
    start = tl.zeros((), tl.int64)
    count = longest
    if PACKED:
        if cu_seqlens_ptr is None:
            start += segment * longest
        else:
            first, count = bounds(cu_seqlens_ptr, segment, size)
            start += first
            count = tl.minimum(count, longest)
    if used_ptr is not None:
        count = tl.load(used_ptr + segment)
    return start, count


@triton.jit
def factor_of(norms_ptr, row, mask, scale):
    """(factor a row brings to its logits, whether it is usable): a norm that is not finite is of no use."""
    return norm_factor(tl.load(norms_ptr + row, mask=mask, other=float("inf")), scale)


@triton.jit
def norm_factor(norm, scale):
    usable = norm < float("inf")
    factor = norm * scale
    return tl.where(usable, tl.where(factor < LARGEST, factor, LARGEST), 0.0), usable


@triton.jit
def kept_rows(first_head, index, count, longest):
    """Rows of kept logits [H, longest, keys] for rows `index` of consecutive heads."""
    count = tl.maximum(count, 1)
    return (first_head + index // count) * longest + index % count


@triton.jit
def query_rows(
    norms_ptr, positions_ptr, first_head, sample, start, index, count, length, queries, rows, scale,
    CAUSAL: tl.constexpr,
):  # fmt: skip
    """Rows `index` of consecutive heads: (row in the tensor, mask, factor, last key in sight)."""
    mask = index < rows
    query = index % tl.maximum(count, 1)
    row = (first_head + index // tl.maximum(count, 1)) * queries + start + query
    factor, usable = factor_of(norms_ptr, row, mask, scale)
    position = length - count + query
    if positions_ptr is not None:
        position = tl.load(positions_ptr + sample * queries + start + query, mask=mask, other=-1)
        usable = usable & (position >= 0)
    if CAUSAL == 0:
        position = tl.zeros_like(position) + 0x7FFFFFFF
    return row, mask, factor, tl.where(usable, position, -1)


@triton.jit
def logits_of(scores, factor_q, factor_k, seen, cap, LIMBS: tl.constexpr, CAPPED: tl.constexpr):
    """Logits to base 2 from dot products of unit rows."""
    unit: tl.constexpr = 1.0 if LIMBS == 1 else 2.0**-30
    x = scores.to(tl.float32) * (factor_q * unit)
    x = x * factor_k
    if CAPPED:
        inside = tl.where(x < 60.0, tl.where(x > -60.0, x, -60.0), 60.0)
        power = exp2(inside, 5, 0) + 1.0
        x = (1.0 - tl.div_rn(tl.zeros_like(power) + 2.0, power)) * cap
    return tl.where(seen, x, MASKED)
