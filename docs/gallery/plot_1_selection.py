"""
A pyramid, and what is kept of it
=================================

A photo's Gaussian pyramid, the norm of what each level adds to the next coarser one as a score, and 273 of its 1360
patches kept: most of the fine ones are never read.
"""

# %%
# Four levels, 1024 to 16 patches. A real pipeline would put each level through a vision encoder here; the tokens are
# pixels in this one.

import itertools

import matplotlib.pyplot as plt
import torch
from skimage import data

import pyramid_ops

PATCH = 16
photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None].float() / 255
levels = pyramid_ops.gaussian_pyramid(photo, 4, padding="replicate")
tokens = [pyramid_ops.patchify(level, PATCH) for level in levels]
[x.shape[1] for x in tokens]

# %%
# A score for each token: what a level adds to the next coarser one. Any float32 numbers will do.


def doubled(x):
    return torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear")


details = [
    fine - doubled(coarse) for fine, coarse in itertools.pairwise(levels)
] + levels[-1:]
scores = [pyramid_ops.token_norm(pyramid_ops.patchify(x, PATCH)) for x in details]

# %%
# The whole coarsest level, so that the picture has no holes, and the best of the others. `indices` are pairs of level
# and place, by score; positions are gathered by the same.

budgets = [*pyramid_ops.allocate_budgets(257, [0.45, 0.33, 0.22], [1024, 256, 64]), 16]
kept, indices = pyramid_ops.select_topk_levels(tokens, saliency=scores, budgets=budgets)
positions = pyramid_ops.gather_levels(
    pyramid_ops.patch_positions(levels, PATCH), indices
)
kept.shape, positions[0, :3].tolist()

# %%
# Each level, with what is not kept washed out, and the photo rebuilt from the kept patches alone, coarse to fine.


def painted(ground, level, picture):
    """The kept patches of a level on a ground."""
    ground = ground.clone()
    for _, row, column in positions[0][positions[0, :, 0] == level].tolist():
        here = (
            ...,
            slice(row * PATCH, (row + 1) * PATCH),
            slice(column * PATCH, (column + 1) * PATCH),
        )
        ground[here] = picture[here]
    return ground


rebuilt = levels[-1]
for level in (2, 1, 0):
    rebuilt = painted(doubled(rebuilt), level, levels[level])

figure, axes = plt.subplots(2, 3, figsize=(9, 6.4), layout="constrained")
pictures = {"the photo": photo}
for level, picture in enumerate(levels):
    pictures[f"level {level}: {budgets[level]} of {tokens[level].shape[1]}"] = painted(
        0.3 * picture + 0.7, level, picture
    )
pictures["rebuilt from 273 of 1360 patches"] = rebuilt
for axis, (title, picture) in zip(axes.flat, pictures.items(), strict=True):
    axis.imshow(picture[0].permute(1, 2, 0).clamp(0, 1))
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()
