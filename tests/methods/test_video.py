"""Methods for video against plain code for each sample."""

import pytest
import torch

from pyramid_ops import methods, plans
from tests.methods.layouts import best, dpc_knn, unit


def video(frames, size, seed=0):
    """Frames of which some tokens stand still or repeat those of two frames before: equal similarities."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, frames, size, 16, generator=generator)
    for t in range(1, frames):
        x[:, t, ::3] = x[:, t - 1, ::3]
        x[:, t, 1::5] = x[:, max(t - 2, 0), 1::5]
    return x


def cosine(a, b):
    return ((unit(a) * unit(b)).sum(-1) * 1e5).round()


@pytest.mark.parametrize(("frames", "size", "keep"), [(6, 30, 70), (2, 9, 9), (1, 12, 12), (5, 20, 100), (9, 8, 31)])
def test_evs(frames, size, keep):
    x = video(frames, size)
    plan = methods.evs(x, keep=keep)
    for b in range(2):
        scores = torch.cat([torch.zeros(size), cosine(x[b, 1:], x[b, :-1]).flatten()])
        chosen = best(scores, keep - size, range(size, frames * size), largest=False)
        assert plan.indices[b].tolist() == sorted([*range(size), *chosen])


def test_evs_keeps_the_first_frame():
    with pytest.raises(ValueError, match="evs: keep: expected 9, the first frame, to 18, got 8"):
        methods.evs(torch.rand(1, 2, 9, 4), keep=8)
    for rate in (0.0, 0.25, 0.5, 0.9, 1.0):
        assert methods.retained.evs(36, 8, rate) == max(36, int(288 * (1 - rate)))


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("keep", [0, 7, 20])
def test_dycoke(frames, keep):
    size = 20
    x = video(frames, size, seed=1)
    plan = methods.dycoke(x, keep=keep)
    assert plan.counts.tolist() == [methods.retained.dycoke(size, frames, keep)] * 2
    for b in range(2):
        want = []
        for t in range(frames):
            if t % 4:
                before = t - 1 if t % 2 else t - 2
                chosen = best(cosine(x[b, t], x[b, before]), keep, range(size), largest=False)
                want += [t * size + i for i in sorted(chosen)]
            else:
                want += range(t * size, (t + 1) * size)
        assert plan.indices[b].tolist() == want


def test_drop_frames():
    x = torch.randn(2, 9, 30, generator=torch.Generator().manual_seed(2))
    x[:, 3], x[0, 8], x[1, 1], x[1, 5] = x[:, 2] + 0.1, x[0, 7], 2 * x[1, 0], torch.nan
    plan = methods.drop_frames(x)
    for b in range(2):
        similar = torch.nn.functional.cosine_similarity(x[b, 1:].double(), x[b, :-1].double(), dim=1)
        want = [t for t in range(9) if t in (0, 8) or not similar[t - 1] >= 0.9]
        assert plan.indices[b, : plan.counts[b]].tolist() == want
        assert len(want) == (8, 7)[b]
    tokens = torch.randn(2, 9, 4, 3)
    moved = plans.apply(plan, tokens.flatten(2)).unflatten(2, (4, 3))
    assert torch.equal(moved[0, : plan.counts[0]], tokens[0, plan.indices[0, : plan.counts[0]]])


def test_one_frame_stays():
    assert methods.drop_frames(torch.rand(1, 1, 4)).counts.tolist() == [1]
    with pytest.raises(ValueError, match="dycoke: x: expected at least one frame"):
        methods.dycoke(torch.rand(1, 0, 9, 4), keep=2)


def windows_plainly(labels):
    """PruneVid's contiguous clusters, step by step over frames."""
    size, labels = len(labels), [*labels]
    runs, start = [], 0
    for t in range(1, size + 1):
        if t == size or labels[t] != labels[start]:
            runs.append((labels[start], start, t))
            start = t
    refined = [*labels]
    for label in {*labels}:
        most = max(stop - start for of, start, stop in runs if of == label)
        for of, start, stop in runs:
            if of == label and (most == 1 or stop - start < most):
                refined[start:stop] = [None] * (stop - start)
    t = 0
    while t < size:
        if refined[t] is not None:
            t += 1
            continue
        stop = t
        while stop < size and refined[stop] is None:
            stop += 1
        left = right = 0
        while t - left > 0 and refined[t - left - 1] == refined[t - 1]:
            left += 1
        while stop + right < size and refined[stop + right] == refined[stop]:
            right += 1
        label = refined[stop] if right > left else refined[t - 1] if left else 0
        refined[t:stop] = [label] * (stop - t)
        t = stop
    starts = [t for t in range(size) if not t or refined[t] != refined[t - 1]]
    return [b - a for a, b in zip(starts, [*starts[1:], size], strict=True)]


