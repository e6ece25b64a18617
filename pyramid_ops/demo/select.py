"""`pyramid-ops select`: a photo's most salient patches, and the photo rebuilt from them."""

import itertools
import math
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from rich.table import Table
from torch import Tensor

from .. import (
    allocate_budgets,
    gather_levels,
    gaussian_pyramid,
    patch_positions,
    patchify,
    select_topk_levels,
    token_norm,
)
from .console import progress, say, show_table
from .figures import canvas, show
from .images import Photo, at_most, fit, opened, usual_patch
from .usage import UsageError, check_at_least_one, check_out, check_patch_size, printable

LARGEST = 1024  # pixels a side: a larger photo is made smaller, unless its patches are asked for
WEIGHTS = (0.4, 0.3, 0.2, 0.1)


class Selected(NamedTuple):
    levels: list[Tensor]
    sizes: list[int]  # tokens of each level
    budgets: list[int]  # and how many are kept
    indices: Tensor
    milliseconds: float


class Rebuilt(NamedTuple):
    name: str
    picture: Tensor
    psnr: float  # dB
    detail: float  # share of the finest detail's energy


def run(
    image: str | None, tokens: int | None, patch_size: int | None, levels: int | None, saliency: str, out: str
) -> None:
    check_at_least_one("tokens", tokens)
    check_patch_size(patch_size)
    check_at_least_one("levels", levels)
    check_out(out, image, "selection.png")
    array, name = opened(image)
    smaller = ""
    if patch_size is None:
        array, smaller = at_most(array, LARGEST)
        patch_size = usual_patch(array, lambda down, across: min(down, across) >= 4)
    if levels is None:
        levels = max(1, min(4, (min(array.shape[:2]) // patch_size).bit_length()))
    photo = fit(array, name, patch_size, levels)
    photo = photo._replace(cropped=smaller + photo.cropped)
    if tokens is None:
        tokens = usual_tokens(photo.pixels[0, 0].numel() // patch_size**2, levels)
    with progress(6) as advance:  # the selection, four pictures, the figure
        selected = select(photo.pixels, tokens, patch_size, levels, saliency)
        advance()
        choices = {
            f"kept by {saliency}": selected.indices,
            "uniform choice": uniform_indices(selected.levels, patch_size, selected.budgets),
            "random choice": random_indices(selected.sizes, selected.budgets),
        }
        results = []
        for name, indices in choices.items():
            results.append(measure(name, photo.pixels, rebuild(selected.levels, indices, patch_size)))
            advance()
        results.append(measure("plain downscaling", photo.pixels, downscale(photo.pixels, tokens, patch_size)))
        advance()
        draw(out, photo, patch_size, selected, results)
    say(f"{photo.name}: {photo.size}{photo.cropped}")
    show_table(level_table(selected))
    show_table(rebuilt_table(results))
    say(f"pyramid, scores and selection: {selected.milliseconds:.1f} ms on the CPU")
    say(f"figure: {printable(out)}")


def usual_tokens(finest: int, levels: int) -> int:
    """A fifth of all patches, and one; no less than the coarsest level."""
    sizes = [finest >> 2 * level for level in range(levels)]
    return max(sizes[-1], sum(sizes) // 5 + 1)


def select(image: Tensor, total: int, patch: int, count: int, saliency: str) -> Selected:
    started = time.perf_counter()
    levels = gaussian_pyramid(image, count, padding="replicate")
    tokens = [patchify(level, patch) for level in levels]
    scores = [token_norm(patchify(x, patch)) for x in details(levels)] if saliency == "detail" else saliency
    sizes = [x.shape[1] for x in tokens]
    budgets = split(total, sizes)
    indices = select_topk_levels(tokens, saliency=scores, budgets=budgets).indices
    return Selected(levels, sizes, budgets, indices, 1e3 * (time.perf_counter() - started))


def upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def details(levels: list[Tensor]) -> list[Tensor]:
    """What each level adds to the next coarser one."""
    return [fine - upsample(coarse) for fine, coarse in itertools.pairwise(levels)] + levels[-1:]


def split(total: int, sizes: list[int]) -> list[int]:
    """The whole coarsest level, so that the picture has no holes; the rest over the other levels."""
    *finer, coarsest = sizes
    if not coarsest <= total <= sum(sizes):
        raise UsageError(
            f"--tokens: expected {coarsest} (the coarsest level, always kept) to {sum(sizes)} (all), got {total}"
        )
    if not finer:
        return [coarsest]
    weights = [WEIGHTS[min(k, len(WEIGHTS) - 1)] for k in range(len(finer))]
    weights = [weight / sum(weights) for weight in weights]
    return [*allocate_budgets(total - coarsest, weights, finer), coarsest]


def random_indices(sizes: list[int], budgets: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    chosen = [torch.randperm(size, generator=generator)[:k] for size, k in zip(sizes, budgets, strict=True)]
    return torch.cat([torch.stack((torch.full_like(i, level), i), 1) for level, i in enumerate(chosen)])[None]


def uniform_indices(levels: list[Tensor], patch: int, budgets: list[int]) -> Tensor:
    """Evenly spread patches: of a regular grid with at least as many cells, an even subset."""
    chosen = []
    for level, (image, k) in enumerate(zip(levels, budgets, strict=True)):
        rows, columns = image.shape[2] // patch, image.shape[3] // patch
        down = max(1, min(rows, round((k * rows / columns) ** 0.5)))
        across = min(columns, -(-k // down))
        down = min(rows, -(-k // across)) if k else down
        y = torch.div((2 * torch.arange(down) + 1) * rows, 2 * down, rounding_mode="floor")
        x = torch.div((2 * torch.arange(across) + 1) * columns, 2 * across, rounding_mode="floor")
        grid = (y[:, None] * columns + x).flatten()
        index = grid[torch.arange(k) * len(grid) // max(k, 1)]
        chosen.append(torch.stack((torch.full_like(index, level), index), 1))
    return torch.cat(chosen)[None]


def kept_patches(levels: list[Tensor], indices: Tensor, patch: int) -> list[Tensor]:
    """For each level whether each patch of its grid is kept, bool `[rows, columns]`."""
    at, row, column = gather_levels(patch_positions(levels, patch), indices)[0].unbind(1)
    grids = [torch.zeros(x.shape[2] // patch, x.shape[3] // patch, dtype=torch.bool) for x in levels]
    for level, grid in enumerate(grids):
        grid[row[at == level], column[at == level]] = True
    return grids


def pasted(kept: Tensor, picture: Tensor, ground: Tensor, patch: int) -> Tensor:
    """The kept patches of a picture on another."""
    return torch.where(kept.repeat_interleave(patch, 0).repeat_interleave(patch, 1), picture, ground)


def rebuild(levels: list[Tensor], indices: Tensor, patch: int) -> Tensor:
    """The image from the kept patches alone: coarse first, finer patches on top."""
    *finer, coarsest = kept_patches(levels, indices, patch)
    picture = pasted(coarsest, levels[-1], torch.zeros_like(levels[-1]), patch)
    for kept, level in zip(reversed(finer), reversed(levels[:-1]), strict=True):
        picture = pasted(kept, level, upsample(picture), patch)
    return picture


def downscale(image: Tensor, tokens: int, patch: int) -> Tensor:
    """The whole photo at the size that has as many patches, scaled back up."""
    height, width = image.shape[2:]
    scale = (tokens * patch * patch / (height * width)) ** 0.5
    size = [max(1, min(side, int(side * scale))) for side in (height, width)]
    small = F.interpolate(image, size=size, mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(small, size=(height, width), mode="bicubic", align_corners=False).clamp(0, 1)


def measure(name: str, image: Tensor, picture: Tensor) -> Rebuilt:
    error = (image - picture).square().mean(dtype=torch.float64).item()
    psnr = -10 * math.log10(error) if error else math.inf
    height, width = (side // 2 * 2 for side in image.shape[2:])
    if not (height and width):
        return Rebuilt(name, picture, psnr, math.nan)
    even = (x[..., :height, :width] for x in (image, picture))
    fine, kept = (details(gaussian_pyramid(x, 2, padding="replicate"))[0] for x in even)
    lost, whole = (x.square().sum(dtype=torch.float64).item() for x in (fine - kept, fine))
    return Rebuilt(name, picture, psnr, max(0.0, 1 - lost / max(whole, 1e-30)))


def draw(out: str, photo: Photo, patch: int, selected: Selected, results: list[Rebuilt]) -> None:
    total = sum(selected.budgets)
    columns = max(len(selected.levels) + 1, len(results))
    grids = kept_patches(selected.levels, selected.indices, patch)
    with canvas(out, photo, rows=2, columns=columns, side=3.2, margin=1.2) as figure:
        upper, lower = figure.axes[:columns], figure.axes[columns:]
        show(upper[0], photo.pixels, f"{photo.title}\n{photo.size}, {total} patches of {patch}×{patch} kept")
        for level, (axis, picture, kept) in enumerate(zip(upper[1:], selected.levels, grids, strict=False)):
            title = f"level {level}: {selected.budgets[level]} of {selected.sizes[level]}"
            show(axis, pasted(kept, picture, 0.35 * picture + 0.65, patch), title)
            corners = (kept.nonzero().flip(1) * patch - 0.5).tolist()
            squares = [Rectangle(corner, patch, patch) for corner in corners]
            axis.add_collection(
                PatchCollection(squares, facecolor="none", linewidth=0.6, edgecolor="tab:red", joinstyle="miter"),
                autolim=False,
            )
        for axis, result in zip(lower, results, strict=False):
            show(axis, result.picture, f"{result.name}\n{result.psnr:.1f} dB, {result.detail:.0%} of fine detail")
        best = max(results, key=lambda result: result.psnr)
        figure.suptitle(
            f"{total} patches of the pyramid's raw pixels, rebuilt coarse to fine. Highest PSNR here: {best.name}. "
            "Selection keeps detail where it is;\ndownscaling spreads its pixels evenly. PSNR and detail are of "
            "pixels: no vision encoder is involved.",
            fontsize=10,
        )


def level_table(selected: Selected) -> Table:
    table = Table("level", "tokens", "kept")
    for level, (size, kept) in enumerate(zip(selected.sizes, selected.budgets, strict=True)):
        table.add_row(str(level), str(size), str(kept))
    table.add_section()
    table.add_row("all", str(sum(selected.sizes)), str(sum(selected.budgets)))
    return table


def rebuilt_table(results: list[Rebuilt]) -> Table:
    table = Table("rebuilt from as many tokens", "PSNR, dB", "fine detail kept")
    for result in results:
        table.add_row(result.name, f"{result.psnr:.1f}", f"{result.detail:.0%}")
    return table
