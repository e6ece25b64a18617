"""What methods read of a model, made from the pixels of one photo: no trained encoder is involved."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from .. import attention_importance, combine_scores, gaussian_pyramid, patchify, text_relevance, token_norm
from .select import upsample

ASKED = 3  # patches a side that stand for the words of an instruction
HEAD = 64  # features of a head


class StandIns(NamedTuple):
    """Of one photo with N patches in its grid, and T patches of it as the words of an instruction."""

    grid: tuple[int, int]
    asked: Tensor  # int64 [T], patches
    x: Tensor  # [1, N, D]: pixels of the patches, less the mean patch
    whole: Tensor  # [1, N / 4]: the fine detail of the photo at half its size
    shallow: Tensor  # [1, N]: the share of a patch in the fine detail
    deep: Tensor  # [1, N]: its share in coarser detail
    received: Tensor  # [1, N]: what it receives of the attention of all patches to each other
    relevance: Tensor  # [1, N]: its mean cosine to the words, from 0 to 1
    hidden: Tensor  # [1, N + T, D]: patches, then words, each of length √D
    heads: Tensor  # [1, H, N + T, 64]: the same as queries and keys
    image: Tensor  # bool [1, N + T]
    text: Tensor  # bool [1, N + T]


def stand_ins(pixels: Tensor, patch: int, at: tuple[float, float]) -> StandIns:
    """Of float32 pixels `[1, 3, H, W]` whose sides four patches divide; words stand around a place, in shares."""
    grid = pixels.shape[2] // patch, pixels.shape[3] // patch
    levels = gaussian_pyramid(pixels, 3, padding="replicate")
    fine, coarse = (level - upsample(below) for level, below in itertools.pairwise(levels))
    detail = token_norm(patchify(fine, patch))
    x = patchify(pixels, patch)
    x = x - x.mean(1, keepdim=True)
    asked = around(at, grid)
    words = x[:, asked]
    hidden = torch.cat([x, words], 1)
    hidden = hidden * (hidden.shape[2] / hidden.square().sum(2, keepdim=True).clamp_min(1e-12)).sqrt()
    padded = torch.nn.functional.pad(hidden, (0, -hidden.shape[2] % HEAD))
    heads = padded.unflatten(2, (-1, HEAD)).transpose(1, 2).contiguous()
    own = torch.arange(hidden.shape[1])[None] < x.shape[1]
    return StandIns(
        grid=grid,
        asked=asked,
        x=x,
        whole=share(token_norm(patchify(coarse, patch))),
        shallow=share(detail),
        deep=share(token_norm(patchify(upsample(coarse), patch))),
        received=attention_importance(heads[:, :, : x.shape[1]], heads[:, :, : x.shape[1]]),
        relevance=combine_scores(
            [text_relevance(x, words, reduction="mean", metric="cosine")], [1.0], normalize="minmax"
        ),
        hidden=hidden,
        heads=heads,
        image=own,
        text=~own,
    )


def around(at: tuple[float, float], grid: tuple[int, int]) -> Tensor:
    """The patches around a place, `[T]`."""
    sides = []
    for share, size in zip(at, grid, strict=True):
        count = min(ASKED, size)
        first = min(max(int(share * size) - count // 2, 0), size - count)
        sides.append(torch.arange(first, first + count))
    return (sides[0][:, None] * grid[1] + sides[1]).flatten()


def share(scores: Tensor) -> Tensor:
    return scores / scores.sum(1, keepdim=True).clamp_min(1e-12)


def to_tiles(scores: Tensor, grid: tuple[int, int]) -> Tensor:
    """The scores of each quarter of a photo, `[1, 4, N / 4]`."""
    rows, columns = grid
    tiles = scores.view(2, rows // 2, 2, columns // 2).transpose(1, 2)
    return tiles.reshape(1, 4, -1)


def from_tiles(tiles: Tensor, grid: tuple[int, int]) -> Tensor:
    """`[N]` of a value for each patch of the quarters."""
    rows, columns = grid
    return tiles.reshape(2, 2, rows // 2, columns // 2).transpose(1, 2).reshape(-1)
