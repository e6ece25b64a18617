"""`pyramid-ops merge`: patches of a photo merged as ToMe merges tokens."""

import argparse
import time

import torch
from torch import Tensor

from .. import assign_mean, merge_indices, merge_tokens, patchify, tome_matching
from .._checks import MAX_FEATURES
from .images import UsageError, check_out, load, reason_of


def run_merge(arguments: argparse.Namespace) -> None:
    if arguments.patch_size < 1:
        raise UsageError(f"--patch-size: expected at least 1, got {arguments.patch_size}")
    for share in arguments.keep:
        if not 0 < share <= 1:
            raise UsageError(f"--keep: expected shares above 0, at most 1, got {share:g}")
    check_out(arguments)
    patch = arguments.patch_size
    image, source, cropped = load(arguments.image, patch, 1)
    pixels = patchify(image, patch)
    if pixels.shape[2] > MAX_FEATURES:
        raise UsageError(f"--patch-size: expected at most {int((MAX_FEATURES / 3) ** 0.5)}, got {patch}")
    results = []
    for share in sorted(arguments.keep, reverse=True):
        started = time.perf_counter()
        group = merge_to(pixels - pixels.mean((0, 1)), max(1, round(share * pixels.shape[1])))
        milliseconds = 1e3 * (time.perf_counter() - started)
        groups = int(group.max()) + 1
        colours, sizes = assign_mean(pixels.unflatten(2, (3, -1)).mean(3), group, groups)
        results.append((groups, int(sizes.max()), milliseconds, group[0], colours[0]))
    try:
        draw_merged(arguments, image, source, results)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"--out: cannot write {arguments.out}: {reason_of(error)}") from error
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"{source}: {image.shape[2]}×{image.shape[3]}{cropped}, {pixels.shape[1]} patches of {patch}×{patch}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    table = Table("tokens left", "largest group", "time, ms")
    for groups, largest, milliseconds, _, _ in results:
        table.add_row(str(groups), str(largest), f"{milliseconds:.1f}")
    console.print(table)
    console.print(f"figure: {arguments.out}", markup=False, highlight=False, soft_wrap=True)


def merge_to(metric: Tensor, left: int) -> Tensor:
    """The group `[1, N]` of each token after merging, at most half of the tokens at a time, until `left` are left."""
    group = torch.arange(metric.shape[1])[None]
    sizes = None
    while metric.shape[1] > left:
        plan = tome_matching(metric, metric.shape[1] - left)
        group = merge_indices(plan, order="original").gather(1, group)
        metric, sizes = merge_tokens(metric, plan, sizes, order="original")
    return group


def draw_merged(arguments, image, source, results) -> None:
    from matplotlib import pyplot

    patch = arguments.patch_size
    rows, across = image.shape[2] // patch, image.shape[3] // patch
    aspect = min(max(image.shape[2] / image.shape[3], 0.5), 2.0)
    count = len(results) + 1
    figure, axes = pyplot.subplots(1, count, figsize=(4 * count, 4 * aspect + 0.9), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    axes[0, 0].imshow(image[0].permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
    axes[0, 0].set_title(
        f"{source.replace('$', chr(92) + '$')}\n{rows * across} patches of {patch}×{patch}", fontsize=10
    )
    for axis, (groups, largest, _, group, colours) in zip(axes[0, 1:], results, strict=True):
        picture = colours[group].view(rows, across, 3).clamp(0, 1).numpy()
        axis.imshow(picture, interpolation="nearest", extent=(0, across, rows, 0))
        grid = group.view(rows, across)
        y, x = (grid[:, 1:] != grid[:, :-1]).nonzero(as_tuple=True)
        axis.vlines(x + 1, y, y + 1, colors="black", linewidth=0.5)
        y, x = (grid[1:] != grid[:-1]).nonzero(as_tuple=True)
        axis.hlines(y + 1, x, x + 1, colors="black", linewidth=0.5)
        axis.set_title(f"{groups} tokens left\nlargest group: {largest} patches", fontsize=10)
    figure.suptitle(
        "Patches that ToMe's matching merged, each group in its mean colour. Matched: the pixels of the patches less "
        "the mean patch, not a trained encoder.",
        fontsize=10,
        wrap=True,
    )
    figure.savefig(arguments.out, dpi=110)
    pyplot.close(figure)
