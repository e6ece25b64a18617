"""`pyramid-ops merge`: patches of a photo merged as ToMe merges tokens."""

import time
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from rich.table import Table
from torch import Tensor

from .. import assign_mean, merge_indices, merge_tokens, patchify, tome_matching
from .console import progress, say, show_table
from .figures import canvas, show
from .images import Photo, fit, opened, usual_patch
from .usage import UsageError, check_out, check_patch_size, printable

MOST = 100  # pictures beside each other: a figure has fewer than 2¹⁶ pixels a side
LARGEST = 64  # patches a side: a photo that has more is made smaller, since each is compared with half of the others


class Merged(NamedTuple):
    left: int
    largest: int  # patches of the largest group
    milliseconds: float
    group: Tensor  # [N], of each patch
    colours: Tensor  # [left, 3]


def run(image: str | None, patch_size: int | None, keep: list[float], out: str) -> None:
    check_patch_size(patch_size)
    if len(keep) > MOST:
        raise UsageError(f"--keep: expected at most {MOST} shares, got {len(keep)}")
    for share in keep:
        if not 0 < share <= 1:
            raise UsageError(f"--keep: expected shares above 0, at most 1, got {share:g}")
    check_out(out, image, "merging.png")
    array, name = opened(image)
    if patch_size is None:
        patch_size = usual_patch(array, lambda down, across: min(down, across) >= 4)
    photo = fit(array, name, patch_size, 1, LARGEST)
    patches = patchify(photo.pixels, patch_size)
    results = []
    with progress(len(keep) + 1) as advance:
        for share in sorted(keep, reverse=True):
            results.append(merge(patches, share))
            advance()
        draw(out, photo, patch_size, results)
    say(f"{photo.name}: {photo.size}{photo.cropped}, {patches.shape[1]} patches of {patch_size}×{patch_size}")
    table = Table("tokens left", "largest group", "time, ms")
    for result in results:
        table.add_row(str(result.left), str(result.largest), f"{result.milliseconds:.1f}")
    show_table(table)
    say(f"figure: {printable(out)}")


def merge(patches: Tensor, share: float) -> Merged:
    started = time.perf_counter()
    group = merge_to(patches - patches.mean((0, 1)), max(1, round(share * patches.shape[1])))
    milliseconds = 1e3 * (time.perf_counter() - started)
    left = int(group.max()) + 1
    colours, sizes = assign_mean(patches.unflatten(2, (3, -1)).mean(3), group, left)
    return Merged(left, int(sizes.max()), milliseconds, group[0], colours[0])


def merge_to(metric: Tensor, left: int) -> Tensor:
    """The group `[1, N]` of each token after merging, at most half of the tokens at a time, until `left` are left."""
    group = torch.arange(metric.shape[1])[None]
    sizes = None
    while metric.shape[1] > left:
        plan = tome_matching(metric, metric.shape[1] - left)
        group = merge_indices(plan, order="original").gather(1, group)
        metric, sizes = merge_tokens(metric, plan, sizes, order="original")
    return group


def draw(out: str, photo: Photo, patch: int, results: list[Merged]) -> None:
    rows, columns = photo.pixels.shape[2] // patch, photo.pixels.shape[3] // patch
    with canvas(out, photo, rows=1, columns=len(results) + 1, side=4, margin=0.9) as figure:
        first, *others = figure.axes
        show(first, photo.pixels, f"{photo.title}\n{rows * columns} patches of {patch}×{patch}")
        for axis, result in zip(others, results, strict=True):
            grid = result.group.view(rows, columns)
            title = f"{result.left} tokens left\nlargest group: {result.largest} patches"
            show(axis, result.colours[grid].permute(2, 0, 1)[None], title)
            borders(axis, grid)
        figure.suptitle(
            "Patches that ToMe's matching merged, each group in its mean colour. Matched: the pixels of the patches "
            "less the mean patch, not a trained encoder.",
            fontsize=10,
            wrap=True,
        )


def borders(axis: Axes, grid: Tensor) -> None:
    """Lines between patches of different groups, int64 `[rows, columns]`."""
    y, x = (grid[:, 1:] != grid[:, :-1]).nonzero(as_tuple=True)
    axis.vlines(x + 0.5, y - 0.5, y + 0.5, colors="black", linewidth=0.5)
    y, x = (grid[1:] != grid[:-1]).nonzero(as_tuple=True)
    axis.hlines(y + 0.5, x - 0.5, x + 0.5, colors="black", linewidth=0.5)
