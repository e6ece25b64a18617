"""Descriptions of the ops in `ops/attention.py`."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import pyramid_ops

from ...ops.attention import attention_importance_op
from ...reference.arguments import ALL_KEYS, ALL_QUERIES, Chosen, Keys, Queries, Reduction, Segments, Softmax, Span
from ..describe import Call, Case, Cases, Description
from ..inputs import FLOATS, Source, few_features, name, offsets_to, special_rows


def heads_of(shape: tuple, features: int, dtype: torch.dtype, seed: int) -> Tensor:
    """`[B, H, N, D]` with special rows among ordinary ones."""
    generator = torch.Generator().manual_seed(seed)
    x = (3 * torch.randn(*shape, features, generator=generator)).to(dtype)
    special = special_rows(features, dtype, seed).flatten(0, 1)
    flat = x.view(-1, features)
    where = torch.randperm(len(flat), generator=generator)[: min(len(special), len(flat) // 4)]
    flat[where] = special[: len(where)]
    return x


REDUCTIONS = [
    (h, q, first) for h in ("mean", "sum", "max", "rms") for q in ("mean", "sum", "max") for first in (True, False)
]


def attention_importance_golden() -> Cases:
    reductions = [(h, q) for h in ("mean", "sum", "max", "rms") for q in ("mean", "sum", "max")]
    for i, (heads, queries) in enumerate(reductions):
        for heads_first in (True, False):
            for limbs in (1, 2):
                dtype = FLOATS[(i + limbs + heads_first) % 3]
                case = f"{heads}-{queries}-{'heads' if heads_first else 'queries'}-limbs{limbs}"
                source = Source(case)
                q = torch.stack([source.rows(24, dtype) for _ in range(4)], 1)
                k = torch.cat([source.rows(24, dtype) for _ in range(4)], 1)[:, None]
                softmax = Softmax((i + limbs) % 2 == 0, 0.25, (0.0, 20.0)[i % 4 == 3], limbs)
                sizes = Queries(), Segments(None, None, 9, 36), Span(2, 36)
                yield Case(case, (q, k, *sizes, softmax, Reduction(heads, queries, heads_first)))
    source = Source("packed")
    q, k = source.floats(1, 2, 60, 40, low=-1, high=2), source.floats(1, 1, 70, 40, low=-1, high=2)
    weights, offsets = (
        source.floats(1, 60, low=-6, high=0, signed=False),
        (offsets_to(0, 17, 40, 60), offsets_to(9, 9, 50, 70)),
    )
    positions, counts = source.integers(-2, 60, 1, 60, dtype=torch.int32), source.integers(0, 1 << 33, 1, 70)
    lse = source.floats(1, 2, 60, low=0, high=5)
    for limbs in (1, 2):
        groups = Queries(positions, weights, lse, counts), Segments(*offsets, 23, 41), Span(0, 40)
        args = (q, k, *groups, Softmax(limbs == 2, 0.25, 0.0, limbs))
        yield Case(f"packed-limbs{limbs}", (*args, Reduction("mean", "mean", True)))
        yield Case(f"packed-max-limbs{limbs}", (*args, Reduction("max", "mean", True)))
    yield from _golden_choices()


def _golden_choices() -> Cases:
    source = Source("choices")
    q, k = source.floats(2, 2, 60, 24, low=-1, high=2), source.floats(2, 1, 50, 24, low=-1, high=2)
    packed = [torch.cat(x.unbind(), 1)[None] for x in (q, k)]
    segments = Segments(offsets_to(0, 17, 61, 120), offsets_to(9, 9, 70, 100), 50, 55)
    indices, mask, weights, lse, few, key_mask, ranges = (
        source.integers(-3, 70, 2, 9),
        source.bits(2, 60) % 4 == 0,
        source.floats(2, 60, low=-40, high=40, signed=False),
        source.floats(2, 2, 60, low=0, high=5),
        source.integers(-40, 40, 4, 1, dtype=torch.int32),
        source.bits(2, 50) % 3 > 0,
        source.integers(-5, 55, 2, 2, dtype=torch.int32),
    )
    keys = Keys(key_mask, ranges)
    for case, chosen, of_keys in (
        ("indices", Chosen(indices), ALL_KEYS),
        ("indices-from-end", Chosen(indices - 50, True), keys),
        ("query-mask", Chosen(mask=mask), keys),
        ("query-weights", Chosen(weights=weights), Keys(key_mask)),
        ("keys", ALL_QUERIES, keys),
    ):
        for limbs in (1, 2):
            reduction = Reduction(("rms", "sum")[limbs - 1], "mean", limbs == 1)
            args = Queries(log_sum_exp=lse if limbs == 2 else None), Segments(None, None, 60, 50), Span(3, 50)
            made = (q, k, *args, Softmax(limbs == 1, 0.25, 0.0, limbs), reduction, chosen, of_keys)
            yield Case(f"{case}-limbs{limbs}", made)
    keys = Keys(key_mask.view(1, -1), source.integers(-5, 55, 4, 2))
    for case, chosen in (
        ("indices", Chosen(few, True)),
        ("query-weights", Chosen(weights=weights.view(1, -1))),
        ("keys", ALL_QUERIES),
    ):
        softmax, reduction = Softmax(True, 0.25, 0.0, 1), Reduction("max", "mean", True)
        yield Case(f"packed-{case}", (*packed, Queries(), segments, Span(0, 55), softmax, reduction, chosen, keys))


def _args(
    q, k, positions=None, weights=None, log_sum_exp=None, counts=None, *, offsets=(None, None), longest=None,
    span=None, causal=False, cap=0.0, limbs=1, reduction=REDUCTIONS[0], chosen=ALL_QUERIES, of_keys=ALL_KEYS,
):  # fmt: skip
    scale = 0.3 if cap else 1.4426950408889634 * q.shape[3] ** -0.5
    return (
        q,
        k,
        Queries(positions, weights, log_sum_exp, counts),
        Segments(*offsets, q.shape[2] if longest is None else longest, k.shape[2]),
        Span(0, k.shape[2]) if span is None else Span(*span),
        Softmax(causal, scale, cap, limbs),
        Reduction(*reduction),
        chosen,
        of_keys,
    )


def attention_importance_bits() -> Cases:
    yield from _of_sizes()
    yield from _of_options()
    yield from _of_choices()
    yield from _of_layouts()


def _of_sizes() -> Cases:
    for i, (queries, keys, features, heads, kv_heads) in enumerate(
        (
            (1, 1, 1, 1, 1),
            (1, 70, 24, 4, 2),
            (3, 200, 64, 2, 1),
            (20, 5, 8, 2, 2),
            (70, 90, 80, 3, 1),
            (33, 65, 300, 1, 1),
            (1, 70, 16, 16, 2),
            (2, 65, 130, 3, 1),
            (1, 40, 256, 2, 2),
            (1, 9, 257, 1, 1),
        )
    ):
        for j, dtype in enumerate(FLOATS):
            q = heads_of((2, heads, queries), features, dtype, 1)
            k = heads_of((2, kv_heads, keys), features, dtype, 2)
            for limbs in (1, 2):
                reduction = REDUCTIONS[(7 * i + 5 * j + 12 * limbs) % len(REDUCTIONS)]
                case = f"{queries}x{keys}x{features}-{heads}-{kv_heads}-{name(dtype)}-limbs{limbs}"
                slow = i > 5 and j != i % 3
                yield Case(case, _args(q, k, limbs=limbs, causal=limbs == 2, reduction=reduction), slow)


def _tokens() -> tuple[Tensor, Tensor]:
    """40 queries of four heads, 75 keys of two."""
    return heads_of((1, 4, 40), 16, torch.float32, 3), heads_of((1, 2, 75), 16, torch.float32, 4)


def _of_options() -> Cases:
    generator = torch.Generator().manual_seed(5)
    q, k = _tokens()
    weights = torch.rand(1, 40, generator=generator) * 0.9
    positions = torch.randint(-3, 80, (1, 40), generator=generator).to(torch.int32)
    log_sum_exp = 5 * torch.rand(1, 4, 40, generator=generator)
    log_sum_exp[0, 1, 3:6] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    counts = torch.randint(0, 1 << 33, (1, 75), generator=generator)
    for i, reduction in enumerate(REDUCTIONS):
        for j, tensors in enumerate(
            (
                (),
                (positions, None, None, counts),
                (None, weights, None, counts),
                (positions, weights, log_sum_exp, counts),
            )
        ):
            causal, cap = bool((i + j) % 2), (0.0, 30.0)[(i + 2 * j) % 4 == 3]
            made = _args(q, k, *tensors, causal=causal, cap=cap, limbs=1 + (i + j) % 2, reduction=reduction)
            slow = j in (1, 2)
            yield Case(f"{'-'.join(map(str, reduction))}-{j}", made, slow)
    left_out = torch.where(torch.arange(40) % 2 == 0, -1, 0).to(torch.int32)[None]
    yield Case("left-out-of-large-logits", _args(12 * q, 4 * k, left_out, None, None, counts))
    # Few queries, whose logits are kept.
    part = slice(7, 10)
    for i, reduction in enumerate(REDUCTIONS):
        tensors = (positions[:, part], weights[:, part], log_sum_exp[:, :, part], counts)
        tensors = tuple(x if i >> j & 1 else None for j, x in enumerate(tensors))
        causal, cap = i % 3 == 0, 30.0 * (i % 5 == 0)
        made = _args(q[:, :, part], k, *tensors, causal=causal, cap=cap, limbs=1 + i % 2, reduction=reduction)
        slow = i % 3 == 1
        yield Case(f"few-{'-'.join(map(str, reduction))}", made, slow)
    few = [torch.tensor(x, dtype=torch.int32) for x in ([0, 8, 8, 9, 17, 40], [3, 3, 40, 70, 70, 75])]
    for i, reduction in enumerate(REDUCTIONS[::3]):
        # Of the longest segment the first queries.
        made = _args(
            q, k, offsets=few, longest=8, causal=i % 2 == 0, limbs=1 + i % 2, reduction=reduction, span=(2, 60)
        )
        yield Case(f"few-packed-{'-'.join(map(str, reduction))}", made)


def _of_choices() -> Cases:
    generator = torch.Generator().manual_seed(7)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    q, k = (heads_of((2, heads, count), 16, torch.float32, heads) for heads, count in ((4, 40), (2, 75)))
    weights = torch.exp2(integers(-70, 70, 2, 40) + torch.rand(2, 40, generator=generator))
    weights[1, integers(0, 40, 9)] = 0.0
    no_weights = weights.clone()
    no_weights[0, :4] = torch.tensor([-0.0, -1.0, torch.nan, 2.0**126])
    mask, key_mask, log_sum_exp = integers(0, 5, 2, 40) == 0, integers(0, 3, 2, 75) > 0, 5 + integers(0, 3, 2, 4, 40)
    choices = (
        Chosen(integers(-3, 45, 2, 20)),
        Chosen(integers(-50, 50, 1, 18).int().expand(2, -1), True),
        Chosen(mask=mask),
        Chosen(mask=torch.zeros_like(mask)),
        Chosen(weights=weights),
        Chosen(weights=no_weights),
        Chosen(weights=torch.zeros_like(weights)),
        Chosen(torch.tensor([[-1], [40]]), True),
        ALL_QUERIES,
    )
    ranges = (None, integers(-9, 80, 2, 2), torch.tensor([[60, 3], [0, 75]]).int())
    for i, reduction in enumerate(REDUCTIONS):
        for j, chosen in enumerate(choices):
            of_keys = Keys(key_mask if (i + j) % 2 else None, ranges[(i + j // 2) % 3])
            lse = log_sum_exp.float() if (i + j) % 4 == 3 else None
            causal, limbs = bool((i + j // 2) % 2), 1 + (i // 2 + j) % 2
            span = (5, 70) if j % 4 == 1 else None
            made = _args(
                q, k, None, None, lse, causal=causal, limbs=limbs, reduction=reduction, span=span, chosen=chosen,
                of_keys=of_keys,
            )  # fmt: skip
            yield Case(f"chosen-{'-'.join(map(str, reduction))}-{j}", made, (i + j) % 6 != 0)
    # Few queries, whose logits are kept; none of the keys; all keys of one sample only.
    part = slice(7, 10)
    for i, reduction in enumerate(REDUCTIONS[::3]):
        chosen = (Chosen(mask=mask[:, part]), Chosen(weights=weights[:, part]), ALL_QUERIES)[i % 3]
        of_keys = Keys(
            (key_mask, key_mask & False, key_mask | (torch.arange(2) > 0)[:, None])[i // 2 % 3], ranges[i % 3]
        )
        made = _args(
            q[:, :, part], k, causal=i % 2 == 0, limbs=1 + i // 2 % 2, reduction=reduction, chosen=chosen,
            of_keys=of_keys,
        )  # fmt: skip
        yield Case(f"chosen-few-{'-'.join(map(str, reduction))}", made)
    q, k = (torch.cat(x.unbind(), 1)[None] for x in (q, k))
    offsets = [torch.tensor(x, dtype=torch.int32) for x in ([0, 10, 10, 43, 70], [3, 3, 60, 61, 140])]
    packed_choices = (
        Chosen(integers(-3, 45, 4, 20)),
        Chosen(integers(-9, 9, 1, 1).int().expand(4, -1), True),
        Chosen(weights=weights.view(1, -1)),
        Chosen(weights=no_weights.view(1, -1)),
        ALL_QUERIES,
    )
    for i, reduction in enumerate(REDUCTIONS):
        of_keys = Keys(key_mask.view(1, -1) if i % 3 else None, integers(-9, 80, 4, 2) if i % 2 else None)
        lse = torch.cat(log_sum_exp.float().unbind(), 1)[None] if i % 4 == 3 else None
        made = _args(
            q, k, log_sum_exp=lse, offsets=offsets, longest=30, causal=i % 2 == 0, limbs=1 + i // 2 % 2,
            reduction=reduction, span=(2, 60), chosen=packed_choices[i % 5], of_keys=of_keys,
        )  # fmt: skip
        yield Case(f"chosen-packed-{'-'.join(map(str, reduction))}", made, i % 3 == 2)
    many = torch.randn(1, 2, 2500, 8, generator=generator)
    sparse = torch.arange(2500)[None] % 300 == 7
    yield Case("chosen-mask-of-many", _args(many, many[:, :, :70], chosen=Chosen(mask=sparse), causal=True))
    yield Case("chosen-weights-of-many", _args(many, many[:, :, :70], chosen=Chosen(weights=many[:, 0, :, 0].abs())))


def _of_layouts() -> Cases:
    generator, (q, k) = torch.Generator().manual_seed(6), _tokens()
    offsets = [torch.tensor(x, dtype=torch.int32) for x in ([0, 10, 10, 33, 40], [3, 3, 40, 70, 75])]
    # Below all logits, and below what stands for a masked one.
    log_sum_exp = -torch.logspace(0, 38, 160).view(1, 4, 40)
    for causal in (False, True):
        made = _args(q, k, None, None, log_sum_exp, offsets=offsets, causal=causal)
        yield Case(f"log-sum-exp-below-all-{causal}", made)
    for case, q_offsets, k_offsets in (
        ("segments", [0, 10, 10, 33, 40], [3, 3, 40, 70, 75]),
        ("clamped", [-5, 10, 30, 999], [0, 7, 9, 75]),
        ("no-segments", [0], [0]),
    ):
        offsets = [torch.tensor(x, dtype=torch.int32) for x in (q_offsets, k_offsets)]
        for i, reduction in enumerate(REDUCTIONS[::5]):
            made = _args(q, k, offsets=offsets, causal=i % 2 == 0, limbs=1 + i % 2, reduction=reduction, span=(2, 60))
            yield Case(f"{case}-{'-'.join(map(str, reduction))}", made)
    x = torch.randn(2, 50, 3, 24, generator=generator).transpose(1, 2)
    yield Case("heads-inside", _args(x, x[:, :1]))
    yield Case("unaligned", _args(x[:, :, ::2, 1:], x[:, :1, :, 1:]))
    yield Case("unaligned-few", _args(x[:, :, -1:, 1:], x[:, :, :, 1:]))
    yield Case("no-queries", _args(x[:, :, :0], x))
    yield Case("no-keys", _args(x, x[:, :, :0]))
    yield Case("no-samples", _args(x[:0], x[:0]))
    yield Case("no-columns", _args(x, x, span=(30, 30)))
    many = torch.randn(1, 1, 1100, 8, generator=generator)
    yield Case("splits", _args(many[:, :, :40], many, limbs=1))
    many = torch.randn(1, 2, 2100, 16, generator=generator)
    yield Case("splits-few", _args(many[:, :, :2], many, limbs=1))


def attention_importance_ones() -> Iterator[Call]:
    one, head, row = torch.empty(1, 1, 1), torch.empty(1, 1, 1, 1), torch.empty(1, 2, 16)
    offsets = torch.zeros(2, dtype=torch.int32)
    query, key, weights = torch.empty(1, 4, 1, 100), torch.empty(1, 2, 300, 100), torch.ones(1, 1)
    for precision in ("grid", "high"):
        score = functools.partial(pyramid_ops.attention_importance, precision=precision)
        yield Call(f"attention_importance-{precision}", functools.partial(score, head, head, softcap=50.0))
        pair = functools.partial(score, cu_seqlens_q=offsets, cu_seqlens_k=offsets, head_reduction="rms", causal=True)
        yield Call(f"attention_importance-{precision}-packed", functools.partial(pair, one, one))
        yield Call(f"attention_importance-{precision}-packed-few", functools.partial(pair, row, row))
        last = functools.partial(score, query, key, query_weights=weights, head_reduction="rms")
        yield Call(f"attention_importance-{precision}-one-query", last)


def attention_importance_compiled() -> Iterator[Call]:
    heads = [torch.empty(2, count, 2048, 64, dtype=torch.bfloat16) for count in (16, 4)]
    wide = [torch.empty(2, count, 2048, 128, dtype=torch.bfloat16) for count in (16, 4)]
    last = {"query_indices": [-1], "causal": True}
    for what, precision, operands, options in (
        ("all queries", "grid", heads, {}),
        ("all queries", "high", wide, {}),
        ("causal", "grid", heads, {"causal": True}),
        ("last query", "grid", heads, last),
        ("last query", "grid", wide, last),
        ("last query", "high", heads, last),
        ("last query", "high", wide, last),
        ("max of heads first", "grid", heads, {"head_reduction": "max"}),
        ("log-sum-exp given", "grid", heads, {"log_sum_exp": torch.empty(2, 16, 2048)}),
    ):
        call = functools.partial(pyramid_ops.attention_importance, *operands, precision=precision, **options)
        yield Call(f"attention_importance, {precision}, {what}, D = {operands[0].shape[3]}", call, torch.bfloat16)


def attention_importance_sizes() -> Iterator[Call]:
    for features in (32, 72, 80, 96, 128, 256):
        query, key = (torch.empty(2, heads, 512, features, dtype=torch.bfloat16) for heads in (8, 4))
        score = functools.partial(pyramid_ops.attention_importance, query, key, causal=True, precision="grid")
        yield Call(f"attention_importance-{features}", functools.partial(score, softcap=30.0), torch.bfloat16)
        first = functools.partial(score, head_reduction="max")
        yield Call(f"attention_importance-{features}-max-first", first, torch.bfloat16)


def attend(so_far: Any) -> None:
    level = so_far.choice(*so_far.levels)
    features = few_features(so_far, level)
    heads, shared = so_far.choice((1, 1), (2, 1), (4, 2), (2, 2))
    queries, keys = so_far.integer(0, 20), so_far.integer(0, 40)
    dtype = so_far.choice(*FLOATS)
    options = {
        "causal": so_far.choice(True, False),
        "softcap": so_far.choice(None, None, 20.0),
        "temperature": so_far.choice(1.0, 0.1),
        "head_reduction": so_far.choice("mean", "sum", "max", "rms"),
        "query_reduction": so_far.choice("mean", "sum", "max"),
        "reduce_first": so_far.choice("heads", "queries"),
        "precision": so_far.choice("grid", "high"),
        "center_keys": False,
    }
    if options["softcap"] is None:
        options["center_keys"] = so_far.choice(True, False, False, False)
    if so_far.choice(True, False):
        q, k = so_far.tensor(queries, heads, features, dtype=dtype), so_far.tensor(keys, shared, features, dtype=dtype)
        rows = (queries,)
        segments = so_far.integer(1, 3)
        for name, size in (("cu_seqlens_q", queries), ("cu_seqlens_k", keys)):
            ends = sorted(so_far.integer(0, size) for _ in range(segments + 1))
            options[name] = torch.tensor(ends, dtype=torch.int32)
    else:
        batch = level.shape[0]
        q, k = (so_far.tensor(batch, h, n, features, dtype=dtype) for h, n in ((heads, queries), (shared, keys)))
        rows = (batch, queries)
    which = so_far.choice("all", "indices", "weights")
    if which == "indices":
        options["query_indices"] = torch.tensor([so_far.integer(-2, 22) for _ in range(so_far.integer(0, 4))]).long()
    if which == "weights":
        options["query_weights"] = so_far.tensor(*rows, dtype=torch.float32, kinds=("plain", "ties", "bits"))
    if so_far.choice(True, False, False):
        shape = (heads, *rows) if len(rows) == 1 else (rows[0], heads, rows[1])
        options["log_sum_exp"] = so_far.tensor(*shape, dtype=torch.float32, kinds=("plain", "ties"))
    so_far.same(pyramid_ops.attention_importance, q, k, **options)


DESCRIPTIONS = [
    Description(
        attention_importance_op,
        attention_importance_golden,
        attention_importance_bits,
        attention_importance_ones,
        attention_importance_compiled,
        attend,
        "test_column_mean",
        sizes=attention_importance_sizes,
        dtypes=FLOATS,
        scattered=(
            "_finish_kernel",
            "_share_kernel",
        ),
        dots=(
            "_column_kernel",
            "_logits_kernel",
            "_row_kernel",
        ),
    ),
]
