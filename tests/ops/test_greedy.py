"""What greedy selection picks, against plain float64 and integer code for each sample."""

import math

import numpy as np
import pytest
import torch

import pyramid_ops
from pyramid_ops import plans
from pyramid_ops.reference.units import unit_rows
from tests.bits import assert_same_bits

from .merging_inputs import INF, NAN, rand

RULES = ["maxmin", "dpp", "coverage"]


def integers(rows):
    """Similarities of `[N, D]` in units of 2⁻³⁰, halves up, as Python integers."""
    units, _ = unit_rows(rows[None], 2, 10)
    u = (units[0, :, 0].double() * 2.0**21 + units[0, :, 1].double() * 2.0**10).to(torch.int64)
    return (((u[:, None] * u[None]).sum(-1) + 2048) >> 12).tolist()


def plain(rows, rule, count, relevance=None, candidates=None):
    """The picks by the rule as it is written: in integers, or float64 for the determinant."""
    s, n = integers(rows), len(rows)
    norms = rows.double().norm(dim=1)
    free = [i for i in range(n) if math.isfinite(norms[i]) and (candidates is None or candidates[i])]
    there, picks = list(free), []
    r = [1.0] * n if relevance is None else relevance.double().tolist()
    similarity = torch.tensor(s, dtype=torch.float64) / 2**30

    def apart(i, j):
        return (s[i][i] + s[j][j]) // 2 - s[i][j]

    def gain(i):
        if rule == "maxmin":
            if picks:
                return min(apart(i, j) for j in picks)
            if relevance is not None:
                return r[i]
            return min((apart(i, j) for j in there if j != i), default=0)
        if rule == "coverage":
            total = sum(max(0, s[i][j] - max([0, *(s[p][j] for p in picks)])) for j in there)
            return float(np.float32(r[i]) * np.float32(total))
        chosen = similarity[picks][:, [*picks, i]]
        rest = float(similarity[i, i])
        if picks:
            rest -= float(chosen[:, -1] @ torch.linalg.solve(chosen[:, :-1], chosen[:, -1]))
        return r[i] ** 2 * rest / float(similarity[i, i])

    while free and len(picks) < count:
        best = max(free, key=lambda i: (gain(i), -i))
        picks.append(best)
        free.remove(best)
    return picks


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("weighted", [False, True])
def test_picks_are_those_of_the_rule(rule, weighted):
    for seed in range(6):
        x = rand(1, 24, 40, seed=seed)
        x[0, 5:8] += 3 * x[0, 4]
        relevance = torch.rand(1, 24, generator=torch.Generator().manual_seed(seed)) if weighted else None
        candidates = torch.arange(24)[None] % 7 != seed
        plan = pyramid_ops.greedy_select(x, 12, rule=rule, relevance=relevance, candidates=candidates)
        expected = plain(x[0], rule, 12, None if relevance is None else relevance[0], candidates[0].tolist())
        assert plan.indices[0].tolist() == expected, seed
        assert plan.counts.tolist() == [12]


@pytest.mark.parametrize("rule", ["maxmin", "coverage"])
def test_duplicates_and_zeros_are_exact(rule):
    """Integers throughout: equal tokens are at distance 0, and every tie goes to the lower index."""
    for seed in range(4):
        x = rand(1, 12, 16, seed=seed).repeat(1, 3, 1)
        x[0, 7], x[0, 20] = 0, 0
        assert pyramid_ops.greedy_select(x, 36, rule=rule).indices[0].tolist() == plain(x[0], rule, 36)


@pytest.mark.parametrize("rule", RULES)
def test_nothing_is_picked_twice_or_in_vain(rule):
    x = rand(2, 30, 8)  # of rank 8: for the determinant nothing is left after 8 picks
    x[0, 3], x[0, 4, 2], x[1, 5:] = NAN, INF, x[1, 4].clone()
    plan = pyramid_ops.greedy_select(x, 30, rule=rule)
    assert plan.counts.tolist() == [28, 30]
    for sample, count in enumerate(plan.counts.tolist()):
        picks = plan.indices[sample, :count].tolist()
        assert len({*picks}) == count
        assert (plan.indices[sample, count:] == -1).all()
    assert {3, 4} & {*plan.indices[0].tolist()} == set()