def test_prunevid_windows():
    generator = torch.Generator().manual_seed(3)
    for size in (*range(1, 8), *[16] * 200):
        labels = torch.randint(0, 4, (size,), generator=generator)
        labels = labels.repeat_interleave(torch.randint(1, 4, (size,), generator=generator))[:size].tolist()
        assert methods.prunevid_windows(labels) == windows_plainly(labels), labels
    assert methods.prunevid_windows([]) == []
    with pytest.raises(TypeError, match="prunevid_windows: clusters"):
        methods.prunevid_windows([0, 0.5])


def clustered_plainly(x, tokens, ratio):
    """The rows of a set of tokens of `[P, D]`: lists of its members, the one that owns the row first."""
    if len(tokens) <= 14:
        return [[i] for i in tokens]
    centers, place = dpc_knn(x[tokens], int(len(tokens) * ratio), 7)
    members = [[tokens[i] for i in range(len(tokens)) if place[i] == row] for row in range(len(centers))]
    return [[tokens[c], *(i for i in of if i != tokens[c])] for c, of in zip(centers, members, strict=True)]


@pytest.mark.parametrize(("windows", "ratio"), [([3, 2, 1], 0.5), ([6], 0.3), ([1, 1, 4], 0.5)])
def test_prunevid(windows, ratio):
    size, generator = 40, torch.Generator().manual_seed(4)
    x = torch.randn(2, 6, size, 16, generator=generator)
    for t in range(1, 6):
        x[0, t, :25] = x[0, 0, :25] + 0.3 * torch.randn(25, 16, generator=generator)
        x[1, t, 5:14] = x[1, 0, 5:14]
    plan, sizes = methods.prunevid(x, windows, ratio=ratio)
    merged = plans.apply(plan, x.flatten(1, 2))
    for b in range(2):
        rows, counts, start = [], [], 0
        for length in windows:
            frames = x[b, start : start + length]
            cosine = torch.einsum("tpd,spd->pts", unit(frames), unit(frames))
            static = (cosine.sum((1, 2)) - length) / max(1, length * (length - 1)) > (0.8 if length > 1 else 9)
            sets = [(frames.double().mean(0), static, range(start, start + length))]
            sets += [(frames[t].double(), ~static, [start + t]) for t in range(length)]
            for tokens, which, times in sets:
                found = clustered_plainly(tokens, which.nonzero()[:, 0].tolist(), ratio)
                rows += [(times[0] * size + own[0], [t * size + i for t in times for i in own]) for own in found]
                counts.append(len(found))
            start += length
        # Sets in the order of the plan: of a window the static one, then its frames.
        assert sizes[b].tolist() == counts
        assert plan.indices[b, : plan.counts[b]].tolist() == [owner for owner, _ in rows]
        want = torch.stack([x[b].flatten(0, 1)[members].double().mean(0) for _, members in rows])
        torch.testing.assert_close(merged[b, : len(rows)].double(), want, rtol=1e-5, atol=1e-5)
        assert plan.sizes[b].sum() == 6 * size


def test_prunevid_of_no_samples():
    plan, sizes = methods.prunevid(torch.rand(0, 3, 9, 4), [2, 1])
    assert (plan.rows.shape, sizes.shape) == ((0, 27), (0, 5))


def test_prunevid_refuses():
    with pytest.raises(ValueError, match="prunevid: windows: expected 3 frames in all, got"):
        methods.prunevid(torch.rand(1, 3, 9, 4), [2, 2])
