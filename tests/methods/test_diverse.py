"""Greedy choices of patches unlike each other against plain code in float64 for each sample."""

import math

import pytest
import torch

from pyramid_ops import methods
from tests.methods.layouts import unit

SIZES = (40, 23, 7)


def patches(seed=0, seen=True):
    """Patches of three samples, some of them twice, and numbers from 0 to 1 of each."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 40, 48, generator=generator) + 0.5 * torch.randn(3, 1, 48, generator=generator)
    if seen:
        x[:, 1::4] = x[:, ::4]
    return x, torch.rand(3, 40, generator=generator).mul(8).ceil() / 8


def alike(x):
    """Cosines of `[N, D]`, of duplicates 1."""
    cosine = unit(x) @ unit(x).mT
    return torch.where(cosine > 1 - 1e-9, 1.0, cosine)


def first_greatest(gains):
    """The first of the greatest, up to what float64 rounds."""
    rounded = [gain if math.isinf(gain) else round(gain, 9) for gain in gains]
    return rounded.index(max(rounded))


def maxmin(x, weight, count):
    apart, picks = 1 - alike(x), []
    while len(picks) < count:
        least = apart[:, picks].amin(1) if picks else apart.clone().fill_diagonal_(math.inf).amin(1)
        picks.append(first_greatest(least.index_fill(0, torch.tensor(picks, dtype=torch.int64), -math.inf).tolist()))
    return sorted(picks)


def determinant(x, weight, count):
    """What is left of a token beside the picks, by solving for it."""
    cosine, picks = alike(x), []
    while len(picks) < count:
        gains = []
        for i in range(len(x)):
            rest = float(cosine[i, i])
            if picks:
                chosen = cosine[picks][:, picks]
                rest -= float(cosine[i, picks] @ torch.linalg.lstsq(chosen, cosine[picks, i, None]).solution[:, 0])
            gains.append(-math.inf if i in picks else max(rest, 0.0) * float(weight[i]) ** 2)
        picks.append(first_greatest(gains))
    return sorted(picks)


def coverage(x, weight, count):
    cosine, picks, covered = alike(x), [], torch.zeros(len(x)).double()
    while len(picks) < count:
        gains = (cosine - covered).clamp(min=0).sum(1) * weight
        gains[picks] = -math.inf
        picks.append(first_greatest((gains * 1e-3).tolist()))
        covered = torch.maximum(covered, cosine[picks[-1]])
    return sorted(picks)


RULES = {
    "divprune": (maxmin, True),
    "cdpruner": (determinant, False),
    "greedyprune": (determinant, False),
    "scope": (coverage, True),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("layout", ["dense", "padded", "packed"])
def test_picks_are_those_of_the_rule(name, layout):
    plainly, duplicates = RULES[name]
    x, weight = patches(seed=len(name), seen=duplicates)
    sizes = (40, 40, 40) if layout == "dense" else SIZES
    there = torch.arange(40) < torch.tensor(sizes)[:, None]
    method, weighted = getattr(methods, name), name != "divprune"
    if layout == "packed":
        offsets = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
        given = [x[there], *([weight[there]] if weighted else [])]
        plan = method(*given, keep=6, cu_seqlens=offsets, max_seqlen=40)
        starts = plan.cu_seqlens.tolist()
        found = [(plan.indices[starts[b] : starts[b + 1]] - offsets[b]).tolist() for b in range(3)]
    else:
        given = [x.masked_fill(~there[..., None], 5), *([weight] if weighted else [])]
        plan = method(*given, keep=6, key_mask=None if layout == "dense" else there)
        found = [plan.indices[b, : plan.counts[b]].tolist() for b in range(3)]
    assert found == [plainly(x[b, :size], weight[b, :size].double(), 6) for b, size in enumerate(sizes)]


def test_divprune_keeps_no_duplicate_before_all_else():
    x, _ = patches(seed=3)
    assert methods.divprune(x, keep=[30, 1, 40]).counts.tolist() == [30, 1, 40]
    chosen = methods.divprune(x, keep=30).indices
    twins = [{i, i + 1} for i in range(0, 40, 4)]
    assert not any(pair <= {*row} for row in chosen.tolist() for pair in twins)


def authors_picks(x, relevance, count):
    """CDPruner as its authors wrote it, in float64: relevance within the matrix."""
    kernel = relevance[:, None] * alike(x) * relevance[None]
    factor, left, picks = torch.zeros(count, len(x)).double(), kernel.diagonal().clone(), []
    for t in range(count):
        j = int(left.argmax())
        picks.append(j)
        factor[t] = (kernel[j] - factor[:t, j] @ factor[:t]) / left[j].sqrt()
        left = left - factor[t].square()
        left[j] = -math.inf
    return sorted(picks)


def test_cdpruner_with_its_relevance_picks_as_its_authors_do():
    generator = torch.Generator().manual_seed(9)
    x, image, text = (torch.randn(2, n, 64, generator=generator) for n in (60, 60, 9))
    words = torch.arange(9) < torch.tensor([[9], [4]])
    relevance = methods.cdpruner_relevance(image, text, text_mask=words)
    plan = methods.cdpruner(x, relevance, keep=20)
    for b in range(2):
        match = -(unit(image[b]) @ unit(text[b, words[b]]).mT).mean(1)
        want = (match - match.min() + 1e-6) / (match.max() - match.min())
        torch.testing.assert_close(relevance[b].double(), want, rtol=0, atol=1e-4)
        assert plan.indices[b].tolist() == authors_picks(x[b], want, 20)


@pytest.mark.parametrize(
    ("name", "what"), [("cdpruner", "relevance"), ("scope", "attention"), ("greedyprune", "saliency")]
)
def test_bad_weights_are_named(name, what):
    with pytest.raises(TypeError, match=f"{name}: {what}: expected dtype float32"):
        getattr(methods, name)(torch.zeros(1, 5, 4), torch.zeros(1, 5, dtype=torch.int64), keep=2)
