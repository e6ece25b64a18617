"""What DPC-KNN means: against its rule in float64, segments alone, duplicates and rows that are no numbers."""

import pytest
import torch

import pyramid_ops
from tests.bits import assert_same_bits

from .merging_inputs import INF, NAN, clusters, rand


def rule(x, count, k):
    """(centers, center of each token) of `[N, D]` in float64, by the whole distance matrix as the authors' code."""
    x = x.double()
    squares = (x[:, None] - x[None]).square().sum(-1)
    mean = squares.sort(1).values[:, :k].mean(1) / x.shape[1]
    index = torch.arange(len(x))
    denser = (mean[None] < mean[:, None]) | ((mean[None] == mean[:, None]) & (index[None] < index[:, None]))
    delta = torch.where(denser, squares.sqrt(), INF).amin(1)
    delta[delta == INF] = squares.max().sqrt()
    centers = (delta * (-mean).exp()).sort(descending=True, stable=True).indices[:count]
    ordered = centers.sort().values
    return centers, ordered[squares[:, ordered].argmin(1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("tokens", "count", "k"), [(120, 12, 7), (90, 30, 5), (50, 50, 3), (20, 4, 1)])
def test_clusters_are_those_of_the_rule(tokens, count, k, dtype):
    x = clusters(2, tokens, 32, dtype)
    found = pyramid_ops.dpc_knn(x, count, k)
    for b in range(2):
        centers, assigned = rule(x[b], count, k)
        assert torch.equal(found.centers[b], centers)
        assert torch.equal(found.centers[b][found.assignment[b]], assigned)
    assert found.counts.tolist() == [count, count]


def test_a_center_is_its_own_and_the_densest_is_first():
    x = rand(1, 60, 16)
    x[:, 30:] = x[:, :30]  # every token twice
    found = pyramid_ops.dpc_knn(x, 60, 4)
    assert torch.equal(found.centers[0].sort().values, torch.arange(60))
    assert torch.equal(found.assignment[0][found.centers[0]], torch.arange(60))
    near = pyramid_ops.nearest(x, x, 4, metric="euclidean").values.sum(-1)
    assert found.centers[0, 0] == near[0].argmin()


def test_all_equal_tokens_are_one_cluster_after_another():
    found = pyramid_ops.dpc_knn(torch.ones(1, 8, 4), 3, 5)
    assert found.centers.tolist() == [[0, 1, 2]]
    assert found.assignment.tolist() == [[0, 1, 2, 0, 0, 0, 0, 0]]


def test_rows_without_a_finite_norm_are_in_no_cluster():
    x = rand(1, 9, 4)
    x[0, 2, 1], x[0, 5, 0] = NAN, INF
    x[0, 7] = 0
    found = pyramid_ops.dpc_knn(x, 9, 20)
    assert found.counts.tolist() == [7]
    assert sorted(found.centers[0].tolist()) == [-1, -1, 0, 1, 3, 4, 6, 7, 8]
    kept = [0, 1, 3, 4, 6, 7, 8]
    alone = pyramid_ops.dpc_knn(x[:, kept], 7, 20)
    assert torch.equal(found.centers[0, :7], torch.tensor(kept)[alone.centers[0]])
    assert found.assignment[0, kept].tolist() == alone.assignment[0].tolist()
    assert found.assignment[0, [2, 5]].tolist() == [-1, -1]


def test_segments_alone():
    x, cu, counts = rand(70, 16), torch.tensor([0, 30, 30, 31, 70]), torch.tensor([5, 2, 4, 99])
    found = pyramid_ops.dpc_knn(x, counts, 4, cu_seqlens=cu, max_seqlen=39, capacity=8)
    assert found.counts.tolist() == [5, 0, 1, 8]
    assert found.cu_seqlens.tolist() == [0, 5, 5, 6, 14]
    assert (found.centers[14:] == -1).all()
    for s in (0, 2, 3):
        rows = slice(int(cu[s]), int(cu[s + 1]))
        places = slice(int(found.cu_seqlens[s]), int(found.cu_seqlens[s + 1]))
        alone = pyramid_ops.dpc_knn(x[None, rows], int(found.counts[s]), 4)
        assert_same_bits(found.centers[places], alone.centers[0] + cu[s])
        assert_same_bits(found.assignment[rows], alone.assignment[0] + found.cu_seqlens[s])


def test_counts_on_the_device_and_samples_alone():
    x = clusters(3, 40, 8, torch.float16)
    found = pyramid_ops.dpc_knn(x, torch.tensor([3, 0, 40]), 5, capacity=10)
    assert found.counts.tolist() == [3, 0, 10]
    for b, count in ((0, 3), (2, 10)):
        alone = pyramid_ops.dpc_knn(x[b : b + 1], count, 5)
        assert_same_bits(found.centers[b : b + 1, :count], alone.centers)
        assert_same_bits(found.assignment[b : b + 1], alone.assignment)
    assert (found.assignment[1] == -1).all()


def test_one_token_and_none():
    assert pyramid_ops.dpc_knn(rand(1, 1, 4), 3, 5).assignment.tolist() == [[0]]
    assert pyramid_ops.dpc_knn(rand(2, 0, 4), 3, 5).assignment.shape == (2, 0)
    found = pyramid_ops.dpc_knn(rand(2, 5, 4), 0, 5)
    assert found.centers.shape == (2, 0)
    assert (found.assignment == -1).all()


BAD = [
    (lambda x: pyramid_ops.dpc_knn(x, 2, 0), ValueError, "dpc_knn: k: expected at least 1, got 0"),
    (lambda x: pyramid_ops.dpc_knn(x, 2, 65), ValueError, "dpc_knn: k: expected at most 64, got 65"),
    (lambda x: pyramid_ops.dpc_knn(x, -1, 3), ValueError, "dpc_knn: clusters: expected at least 0, got -1"),
    (lambda x: pyramid_ops.dpc_knn(x, 2.5, 3), TypeError, "dpc_knn: clusters: expected an integer"),
    (lambda x: pyramid_ops.dpc_knn(x, torch.ones(1).int(), 3), ValueError, "dpc_knn: capacity: expected a number"),
    (lambda x: pyramid_ops.dpc_knn(x, torch.ones(2).int(), 3, capacity=2), ValueError, r"dpc_knn: clusters: .*\[1\]"),
    (lambda x: pyramid_ops.dpc_knn(x, 2, 3, capacity=7), ValueError, "dpc_knn: capacity: expected at most 6"),
    (lambda x: pyramid_ops.dpc_knn(x[0], 2, 3), ValueError, "dpc_knn: cu_seqlens: expected offsets with packed"),
    (lambda x: pyramid_ops.dpc_knn(x, 2, 3, max_seqlen=3), ValueError, "dpc_knn: max_seqlen: expected only with"),
    (lambda x: pyramid_ops.dpc_knn(x.double(), 2, 3), TypeError, "dpc_knn: x: expected dtype"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(rand(1, 6, 4))