@pytest.mark.parametrize("rule", RULES)
def test_dense_packed_and_alone_are_the_same(rule):
    x = rand(3, 20, 24)
    lengths = [20, 7, 13]
    packed = torch.cat([x[i, :length] for i, length in enumerate(lengths)])
    offsets = torch.tensor([0, 20, 27, 40])
    k = torch.tensor([5, 30, 0])
    options = {"rule": rule, "capacity": 8}
    for order in ("pick", "index"):
        plan = pyramid_ops.greedy_select(packed, k, cu_seqlens=offsets, max_seqlen=20, order=order, **options)
        assert plan.counts.tolist() == [5, 7, 0]
        assert plan.cu_seqlens.tolist() == [0, 5, 12, 12]
        there = torch.arange(20)[None] < torch.tensor(lengths)[:, None]
        dense = pyramid_ops.greedy_select(x, k, candidates=there, order=order, **options)
        for sample, (start, count) in enumerate(zip(offsets.tolist(), plan.counts.tolist(), strict=False)):
            alone = pyramid_ops.greedy_select(
                x[sample : sample + 1, : lengths[sample]], min(count, lengths[sample]), rule=rule, order=order
            )
            assert_same_bits(dense.indices[sample, :count], alone.indices[0])
            rows = slice(plan.cu_seqlens[sample], plan.cu_seqlens[sample + 1])
            assert_same_bits(plan.indices[rows] - start, alone.indices[0])
        assert (plan.indices[12:] == -1).all()
        assert_same_bits(plans.apply(plan, packed)[:12], packed[plan.indices[:12]])


def test_order_by_index_keeps_the_same_tokens():
    x = rand(2, 40, 16)
    picked = pyramid_ops.greedy_select(x, 11, rule="dpp")
    assert_same_bits(pyramid_ops.greedy_select(x, 11, rule="dpp", order="index").indices, picked.indices.sort(1).values)


@pytest.mark.parametrize("rule", ["maxmin", "dpp"])
def test_similar_frames_give_the_picks_of_float64(rule):
    """Sixteen frames of nearly the same patches: float32 sums would pick others."""
    generator = torch.Generator().manual_seed(0)
    frame = torch.randn(12, 256, generator=generator) + torch.randn(1, 256, generator=generator)
    x = (frame + 0.01 * torch.randn(16, 12, 256, generator=generator)).view(1, -1, 256)
    picks = pyramid_ops.greedy_select(x, 48, rule=rule).indices[0].tolist()
    unit = torch.nn.functional.normalize(x[0].double(), dim=-1)
    similarity = unit @ unit.mT
    similarity.fill_diagonal_(1.0)
    assert picks == (_float64_maxmin if rule == "maxmin" else _float64_dpp)(similarity, 48)


def _float64_maxmin(similarity, count):
    apart = 1 - similarity
    least = apart.clone().fill_diagonal_(math.inf).amin(1)
    picks = [int(least.argmax())]
    least = apart[picks[0]].clone()
    while len(picks) < count:
        least[picks] = -1
        picks.append(int(least.argmax()))
        least = torch.minimum(least, apart[picks[-1]])
    return picks


def _float64_dpp(similarity, count):
    left, factor, picks = similarity.diagonal().clone(), torch.zeros(count, len(similarity)).double(), []
    for t in range(count):
        picks.append(int(left.argmax()))
        j = picks[-1]
        factor[t] = (similarity[j] - factor[:t, j] @ factor[:t]) / left[j].sqrt()
        left = left - factor[t] ** 2
        left[picks] = -math.inf
    return picks


