"""Methods that merge after the encoder against plain code for each sample."""

import pytest
import torch

import pyramid_ops
from pyramid_ops import methods, plans
from tests.methods.layouts import best, unit


@pytest.mark.parametrize(("size", "dominant", "contextual"), [(60, 13, 5), (42, 0, 7), (12, 6, 6), (9, 3, 4)])
def test_visionzip(size, dominant, contextual):
    generator = torch.Generator().manual_seed(2)
    attention = torch.rand(2, size, generator=generator).mul(20).floor()
    # A few different tokens only, so that similarities are equal.
    metric, x = (torch.randn(2, n, 16, generator=generator) for n in (size // 3, size))
    metric = metric.repeat(1, 3, 1)
    first, merged = methods.visionzip(attention, metric, dominant=dominant, contextual=contextual)
    dominating, merging = plans.apply(first, x), plans.apply(merged, x)
    assert torch.equal(plans.apply(plans.concat(first, merged), x), torch.cat([dominating, merging], 1))
    joined = merged.rows.masked_fill(plans.mask(merged), -1)
    authors = plans.apply(merged, x, mode="owner") + pyramid_ops.assign_mean(x, joined, contextual).tokens
    for b in range(2):
        chosen = sorted(best(attention[b], dominant, range(size)))
        assert torch.equal(dominating[b], x[b, chosen])
        rest = [i for i in range(size) if i not in chosen]
        targets = rest[:: len(rest) // contextual][:contextual]
        members = {t: [] for t in targets}
        similarity = (unit(metric[b]) @ unit(metric[b]).mT * 1e9).round()
        for i in rest:
            if i not in targets:
                members[max(targets, key=lambda t: (similarity[i, t], -t))].append(i)
        for row, (target, others) in enumerate(members.items()):
            torch.testing.assert_close(merging[b, row], x[b, [target, *others]].mean(0))
            others = x[b, others].mean(0) if others else torch.zeros(16)
            torch.testing.assert_close(authors[b, row], x[b, target] + others)


def test_visionzip_refuses_more_tokens_than_there_are():
    with pytest.raises(ValueError, match="visionzip: contextual: expected at most 3, the other tokens"):
        methods.visionzip(torch.rand(1, 9), torch.rand(1, 9, 4), dominant=6, contextual=4)
    with pytest.raises(ValueError, match="visionzip: dominant: expected less than 9, the tokens, got 54"):
        methods.visionzip(torch.rand(1, 9), torch.rand(1, 9, 4), dominant=54, contextual=10)
    with pytest.raises(ValueError, match=r"visionzip: metric: expected \[1, 9\] on cpu, got float32 \[1, 8\]"):
        methods.visionzip(torch.rand(1, 9), torch.rand(1, 8, 4), dominant=4, contextual=1)


def halved(x: torch.Tensor) -> torch.Tensor:
    """One round of AIM for one sample `[N, D]`: unmerged tokens, then destinations, in float64."""
    even, odd = list(range(0, len(x), 2)), list(range(1, len(x), 2))
    similarity = unit(x[even]) @ unit(x[odd]).mT
    match = similarity.max(1)
    order = sorted(range(len(even)), key=lambda i: (-match.values[i], i))
    gone = order[: len(x) // 2]
    rows = [x[even[i]] for i in order[len(gone) :]]
    for j, place in enumerate(odd):
        rows.append(x[[place, *(even[i] for i in gone if match.indices[i] == j)]].mean(0))
    return torch.stack(rows)


@pytest.mark.parametrize("size", [48, 37, 5])
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_aim_merge(size, rounds):
    x = torch.randn(2, size, 16, generator=torch.Generator().manual_seed(6))
    merged, want = x, list(x.double())
    for plan in methods.aim_merge(x, rounds=rounds):
        merged = plans.apply(plan, merged)
        want = [halved(sample) for sample in want]
    assert merged.shape[1] == methods.retained.aim_merge(size, rounds)
    torch.testing.assert_close(merged.double(), torch.stack(want), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keep", [0, 17, 40, 144])
def test_vscan(keep):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(2, 144, 16, generator=generator)
    shallow, deep = torch.rand(2, 2, 144, generator=generator).mul(30).floor()
    plan = methods.vscan(x, shallow, deep, keep=keep, grid=(9, 16), window=(3, 4))
    merged = plans.apply(plan, x)
    for b in range(2):
        stay = []
        for window in range(12):
            cells = [(window // 4 * 3 + i // 4) * 16 + window % 4 * 4 + i % 4 for i in range(12)]
            stay += best(shallow[b], keep // 2 // 12, sorted(cells))
        stay = sorted(stay + best(deep[b], keep - len(stay), [i for i in range(144) if i not in stay]))
        assert plan.indices[b].tolist() == stay
        members = {i: [i] for i in stay}
        if stay:
            similarity = unit(x[b]) @ unit(x[b, stay]).mT
            for i in set(range(144)) - set(stay):
                members[stay[similarity[i].argmax()]].append(i)
        for row, i in enumerate(stay):
            torch.testing.assert_close(merged[b, row], x[b, members[i]].mean(0))


def test_vscan_refuses():
    scores = torch.rand(1, 36)
    with pytest.raises(ValueError, match="vscan: window: expected one that divides a grid of 36 patches, got 4×6 of"):
        methods.vscan(torch.rand(1, 36, 4), scores, scores, keep=9, grid=(6, 6), window=(4, 6))
    with pytest.raises(ValueError, match="vscan: keep: expected at most the 36 patches, got 37"):
        methods.vscan(torch.rand(1, 36, 4), scores, scores, keep=37, grid=(6, 6))
