"""Methods after the encoder against plain code for each sample."""

import pytest
import torch

from pyramid_ops import methods
from tests.methods.layouts import best, probabilities, unit


def test_class_attention():
    query, key = torch.randn(2, 4, 30, 16), torch.randn(2, 4, 30, 16)
    want = torch.stack([probabilities(q, k, causal=False)[:, 0].mean(0) for q, k in zip(query, key, strict=True)])
    torch.testing.assert_close(methods.class_attention(query, key).double(), want[:, 1:], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(methods.class_attention(query, key, prefix=5).double(), want[:, 5:], rtol=1e-4, atol=0)
    both = [x.movedim(1, 2).flatten(0, 1) for x in (query, key)]
    packed = methods.class_attention(*both, cu_seqlens=torch.tensor([0, 30, 60]))
    assert torch.equal(packed.view(2, 30)[:, 1:], methods.class_attention(query, key))


def test_fastervlm():
    scores = torch.rand(3, 40, generator=torch.Generator().manual_seed(1)).mul(9).floor()
    plan = methods.fastervlm(scores, keep=[7, 0, 40])
    for b, k in enumerate((7, 0, 40)):
        assert plan.indices[b, :k].tolist() == sorted(best(scores[b], k, range(40)))
    packed = methods.fastervlm(scores.flatten(), keep=7, cu_seqlens=torch.tensor([0, 40, 80, 120]), max_seqlen=40)
    assert packed.indices.tolist() == [40 * b + i for b in range(3) for i in sorted(best(scores[b], 7, range(40)))]


def tied(*shape, seed=0, values=12):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).mul(values).floor()


def kept(plan, b):
    return plan.indices[b, : plan.counts[b]].tolist()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("tiles", [(2, 2), (1, 3), (3, 1)])
