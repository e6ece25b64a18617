"""The picture of README, from the panels of `pyramid-ops methods`: python docs/pictures.py"""

import pathlib
import sys

from matplotlib.figure import Figure
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pyramid_ops.demo.images import load  # noqa: E402
from pyramid_ops.demo.methods import MOST, Panel, draw_panel, outline, words  # noqa: E402
from pyramid_ops.demo.panels import PANELS  # noqa: E402
from pyramid_ops.demo.standins import stand_ins  # noqa: E402

SHOWN = ["FastV, PyramidDrop", "SparseVLM", "FasterVLM", "DivPrune", "CDPruner", "VScan", "ToMe"]
PATCH, KEEP = 16, 64


def methods(out: pathlib.Path) -> None:
    photo = load(None, PATCH, 3, MOST).pixels
    given = stand_ins(photo, PATCH, (0.2, 0.43))
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    first, *others = figure.subplots(2, 4).flat
    first.imshow(photo[0].permute(1, 2, 0))
    first.set_title(f"{given.x.shape[1]} patches\nmarked: the words", fontsize=11)
    outline(first, words(given), PATCH, "black")
    for axis, name in zip(others, SHOWN, strict=True):
        draw_panel(axis, photo, PATCH, given.grid, Panel(name, PANELS[name](given, KEEP), 0.0))
    for axis in (first, *others):
        axis.set_axis_off()
        axis.title.set_fontsize(11)
    figure.savefig(out, dpi=100)
    with Image.open(out) as drawn:
        drawn.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    methods(ROOT / "docs/images/methods.png")
