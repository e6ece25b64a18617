"""Which tokens are left of rounds of bipartite matching, against plain code for each sample."""

import pytest
import torch

import pyramid_ops
from pyramid_ops import plans
from pyramid_ops.verify.cases.greedy import like
from tests.bits import assert_same_bits

from .merging_inputs import INF, NAN, rand
from .test_greedy import integers


def plain(rows, k, step):
    """Round after round, in integers."""
    similar, left = integers(rows), list(range(len(rows)))
    while len(left) > k:
        even, odd = left[::2], left[1::2]
        most = {i: max((similar[i][j] for j in odd), default=0) for i in even}
        gone = min(step, len(left) - k, max(1, len(odd)))
        left = sorted(even, key=lambda i: -most[i])[gone:] + odd
    return sorted(left)


@pytest.mark.parametrize(("size", "k", "step"), [(40, 12, 8), (41, 1, 3), (30, 9, 99), (24, 24, 8), (13, 0, 1)])
def test_tokens_are_those_of_the_rounds(size, k, step):
    x = like(size, 16, size)
    plan = pyramid_ops.bipartite_prune(x, k, step=step)
    assert plan.indices.tolist() == [plain(sample, k, step) for sample in x]
    assert plan.counts.tolist() == [k, k]


def test_one_round_is_tome():
    x = rand(2, 30, 16)
    matching = pyramid_ops.tome_matching(x, 9)
    gone = torch.zeros(2, 30, dtype=torch.bool).scatter_(1, matching.sources, True)
    assert_same_bits(plans.mask(pyramid_ops.bipartite_prune(x, 21, step=9)), ~gone)


def test_tokens_that_are_no_numbers_go_last():
    x = rand(1, 9, 8)
    x[0, 2, 1], x[0, 4], x[0, 6, 0], x[0, 7] = NAN, INF, -INF, NAN
    assert {2, 4, 6} < {*pyramid_ops.bipartite_prune(x, 6, step=1).indices[0].tolist()}
    assert pyramid_ops.bipartite_prune(torch.full_like(x, NAN), 3).counts.tolist() == [3]


def test_dense_packed_and_alone_are_the_same():
    x, lengths, k = like(20, 24, 1), [20, 7], torch.tensor([5, 30])
    packed = torch.cat([x[i, :length] for i, length in enumerate(lengths)])
    offsets = torch.tensor([0, 20, 27])
    plan = pyramid_ops.bipartite_prune(packed, k, step=2, cu_seqlens=offsets, max_seqlen=20, capacity=8)
    assert plan.counts.tolist() == [5, 7]
    assert plan.cu_seqlens.tolist() == [0, 5, 12]
    for sample, (start, count) in enumerate(zip((0, 20), (5, 7), strict=True)):
        alone = pyramid_ops.bipartite_prune(x[sample : sample + 1, : lengths[sample]], count, step=2)
        rows = slice(plan.cu_seqlens[sample], plan.cu_seqlens[sample + 1])
        assert_same_bits(plan.indices[rows] - start, alone.indices[0])
    assert (plan.indices[12:] == -1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": -1}, "k: expected at least 0, got -1"),
        ({"step": 0}, "step: expected at least 1, got 0"),
        ({"k": torch.tensor([1, 2])}, "capacity: expected a number where k is a tensor, got None"),
        ({"capacity": 7}, "capacity: expected at most 6, the tokens there are, got 7"),
        ({"max_seqlen": 3}, "max_seqlen: expected only with cu_seqlens, got 3"),
        ({"precision": "low"}, "precision: expected one of 'grid', 'high', got 'low'"),
        ({"x": rand(1, 30000, 1)}, "x: expected at most 23170 tokens of a sample, got 30000"),
    ],
)
def test_bad_input(change, message):
    arguments = {"x": rand(2, 6, 4), "k": 3, **change}
    with pytest.raises((TypeError, ValueError)) as error:
        pyramid_ops.bipartite_prune(arguments.pop("x"), arguments.pop("k"), **arguments)
    assert str(error.value) == f"bipartite_prune: {message}"
