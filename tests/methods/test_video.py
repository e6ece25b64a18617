"""Methods for video against plain code for each sample."""

import pytest
import torch

from pyramid_ops import methods, plans
from tests.methods.layouts import best, unit


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
