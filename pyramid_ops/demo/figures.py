"""Figures that are written to a file."""

import contextlib
import warnings
from collections.abc import Iterator

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .images import Photo
from .usage import UsageError, printable, reason

DRAWN = 1024  # pixels a side, more than a figure has for one picture


@contextlib.contextmanager
def canvas(out: str, photo: Photo, rows: int, columns: int, side: float, margin: float) -> Iterator[Figure]:
    """A figure of `rows` × `columns` pictures, `side` inches wide each, written to `out` in the end."""
    aspect = min(max(photo.pixels.shape[2] / photo.pixels.shape[3], 0.5), 2.0)
    with style.context("default"):  # whatever the user's matplotlibrc
        figure = Figure(figsize=(side * columns, side * rows * aspect + margin), layout="constrained")
        for axis in figure.subplots(rows, columns, squeeze=False).flat:
            axis.set_axis_off()
        yield figure
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph")  # of a file's name, that the font lacks
                figure.savefig(out, dpi=110)
        except (OSError, RuntimeError, ValueError) as error:
            raise UsageError(f"--out: cannot write {printable(out)}: {reason(error)}") from error


def show(axis: Axes, picture: Tensor, title: str) -> None:
    """A picture `[1, 3, H, W]` in its own pixels' coordinates."""
    height, width = picture.shape[2:]
    step = max(1, max(height, width) // DRAWN)
    drawn = picture[0, :, ::step, ::step].permute(1, 2, 0).clamp(0, 1).numpy()
    axis.imshow(drawn, interpolation="nearest", extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    axis.set_title(title, fontsize=10, parse_math=False)