def test_hired(alpha, tiles):
    size, down, across = 36, *tiles
    shallow, deep = tied(2, size), tied(2, 1 + down * across, size, seed=1)
    plan = methods.hired(shallow, deep, keep=40, grid=(6, 6), tiles=tiles, alpha=alpha)
    whole = min(int(40 * alpha), size)
    for b in range(2):
        marked = best(shallow[b], int(size * (1 - alpha)), range(size))
        tile_of = [i // 6 // (6 // down) * across + i % 6 // (6 // across) for i in marked]
        counts = [tile_of.count(t) for t in range(down * across)]
        budgets = shared(40 - whole, counts, size)
        for t, budget in enumerate([whole, *budgets]):
            row = b * (1 + down * across) + t
            assert kept(plan, row) == sorted(best(deep[b, t], budget, range(size))), (b, t)


def shared(total, counts, size):
    """Largest remainders, what is too much to the first with room; tiles alike where nothing is marked."""
    counts = counts if any(counts) else [1] * len(counts)
    shares = [total * c // sum(counts) for c in counts]
    for k in sorted(range(len(counts)), key=lambda k: (-(total * counts[k] % sum(counts)), k))[: total - sum(shares)]:
        shares[k] += 1
    on = [size if c else 0 for c in counts]
    missing = sum(max(s - m, 0) for s, m in zip(shares, on, strict=True))
    shares = [min(s, m) for s, m in zip(shares, on, strict=True)]
    for k, most in enumerate(on):
        extra = min(missing, most - shares[k])
        shares[k], missing = shares[k] + extra, missing - extra
    return shares


def test_hired_as_its_code_counts_marks():
    """Tiles share by marked patches of consecutive rows."""
    shallow, deep = tied(1, 36, values=99), tied(1, 5, 36, seed=1)
    plan = methods.hired(shallow, deep, keep=40, grid=(1, 36), tiles=(1, 4))
    marked = best(shallow[0], 18, range(36))
    counts = [sum(9 * t <= i < 9 * t + 9 for i in marked) for t in range(4)]
    assert plan.counts.tolist() == [20, *shared(20, counts, 36)]
    truncated = [int(c / sum(counts) * 20) for c in counts]
    assert all(t <= n <= t + 1 for t, n in zip(truncated, plan.counts[1:].tolist(), strict=True))


def test_hired_of_tiles_with_padding():
    """Each tile has room for its own patches alone; one without a mark takes what the others cannot."""
    shallow, deep = torch.arange(16.0)[None], tied(1, 3, 16, seed=1)
    there = torch.ones(1, 3, 16, dtype=torch.bool)
    there[0, 1, 3:] = False
    there[0, 2, ::2] = False
    options = {"grid": (4, 4), "tiles": (2, 1), "key_mask": there}
    plan = methods.hired(shallow, deep, keep=16, **options)
    assert plan.counts.tolist() == [8, 0, 8]  # what is marked lies below
    assert kept(plan, 2) == list(range(1, 16, 2))
    plan = methods.hired(shallow, deep, keep=18, **options)
    assert plan.counts.tolist() == [9, 1, 8]
    assert kept(plan, 1) == best(deep[0, 1], 1, range(3))
    assert methods.hired(shallow, deep, keep=48, **options).counts.tolist() == [16, 3, 8]
    with pytest.raises(ValueError, match=r"hired: key_mask: expected \[1, 3, 16\]"):
        methods.hired(shallow, deep, keep=16, **options | {"key_mask": there[:, :2]})


def test_hired_refuses():
    shallow, deep = torch.zeros(1, 36), torch.zeros(1, 5, 36)
    with pytest.raises(ValueError, match="hired: tiles: expected 4 that divide a grid of 36 patches, got 1×3 of 6×6"):
        methods.hired(shallow, deep, keep=40, grid=(6, 6), tiles=(1, 3))
    with pytest.raises(ValueError, match="hired: grid: expected one of 36 patches, got 5×6"):
        methods.hired(shallow, deep, keep=40, grid=(5, 6), tiles=(2, 2))
    with pytest.raises(ValueError, match="hired: alpha: expected a number from 0 to 1, got 1.5"):
        methods.hired(shallow, deep, keep=40, grid=(6, 6), tiles=(2, 2), alpha=1.5)


@pytest.mark.parametrize("ratios", [(0.7, 0.6), (0.5,), (0.7, 0.6, 0.6, 0.6), (1.0, 0.0, 0.5)])
def test_hired_described(ratios):
    scores = [tied(2, 50, seed=k) for k in range(len(ratios))]
    plan = methods.hired_described(scores, ratios=ratios)
    for b in range(2):
        left = list(range(50))
        for x, count in zip(scores, methods.retained.hired_described(50, ratios), strict=True):
            left = sorted(best(x[b], count, left))
        assert plan.indices[b].tolist() == left
    with pytest.raises(ValueError, match="hired_described: ratios: expected 2 numbers from 0 to 1, got"):
        methods.hired_described(scores[:1] * 2, ratios=(0.5, 1.5))


@pytest.mark.parametrize(("keep", "alpha"), [(20, 0.1), (20, 0.9), (9, 1.0), (7, 0.0), (30, 0.5), (0, 0.1)])
def test_hiprune(keep, alpha):
    middle, deep = tied(3, 30), tied(3, 30, seed=1)
    middle[0, [0, 29]] = 99.0  # at both ends
    plan = methods.hiprune(middle, deep, keep=keep, grid=(5, 6), alpha=alpha)
    for b in range(3):
        anchors = best(middle[b], round(keep * alpha / 5), range(30))
        beside = {min(max(i + step, 0), 29) for i in anchors for step in (0, -1, 1, -6, 6)}
        others = best(deep[b], keep - len(beside), [i for i in range(30) if i not in beside])
        assert kept(plan, b) == sorted([*beside, *others])


def test_hiprune_refuses():
    scores = torch.rand(1, 36)
    with pytest.raises(ValueError, match="hiprune: grid: expected one of 36 patches, got 6×5"):
        methods.hiprune(scores, scores, keep=4, grid=(6, 5))
    with pytest.raises(ValueError, match="hiprune: keep: expected at most the 36 patches, got 37"):
        methods.hiprune(scores, scores, keep=37, grid=(6, 6))


@pytest.mark.parametrize("packed", [False, True])
def test_prumerge_select(packed):
    scores = torch.rand(3, 50, generator=torch.Generator().manual_seed(3)) ** 8
    there = torch.arange(50) < torch.tensor([[50], [31], [4]])
    lengths = there.sum(1)
    if packed:
        offsets = torch.tensor([0, *lengths.cumsum(0).tolist()])
        plan = methods.prumerge_select(scores[there], cu_seqlens=offsets, max_seqlen=50)
    else:
        plan = methods.prumerge_select(scores, key_mask=there)
    for b in range(3):
        own = scores[b, : lengths[b]]
        low, high = torch.quantile(own, torch.tensor([0.25, 0.75]))
        want = (own > high + 1.5 * (high - low)).nonzero()[:, 0].tolist()
        if packed:
            found = (plan.indices[plan.cu_seqlens[b] : plan.cu_seqlens[b + 1]] - offsets[b]).tolist()
        else:
            found = kept(plan, b)
        assert found == want
    assert any(plan.counts)


@pytest.mark.parametrize(
    ("size", "keep", "important"), [(64, 16, 8), (60, 50, 10), (41, 12, 4), (30, 30, 7), (24, 6, 6), (20, 5, 4)]
)
def test_vispruner(size, keep, important):
    generator = torch.Generator().manual_seed(4)
    x, attention = torch.randn(2, size, 16, generator=generator), tied(2, size, seed=5)
    plan = methods.vispruner(x, attention, keep=keep, important=important)
    for b in range(2):
        order = best(attention[b], size, range(size))
        rest = order[important:]
        similarity = unit(x[b]) @ unit(x[b]).mT
        rest = rest if keep > important else []
        while (gone := min(8, len(rest) - (keep - important))) > 0:
            even, odd = rest[::2], rest[1::2]
            match = {i: similarity[i, odd].max().item() for i in even}
            rest = sorted(even, key=lambda i: (-match[i], rest.index(i)))[min(gone, len(odd)) :] + odd
        assert kept(plan, b) == sorted(order[:important] + rest)


def test_vispruner_refuses():
    with pytest.raises(ValueError, match="vispruner: keep: expected 5, the important ones, to 9, got 4"):
        methods.vispruner(torch.rand(1, 9, 4), torch.rand(1, 9), keep=4, important=5)
