"""Methods by which tokens leave or join what they are like against plain code for each sample."""

import pytest
import torch

from pyramid_ops import methods, plans
from tests.methods.layouts import best, places, unit


def scene(size=60, seed=0):
    """Hidden states and keys of three samples, some image tokens alike, with padding on the left."""
    generator = torch.Generator().manual_seed(seed)
    hidden, key = torch.randn(3, size, 24, generator=generator), torch.randn(3, 2, size, 8, generator=generator)
    place = torch.arange(size) - torch.tensor([[0], [6], [11]])
    text = (torch.arange(size) >= size - 9).expand(3, -1)
    image, there = (place >= 3) & ~text, place >= 0
    hidden[:, 21:24], key[:, :, 31] = hidden[:, 20:21], key[:, :, 30]
    return hidden, key, image, text, there


@pytest.mark.parametrize(("each", "pivots", "text_pivots"), [(3, 4, 4), (0, 2, 1), (1, 5, 0), (40, 1, 2), (2, 0, 3)])
def test_dart(each, pivots, text_pivots):
    hidden, key, image, text, there = scene()
    options = {"each": each, "pivots": pivots, "text_pivots": text_pivots}
    plan = methods.dart(hidden, key, image, text, key_mask=there, **options)
    for b in range(3):
        norms = key[b].double().abs().sum((0, 2))
        own = best(norms, pivots, places(image[b]))
        left, stay = [i for i in places(image[b]) if i not in own], [*own]
        for pivot in [*own, *best(norms, text_pivots, places(text[b]))]:
            cosines = ((unit(hidden[b]) @ unit(hidden[b, pivot])) * 1e6).round()
            turn = best(cosines, each, left, largest=False)
            left = [i for i in left if i not in turn]
            stay += turn
        assert plan.indices[b, : plan.counts[b]].tolist() == sorted([*stay, *places(there[b] & ~image[b])])


def test_dart_counts():
    hidden, key, image, text, there = scene()
    plan = methods.dart(hidden, key, image, text, each=2, key_mask=there)
    tokens = [methods.retained.dart(n, 1 - 17 / n) for n in image.sum(1).tolist()]
    assert plan.counts.tolist() == [n + 12 for n in tokens]
    few = methods.dart(hidden, key, image, text & (torch.arange(60) == 57), each=2, key_mask=there)
    assert few.counts.tolist() == [4 + 2 * 5 + 12] * 3
    with pytest.raises(TypeError, match="dart: text: expected dtype bool"):
        methods.dart(hidden, key, image, text.float(), each=2)


