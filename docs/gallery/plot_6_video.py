"""
Frames of a video with EVS
==========================

EVS keeps the first frame, and of the others the tokens that differ most from the same place of the frame before. The
clip is made up: a ball rolls over a photo, and the light changes in one corner.
"""

import matplotlib.pyplot as plt
import torch
from skimage import data

import pyramid_ops
from pyramid_ops import methods, plans, serving

FRAMES, PATCH, GRID = 5, 16, (12, 20)
ground = (
    torch.from_numpy(data.coffee()[100:292, 80:400].copy()).permute(2, 0, 1).float()
    / 255
)
y, x = torch.meshgrid(torch.arange(192.0), torch.arange(320.0), indexing="ij")
clip = []
for t in range(FRAMES):
    ball = ((x - 40 - 55 * t).square() + (y - 60 - 12 * t).square() < 24**2).float()
    light = 1 - 0.12 * t * ((x > 240) & (y > 130)).float()
    clip.append(
        ground * light * (1 - ball)
        + torch.tensor([0.1, 0.5, 0.9])[:, None, None] * ball
    )
clip = torch.stack(clip)  # [5, 3, 192, 320]

# %%
# The count is known on the host before any encoder runs; the mask comes after it. Three quarters of the tokens go.

video, rate = (FRAMES, *GRID), 0.75
count = serving.retained_count("evs", video, rate)
features = pyramid_ops.patchify(clip, PATCH) - pyramid_ops.patchify(
    ground[None], PATCH
).mean((0, 1))
plan = methods.evs(features[None], keep=count)
mask = plans.mask(plan).view(FRAMES, *GRID)
assert torch.equal(
    mask.flatten(), serving.retention_mask("evs", features.flatten(0, 1), video, rate)
)
count, mask.flatten(1).sum(1).tolist()

# %%
figure, axes = plt.subplots(1, FRAMES, figsize=(12, 1.9), layout="constrained")
for t, axis in enumerate(axes):
    kept = mask[t].repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)
    axis.imshow(torch.where(kept, clip[t], 0.25 * clip[t] + 0.75).permute(1, 2, 0))
    axis.set_title(
        f"frame {t}: {int(mask[t].sum())} of {GRID[0] * GRID[1]}", fontsize=9
    )
    axis.set_axis_off()
