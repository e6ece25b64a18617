"""Methods for pyramids and tiles against plain code for each sample."""

import pytest
import torch

from pyramid_ops import methods
from tests.methods.layouts import LAYOUTS, best, probabilities, samples, together

SIDES = (16, 8, 4, 2)
GRIDS = [(side, side) for side in SIDES]


def pyramid(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, side * side, 24, generator=generator) for side in SIDES]


def region_variance(x, side, regions=4):
    """Of each token of one sample the variance of its region, as those of a grid smaller than 4 × 4 are the tokens."""
    grid, own = x.double().view(side, side, -1), torch.zeros(side, side, dtype=torch.float64)
    for i in range(side):
        for j in range(side):
            size = max(side // regions, 1)
            top, left = i // size * size, j // size * size
            own[i, j] = grid[top : top + size, left : left + size].var()
    return own.flatten()


def picked(selection, b):
    return [tuple(pair) for pair in selection.indices[b].tolist()]


@pytest.mark.parametrize("saliency", ["region", "variance", "norm", "attention"])
def test_pyramid_select(saliency):
    levels = pyramid()
    selection = methods.pyramid_select(levels, GRIDS, keep=60, saliency=saliency, order="index")
    # Level 3 holds 4 of its 6 tokens; level 0 takes what is left.
    budgets = [26, 18, 12, 4]
    for b in range(2):
        want = []
        for level, (x, side) in enumerate(zip(levels, SIDES, strict=True)):
            x = x[b].double()
            scores = {
                "region": lambda x=x, side=side: region_variance(x, side),
                "variance": lambda x=x: x.var(1),
                "norm": lambda x=x: x.norm(dim=1),
                "attention": lambda x=x: probabilities(x[None], x[None], causal=False)[0].mean(0),
            }[saliency]()
            scores = (scores * 1e5).round()
            want += [(level, i) for i in sorted(best(scores, budgets[level], range(side * side)))]
        assert picked(selection, b) == want
        assert torch.equal(selection.tokens[b], torch.stack([levels[level][b, i] for level, i in want]))


def test_pyramid_select_needs_grids_for_regions():
    levels = pyramid()
    with pytest.raises(ValueError, match="pyramid_select: grids: expected one for each of 4 levels, got None"):
        methods.pyramid_select(levels, keep=9, saliency="region")
    with pytest.raises(ValueError, match="pyramid_select: saliency: expected one of 'region', 'variance'"):
        methods.pyramid_select(levels, keep=9, saliency="learned")


def test_ptp_described():
    levels, text = pyramid(1), torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(2))
    there = torch.arange(7) < torch.tensor([[7], [3]])
    selection = methods.ptp_described(levels, GRIDS, text, keep=60, text_mask=there, order="index")
    for b in range(2):
        scores = {}
        for level, (x, side) in enumerate(zip(levels, SIDES, strict=True)):
            x, words = x[b].double(), text[b, there[b]].double()
            relevance = (x @ words.mT / 24**0.5).amax(1)
            whole = 0.3 * region_variance(x, side) + 0.4 * x.var(1) + 0.3 * relevance
            scores |= {(level, i): score for i, score in enumerate(whole.tolist())}
        assert picked(selection, b) == sorted(sorted(scores, key=lambda at: (-scores[at], at))[:60])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ptp_relevance(layout):
    given = samples(layout, seed=3)
    x, where = together(layout, given)
    found, start = methods.ptp_relevance(x["query"], x["key"], x["text"], **where), 0
    for k, sample in enumerate(given):
        size = sample["image"].shape[0]
        own = found[start : start + size] if layout == "packed" else found[k, -size:]
        want = probabilities(sample["query"], sample["key"]).mean(0)[sample["text"]].amax(0)
        torch.testing.assert_close(own.double(), want, rtol=1e-4, atol=1e-8)
        start += size


@pytest.mark.parametrize("on_device", [False, True])
def test_ptp(on_device):
    generator = torch.Generator().manual_seed(4)
    saliency, relevance = torch.rand(2, 2, 5, 36, generator=generator)
    saliency = saliency * torch.tensor([1.0, 4.0, 2.0, 0.5, 1.0])[:, None]
    keep = torch.tensor([60, 33]) if on_device else 60
    plan = methods.ptp(saliency, relevance, keep=keep, alpha=0.25)
    for b, total in enumerate((60, 33) if on_device else (60, 60)):
        means = saliency[b].double().mean(1)
        shares = total * means / means.sum()
        budgets = shares.floor().int().tolist()
        for t in sorted(range(5), key=lambda t: -means[t])[: total - sum(budgets)]:
            budgets[t] += 1
        assert max(budgets) <= 36
        for t, budget in enumerate(budgets):
            own = saliency[b, t].double()
            scores = 0.75 * (own - own.min()) / (own.max() - own.min()) + 0.25 * relevance[b, t].double()
            row = b * 5 + t
            assert plan.indices[row, : plan.counts[row]].tolist() == sorted(best(scores, budget, range(36)))


