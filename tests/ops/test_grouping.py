"""Tokens that join others, and one plan after another, against plain code for each sample."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import pyramid_ops
from pyramid_ops import plans


def joined(x: torch.Tensor, kept: list[int]) -> list[int]:
    """The row of each token in float64: its own, or that of the most similar one that stays."""
    unit = F.normalize(x.double(), dim=1)
    best = (unit @ unit[kept].T).argmax(1).tolist()
    return [kept.index(i) if i in kept else best[i] for i in range(len(x))]


@pytest.mark.parametrize("packed", [False, True])
def test_join_is_the_most_similar_that_stays(packed):
    x, scores = torch.randn(3, 40, 8), torch.rand(3, 40)
    if packed:
        bounds = torch.tensor([0, 40, 80, 120])
        plan = plans.keep(scores.flatten(), [7, 1, 20], cu_seqlens=bounds, max_seqlen=40)
        merge = plans.join(x.flatten(0, 1), plan)
        means = plans.apply(merge, x.flatten(0, 1))
    else:
        merge = plans.join(x, plans.keep(scores, [7, 1, 20]))
        means = plans.apply(merge, x)
    for b, k in enumerate((7, 1, 20)):
        kept = scores[b].topk(k).indices.sort().values.tolist()
        rows = torch.tensor(joined(x[b], kept))
        start = int(merge.cu_seqlens[b]) if packed else 0
        got = merge.rows[40 * b : 40 * b + 40] - start if packed else merge.rows[b]
        assert torch.equal(got, rows)
        sizes = merge.sizes[start : start + k] if packed else merge.sizes[b, :k]
        assert torch.equal(sizes, torch.bincount(rows, minlength=k).float())
        expected = torch.stack([x[b][rows == m].double().mean(0) for m in range(k)]).float()
        torch.testing.assert_close(means[start : start + k] if packed else means[b, :k], expected, rtol=1e-5, atol=1e-6)


def test_modes_and_weights():
    x, scores, weights = torch.randn(2, 12, 4), torch.rand(2, 12), torch.rand(2, 12)
    plan = plans.join(x, plans.keep(scores, 3))
    mean, total, most, owner, sizes, tokens = plans.apply(
        plan,
        [x, x, x, x, weights, torch.arange(12)],
        weights=weights,
        mode=["mean", "sum", "amax", "owner", "sum", "mean"],
    )
    assert torch.equal(tokens, plan.indices)
    for b in range(2):
        for m in range(3):
            here = plan.rows[b] == m
            part, weight = x[b][here].double(), weights[b][here, None].double()
            torch.testing.assert_close(mean[b, m].double(), (part * weight).sum(0) / weight.sum(), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(total[b, m].double(), part.sum(0), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(sizes[b, m].double(), weight.sum(), rtol=1e-5, atol=1e-6)
            assert torch.equal(most[b, m], x[b][here].amax(0))
            assert torch.equal(owner[b, m], x[b, plan.indices[b, m]])


def test_heads_and_alignment_of_merged_rows():
    x, cache = torch.randn(2, 12, 4), torch.randn(2, 3, 12, 5)
    plan = plans.join(x, plans.keep(torch.rand(2, 12), [2, 4]))
    left, right = (plans.apply(plan, [x, cache], align=align, fill=9) for align in ("left", "right"))
    for before, after in zip(left, right, strict=True):
        assert torch.equal(after[0, ..., 2:, :], before[0, ..., :2, :])
        assert bool((before[0, ..., 2:, :] == 9).all())
        assert bool((after[0, ..., :2, :] == 9).all())
        assert torch.equal(after[1], before[1])
    heads = torch.stack([plans.apply(plan, cache[:, h], fill=9) for h in range(3)], 1)
    assert torch.equal(left[1], heads)


def test_what_cannot_join_is_dropped():
    x = torch.randn(2, 5, 3)
    x[0, 3, 1] = torch.nan
    kept = torch.zeros(2, 5, dtype=torch.bool)
    kept[0, 1] = True
    plan = plans.join(x, plans.keep(torch.rand(2, 5), 2, candidates=kept))
    assert plan.rows.tolist() == [[0, 0, 0, -1, 0], [-1] * 5]
    assert plan.sizes.tolist() == [[4.0, 0.0], [0.0, 0.0]]
    assert not plans.apply(plan, x)[1].any()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9), st.booleans(), st.booleans(), st.booleans())
def test_then_is_one_after_the_other(size, many, few, packed, merge_first, merge_second):
    generator = torch.Generator().manual_seed(size * 100 + many * 10 + few)
    x, scores = torch.randn(2, size, 3, generator=generator), torch.rand(2, size, generator=generator)
    bounds = torch.tensor([0, size, 2 * size]) if packed else None
    if packed:
        x, scores = x.flatten(0, 1), scores.flatten()
    first = plans.keep(scores, many, cu_seqlens=bounds)
    first = plans.join(x, first) if merge_first else first
    reduced = plans.apply(first, x)
    second = plans.keep(
        reduced[..., 0].contiguous(),
        few,
        candidates=first.indices >= 0,
        cu_seqlens=first.cu_seqlens if packed else None,
    )
    second = plans.join(reduced, second) if merge_second else second
    both = plans.then(first, second)
    assert isinstance(both, pyramid_ops.Merge) == (merge_first or merge_second)
    token = torch.arange(x.shape[-2]).expand(x.shape[:-1])
    owners = plans.apply(second, plans.apply(first, token, fill=-1), fill=-1)
    assert torch.equal(both.indices, owners)
    assert torch.equal(plans.apply(both, token, fill=-1), owners)
    if merge_first or merge_second:
        sums = plans.apply(second, plans.apply(first, x, mode="sum"), mode="sum")
        torch.testing.assert_close(plans.apply(both, x, mode="sum"), sums, rtol=1e-5, atol=1e-5)
        assert torch.equal(both.sizes.sum(-1), (both.rows >= 0).sum(-1).float())
    else:
        assert torch.equal(plans.apply(both, x), plans.apply(second, reduced))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9), st.booleans(), st.booleans())
def test_concat_is_one_beside_the_other(size, many, few, merge_first, merge_second):
    """Each half of the tokens by its own plan, and the rows of the two without gaps."""
    generator = torch.Generator().manual_seed(size * 100 + many * 10 + few)
    x = torch.randn(2, size, 3, generator=generator)
    left = torch.rand(2, size, generator=generator) < 0.5
    parts = []
    for which, count, merge in ((left, many, merge_first), (~left, few, merge_second)):
        plan = plans.keep(x[..., 0].contiguous(), count, candidates=which)
        # Only tokens of its own half join a plan.
        plan = plans.join(x.masked_fill(~which[..., None], torch.nan), plan) if merge else plan
        parts.append(plan)
    both = plans.concat(*parts)
    assert isinstance(both, pyramid_ops.Merge) == (merge_first or merge_second)
    assert torch.equal(both.counts, parts[0].counts + parts[1].counts)
    apart = [plans.apply(plan, x, mode="sum") for plan in parts]
    together = plans.apply(both, x, mode="sum")
    for b in range(2):
        counts = [int(plan.counts[b]) for plan in parts]
        want = torch.cat([rows[b, :count] for rows, count in zip(apart, counts, strict=True)])
        assert torch.equal(together[b, : sum(counts)], want)
        assert (both.indices[b, sum(counts) :] == -1).all()
    if isinstance(both, pyramid_ops.Merge):
        assert torch.equal(plans.mask(both), plans.mask(parts[0]) | plans.mask(parts[1]))
        assert torch.equal(both.sizes.sum(-1), (both.rows >= 0).sum(-1).float())


BAD = {
    "concat: second: expected a Keep or Merge, got None": lambda: plans.concat(PLAN, None),
    "concat: first: expected a plan for dense tokens, got one": lambda: plans.concat(
        plans.keep(X[0, :, 0].contiguous(), 1, cu_seqlens=torch.tensor([0, 9])), PLAN
    ),
    "concat: second: expected a plan for [2, 9] tokens as the first, got for [2, 8]": lambda: plans.concat(
        PLAN, plans.keep(X[:, :8, 0].contiguous(), 1)
    ),
    "join: plan: expected a Keep, got a Merge": lambda: plans.join(X, plans.join(X, PLAN)),
    "join: metric: expected [2, 9, D] on cpu, got float32 [2, 8, 4]": lambda: plans.join(X[:, :8], PLAN),
    "join: precision: expected one of 'grid', 'high', got 'low'": lambda: plans.join(X, PLAN, precision="low"),
    "then: second: expected a plan for [2, 3] rows of the first, got for [2, 9]": lambda: plans.then(PLAN, PLAN),
    "then: first: expected a Keep or Merge, got None": lambda: plans.then(None, PLAN),
}
X = torch.randn(2, 9, 4)
PLAN = plans.keep(torch.rand(2, 9), 3)


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises((TypeError, ValueError)) as caught:
        BAD[message]()
    assert str(caught.value).startswith(message)
