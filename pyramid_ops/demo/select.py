"""`pyramid-ops select`: a photo's most salient patches, and the photo rebuilt from them."""

import argparse
import itertools
import time

import numpy as np
import torch
import torch.nn.functional as F
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
from .images import UsageError, check_out, load, reason_of

WEIGHTS = (0.4, 0.3, 0.2, 0.1)


def run_select(arguments: argparse.Namespace) -> None:
    for name, value in (
        ("tokens", arguments.tokens),
        ("patch-size", arguments.patch_size),
        ("levels", arguments.levels),
    ):
        if value < 1:
            raise UsageError(f"--{name}: expected at least 1, got {value}")
    check_out(arguments)
    patch, count = arguments.patch_size, arguments.levels
    image, source, cropped = load(arguments.image, patch, count)
    started = time.perf_counter()
    levels = gaussian_pyramid(image, count, padding="replicate")
    tokens = [patchify(level, patch) for level in levels]
    saliency = [token_norm(patchify(x, patch)) for x in details(levels)] if arguments.saliency == "detail" else None
    budgets = split(arguments.tokens, [x.shape[1] for x in tokens])
    selection = select_topk_levels(tokens, saliency=saliency or arguments.saliency, budgets=budgets)
    milliseconds = 1e3 * (time.perf_counter() - started)
    sizes = [x.shape[1] for x in tokens]
    total = sum(budgets)
    random = random_indices(sizes, budgets)
    uniform = uniform_indices(levels, patch, budgets)
    results = [
        (f"kept by {arguments.saliency}", rebuild(levels, selection.indices, patch)),
        ("uniform choice", rebuild(levels, uniform, patch)),
        ("random choice", rebuild(levels, random, patch)),
        ("plain downscaling", downscale(image, total, patch)),
    ]
    measured = [(name, picture, *quality(image, picture)) for name, picture in results]
    try:
        draw(arguments, image, source, levels, selection.indices, measured, budgets)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"--out: cannot write {arguments.out}: {reason_of(error)}") from error
    table(arguments, source, cropped, image, sizes, budgets, milliseconds, measured)


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
    rest = min(total - coarsest, sum(finer))
    return [*allocate_budgets(rest, weights, finer), coarsest]


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


def rebuild(levels: list[Tensor], indices: Tensor, patch: int) -> Tensor:
    """The image from the kept patches alone: coarse first, finer patches on top."""
    positions = gather_levels(patch_positions(levels, patch), indices)[0].tolist()
    picture = torch.zeros_like(levels[-1])
    for level in range(len(levels) - 1, -1, -1):
        if level < len(levels) - 1:
            picture = upsample(picture)
        for at, row, column in positions:
            if at == level:
                window = (..., slice(row * patch, (row + 1) * patch), slice(column * patch, (column + 1) * patch))
                picture[window] = levels[level][window]
    return picture


def downscale(image: Tensor, tokens: int, patch: int) -> Tensor:
    """The whole photo at the size that has as many patches, scaled back up."""
    height, width = image.shape[2:]
    scale = (tokens * patch * patch / (height * width)) ** 0.5
    size = [max(1, min(side, int(side * scale))) for side in (height, width)]
    small = F.interpolate(image, size=size, mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(small, size=(height, width), mode="bicubic", align_corners=False).clamp(0, 1)


def quality(image: Tensor, picture: Tensor) -> tuple[float, float]:
    """(PSNR in dB, share of the finest detail's energy that the picture keeps)."""
    error = (image - picture).double().square().mean().item()
    psnr = float("inf") if error == 0 else -10 * float(np.log10(error))
    if min(image.shape[2:]) < 2:
        return psnr, float("nan")
    fine, kept = (details(gaussian_pyramid(x, 2, padding="replicate"))[0].double() for x in (image, picture))
    lost = (fine - kept).square().sum() / fine.square().sum().clamp(min=1e-30)
    return psnr, max(0.0, 1 - lost.item())


def draw(arguments, image, source, levels, indices, measured, budgets) -> None:
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    def show(axis, picture: Tensor, title: str) -> None:
        axis.imshow(picture[0].permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()

    source = source.replace("$", r"\$")  # no formula
    patch, count = arguments.patch_size, len(levels)
    columns = max(count + 1, len(measured))
    aspect = image.shape[2] / image.shape[3]
    figure, axes = pyplot.subplots(
        2, columns, figsize=(3.2 * columns, 6.4 * min(max(aspect, 0.5), 2.0) + 1.2), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.set_axis_off()
    show(
        axes[0, 0],
        image,
        f"{source}\n{image.shape[2]}×{image.shape[3]}, {sum(budgets)} patches of {patch}×{patch} kept",
    )
    positions = gather_levels(patch_positions(levels, patch), indices)[0].tolist()
    for level, picture in enumerate(levels):
        axis = axes[0, level + 1]
        rows, across = picture.shape[2] // patch, picture.shape[3] // patch
        show(axis, 0.35 * picture + 0.65, f"level {level}: {budgets[level]} of {rows * across}")
        kept = 0.35 * picture + 0.65
        for at, row, column in positions:
            if at == level:
                window = (..., slice(row * patch, (row + 1) * patch), slice(column * patch, (column + 1) * patch))
                kept[window] = picture[window]
                corner = (column * patch - 0.5, row * patch - 0.5)
                axis.add_patch(Rectangle(corner, patch, patch, fill=False, linewidth=0.6, edgecolor="tab:red"))
        axis.images[0].set_data(kept[0].permute(1, 2, 0).clamp(0, 1).numpy())
    for axis, (name, picture, psnr, kept_detail) in zip(axes[1], measured, strict=False):
        show(axis, picture, f"{name}\n{psnr:.1f} dB, {kept_detail:.0%} of fine detail")
    best = max(measured, key=lambda entry: entry[2])
    figure.suptitle(
        f"{sum(budgets)} patches of the pyramid's raw pixels, rebuilt coarse to fine. Highest PSNR here: {best[0]}. "
        "Selection keeps detail where it is;\ndownscaling spreads its pixels evenly. PSNR and detail are of pixels: no "
        "vision encoder is involved.",
        fontsize=10,
    )
    figure.savefig(arguments.out, dpi=110)
    pyplot.close(figure)


def table(arguments, source, cropped, image, sizes, budgets, milliseconds, measured) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"{source}: {image.shape[2]}×{image.shape[3]}{cropped}", markup=False, highlight=False, soft_wrap=True
    )
    levels = Table("level", "tokens", "kept")
    for level, (size, kept) in enumerate(zip(sizes, budgets, strict=True)):
        levels.add_row(str(level), str(size), str(kept))
    levels.add_section()
    levels.add_row("all", str(sum(sizes)), str(sum(budgets)))
    console.print(levels)
    rebuilt = Table("rebuilt from as many tokens", "PSNR, dB", "fine detail kept")
    for name, _, psnr, detail in measured:
        rebuilt.add_row(name, f"{psnr:.1f}", f"{detail:.0%}")
    console.print(rebuilt)
    console.print(f"pyramid, scores and selection: {milliseconds:.1f} ms on the CPU", highlight=False)
    console.print(f"figure: {arguments.out}", markup=False, highlight=False, soft_wrap=True)
