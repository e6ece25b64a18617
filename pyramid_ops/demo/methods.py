"""`pyramid-ops methods`: what each published method keeps of one photo, side by side."""

import math
import time
from typing import NamedTuple, Union

import torch
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from rich.table import Table
from torch import Tensor

from .. import patchify
from .console import progress, say, show_table
from .figures import canvas, show
from .images import Photo, fit, opened, usual_patch
from .merge import borders
from .panels import PANELS, Grouped, Kept
from .select import pasted
from .standins import StandIns, stand_ins
from .usage import UsageError, check_at_least_one, check_out, check_patch_size, printable

MOST = 24  # patches a side, as LLaVA-1.5 has: a photo that has more is made smaller
LEAST = 8  # tokens: of fewer DART's pivots are most


class Panel(NamedTuple):
    name: str
    shown: Union[Kept, Grouped]
    milliseconds: float


def run(image: str | None, tokens: int, patch_size: int | None, at: list[float], out: str) -> None:
    check_at_least_one("tokens", tokens)
    check_patch_size(patch_size)
    if not all(0 <= share <= 1 for share in at):
        raise UsageError(f"--at: expected shares from 0 to 1, got {at[0]:g} {at[1]:g}")
    check_out(out, image, "methods.png")
    array, name = opened(image)
    if patch_size is None:
        patch_size = usual_patch(array, lambda down, across: patches(down, across) >= 4 * max(tokens, 64))
    photo = fit(array, name, patch_size, 3, MOST)
    size = photo.pixels[0, 0].numel() // patch_size**2
    if size < 4 * LEAST:
        raise UsageError(f"IMAGE: expected at least {4 * LEAST} patches of {patch_size}×{patch_size}, got {size}")
    if not LEAST <= tokens <= size // 4:
        raise UsageError(
            f"--tokens: expected {LEAST} (fewer are little more than DART's pivots) to {size // 4} (a quarter of the "
            f"{size} patches: with more the panels look alike), got {tokens}"
        )
    given = stand_ins(photo.pixels, patch_size, (at[0], at[1]))
    panels = []
    with progress(len(PANELS) + 1) as advance:
        for name, rule in PANELS.items():
            started = time.perf_counter()
            panels.append(Panel(name, rule(given, tokens), 1e3 * (time.perf_counter() - started)))
            advance()
        draw(out, photo, patch_size, given, panels)
    say(f"{photo.name}: {photo.size}{photo.cropped}, {size} patches of {patch_size}×{patch_size}")
    table = Table("method", "tokens", "time, ms", "")
    for panel in panels:
        table.add_row(panel.name, str(panel.shown.tokens), f"{panel.milliseconds:.1f}", panel.shown.note)
    show_table(table)
    say("scores, features and words are stand-ins from pixels: no trained model is involved")
    say(f"figure: {printable(out)}")


def patches(down: int, across: int) -> int:
    """How many patches are used of so many: at most MOST a side, by fours."""
    most = max(down, across, MOST)
    return (down * MOST // most // 4 * 4) * (across * MOST // most // 4 * 4)


def draw(out: str, photo: Photo, patch: int, given: StandIns, panels: list[Panel]) -> None:
    pictures = len(panels) + 1
    columns = min((5, 6, 7), key=lambda columns: -pictures % columns)  # the fewest empty places
    with canvas(out, photo, rows=math.ceil(pictures / columns), columns=columns, side=2.6, margin=1.2) as figure:
        first, *others = figure.axes
        show(first, photo.pixels, f"{photo.title}\n{given.x.shape[1]} patches; marked: the words")
        outline(first, words(given), patch, "black")
        for axis, panel in zip(others, panels, strict=False):
            draw_panel(axis, photo.pixels, patch, given.grid, panel)
        figure.suptitle(
            "What each method keeps of the same photo. A trained model is not involved: features are pixels less the "
            "mean patch, the encoder's attention is a patch's share in the photo's detail (fine in a shallow layer, "
            "coarse in a deep one), words are the marked patches, and the language model's queries and keys are the "
            "features themselves. DToMA and levels of detail choose by thresholds, so their numbers follow from the "
            "photo; DART and PruMerge+ come near the number that is asked for.",
            fontsize=10,
            wrap=True,
        )


def draw_panel(axis: Axes, pixels: Tensor, patch: int, grid: tuple[int, int], panel: Panel) -> None:
    shown = panel.shown
    title = f"{panel.name}: {shown.tokens}\n{shown.note}"
    if isinstance(shown, Grouped):
        colours = patchify(pixels, patch)[0].unflatten(1, (3, -1)).mean(2)
        sums = torch.zeros(shown.tokens, 3).index_add(0, shown.group, colours)
        means = sums / shown.group.bincount(minlength=shown.tokens)[:, None]
        groups = shown.group.view(grid)
        show(axis, means[groups].permute(2, 0, 1)[None], title)
        borders(axis, groups)
        return
    others = torch.zeros_like(shown.mask) if shown.others is None else shown.others
    show(axis, pasted((shown.mask | others).view(grid), pixels, 0.3 * pixels + 0.7, patch), title)
    outline(axis, shown.mask.view(grid), patch, "tab:red")
    outline(axis, others.view(grid), patch, "tab:blue")


def words(given: StandIns) -> Tensor:
    """Where the patches stand that are the words, bool `[rows, columns]`."""
    return torch.zeros(given.x.shape[1], dtype=torch.bool).index_fill(0, given.asked, True).view(given.grid)


def outline(axis: Axes, marked: Tensor, patch: int, colour: str) -> None:
    """Squares around the patches of a bool grid."""
    corners = (marked.nonzero().flip(1) * patch - 0.5).tolist()
    squares = [Rectangle(corner, patch, patch) for corner in corners]
    collection = PatchCollection(squares, facecolor="none", linewidth=0.7, edgecolor=colour, joinstyle="miter")
    axis.add_collection(collection, autolim=False)
