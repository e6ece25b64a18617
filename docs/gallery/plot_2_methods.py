"""
What each method keeps
======================

The published methods on the same photo, 64 of 576 patches each where a method takes a number (DToMA and levels of
detail choose by thresholds, DART and PruMerge+ come near it): what ``pyramid-ops methods --at 0.2 0.43`` draws.

No trained model is involved. Features are pixels less the mean patch; the encoder's attention is a patch's share in the
photo's detail, fine in a shallow layer, coarse in a deep one; the words of the instruction are the marked patches; the
language model's queries and keys are the features themselves. What a method keeps with a real model is another picture:
this one shows how the rules differ.
"""

import matplotlib.pyplot as plt

from pyramid_ops.demo.images import load
from pyramid_ops.demo.methods import MOST, Panel, draw_panel
from pyramid_ops.demo.panels import PANELS
from pyramid_ops.demo.standins import stand_ins

PATCH, KEEP = 16, 64
photo = load(None, PATCH, 3, MOST).pixels
given = stand_ins(photo, PATCH, (0.2, 0.43))

columns = min((3, 4, 5), key=lambda columns: -(len(PANELS) + 1) % columns)
rows = -(-(len(PANELS) + 1) // columns)
figure, axes = plt.subplots(
    rows, columns, figsize=(10, 11.5 / columns * rows), layout="constrained"
)
for axis in axes.flat:
    axis.set_axis_off()

first, *others = axes.flat
first.imshow(photo[0].permute(1, 2, 0))
first.set_title("the photo, and the words\n", fontsize=10)
row, column = given.asked // given.grid[1], given.asked % given.grid[1]
first.plot((column + 0.5) * PATCH, (row + 0.5) * PATCH, "s", color="black", ms=3)
for axis, (name, rule) in zip(others, PANELS.items(), strict=False):
    draw_panel(axis, photo, PATCH, given.grid, Panel(name, rule(given, KEEP), 0.0))

# %%
# Attention of the last word follows what is alike; the encoder's attention follows
# detail; diversity (DivPrune, CDPruner, SCOPE, GreedyPrune) spreads the picks over what
# there is; ToMe, DToMA and levels of detail keep an average of everything.
