"""Selection from a pyramid, of tiles and by levels: eager code, and ours."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bench.methods.case import WIDTH, Case, Inputs, best
from pyramid_ops import methods


def pyramid(levels: Sequence[Tensor], keep: int, grids: Sequence[tuple[int, int]] = ()) -> Tensor:
    budgets = [int(keep * weight) for weight in (0.5, 0.3, 0.2)]
    budgets[0] += keep - sum(budgets)
    chosen = []
    for level, (x, budget) in enumerate(zip(levels, budgets, strict=True)):
        scores = regions(x, grids[level]) if grids else x.var(-1)
        index = scores.topk(min(budget, x.shape[1]), -1).indices
        chosen.append(x.gather(1, index[..., None].expand(-1, -1, x.shape[2])))
    return torch.cat(chosen, 1)


def regions(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The variance of its 4 × 4th of the grid for each token."""
    (height, width), width_of = grid, x.shape[2]
    cells = x.view(4, height // 4, 4, width // 4, width_of).permute(0, 2, 1, 3, 4).reshape(16, -1)
    return cells.var(1).view(4, 4).repeat_interleave(height // 4, 0).repeat_interleave(width // 4, 1).view(1, -1)


def ptp_described(levels: Sequence[Tensor], grids: Sequence[tuple[int, int]], text: Tensor, keep: int) -> Tensor:
    scores = []
    for x, grid in zip(levels, grids, strict=True):
        relevance = (x @ text.mT / x.shape[2] ** 0.5).amax(-1)
        scores.append(0.3 * regions(x, grid) + 0.4 * x.var(-1) + 0.3 * relevance)
    index = torch.cat(scores, 1).topk(keep, -1).indices
    return torch.cat(list(levels), 1).gather(1, index[..., None].expand(-1, -1, levels[0].shape[2]))


def ptp(saliency: Tensor, relevance: Tensor, keep: int) -> Tensor:
    size, mean = saliency.shape[1], saliency.mean(1)
    budgets = (keep * mean / mean.sum()).floor().long()
    budgets[mean.topk(keep - int(budgets.sum())).indices] += 1
    low, high = saliency.amin(1, keepdim=True), saliency.amax(1, keepdim=True)
    scores = 0.5 * (saliency - low) / (high - low) + 0.5 * relevance
    return torch.cat([t * size + best(scores[t], min(k, size)) for t, k in enumerate(budgets.tolist())])


def levels_of_detail(relevance: Tensor, grid: tuple[int, int], thresholds: Sequence[float]) -> Tensor:
    level = sum((relevance <= limit).int() for limit in thresholds).view(1, 1, *grid)
    found, start = [], 0
    for k in range(len(thresholds) + 1):
        asked = torch.nn.functional.max_pool2d((level == k).float(), 2**k, ceil_mode=True).flatten()
        found.append(start + asked.nonzero()[:, 0])
        start += len(asked)
    return torch.cat(found)


def foveal(gaze: Tensor, grid: tuple[int, int]) -> Tensor:
    down, across = ((torch.arange(side, device=gaze.device) + 0.5) / side for side in grid)
    near = -((down - gaze[0, 0]).square()[:, None] + (across - gaze[0, 1]).square()).sqrt().flatten()
    return levels_of_detail(near, grid, (-0.15, -0.3, -0.6))


def query_levels(levels: Sequence[Tensor], query: Tensor, keep: int) -> Tensor:
    aligned = [torch.nn.functional.cosine_similarity(x.mean(1), query) for x in levels]
    return best(torch.stack(aligned, 1), keep)


def tokenflex(x: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(x.mT.unflatten(2, grid), side).flatten(2).mT


def cases(given: Inputs) -> Iterator[Case]:
    size, keep, (height, width) = given.tokens, given.keep, given.grid
    grids = [(height >> level, width >> level) for level in range(3)]
    levels = [given.randn(1, rows * columns, WIDTH, seed=k) for k, (rows, columns) in enumerate(grids)]
    text, query = given.randn(1, 32, WIDTH, seed=3), given.randn(1, WIDTH, seed=4)
    saliency, relevance = given.rand(5, size // 4, seed=5) ** 2, given.rand(1, size, seed=6)
    asked = given.rand(5, size // 4, seed=7)
    gaze = torch.tensor([[0.5, 0.4]], device=given.device)
    share = {"keep": keep, "weights": (0.5, 0.3, 0.2)}
    yield Case("pyramid_select", lambda: methods.pyramid_select(levels, **share), lambda: pyramid(levels, keep))
    of_regions = grids if height % 16 == width % 16 == 0 else None
    if of_regions:
        yield Case(
            "pyramid_select, regions",
            lambda: methods.pyramid_select(levels, grids, saliency="region", **share),
            lambda: pyramid(levels, keep, grids),
        )
        yield Case(
            "ptp_described",
            lambda: methods.ptp_described(levels, grids, text, keep=keep),
            lambda: ptp_described(levels, grids, text, keep),
        )
    yield Case("ptp", lambda: methods.ptp(saliency[None], asked[None], keep=keep), lambda: ptp(saliency, asked, keep))
    yield Case(
        "lod_select",
        lambda: methods.lod_select(relevance, given.grid),
        lambda: levels_of_detail(relevance[0], given.grid, (0.8, 0.5, 0.3)),
    )
    yield Case("foveal", lambda: methods.foveal(gaze, given.grid), lambda: foveal(gaze, given.grid))
    yield Case(
        "query_levels",
        lambda: methods.query_levels(levels, query, keep=2),
        lambda: query_levels(levels, query, 2),
    )
    yield Case(
        "tokenflex", lambda: methods.tokenflex(levels[0], given.grid), lambda: tokenflex(levels[0], given.grid, 12)
    )