@pytest.mark.parametrize("rule", RULES)
def test_edges(rule):
    x = rand(2, 5, 4)
    for k, count in ((0, 0), (5, 5), (99, 5)):
        assert pyramid_ops.greedy_select(x, k, rule=rule).counts.tolist() == [count] * 2
    assert pyramid_ops.greedy_select(x[:, :1], 3, rule=rule).indices.tolist() == [[0], [0]]
    assert pyramid_ops.greedy_select(x[:, :0], 3, rule=rule).indices.shape == (2, 0)
    assert pyramid_ops.greedy_select(x[:0], 3, rule=rule).indices.shape == (0, 3)
    nothing = pyramid_ops.greedy_select(x, 3, rule=rule, candidates=torch.zeros(2, 5, dtype=torch.bool))
    assert nothing.counts.tolist() == [0, 0]
    assert (nothing.indices == -1).all()
    empty = pyramid_ops.greedy_select(x[0], 3, rule=rule, cu_seqlens=torch.tensor([0, 0, 5, 5]))
    assert empty.counts.tolist() == [0, 3, 0]
    assert empty.indices.shape == (9,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "farthest"}, "greedy_select: rule: expected one of 'maxmin', 'dpp', 'coverage', got 'farthest'"),
        ({"order": "value"}, "greedy_select: order: expected one of 'pick', 'index', got 'value'"),
        ({"precision": None}, "greedy_select: precision: expected one of 'high', 'grid', got None"),
        ({"k": -1}, "greedy_select: k: expected at least 0, got -1"),
        ({"k": torch.tensor([1, 2])}, "greedy_select: capacity: expected a number where k is a tensor, got None"),
        ({"capacity": 7}, "greedy_select: capacity: expected at most 6, the tokens there are, got 7"),
        ({"max_seqlen": 3}, "greedy_select: max_seqlen: expected only with cu_seqlens, got 3"),
        ({"relevance": torch.ones(6)}, "greedy_select: relevance: expected shape [B, N], got float32 [6] on cpu"),
        (
            {"relevance": torch.ones(2, 5)},
            "greedy_select: relevance: expected [2, 6] on cpu, got float32 [2, 5] on cpu",
        ),
        ({"candidates": torch.ones(2, 6)}, "greedy_select: candidates: expected dtype bool, got float32 [2, 6] on cpu"),
    ],
)
def test_bad_input(change, message):
    arguments = {"x": rand(2, 6, 4), "k": 3, **change}
    with pytest.raises((TypeError, ValueError)) as error:
        pyramid_ops.greedy_select(arguments.pop("x"), arguments.pop("k"), **arguments)
    assert str(error.value) == message


def test_too_large_problems_are_refused():
    x = torch.zeros(1, 30000, 1)
    for rule, most in (("coverage", 16384), ("dpp", 23170)):
        with pytest.raises(ValueError, match="greedy_select") as error:
            pyramid_ops.greedy_select(x, 3, rule=rule)
        message = f"x: expected at most {most} tokens of a sample for rule '{rule}', got 30000"
        assert str(error.value) == f"greedy_select: {message}"
    with pytest.raises(ValueError, match="k: expected at most 4096 picks for rule 'dpp', got 5000"):
        pyramid_ops.greedy_select(x[:, :5000], 5000, rule="dpp")


def test_similarities_that_do_not_fit_are_multiplied_anew(monkeypatch):
    x, relevance = rand(2, 40, 16), rand(2, 40, seed=1)
    x[:, 7:12] = x[:, :5].clone()
    fitting = [pyramid_ops.greedy_select(x, 25, relevance=given).indices for given in (None, relevance)]
    monkeypatch.setattr("pyramid_ops.reference.greedy.SIMILARITIES", 0)
    anew = [pyramid_ops.greedy_select(x, 25, relevance=given).indices for given in (None, relevance)]
    assert_same_bits(fitting, anew)
