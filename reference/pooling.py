"""Scores and tokens pooled over windows."""

import torch
from torch import Tensor

from .arguments import Grid, Windows
from .arithmetic import NO_KEY, narrow, ordered_key, widen
from .segments import packed_grids


def pool_scores(scores: Tensor, windows: Windows, reduction: str) -> Tensor:
    """`[B, height · width]` → `[B, ⌈height / down⌉ · ⌈width / across⌉]`, windows of down · across scores.

    A sum adds what there is of a window row by row, from +0; a mean divides it by the count; a maximum is the first of
    the largest, its bits unchanged.
    """
    height, width, down, across = windows
    grid = widen(scores).unflatten(1, (height, width))
    rows, columns = -(-height // down), -(-width // across)
    out = grid.new_zeros(len(scores), rows, columns)
    best = torch.full(out.shape, NO_KEY, dtype=torch.int32, device=scores.device)
    for i in range(down):
        for j in range(across):
            part = grid[:, i::down, j::across]
            total = out[:, : part.shape[1], : part.shape[2]]
            if reduction == "max":
                largest, key = best[:, : part.shape[1], : part.shape[2]], ordered_key(part)
                better = key > largest
                total.copy_(torch.where(better, part, total))
                largest.copy_(torch.where(better, key, largest))
            else:
                total += part
    if reduction == "mean":
        heights = (height - down * torch.arange(rows, device=scores.device)).clamp(0, down)
        widths = (width - across * torch.arange(columns, device=scores.device)).clamp(0, across)
        out = out / widen(heights[:, None] * widths)
    return out.flatten(1)


def pool_scores_packed(
    scores: Tensor, cu_seqlens: Tensor, grids: Tensor, down: int, across: int, capacity: int, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(`[capacity]`, offsets int32 `[S + 1]`, rows and columns of windows int32 `[S, 2]`) of scores `[T]`.

    Segment s has the scores of a grid of `grids[s]`, row by row. What the capacity does not hold is left out.
    """
    starts, heights, widths = packed_grids(cu_seqlens, grids, len(scores))
    rows, columns = -(-heights // down), -(-widths // across)
    offsets = torch.cat((starts.new_zeros(1), (rows * columns).cumsum(0).clamp(max=capacity)))
    out = scores.new_zeros(capacity, dtype=torch.float32)
    table = torch.stack((starts, heights, widths, offsets[:-1], offsets[1:]), 1)
    for start, height, width, first, last in table.tolist():
        if first < last:
            windows = Windows(height, width, min(down, height), min(across, width))
            pooled = pool_scores(scores[None, start : start + height * width], windows, reduction)
            out[first:last] = pooled[0, : last - first]
    return out, offsets.to(torch.int32), torch.stack((rows, columns), 1).to(torch.int32)


def pool_tokens(tokens: Tensor, grid: Grid, mode: str) -> Tensor:
    """`[B, height · width, D]` → `[B, rows · columns, D]`: bin i has the rows ⌊i · H / h⌋ to ⌈(i + 1) · H / h⌉ − 1.

    A mean adds what is in a bin row by row, from +0, and divides by the count; a maximum is the first of the largest,
    its bits unchanged.
    """
    height, width, rows, columns = grid
    x = tokens.unflatten(1, (height, width))
    down, across = _bins(height, rows, tokens.device), _bins(width, columns, tokens.device)
    total = torch.zeros(len(x), rows, columns, x.shape[3], dtype=torch.float32, device=x.device)
    best = torch.full(total.shape if mode == "amax" else (0,), NO_KEY, dtype=torch.int32, device=x.device)
    for row in down:
        for column in across:
            part = widen(x[:, torch.where(row < 0, 0, row)][:, :, torch.where(column < 0, 0, column)])
            inside = ((row[:, None] >= 0) & (column >= 0))[..., None]
            if mode == "amax":
                key = torch.where(inside, ordered_key(part), NO_KEY)
                total = torch.where(key > best, part, total)
                best = torch.maximum(best, key)
            else:
                total = torch.where(inside, total + part, total)
    if mode == "mean":
        heights, widths = ((index >= 0).to(torch.int64).sum(0) for index in (down, across))
        total = total / widen(heights[:, None] * widths)[..., None]
    return narrow(total, tokens.dtype).flatten(1, 2)


def _bins(size: int, bins: int, device: torch.device) -> Tensor:
    """Row k has the k-th of the rows or columns of each bin, −1 where it has fewer: `[most, bins]`."""
    number = torch.arange(bins, device=device)
    first, stop = number * size // bins, -(-(number + 1) * size // bins)
    index = first + torch.arange(-(-size // bins) + 1, device=device)[:, None]
    index = torch.where(index < stop, index, -1)
    return index[: int((stop - first).amax())]
