"""Methods for video, frames of 64 tokens: eager code as their authors write it, and ours."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bench.methods.case import WIDTH, Case, Inputs, rows, unit
from bench.methods.language import density_peaks, means
from pyramid_ops import methods, plans

PATCHES, SEGMENT = 64, 3


def cosines(x: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(x, y, dim=-1)


def evs(x: Tensor, keep: int) -> Tensor:
    unlike = torch.cat([torch.full_like(x[0, :1, :, 0], torch.inf), 1 - cosines(x[0, 1:], x[0, :-1])]).flatten()
    return unlike.argsort(descending=True, stable=True)[:keep].sort().values


def dycoke(x: Tensor, keep: int) -> Tensor:
    chosen = []
    for t in range(x.shape[1]):
        if t % 4:
            near = cosines(x[0, t], x[0, t - 1 if t % 2 else t - 2])
            chosen.append(t * PATCHES + near.topk(keep, largest=False).indices.sort().values)
        else:
            chosen.append(torch.arange(t * PATCHES, (t + 1) * PATCHES, device=x.device))
    return torch.cat(chosen)


def drop_frames(frames: Tensor) -> Tensor:
    stays = cosines(frames[0, 1:], frames[0, :-1]) < 0.9
    stays[-1] = True
    return torch.cat([torch.zeros(1, dtype=torch.long, device=frames.device), 1 + stays.nonzero()[:, 0]])


def vidcom2(x: Tensor, ratio: float) -> Tensor:
    flat = x[0].flatten(0, 1)
    steady = flat.var(0, unbiased=False).topk(WIDTH // 2, largest=False).indices
    units = unit(flat[:, steady]).view(x.shape[1], PATCHES, -1)

    def near(center: Tensor) -> Tensor:
        apart = (units - center).square().sum(-1)
        return sum(torch.exp(-apart / (2 * 2.0**k)) for k in range(-3, 2))

    whole, own = near(units.mean((0, 1), keepdim=True)), near(units.mean(1, keepdim=True))
    shares = torch.softmax(-whole.mean(1) / 0.01, 0)
    counts = (ratio * (1 + shares - shares.mean()) * PATCHES).round().long().clamp(1, PATCHES).tolist()
    return torch.cat(
        [
            t * PATCHES + scores.topk(count, largest=False).indices.sort().values
            for t, (scores, count) in enumerate(zip(whole + own, counts, strict=True))
        ]
    )


def fastvid(x: Tensor, attention: Tensor, windows: Sequence[int], salient: int, context: int) -> tuple[Tensor, Tensor]:
    top = attention[0].topk(salient, -1).indices
    gone = torch.ones_like(attention[0], dtype=torch.bool).scatter(1, top, False).nonzero()[:, 1].view(x.shape[1], -1)
    place = torch.arange(x.shape[1], device=x.device)[:, None] * PATCHES
    rest, indices, values, start = rows(x[0], gone), [(top + place).flatten()], [rows(x[0], top).flatten(0, 1)], 0
    for length in windows:
        frame = start + length - 1
        count = context * length
        centers, _ = density_peaks(rest[frame][None], count, 4)
        anchors = rest[frame, centers[0]]
        joining = rest[start : start + length].flatten(0, 1)
        into = (unit(joining) @ unit(anchors).mT).argmax(-1)
        sizes = torch.nn.functional.one_hot(into, count).sum(0)[:, None]
        weight = (1 / (sizes + 1)).clamp(min=0.6)
        values.append(weight * anchors + (1 - weight) * means(joining[None], into[None], count)[0])
        indices.append(frame * PATCHES + gone[frame, centers[0]])
        start += length
    index = torch.cat(indices)
    order = index.argsort()
    return index[order], torch.cat(values)[order]


def prunevid(x: Tensor, windows: Sequence[int]) -> Tensor:
    tokens, start = [], 0
    for length in windows:
        frames = x[0, start : start + length]
        units = unit(frames).transpose(0, 1)
        similar = units @ units.mT
        still = (similar.sum((1, 2)) - length) / max(1, length * (length - 1)) > (0.8 if length > 1 else 2)
        for members in (frames.mean(0)[still], *(frame[~still] for frame in frames)):
            if len(members) > 14:
                _, place = density_peaks(members[None], len(members) // 2, 7)
                members = means(members[None], place, len(members) // 2)[0]
            tokens.append(members)
        start += length
    return torch.cat(tokens)


def cases(given: Inputs) -> Iterator[Case]:
    frames, keep = given.tokens // PATCHES, given.tokens // 4
    scene = given.randn(1, 1, PATCHES, WIDTH)
    noise = given.rand(1, frames, PATCHES, 1, seed=1) ** 2
    x = scene + noise * given.randn(1, frames, PATCHES, WIDTH, seed=2)
    attention, whole = given.rand(1, frames, PATCHES, seed=3), given.randn(1, frames, WIDTH, seed=4)
    windows = [SEGMENT] * (frames // SEGMENT) + [frames % SEGMENT] * (frames % SEGMENT > 0)
    yield Case("evs", lambda: methods.evs(x, keep=keep), lambda: evs(x, keep))
    yield Case("dycoke", lambda: methods.dycoke(x, keep=19), lambda: dycoke(x, 19))
    yield Case("drop_frames", lambda: methods.drop_frames(whole), lambda: drop_frames(whole))
    yield Case("vidcom2", lambda: methods.vidcom2(x, keep=keep), lambda: vidcom2(x, 0.25))
    yield Case(
        "fastvid",
        lambda: methods.fastvid(x, attention, windows, salient=10, context=6),
        lambda: fastvid(x, attention, windows, 10, 6),
    )

    def ours_prunevid() -> object:
        plan, _ = methods.prunevid(x, windows)
        return plans.apply(plan, x.flatten(1, 2))

    yield Case("prunevid", ours_prunevid, lambda: prunevid(x, windows))
