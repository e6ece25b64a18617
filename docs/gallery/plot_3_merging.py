"""
Merging patches
===============

ToMe's bipartite matching: each even token finds its most similar odd one, the most similar pairs become one. Here
until a half, a quarter and a tenth of a photo's patches are left.
"""

import matplotlib.pyplot as plt
import torch
from skimage import data

import pyramid_ops
from pyramid_ops import plans

photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None].float() / 255
patches = pyramid_ops.patchify(photo, 16)
colours = patches.unflatten(2, (3, -1)).mean(3)
metric = patches - patches.mean((0, 1))

# %%
# One plan for each round of at most a half, and by it all that belongs to tokens: features, colours, sizes. `rows` says
# which row each token becomes part of.

figure, axes = plt.subplots(1, 4, figsize=(11, 3.1), layout="constrained")
axes[0].imshow(photo[0].permute(1, 2, 0))
axes[0].set_title("1024 patches", fontsize=10)
sizes, group = torch.ones(1, 1024), torch.arange(1024)[None]
for axis, left in zip(axes[1:], (512, 256, 102), strict=True):
    while metric.shape[1] > left:
        plan = plans.tome(
            metric, min(metric.shape[1] - left, metric.shape[1] // 2), order="original"
        )
        metric, colours, sizes = plans.apply(
            plan, [metric, colours, sizes], weights=sizes, mode=["mean", "mean", "sum"]
        )
        group = plan.rows.gather(1, group)
    axis.imshow(
        colours[0, group[0]].view(32, 32, 3).clamp(0, 1), interpolation="nearest"
    )
    axis.set_title(
        f"{left} tokens, the largest of {int(sizes.max())} patches", fontsize=10
    )
for axis in axes:
    axis.set_axis_off()

# %%
# The weights are the patches that a token already stands for, so that a mean of means is the mean of all patches. Sums
# run in a written order: the same picture on every device.
assert int(sizes.sum()) == 1024
