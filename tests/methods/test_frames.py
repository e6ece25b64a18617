"""Methods by frames and segments of a video, and by crops of an image, against plain code for each sample."""

import itertools

import pytest
import torch

from pyramid_ops import methods
from tests.methods.layouts import best, dpc_knn, unit


def shared(total, weights, room):
    """Largest remainders; what is too much to the first with room."""
    exact = [total * w / sum(weights) for w in weights]
    shares = [int(x) for x in exact]
    for k in sorted(range(len(weights)), key=lambda k: (int(exact[k]) - exact[k], k))[: total - sum(shares)]:
        shares[k] += 1
    extra, shares = sum(max(0, s - room) for s in shares), [min(s, room) for s in shares]
    for k in range(len(shares)):
        more = min(extra, room - shares[k])
        shares[k], extra = shares[k] + more, extra - more
    return shares


def video(frames, size, width=24, seed=0):
    """Frames of a scene each, with noise; channels of unlike variance."""
    generator = torch.Generator().manual_seed(seed)
    scene = torch.randn(2, 1, size, width, generator=generator)
    x = scene + torch.rand(2, frames, 1, 1, generator=generator) * torch.randn(
        2, frames, size, width, generator=generator
    )
    return x * torch.linspace(0.5, 2, width).roll(seed) + 0.5


@pytest.mark.parametrize(("frames", "size", "keep"), [(6, 30, 45), (1, 12, 5), (9, 20, 100), (4, 10, 4), (3, 8, 24)])
def test_vidcom2(frames, size, keep):
    x = video(frames, size, seed=frames)
    plan = methods.vidcom2(x, keep=keep)
    assert plan.counts.tolist() == [keep, keep]
    for b in range(2):
        flat = x[b].double().flatten(0, 1)
        steady = sorted(range(24), key=lambda c: flat.var(0)[c].item())[:12]
        units = unit(flat[:, steady]).view(frames, size, -1)

        def near(center, units=units):
            apart = (units - center).square().sum(-1)
            return sum(torch.exp(-apart / (2 * 2.0**k)) for k in range(-3, 2))

        whole, own = near(units.mean((0, 1))), near(units.mean(1, keepdim=True))
        shares = torch.softmax(-whole.mean(1) / 0.01, 0) + (1 - 1 / frames)
        want = []
        for t, budget in enumerate(shared(keep, shares.tolist(), size)):
            scores = (whole[t] + own[t]).mul(1e4).round()
            want += [t * size + i for i in sorted(best(scores, budget, range(size), largest=False))]
        assert plan.indices[b].tolist() == want


def test_no_samples():
    x = torch.rand(0, 3, 9, 4)
    assert methods.vidcom2(x, keep=5).indices.shape == (0, 5)
    tokens, plan = methods.fastvid(x, x[..., 0], [2, 1], salient=2, context=1)
    assert (tokens.shape, plan.indices.shape) == ((0, 9, 4), (0, 9))
    assert methods.holov(x[:, 0, :, 0], keep=4, crops=2).indices.shape == (0, 4)


def test_vidcom2_refuses():
    with pytest.raises(ValueError, match="vidcom2: x: expected at least one frame of one token"):
        methods.vidcom2(torch.rand(1, 3, 0, 4), keep=3)
    with pytest.raises(ValueError, match="vidcom2: keep: expected 3, one of each frame, to 27, got 2"):
        methods.vidcom2(torch.rand(1, 3, 9, 4), keep=2)


@pytest.mark.parametrize("size", [1, 2, 9, 30])
@pytest.mark.parametrize("segments", [1, 4, 8])
def test_fastvid_windows(size, segments):
    similarity = torch.rand(size - 1, generator=torch.Generator().manual_seed(size)).mul(20).round() / 20
    cuts = {t for t in range(size - 1) if similarity[t] < 0.3} | {
        *best(similarity, segments - 1, range(size - 1), False)
    }
    starts = [0, *(t + 1 for t in sorted(cuts)), size]
    found = methods.fastvid_windows(similarity.tolist(), segments=segments, threshold=0.3)
    assert found == [stop - start for start, stop in itertools.pairwise(starts)]


def fastvid_plainly(x, attention, windows, salient, context, step, beta):
    """{place: token} of `[frames, P, D]`, in float64."""
    frames, size, _ = x.shape
    x, found, rests, start = x.double(), {}, [], 0
    for t in range(frames):
        top = best(attention[t], salient, range(size))
        found |= {t * size + i: x[t, i] for i in top}
        rests.append([i for i in range(size) if i not in top])
    for length in windows:
        anchored = [t for t in range(start, start + length) if (start + length - 1 - t) % step == 0]
        count = context * length // len(anchored)
        for t in anchored if count else []:
            centers, _ = dpc_knn(x[t, rests[t]], count, 4)
            anchors = [rests[t][c] for c in centers]
            times = range(start, start + length) if count > context else [t]
            joining = torch.cat([x[s, rests[s]] for s in times])
            partner = ((unit(joining) @ unit(x[t, anchors]).mT) * 1e7).round().max(1).indices
            for place, i in enumerate(anchors):
                members = joining[partner == place]
                weight = max(1 / (len(members) + 1), beta)
                mean = members.mean(0) if len(members) else 0.0 * x[t, i]
                found[t * size + i] = weight * x[t, i] + (1 - weight) * mean
        start += length
    return found