def test_adaptive_select():
    levels = pyramid(5)
    instruction = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(6))
    instruction[0] *= 0.02
    lengths = torch.tensor([3, 9])
    selection = methods.adaptive_select(levels, instruction, keep=40, lengths=lengths, order="index")
    # By their order the largest remainders of 40 · weights; level 3 holds 4 only, level 0 takes what is left.
    budgets = [[10 + 4, 12, 10, 4], [14 + 2, 12, 8, 4]]
    for b in range(2):
        length = int(lengths[b])
        difficulty = torch.sigmoid(0.1 * length + 10 * instruction[b, :length].double().var())
        assert (difficulty < 0.7) == (b == 0)
        want = []
        for level, (x, side) in enumerate(zip(levels, SIDES, strict=True)):
            scores = x[b].double().var(1)
            want += [(level, i) for i in sorted(best(scores, budgets[b][level], range(side * side)))]
        assert [tuple(pair) for pair in selection.indices.view(2, 40, 2)[b].tolist()] == want


@pytest.mark.parametrize("grid", [(16, 16), (7, 9), (1, 5)])
@pytest.mark.parametrize("thresholds", [(0.8, 0.5, 0.3), (0.5,), ()])
def test_lod_select(grid, thresholds):
    rows, columns = grid
    relevance = torch.rand(2, rows * columns, generator=torch.Generator().manual_seed(7)).mul(10).round() / 10
    found = methods.lod_select(relevance, grid, thresholds=thresholds)
    assert len(found) == len(thresholds) + 1
    limits = torch.tensor(thresholds)
    for b in range(2):
        want = [set() for _ in found]
        for i in range(rows * columns):
            level = int((relevance[b, i] <= limits).sum())
            across = -(-columns // 2**level)
            want[level].add((i // columns >> level) * across + (i % columns >> level))
        assert [set(plan.indices[b, : plan.counts[b]].tolist()) for plan in found] == want


def test_lod_select_refuses_thresholds_that_ascend():
    with pytest.raises(ValueError, match="lod_select: thresholds: expected descending numbers"):
        methods.lod_select(torch.rand(1, 4), (2, 2), thresholds=(0.3, 0.5))


def test_levels_by_query():
    levels, query = pyramid(8), torch.randn(2, 24, generator=torch.Generator().manual_seed(9))
    levels[1] = levels[1] + query[:, None]
    levels[2] = levels[2] * 0.1 + query[:, None] * 0.01
    levels[3][1] += 2 * query[1]
    aligned, stays = methods.level_alignment(levels, query), methods.skip_levels(levels, query)
    for b in range(2):
        means = torch.stack([x[b].double().mean(0) for x in levels])
        want = torch.nn.functional.cosine_similarity(means, query[b, None].double(), dim=1)
        torch.testing.assert_close(aligned[b].double(), want, rtol=0, atol=1e-5)
        spread = torch.stack([x[b].double().var() for x in levels])
        assert stays[b].tolist() == ((want >= 0.3) & (spread >= 0.1)).tolist()
        for keep in range(5):
            found = methods.query_levels(levels, query, keep=keep).indices[b].tolist()
            assert found == sorted(best(want, keep, range(4)))
    assert stays.any()
    assert not stays.all()
    with pytest.raises(ValueError, match="query_levels: keep: expected at most 4 levels, got 5"):
        methods.query_levels(levels, query, keep=5)


@pytest.mark.parametrize("keep", [1, 64, 144, 169, 256, 576])
def test_tokenflex(keep):
    x = torch.randn(2, 576, 8, generator=torch.Generator().manual_seed(10))
    grid = x.mT.unflatten(2, (24, 24)).double()
    want = torch.nn.functional.adaptive_avg_pool2d(grid, int(keep**0.5)).flatten(2).mT
    torch.testing.assert_close(methods.tokenflex(x, (24, 24), keep=keep).double(), want, rtol=1e-5, atol=1e-5)


def test_tokenflex_refuses_what_is_no_square():
    with pytest.raises(ValueError, match="tokenflex: keep: expected a square number, got 60"):
        methods.tokenflex(torch.rand(1, 9, 4), (3, 3), keep=60)


@pytest.mark.parametrize("grid", [(16, 16), (9, 21)])
@pytest.mark.parametrize("radii", [(0.15, 0.3, 0.6), (0.2,), ()])
def test_foveal(grid, radii):
    (rows, columns), gaze = grid, torch.tensor([[0.5, 0.5], [0.13, 0.91], [-1.0, 2.0]])
    found = methods.foveal(gaze, grid, radii=radii)
    assert len(found) == len(radii) + 1
    for b in range(3):
        want = [set() for _ in found]
        for i in range(rows):
            for j in range(columns):
                down, across = (i + 0.5) / rows - gaze[b, 0].item(), (j + 0.5) / columns - gaze[b, 1].item()
                level = sum((down * down + across * across) ** 0.5 >= radius for radius in radii)
                want[level].add((i >> level) * -(-columns // 2**level) + (j >> level))
        assert [set(plan.indices[b, : plan.counts[b]].tolist()) for plan in found] == want


def test_foveal_refuses():
    with pytest.raises(ValueError, match=r"foveal: gaze: expected \[B, 2\], got float32 \[1, 3\]"):
        methods.foveal(torch.rand(1, 3), (4, 4))
    with pytest.raises(ValueError, match="foveal: radii: expected ascending numbers above 0, got"):
        methods.foveal(torch.rand(1, 2), (4, 4), radii=(0.5, 0.3))


@pytest.mark.parametrize("count", [1, 3])
def test_tension(count):
    generator = torch.Generator().manual_seed(11)
    balance = torch.rand(2, count, generator=generator)
    pulls = [tuple(torch.rand(2, 2, 30, generator=generator).to(torch.bfloat16)) for _ in range(count)]
    pulls = [(a[:, :].contiguous(), b.float()) for a, b in pulls]
    t = balance.double()[:, :, None]
    a, b = (torch.stack([pair[k].double() for pair in pulls], 1) for k in (0, 1))
    want = ((1 - t) * a + t * b).mean(1)
    torch.testing.assert_close(methods.tension(pulls, balance).double(), want, rtol=1e-6, atol=1e-6)


def test_tension_refuses():
    x = torch.rand(2, 9)
    with pytest.raises(ValueError, match=r"tension: balance: expected \[2, 1\]"):
        methods.tension([(x, x)], torch.rand(2, 2))
    with pytest.raises(TypeError, match=r"tension: pulls\[0\]: expected a pair of tensors"):
        methods.tension([x], torch.rand(2, 1))
    with pytest.raises(TypeError, match="tension: pulls: expected a non-empty list of pairs"):
        methods.tension([], torch.rand(2, 1))


def test_redundant_levels():
    generator = torch.Generator().manual_seed(12)
    coarse = torch.randn(2, 4, 24, generator=generator)
    middle = coarse.view(2, 2, 2, 24).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    middle[1] += torch.randn(16, 24, generator=generator)
    fine = torch.randn(2, 64, 24, generator=generator)
    grids = [(8, 8), (4, 4), (2, 2)]
    found = methods.redundant_levels([fine, middle, coarse], grids)
    assert found.tolist() == [[False, True, False], [False, False, False]]
    means = fine.double().view(2, 4, 2, 4, 2, 24).mean((2, 4)).flatten(1, 2)
    near = torch.nn.functional.cosine_similarity(means, middle.double(), dim=2).mean(1)
    for limit in (near[0] - 0.01, near[0] + 0.01):
        assert methods.redundant_levels([fine, middle], grids[:2], threshold=float(limit))[0, 0] == (near[0] > limit)
    with pytest.raises(ValueError, match="redundant_levels: grids: expected one for each of 2 levels, got 3"):
        methods.redundant_levels([fine, middle], grids)


def test_query_regions():
    generator = torch.Generator().manual_seed(13)
    x, query = torch.randn(2, 48, 6, generator=generator), torch.randn(2, 6, generator=generator)
    found = methods.query_regions(x, (8, 6), query, regions=(4, 3))
    means = x.double().view(2, 4, 2, 3, 2, 6).mean((2, 4))
    near = torch.nn.functional.cosine_similarity(means, query[:, None, None].double(), dim=3) >= 0.3
    want = near.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
    assert torch.equal(found, want)
    assert want.any()
    assert not want.all()
