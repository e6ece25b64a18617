"""
A map of levels of detail
=========================

A level for each place, as texture units choose one: fine where a patch matters, coarse where it does not. Relevance is
made of entropy, contrast and likeness to what the instruction is about, for which patches of the face stand in.
"""

import matplotlib.pyplot as plt
import torch
from skimage import data

import pyramid_ops
from pyramid_ops import methods, plans

PATCH, GRID = 16, (32, 32)
photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None].float() / 255
patches = pyramid_ops.patchify(photo, PATCH)
words = patches.view(1, *GRID, -1)[:, 5:9, 12:16].flatten(1, 2)
centre = patches.mean(1, keepdim=True)

parts = [
    pyramid_ops.patch_entropy(photo, PATCH),
    pyramid_ops.token_variance(patches),
    pyramid_ops.text_relevance(patches - centre, words - centre, metric="cosine"),
]
relevance = pyramid_ops.combine_scores(parts, [0.3, 0.3, 0.4], normalize="minmax")

# %%
# Four levels; a coarse token stays where any patch under it is of its level.

chosen = methods.lod_select(relevance, GRID, thresholds=(0.68, 0.6, 0.52))
counts = [int(plan.counts) for plan in chosen]
counts, sum(counts)

# %%
# The photo in the detail of each place, and the map.

levels = pyramid_ops.gaussian_pyramid(photo, 4, padding="replicate")
picture, level_of = torch.zeros_like(photo), torch.full(GRID, 3)
for level in (3, 2, 1, 0):
    side = 2**level
    stays = plans.mask(chosen[level])[0].view(32 // side, 32 // side)
    stays = stays.repeat_interleave(side, 0).repeat_interleave(side, 1)
    level_of[stays] = level
    shown = torch.nn.functional.interpolate(
        levels[level], scale_factor=side, mode="nearest"
    )
    pixels = stays.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)
    picture = torch.where(pixels, shown, picture)

figure, axes = plt.subplots(1, 3, figsize=(11, 3.9), layout="constrained")
axes[0].imshow(relevance[0].view(GRID), cmap="magma")
axes[0].set_title("relevance", fontsize=10)
image = axes[1].imshow(level_of, cmap="viridis_r", vmin=-0.5, vmax=3.5)
axes[1].set_title(
    f"level of each place: {sum(counts)} tokens of 1024 + 256 + 64 + 16", fontsize=9
)
axes[2].imshow(picture[0].permute(1, 2, 0).clamp(0, 1))
axes[2].set_title("the photo in that detail", fontsize=10)
for axis in axes:
    axis.set_axis_off()
_ = figure.colorbar(image, ax=axes[1], ticks=range(4), shrink=0.8)
