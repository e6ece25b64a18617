"""The reference on many short packed segments: the bits of each alone, in few calls."""

import pytest
import torch

import pyramid_ops
from pyramid_ops import attention_importance, best_match, tome_matching
from pyramid_ops.reference import logits, matching
from tests.bits import assert_same_bits, to

GENERATOR = torch.Generator().manual_seed(0)
Q_LENGTHS = [3, 0, 20, 1, 7, 400, 5, 5, 2, 0, 9, 30, 30, 30, 30, 30, 30, 1]
K_LENGTHS = [5, 4, 20, 1, 0, 300, 9, 5, 2, 6, 1, 30, 30, 30, 30, 30, 30, 1]


def bounds(lengths: list) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


CU_Q, CU_K = bounds(Q_LENGTHS), bounds(K_LENGTHS)


def rows(count: int, *shape: int) -> torch.Tensor:
    """With ties, a row that is 0 and some that are no numbers."""
    x = torch.randint(-3, 4, (count, *shape), generator=GENERATOR).float()
    x[5], x[11, ..., 0], x[40, ..., 1] = 0, torch.nan, torch.inf
    return x


def segments(starts: torch.Tensor) -> list[slice]:
    return [slice(a, b) for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]


@pytest.mark.parametrize("precision", ["grid", "high"])
@pytest.mark.parametrize("masked", [False, True])
def test_best_match_of_each_segment_alone(masked, precision):
    queries, keys = rows(int(CU_Q[-1]), 8), rows(int(CU_K[-1]), 8)
    mask = torch.rand(len(keys), generator=GENERATOR) < 0.7 if masked else None
    offsets = {"cu_seqlens_q": CU_Q, "cu_seqlens_k": CU_K}
    together = best_match(queries, keys, key_mask=mask, precision=precision, **offsets)
    for q, k in zip(segments(CU_Q), segments(CU_K), strict=True):
        alone = best_match(queries[q], keys[k], key_mask=None if mask is None else mask[k], precision=precision)
        assert_same_bits([x[q] for x in together], alone)


OPTIONS = {
    "mean": {},
    "causal": {"causal": True},
    "high": {"causal": True, "precision": "high"},
    "sum": {"query_reduction": "sum", "head_reduction": "max"},
    "greatest": {"query_reduction": "max", "head_reduction": "max"},
    "rms": {"head_reduction": "rms", "causal": True},
    "queries first": {"head_reduction": "mean", "query_reduction": "max", "reduce_first": "queries"},
    "heads first": {"head_reduction": "max", "query_reduction": "sum", "reduce_first": "heads", "causal": True},
    "softcap": {"softcap": 2.0},
    "last": {"query_indices": [-1, 0], "causal": True},
    "range": {"key_range": (1, 4), "causal": True},
}


@pytest.mark.parametrize("given", ["", "query_weights", "log_sum_exp"])
@pytest.mark.parametrize("options", OPTIONS)
def test_attention_of_each_segment_alone(options, given):
    options = OPTIONS[options]
    if given == "query_weights" and "query_indices" in options:
        pytest.skip("either")
    query, key = rows(int(CU_Q[-1]), 4, 8), rows(int(CU_K[-1]), 2, 8)
    weights, lse = torch.rand(len(query), generator=GENERATOR), torch.randn(4, len(query), generator=GENERATOR) + 6
    offsets = {"cu_seqlens_q": CU_Q, "cu_seqlens_k": CU_K}
    extra = {"query_weights": weights, "log_sum_exp": lse}
    together = attention_importance(query, key, **options, **offsets, **({given: extra[given]} if given else {}))
    for q, k in zip(segments(CU_Q), segments(CU_K), strict=True):
        if q.start == q.stop or k.start == k.stop:
            assert (together[k] == 0).all()
            continue
        cu = {"cu_seqlens_q": torch.tensor([0, q.stop - q.start]), "cu_seqlens_k": torch.tensor([0, k.stop - k.start])}
        part = {"query_weights": weights[q], "log_sum_exp": lse[:, q]}
        single = {given: part[given]} if given else {}
        alone = attention_importance(query[q], key[k], **options, **cu, **single)
        assert_same_bits(together[k], alone)


def test_longest():
    """Of a segment the first rows count; what is left of it is of no segment."""
    queries, keys = rows(int(CU_Q[-1]), 8), rows(int(CU_K[-1]), 8)
    options = {"cu_seqlens_q": CU_Q, "cu_seqlens_k": CU_K, "max_seqlen_q": 6, "max_seqlen_k": 4}
    matched = best_match(queries, keys, **options)
    seen = attention_importance(queries[:, None], keys[:, None], **options)
    for q, k in zip(segments(CU_Q), segments(CU_K), strict=True):
        q, k = (slice(x.start, min(x.stop, x.start + most)) for x, most in ((q, 6), (k, 4)))
        assert_same_bits([x[q] for x in matched], best_match(queries[q], keys[k]))
        if q.stop > q.start and k.stop > k.start:
            assert_same_bits(seen[k], attention_importance(queries[None, None, q], keys[None, None, k])[0])


@pytest.mark.kernel
def test_kernels_agree(device):
    queries, keys = rows(int(CU_Q[-1]), 2, 8), rows(int(CU_K[-1]), 1, 8)
    calls = [
        lambda q, k, *cu: best_match(q[:, 0], k[:, 0], cu_seqlens_q=cu[0], cu_seqlens_k=cu[1]),
        lambda q, k, *cu: attention_importance(q, k, causal=True, cu_seqlens_q=cu[0], cu_seqlens_k=cu[1]),
    ]
    for call in calls:
        with pyramid_ops.use_backend("kernel"):
            actual = call(*to(device, [queries, keys, CU_Q, CU_K]))
        assert_same_bits(actual, call(queries, keys, CU_Q, CU_K))


def test_a_thousand_segments_take_few_products(monkeypatch):
    """20 tokens each: a call for each would take seconds."""
    calls = []
    for room in (matching, logits):
        product = room.grid_products
        monkeypatch.setattr(room, "grid_products", lambda *args, f=product: calls.append(1) or f(*args))
    x = torch.randn(20000, 64, generator=GENERATOR)
    cu = torch.arange(1001, dtype=torch.int32) * 20
    offsets = {"cu_seqlens_q": cu, "cu_seqlens_k": cu}
    for call in (
        lambda: best_match(x, x, **offsets),
        lambda: tome_matching(x, 5, cu_seqlens=cu),
        lambda: attention_importance(x[:, None], x[:, None], **offsets),
        lambda: pyramid_ops.select_topk_levels_packed([x], [cu], [5], max_seqlen=20, saliency="attention"),
    ):
        calls.clear()
        call()
        assert 0 < len(calls) <= 125