def attention(size, seed=1):
    return torch.rand(3, size, generator=torch.Generator().manual_seed(seed)) ** 12


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [60, 150])
def test_prumerge_plus_select(size, masked):
    scores = attention(size)
    there = torch.arange(size) < torch.tensor([[size], [size - 7], [25]]) if masked else torch.ones(3, size) > 0
    plan = methods.prumerge_plus_select(scores, key_mask=there if masked else None)
    for b in range(3):
        own = scores[b, there[b]]
        low, high = torch.quantile(own, torch.tensor([0.25, 0.75]))
        outliers = places(there[b] & (scores[b] > high + 1.5 * (high - low)))
        stride = max(1, size // max(1, len(outliers)) // 3)
        want = {*outliers, *(i for i in range(0, size - 1, stride) if there[b, i])}
        assert plan.indices[b, : plan.counts[b]].tolist() == sorted(want)


@pytest.mark.parametrize("keep", [0, 1, 12, 60])
def test_prumerge_plus_select_of_a_fixed_number(keep):
    scores = attention(60).mul(50).floor()
    plan = methods.prumerge_plus_select(scores, keep=keep)
    for b in range(3):
        want = {*best(scores[b], keep, range(60)), *range(0, 59, max(1, 60 // max(1, keep) // 3))}
        assert plan.indices[b, : plan.counts[b]].tolist() == sorted(want)
    assert (plan.counts <= plan.indices.shape[1]).all()


def merged_plainly(x, key, weight, stay, neighbours):
    """PruMerge of one sample in float64."""
    similar = (unit(key) @ unit(key).mT * 1e9).round()
    tokens = []
    for i in stay:
        near = sorted((j for j in range(len(x)) if j != i), key=lambda j: (-similar[i, j].item(), j))[:neighbours]
        tokens.append(x[i] + (weight[near, None] * x[near]).sum(0))
    gone = [i for i in range(len(x)) if i not in stay]
    return torch.stack(tokens) if tokens else x[:0], (weight[gone, None] * x[gone]).sum(0)


@pytest.mark.parametrize("neighbours", [32, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_prumerge(masked, neighbours):
    generator = torch.Generator().manual_seed(3)
    x, key = torch.randn(3, 70, 24, generator=generator), torch.randn(3, 70, 16, generator=generator)
    key[:, 40:44] = key[:, 39:40]
    sizes, scores = [70, 51, 20] if masked else [70] * 3, attention(70)
    there = torch.arange(70) < torch.tensor(sizes)[:, None]
    x, key = (part.masked_fill(~there[..., None], 9.0) for part in (x, key))
    plan = methods.prumerge_select(scores, key_mask=there)
    assert plan.counts.tolist() != [0, 0, 0]
    options = {"neighbours": neighbours, "key_mask": there if masked else None}
    tokens, rest = methods.prumerge(x, key, scores, plan, **options)
    for b, size in enumerate(sizes):
        stay = plan.indices[b, : plan.counts[b]].tolist()
        own = (part[b, :size].double() for part in (x, key, scores))
        want, other = merged_plainly(*own, stay, neighbours)
        torch.testing.assert_close(tokens[b, : len(stay)].double(), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(rest[b, 0].double(), other, rtol=1e-5, atol=1e-5)
        assert not tokens[b, len(stay) :].any()


def test_prumerge_refuses():
    x, scores = torch.rand(1, 9, 4), torch.rand(1, 9)
    plan = plans.keep(scores, 2)
    with pytest.raises(TypeError, match="prumerge: plan: expected a Keep, got a Merge|prumerge: plan: expected a Keep"):
        methods.prumerge(x, x, scores, plans.join(x, plan))
    with pytest.raises(TypeError, match="prumerge: attention: expected dtype float32"):
        methods.prumerge(x, x, scores.half(), plan)


def leaders(x, threshold, order):
    """The token whose cluster each one is in, of one sample."""
    cosine, joined = (unit(x) @ unit(x).mT * 2**30).round() / 2**30, {}
    for i in order:
        if i not in joined:
            for j in order:
                if j == i or (j not in joined and cosine[i, j] >= threshold):
                    joined[j] = i
    return joined


@pytest.mark.parametrize("layout", ["dense", "padded", "packed"])
@pytest.mark.parametrize("ranked", [False, True])
def test_vscan_described(layout, ranked):
    generator = torch.Generator().manual_seed(5)
    x, scores = torch.randn(3, 50, 6, generator=generator), torch.rand(3, 50, generator=generator).mul(9).floor()
    x[:, 30:40] = x[:, 3:13]
    sizes = [50] * 3 if layout == "dense" else [50, 31, 8]
    there, options = torch.arange(50) < torch.tensor(sizes)[:, None], {}
    given = x[there] if layout == "packed" else x
    if layout == "packed":
        options = {"cu_seqlens": torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()]), "max_seqlen": 50}
    elif layout == "padded":
        options = {"key_mask": there}
    if ranked:
        options["scores"] = scores[there] if layout == "packed" else scores
    plan = methods.vscan_described(given, threshold=0.7, **options)
    merged = plans.apply(plan, given)
    for b, size in enumerate(sizes):
        order = best(scores[b], size, range(size)) if ranked else list(range(size))
        joined = leaders(x[b, :size], 0.7, order)
        first = sorted({*joined.values()})
        want = torch.stack([x[b, [i for i in sorted(joined) if joined[i] == of]].mean(0) for of in first])
        if layout == "packed":
            rows = slice(plan.cu_seqlens[b], plan.cu_seqlens[b + 1])
            found, own = merged[rows], (plan.indices[rows] - options["cu_seqlens"][b]).tolist()
        else:
            found, own = merged[b, : plan.counts[b]], plan.indices[b, : plan.counts[b]].tolist()
        assert own == first
        torch.testing.assert_close(found, want)


@pytest.mark.parametrize("size", [2, 9, 40])
def test_aim_pair(size):
    x = torch.randn(3, size, 12, generator=torch.Generator().manual_seed(size))
    if size > 9:
        x[1, 8] = x[1, 20] = x[1, 3]  # equal pairs
    plan, weights = methods.aim_pair(x)
    merged = plans.apply(plan, x, weights=weights)
    for b in range(3):
        cosine = (unit(x[b]) @ unit(x[b]).mT * 1e7).round() / 1e7
        first, second = max(
            ((i, j) for i in range(size) for j in range(i + 1, size)), key=lambda p: (cosine[p].item(), -p[0], -p[1])
        )
        s = cosine[first, second]
        want = x[b].double()
        want[first] = s * want[first] + (1 - s) * want[second]
        left = [i for i in range(size) if i != second]
        assert plan.indices[b].tolist() == left
        torch.testing.assert_close(merged[b].double(), want[left], rtol=1e-5, atol=1e-5)


def test_aim_pair_of_tokens_that_are_no_numbers():
    x = torch.full((1, 4, 3), torch.nan)
    assert methods.aim_pair(x)[0].indices.tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match="aim_pair: x: expected at least two tokens"):
        methods.aim_pair(x[:, :1])


@pytest.mark.parametrize(("grid", "depth"), [((8, 8), 3), ((8, 16), 2), ((6, 4), 1), ((3, 5), 0)])
@pytest.mark.parametrize("threshold", [0.8, 0.3])
def test_dtoma_merge(grid, depth, threshold):
    generator = torch.Generator().manual_seed(6)
    (rows, columns), size = grid, grid[0] * grid[1]
    x = torch.randn(2, 2, 2, 12, generator=generator)
    x = x.repeat_interleave(-(-rows // 2), 1).repeat_interleave(-(-columns // 2), 2)[:, :rows, :columns].flatten(1, 2)
    x = x + 0.8 * torch.rand(2, size, 1, generator=generator) * torch.randn(2, size, 12, generator=generator)
    plan = methods.dtoma_merge(x, grid, threshold=threshold, depth=depth)
    merged, some = plans.apply(plan, x), 0
    for b in range(2):
        cosine, free, cells = unit(x[b]) @ unit(x[b]).mT, {*range(size)}, {}
        for level in range(depth + 1):
            tall, wide = rows >> level, columns >> level
            for cell in range(4**level):
                top, left = cell // 2**level * tall, cell % 2**level * wide
                members = [(top + i) * columns + left + j for i in range(tall) for j in range(wide)]
                pairs = len(members) * (len(members) - 1)
                mean = (cosine[members][:, members].sum() - len(members)) / max(1, pairs)
                if {*members} <= free and pairs and mean > threshold:
                    cells[members[0]], free = members, free - {*members}
        cells |= {i: [i] for i in free}
        some += size - len(cells)
        assert plan.indices[b, : plan.counts[b]].tolist() == sorted(cells)
        want = torch.stack([x[b, cells[i]].mean(0) for i in sorted(cells)])
        torch.testing.assert_close(merged[b, : len(cells)], want)
    assert some or not depth or threshold > 0.5


def test_dtoma_merge_refuses():
    with pytest.raises(
        ValueError, match="dtoma_merge: grid: expected one of 36 patches that 8×8 cells divide, got 6×6"
    ):
        methods.dtoma_merge(torch.rand(1, 36, 4), (6, 6))
