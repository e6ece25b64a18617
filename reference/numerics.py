"""The arithmetic all ops share: one rounding per line, in a written order.

`kernels/numerics.py` performs the same roundings in the same order.
"""

from collections.abc import Callable

import torch
from torch import Tensor

LANES = 256
BLOCK = 1536
# Fraction bits of the second limb of unit rows that are multiplied.
LOW_BITS = 10
# Float32 elements that a loop over blocks works on at a time, so that a few such buffers stay in cache.
CACHE_ELEMENTS = 1 << 19


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def widen(x: Tensor) -> Tensor:
    """Exact conversion of uint8, float16, bfloat16 or float32 to float32."""
    return x.to(torch.float32)


def narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 to `dtype`: nearest even; for uint8 half up, saturating, NaN to 0."""
    if dtype is not torch.uint8:
        return x.to(dtype)
    y = x + 0.5
    y = torch.where(y >= 1.0, y, 0.0)
    y = torch.where(y < 256.0, y, 255.0)
    return y.to(torch.uint8)


def ordered_key(x: Tensor) -> Tensor:
    """int32 keys in the order of float32 values: −0 equals +0, every NaN is above +inf."""
    bits = x.contiguous().view(torch.int32)
    bits = torch.where((bits << 1) == 0, 0, bits)
    bits = torch.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FFFFFFF, bits)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def sqrt(x: Tensor) -> Tensor:
    """IEEE float32 square root (`torch.sqrt` of float32 is not correctly rounded on the CPU)."""
    return x.double().sqrt().float()


def row_shape(features: int) -> tuple[int, int, int]:
    """(blocks, chunks of a block, lanes of a block) of a row; blocks is the power of two that keeps chunks within 6."""
    lanes = min(LANES, next_power_of_2(features))
    blocks = next_power_of_2(-(-features // BLOCK))
    return blocks, -(-features // (blocks * lanes)), lanes


def lane_count(features: int) -> int:
    blocks, _, lanes = row_shape(features)
    return blocks * lanes


def lane_sums(x: Tensor, out: Tensor) -> None:
    """`[R, D]` → `[R, blocks · lanes]`: lane j of a block adds its features j, j + lanes, … in order from +0."""
    rows, features = x.shape
    blocks, chunks, lanes = row_shape(features)
    out = out.view(rows, blocks, lanes)
    full = features // (chunks * lanes)
    if full:
        first, *others = x[:, : full * chunks * lanes].unflatten(1, (full, chunks, lanes)).unbind(2)
        complete = out[:, :full]
        if others:
            torch.add(first, others.pop(0), out=complete)
        else:
            complete.copy_(first)
        for chunk in others:
            complete += chunk
    if full < blocks:
        out[:, full:] = 0.0
    for start in range(full * chunks * lanes, features, lanes):
        chunk = x[:, start : start + lanes]
        out[:, full, : chunk.shape[1]] += chunk


def tree_sum(x: Tensor) -> Tensor:
    """`[..., 2^n]` → `[...]`: adjacent pairs are added, then adjacent pairs of the sums, and so on; a zero is +0."""
    while x.shape[-1] > 1:
        x = x[..., 0::2] + x[..., 1::2]
    return x[..., 0] + 0.0


def row_sum(x: Tensor, lanes: Tensor | None = None) -> Tensor:
    """`[R, D]` float32 → `[R]`: lane sums (kept in `lanes`), then one tree over all lanes."""
    count = lane_count(x.shape[1])
    if x.shape[1] == count:
        return tree_sum(x)
    if lanes is None:
        lanes = x.new_empty(x.shape[0], count)
    lane_sums(x, lanes)
    return tree_sum(lanes)


def row_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Powers of two (s, 1/s) `[R]` that bring the largest magnitude of each row into [1, 4) where it is normal."""
    largest = torch.maximum(widen(x.amax(-1)), -widen(x.amin(-1)))
    exponent = (largest.view(torch.int32) & (255 << 23)).clamp(1 << 23, 253 << 23)
    return ((254 << 23) - exponent).view(torch.float32), exponent.view(torch.float32)


