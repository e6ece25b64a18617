"""Counts, lengths and offsets of any integer dtype, numbers beyond int32, and NumPy in place of Python numbers."""

import numpy as np
import pytest
import torch

import pyramid_ops
from pyramid_ops import (
    adaptive_budgets,
    allocate_budgets,
    allocate_budgets_batch,
    attention_importance,
    best_match,
    combine_scores,
    compact,
    region_variance,
    segmented_topk,
    select_topk_levels,
    select_topk_levels_packed,
    tome_matching,
)
from tests.bits import assert_same_bits

T, S = 20, 3
X = torch.randn(T, 8, generator=torch.Generator().manual_seed(0))
SCORES = X[:, 0].contiguous()
INDICES = torch.arange(12).view(3, 4)
OFFSETS = [[0, 7, 12, 20], [-5, 7, 3, 99], [1, 1, 1, 1]]
HUGE = {99: 1 << 40, -5: -(1 << 40)}

PACKED = {
    "segmented_topk": lambda cu: segmented_topk(SCORES, cu, 3, max_seqlen=T),
    "select_topk_levels_packed": lambda cu: select_topk_levels_packed([X, X], [cu, cu], [3, 2], max_seqlen=T),
    "compact": lambda cu: compact([X, SCORES], INDICES, cu_seqlens=cu),
    "best_match": lambda cu: best_match(X, X.flip(0), cu_seqlens_q=cu, cu_seqlens_k=cu),
    "nearest": lambda cu: pyramid_ops.nearest(X, X.flip(0), 2, cu_seqlens_q=cu, cu_seqlens_k=cu),
    "dpc_knn": lambda cu: pyramid_ops.dpc_knn(X, 3, 2, cu_seqlens=cu),
    "attention_importance": lambda cu: attention_importance(X[:, None], X[:, None], cu_seqlens_q=cu, cu_seqlens_k=cu),
    "pool_scores_packed": lambda cu: pyramid_ops.pool_scores_packed(SCORES, cu, torch.tensor([[3, 2], [9, 1], [2, 4]])),
    "combine_scores": lambda cu: combine_scores([SCORES], [2.0], normalize="minmax", cu_seqlens=cu),
    "tome_matching": lambda cu: tome_matching(X, 2, cu_seqlens=cu),
}

COUNTED = {
    "segmented_topk": lambda k: segmented_topk(SCORES, OFFSETS_32, k, max_seqlen=T, capacity=4),
    "select_topk_levels_packed": lambda k: select_topk_levels_packed(
        [X, X], [OFFSETS_32] * 2, torch.stack((k, k), 1), max_seqlen=T, capacity=6
    ),
    "compact": lambda k: compact([X, SCORES], INDICES, k, cu_seqlens=OFFSETS_32),
    "dpc_knn": lambda k: pyramid_ops.dpc_knn(X, k, 2, cu_seqlens=OFFSETS_32, capacity=4),
    "dense compact": lambda k: compact([X[:12].view(3, 4, 8)], INDICES % 4, k),
    "allocate_budgets_batch": lambda k: allocate_budgets_batch(k, torch.ones(3, 2), (9, 4)),
    "allocate_budgets_batch sizes": lambda k: allocate_budgets_batch(9, torch.ones(3, 2), torch.stack((k, k), 1)),
    "region_variance": lambda k: region_variance(X[:18].view(3, 6, 8), (1, 6), (1, 1), lengths=k),
    "adaptive_budgets": lambda k: adaptive_budgets(9, X[:18].view(3, 6, 8), (9, 9, 9, 9), lengths=k),
}
OFFSETS_32 = torch.tensor(OFFSETS[0], dtype=torch.int32)