@pytest.mark.parametrize(
    ("windows", "salient", "context", "step"),
    [
        ([1, 3, 2], 4, 3, 4),
        ([6], 0, 2, 4),
        ([2, 2, 2], 5, 0, 4),
        ([3, 3], 2, 1, 2),
        ([1, 5], 3, 2, 1),
        ([5, 1], 3, 3, 2),
    ],
)
def test_fastvid(windows, salient, context, step):
    x = video(6, 20, seed=3)
    attention = torch.rand(2, 6, 20, generator=torch.Generator().manual_seed(4)).mul(8).floor()
    options = {"salient": salient, "context": context, "step": step}
    tokens, plan = methods.fastvid(x, attention, windows, **options)
    assert plan.counts.tolist() == [methods.retained.fastvid(windows, salient, context, step)] * 2
    for b in range(2):
        want = fastvid_plainly(x[b], attention[b], windows, salient, context, step, 0.6)
        assert plan.indices[b].tolist() == sorted(want)
        if want:
            torch.testing.assert_close(
                tokens[b].double(), torch.stack([want[i] for i in sorted(want)]), rtol=1e-5, atol=1e-5
            )


def test_fastvid_leaves_unused_rows_last():
    x = video(2, 9)
    x[0, 0, 2:] = torch.nan
    tokens, plan = methods.fastvid(x, torch.zeros(2, 2, 9), [1, 1], salient=1, context=4)
    assert plan.counts.tolist() == [1 + 1 + 5, 10]
    assert plan.indices[0, 7:].tolist() == [-1] * 3
    assert not tokens[0, 7:].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows": [1, 1]}, "fastvid: windows: expected 3 frames in all, got"),
        ({"context": 9}, "fastvid: context: expected at most 7 anchors of a frame, all but salient, got 27"),
        ({"step": 0}, "fastvid: step: expected at least 1, got 0"),
        ({"salient": 10}, "fastvid: salient: expected at most the 9 tokens of a frame, got 10"),
    ],
)
def test_fastvid_refuses(change, message):
    options = {"windows": [3], "salient": 2, "context": 2, **change}
    with pytest.raises(ValueError, match=message):
        methods.fastvid(torch.rand(1, 3, 9, 4), torch.rand(1, 3, 9), options.pop("windows"), **options)


def authors_crops(attention, x, crops, keep, variance=True):
    """HoloV's budgets as its code has them, features and all, and the tokens of each crop."""
    size, longer = divmod(len(attention), crops)
    bounds = [p * size + min(p, longer) for p in range(crops + 1)]
    parts = [list(range(*bounds[p : p + 2])) for p in range(crops)]
    weights = []
    for part in parts:
        own, n = attention[part].double() * 1e3, len(part)
        similar = (unit(x[part]) @ unit(x[part]).mT).fill_diagonal_(0)
        mean = similar.sum(1) / (n - 1)
        spread = (similar - mean[:, None]).square().sum(1) / (n - 1)
        weights.append(
            (own + 0.09 * spread * own.mean() / (spread.mean() + 1e-6)).mean().item() if variance else own.mean()
        )
    shares = [int(keep * w / sum(weights)) for w in weights]
    for p in sorted(range(crops), key=lambda p: -weights[p])[: keep - sum(shares)]:
        shares[p] += 1
    return parts, shares


@pytest.mark.parametrize(("size", "crops", "keep"), [(96, 16, 40), (50, 7, 20), (30, 1, 9), (41, 4, 0)])
def test_holov(size, crops, keep):
    generator = torch.Generator().manual_seed(size)
    attention, x = torch.rand(2, size, generator=generator), torch.randn(2, size, 12, generator=generator)
    plan = methods.holov(attention, keep=keep, crops=crops)
    for b in range(2):
        parts, shares = authors_crops(attention[b], x[b], crops, keep)
        assert all(share <= len(part) for share, part in zip(shares, parts, strict=True))
        want = [i for part, share in zip(parts, shares, strict=True) for i in best(attention[b], share, part)]
        assert plan.indices[b].tolist() == sorted(want)


def test_holov_gives_what_a_full_crop_cannot_hold_to_others():
    attention = torch.tensor([[9.0, 9, 9, 9, 1, 1, 1, 1, 2, 2, 2, 2]])
    assert methods.holov(attention, keep=8, crops=3).indices.tolist() == [[0, 1, 2, 3, 4, 5, 6, 8]]
    with pytest.raises(ValueError, match="holov: crops: expected at most the 12 patches, got 13"):
        methods.holov(attention, keep=3, crops=13)
    with pytest.raises(ValueError, match="holov: keep: expected at most the 12 patches, got 13"):
        methods.holov(attention, keep=13, crops=3)