def work_rows(x: Tensor, count: int, elements: int) -> Tensor:
    """Float32 `[count, R, D]` for blocks of rows of `x`: fresh pages for each block cost more than its arithmetic."""
    most = min(x.shape[:-1].numel(), max(1, elements // x.shape[-1]))
    return torch.empty(count, most, x.shape[-1], dtype=torch.float32, device=x.device)


def scaled_norm(x: Tensor, scaled: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """`[R, D]` → (L2 norm of `scaled` = x · s, 1/s): the squares neither overflow nor vanish."""
    scale, unscale = row_scale(x)
    if x.dtype == torch.float32:
        torch.mul(x, scale[:, None], out=scaled)
    else:
        scaled.copy_(x).mul_(scale[:, None])
    torch.mul(scaled, scaled, out=squares)
    return sqrt(row_sum(squares)), unscale


def round_to_integer(x: Tensor) -> Tensor:
    """Nearest integer, ties to even, for |x| < 2^22; a zero is +0. A buffer of its own."""
    return (x + 12582912.0).sub_(12582912.0)


# Coefficients of r, r², … in 2^r = 1 + …, |r| ≤ 1/2: within 1.0e-4 and 1.1e-7 of it.
EXP2 = {
    3: (0.693282961845398, 0.2422109842300415, 0.05500887334346771),
    5: (0.6931470036506653, 0.24022242426872253, 0.05550733581185341, 0.009671512991189957, 0.001326472032815218),
}
# The degree that goes with so many limbs.
EXP2_DEGREE = {1: 3, 2: 5}


def exp2(t: Tensor, degree: int, exponent: int, shifted: Tensor | None = None, power: Tensor | None = None) -> Tensor:
    """2^(t + exponent) by a polynomial, exactly a power of two where t is an integer.

    t + exponent has to stay within the exponents of normal float32. `t` is overwritten, as are two buffers of its
    shape where they are given; `power` is the result.
    """
    shifted = torch.add(t, 12582912.0 + exponent, out=shifted)
    power = torch.sub(shifted, 12582912.0 + exponent, out=power)
    t -= power
    *rest, last = EXP2[degree]
    power = torch.mul(t, last, out=power)
    for coefficient in reversed(rest):
        power += coefficient
        power *= t
    power += 1.0
    bits, exponents = power.view(torch.int32), shifted.view(torch.int32)
    bits += exponents.bitwise_left_shift_(23)
    return power


def each_block(function: Callable[..., None], elements: int, x: Tensor, *outs: Tensor) -> None:
    """Call `function` with the same rows of `x` `[B, N, D]` and of each of `outs`, in blocks of so many elements."""
    if all(tensor.is_contiguous() for tensor in (x, *outs)):
        x, *outs = (tensor.view(1, -1, *tensor.shape[2:]) for tensor in (x, *outs))  # type: ignore[assignment]
    step = max(1, elements // x.shape[2])
    for sample in range(x.shape[0]):
        for start in range(0, x.shape[1], step):
            function(*[tensor[sample, start : start + step] for tensor in (x, *outs)])


def _unit(x: Tensor, unit: float, scaled: Tensor, work: Tensor, norm: Tensor) -> Tensor:
    """Which rows have a direction; `scaled` becomes the unit rows, in so many parts of 1, and `norm` their norms.

    The reciprocal of the norm is rounded, then its products: one division for each row.
    """
    length, unscale = scaled_norm(x, scaled, work)
    torch.mul(length, unscale, out=norm)
    scaled *= (torch.full_like(length, 1 / unit) / length)[:, None]
    return (norm > 0) & (norm < torch.inf)


def unit_rows(x: Tensor, limbs: int, bits: int) -> tuple[Tensor, Tensor]:
    """(units `[B, N, limbs, D]`, norms `[B, N]`); the second limb has `bits` fraction bits."""
    batch, tokens, features = x.shape
    units = torch.empty(batch, tokens, limbs, features, dtype=torch.float16, device=x.device)
    norms = torch.empty(batch, tokens, dtype=torch.float32, device=x.device)
    buffers = work_rows(x, 2, CACHE_ELEMENTS)

    def unit(rows: Tensor, out: Tensor, norm: Tensor) -> None:
        u, work = buffers[:, : len(rows)]
        usable = _unit(rows, 2.0**-11, u, work, norm)
        u = torch.where(usable[:, None], u, 0.0)
        high = round_to_integer(u)
        out[:, 0] = narrow(high * 2.0**-11, torch.float16)
        if limbs == 2:
            low = round_to_integer((u - high) * 2.0**bits)
            out[:, 1] = narrow(low * 2.0**-bits, torch.float16)

    each_block(unit, CACHE_ELEMENTS, x, units, norms)
    return units, norms


def grid_rows(
    x: Tensor, limbs: int, bits: int, multiple: int = 1, buffers: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(unit rows of `x` `[B, N, D]`, times 2¹⁵, in a dtype in which their dot products are exact; norms `[B, N]`).

    The sum of both limbs is one rounding, as `bits` is at most 10. Zero rows of norm +inf follow up to a multiple of
    so many rows. `buffers` are work rows, in place of fresh ones.
    """
    batch, count, features = x.shape
    padding = -count % multiple
    dtype = torch.float64 if limbs == 2 else _product_dtype(x.device.type)
    rows = torch.empty(batch, count + padding, features, dtype=dtype, device=x.device)
    norms = torch.empty(batch, count + padding, dtype=torch.float32, device=x.device)
    rows[:, count:], norms[:, count:] = 0, torch.inf
    # Added and taken away again, it rounds to multiples of 2⁴, or of 2^(4 − bits).
    magic = 12582912.0 * 2.0 ** (4 if limbs == 1 else 4 - bits)
    u_rows, more_rows = work_rows(x, 2, CACHE_ELEMENTS) if buffers is None else buffers

    def grid(part: Tensor, out: Tensor, norm: Tensor) -> None:
        u, work = u_rows[: len(part)], more_rows[: len(part)]
        usable = _unit(part, 2.0**-15, u, work, norm)
        torch.add(u, magic, out=work)
        if out.dtype == torch.float32:
            torch.sub(work, magic, out=out)
        else:
            out.copy_(work.sub_(magic))
        if not bool(usable.all()):
            out[(~usable).nonzero()[:, 0]] = 0

    each_block(grid, CACHE_ELEMENTS, x, rows[:, :count], norms[:, :count])
    return rows, norms


def grid_products(queries: Tensor, keys: Tensor, out: Tensor | None = None) -> Tensor:
    """Dot products `[M, N]` of grid rows, in units of 2⁻³⁰: exact."""
    return torch.mm(queries, keys.mT, out=out)


def _product_dtype(device: str) -> torch.dtype:
    """float32, whose products of one limb are exact; float64 where ambient settings would round the operands."""
    onednn = torch.backends.mkldnn
    settings = (torch.backends.fp32_precision, onednn.fp32_precision, onednn.matmul.fp32_precision)  # type: ignore[attr-defined]
    return torch.float64 if torch.is_autocast_enabled(device) or "bf16" in settings else torch.float32


def segments(cu_seqlens: Tensor, size: int, max_seqlen: int) -> tuple[Tensor, Tensor]:
    """(starts, lengths) int64 `[S]` of segments inside `[0, size]`, none negative or longer than `max_seqlen`."""
    bounds = cu_seqlens.to(torch.int64).clamp(0, size)
    return bounds[:-1], (bounds[1:] - bounds[:-1]).clamp(0, max_seqlen)


def segment_slices(
    batch: int,
    queries: int,
    keys: int,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
) -> list[tuple[int, slice, slice]]:
    """(sample, its queries, its keys) of every sample, or of every segment of the one packed sample."""
    if cu_seqlens_q is None or cu_seqlens_k is None:
        return [(b, slice(0, queries), slice(0, keys)) for b in range(batch)]
    bounds = (segments(cu_seqlens_q, queries, max_seqlen_q), segments(cu_seqlens_k, keys, max_seqlen_k))
    slices = [map(slice, starts.tolist(), (starts + lengths).tolist()) for starts, lengths in bounds]
    return [(0, q, k) for q, k in zip(*slices, strict=True)]