BACKENDS = ["reference", pytest.param("kernel", marks=pytest.mark.kernel)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offsets", OFFSETS, ids=str)
@pytest.mark.parametrize("op", PACKED)
def test_offsets_are_int32_or_int64(op, offsets, backend):
    with pyramid_ops.use_backend(backend):
        expected = PACKED[op](torch.tensor(offsets, dtype=torch.int32))
        huge = [HUGE.get(value, value) for value in offsets]
        assert_same_bits(PACKED[op](torch.tensor(huge)), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("counts", [[3, 0, 2], [-5, 99, 1], [1, 0, 1]], ids=str)
@pytest.mark.parametrize("op", COUNTED)
def test_counts_are_int32_int64_or_bool(op, counts, backend):
    with pyramid_ops.use_backend(backend):
        expected = COUNTED[op](torch.tensor(counts, dtype=torch.int32))
        if op != "adaptive_budgets":  # which reads the length itself
            counts = [HUGE.get(value, value) for value in counts]
        assert_same_bits(COUNTED[op](torch.tensor(counts)), expected)
        if max(counts) == 1 and min(counts) == 0:
            assert_same_bits(COUNTED[op](torch.tensor(counts, dtype=torch.bool)), expected)


def test_values():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    top = segmented_topk(torch.arange(6.0), torch.tensor([0, 3, 6]), mask.sum(1), max_seqlen=3, capacity=2)
    assert top.counts.tolist() == [2, 1]
    assert top.counts.dtype == torch.int32
    assert top.indices.tolist() == [[2, 1], [2, -1]]
    # 2⁴⁰ and 2³² + 1 are not 0 and 1, nor is −2⁴⁰ + 2 a 2.
    k = torch.tensor([1 << 40, (1 << 32) + 1, 2 - (1 << 40)])
    top = segmented_topk(torch.arange(9.0), torch.tensor([0, 3, 6, 1 << 40]), k, max_seqlen=3, capacity=3)
    assert top.counts.tolist() == [3, 3, 0]
    kept = compact([torch.arange(9.0)], torch.arange(9).view(3, 3) % 3, k, cu_seqlens=torch.tensor([0, 3, 6, 1 << 40]))
    assert kept.cu_seqlens.tolist() == [0, 3, 6, 6]
    assert kept.tensors[0].tolist() == [0, 1, 2, 3, 4, 5, 0, 0, 0]


def test_one_graph():
    function = lambda k, cu: segmented_topk(SCORES, cu, k, max_seqlen=T, capacity=4)  # noqa: E731
    args = torch.tensor([3, 1 << 40, -1]), torch.tensor(OFFSETS[0])
    assert_same_bits(torch.compile(function, backend="eager", fullgraph=True)(*args), function(*args))


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.float32])
def test_other_dtypes(dtype):
    for call in COUNTED.values():
        with pytest.raises(TypeError, match="expected dtype int32, int64, bool, got"):
            call(torch.ones(3, dtype=dtype))
    for call in PACKED.values():
        with pytest.raises(TypeError, match="expected dtype int32, int64, got"):
            call(torch.ones(4, dtype=dtype))
    with pytest.raises(TypeError, match="cu_seqlens: expected dtype int32, int64, got bool"):
        segmented_topk(SCORES, torch.ones(4, dtype=torch.bool), 1, max_seqlen=3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_masks_are_bool(dtype):
    with pytest.raises(TypeError, match="best_match: key_mask: expected dtype bool"):
        best_match(X, X, key_mask=torch.ones(T, dtype=dtype))


WEIGHTS = (0.5, 0.25, 0.25)
NUMPY = {
    "minimum": lambda n: allocate_budgets(60, WEIGHTS, (99, 99, 99), minimum=n([20, 1, 2])),
    "maximum": lambda n: allocate_budgets(60, WEIGHTS, (99, 99, 99), maximum=n([20, 20, 50])),
    "one minimum": lambda n: allocate_budgets(n(60), WEIGHTS, (99, 99, 99), minimum=n(17)),
    "sizes": lambda n: allocate_budgets(60, n(WEIGHTS), n([20, 20, 50])),
    "batch": lambda n: allocate_budgets_batch(
        n(60), torch.ones(2, 3), n([40, 50, 60]), minimum=n([20, 1, 2]), maximum=n([30, 30, 30])
    ),
    "adaptive": lambda n: adaptive_budgets(
        60,
        X[None],
        n([99, 99]),
        weights=n([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]),
        thresholds=n([0.3, 0.7]),
        minimum=n([9, 9]),
    ),
    "token_dims": lambda n: compact([X, X.T], INDICES, cu_seqlens=OFFSETS_32, token_dims=n([0, 1])),
    "one token_dim": lambda n: compact([X.T], INDICES, cu_seqlens=OFFSETS_32, token_dims=n(-1)),
    "k": lambda n: segmented_topk(SCORES, OFFSETS_32, n([1, 2, 3]), max_seqlen=n(20), capacity=n(4)),
    "one k": lambda n: segmented_topk(SCORES, OFFSETS_32, n(2), max_seqlen=20),
    "budgets": lambda n: select_topk_levels([X[None], X[None]], budgets=n([3, 2])),
    "level_weights": lambda n: select_topk_levels([X[None], X[None]], n(9), n([0.5, 0.5])),
    "packed budgets": lambda n: select_topk_levels_packed([X, X], [OFFSETS_32] * 2, n([3, 2]), max_seqlen=n(20)),
    "weights": lambda n: combine_scores([SCORES[None]] * 2, n([0.5, 2.0])),
    "grid": lambda n: region_variance(X[None], n([4, 5]), n([2, 2])),
    "query_indices": lambda n: attention_importance(X[None, None], X[None, None], query_indices=n([1, 19])),
    "key_range": lambda n: attention_importance(X[None, None], X[None, None], key_range=n([1, 19])),
    "progressive": lambda n: pyramid_ops.progressive_select(
        torch.ones(1, 3, 16, 16), lambda x: pyramid_ops.patchify(x, 4), n([3, 2]), target_tokens=n(4)
    ),
}


def python(value):
    return value


def numpy(value):
    return np.asarray(value) if isinstance(value, (list, tuple)) else np.int64(value)


@pytest.mark.parametrize("call", NUMPY)
def test_numpy_equals_python(call):
    assert_same_bits(NUMPY[call](numpy), NUMPY[call](python))


def test_numpy_values():
    assert allocate_budgets(60, WEIGHTS, (99, 99, 99), minimum=np.array([0, 20, 20])) == [20, 20, 20]
    assert all(type(budget) is int for budget in allocate_budgets(np.int32(60), WEIGHTS, np.array([99, 99, 99])))


@pytest.mark.parametrize(
    ("message", "bound"),
    [
        ("expected one for each of 3 levels, got 2", np.array([1, 2])),
        (r"minimum\[0\]: expected an integer, got 1.0", np.array([1.0, 2, 3])),
        (r"minimum\[0\]: expected an integer, got True", np.array([True, False, True])),
        (r"minimum\[0\]: expected an integer, got \[1\]", np.array([[1], [2], [3]])),
        (r"minimum: expected an integer, got int64 \[3\] on cpu", torch.tensor([1, 2, 3])),
    ],
)
def test_bad_numpy(message, bound):
    for call in (
        lambda: allocate_budgets(60, WEIGHTS, (99, 99, 99), minimum=bound),
        lambda: allocate_budgets_batch(60, torch.ones(2, 3), (99, 99, 99), minimum=bound),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^allocate_budgets.*: {message}"):
            call()
