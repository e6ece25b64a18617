"""Variance over groups of tokens, and scores of regions for each of their tokens."""

from typing import Optional

import torch
from torch import Tensor

from .arguments import Grid
from .arithmetic import widen
from .blocks import CACHE_ELEMENTS, each_block
from .rows import token_sum
from .scoring import moments
from .segments import packed_grids, segment_of


def region_variance(features: Tensor, lengths: Optional[Tensor], grid: Grid) -> Tensor:
    """Unbiased variance over all features of the tokens of each region: `[B, rows · columns]`.

    From the mean m + r and the squares q of each token: (Σq + D · Σ(m + r − mean of m + r)²) / (tokens · D − 1). A sum
    over tokens is a `token_sum` of those of the region in ascending order. NaN for regions of an empty grid.
    """
    if grid.cu_seqlens is not None and grid.sides is not None:
        return _packed_variance(features, lengths, grid, grid.cu_seqlens, grid.sides)
    batch, tokens, count = features.shape
    of_tokens = features.new_empty(3, batch, tokens, dtype=torch.float32)
    statistics = moments(features)

    def store(rows: Tensor, *outs: Tensor) -> None:
        for out, statistic in zip(outs, statistics(rows), strict=True):
            out.copy_(statistic)

    each_block(store, 2 * CACHE_ELEMENTS, features, *of_tokens.unbind(0))

    index, live = _members(grid, features.device)
    live = live[None]
    if lengths is not None:
        live = live & (index < lengths[:, None, None])
    mean, rest, squares = torch.where(live, of_tokens[:, :, index], 0.0).unbind(0)  # [B, regions, most tokens]
    size = live.to(torch.int64).sum(-1)
    width_of = torch.full((), count, dtype=torch.float32, device=features.device)

    same = (((mean == mean[..., :1]) & (rest == rest[..., :1])) | ~live).all(-1)
    center = token_sum(mean) / widen(size)
    deviations = torch.where(live, (mean - center[..., None]) + rest, 0.0)
    center = token_sum(deviations) / widen(size)
    deviations = torch.where(live, deviations - center[..., None], 0.0)
    between = torch.where(same, 0.0, token_sum(deviations * deviations))
    total = token_sum(squares) + between * width_of
    freedom = size * count - 1
    variance = torch.where(freedom > 0, total / widen(freedom), torch.nan)
    return variance.expand(batch, grid.rows * grid.columns).contiguous()


def _packed_variance(
    features: Tensor, lengths: Optional[Tensor], grid: Grid, cu_seqlens: Tensor, sides: Tensor
) -> Tensor:
    """Those of each segment's grid, `[S, rows · columns]`."""
    out = features.new_empty(len(sides), grid.rows * grid.columns, dtype=torch.float32).fill_(torch.nan)
    table = torch.stack(packed_grids(cu_seqlens, sides, features.shape[1]), 1)
    for segment, (start, height, width) in enumerate(table.tolist()):
        if height * width:
            length = None if lengths is None else lengths[segment : segment + 1]
            of = Grid(height, width, grid.rows, grid.columns)
            out[segment] = region_variance(features[:, start : start + height * width], length, of)[0]
    return out


def _members(grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """(token index, whether there is one) `[regions, most tokens]`, the tokens of a region in ascending order."""
    height, width, rows, columns, *_ = grid
    region = torch.arange(rows * columns, device=device)[:, None]
    row, column = region // columns, region % columns
    top, left = row * height // rows, column * width // columns
    down = ((row + 1) * height // rows - top).clamp(min=1)
    across = ((column + 1) * width // columns - left).clamp(min=1)
    local = torch.arange(-(-height // rows) * -(-width // columns), device=device)
    live = local < down * across
    return torch.where(live, (top + local // across) * width + left + local % across, 0), live


def broadcast_regions(scores: Tensor, grid: Grid) -> Tensor:
    """`[B, rows · columns]` → `[B, height · width]`: each token gets the entry of its region.

    `[S, rows · columns]` → `[1, tokens]` of packed grids: 0 for a token that is in none.
    """
    height, width, rows, columns, cu_seqlens, sides, tokens = grid
    if cu_seqlens is not None and sides is not None:
        return _packed_entries(scores, grid, cu_seqlens, sides, tokens)
    row = ((torch.arange(height, device=scores.device) + 1) * rows - 1) // height
    column = ((torch.arange(width, device=scores.device) + 1) * columns - 1) // width
    return scores.unflatten(1, (rows, columns))[:, row][:, :, column].flatten(1)


def _packed_entries(scores: Tensor, grid: Grid, cu_seqlens: Tensor, sides: Tensor, tokens: int) -> Tensor:
    out = scores.new_zeros(1, tokens)
    if len(sides):
        starts, heights, widths = packed_grids(cu_seqlens, sides, tokens)
        segment = segment_of(cu_seqlens, tokens)
        token = (segment < len(sides)).nonzero()[:, 0]
        segment = segment[token]
        place, height, width = token - starts[segment], heights[segment], widths[segment].clamp(min=1)
        inside = (place < height * widths[segment]).nonzero()[:, 0]
        token, segment, place, height, width = (x[inside] for x in (token, segment, place, height, width))
        row = ((place // width + 1) * grid.rows - 1) // height
        column = ((place % width + 1) * grid.columns - 1) // width
        out[0, token] = scores[segment, row * grid.columns + column]
    return out
