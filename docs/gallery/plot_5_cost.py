"""
Cost by layer
=============

How many image tokens each layer of LLaVA-1.5-7B reads under some methods, and what that leaves of the operations of a
prompt. Formulas on the host, nothing is timed.
"""

import matplotlib.pyplot as plt

from pyramid_ops import cost, schedules

# %%
# Three methods at one average of image tokens a layer: what ``pyramid-ops cost llava-1.5-7b --budget 192`` prints with
# ``--method`` and each name.

print(
    cost.report(
        "llava-1.5-7b", methods=["fastv", "pyramiddrop", "sparsevlm"], budget=192
    )
)

# %%
# Tokens by layer with the authors' own numbers.

model = cost.MODELS["llava-1.5-7b"]
layers = model.language.layers
figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
for name, make in {
    "nothing dropped": lambda: schedules.METHODS["none"](576, layers),
    "FastV: half after layer 2": lambda: schedules.fastv(576, layers),
    "PyramidDrop": lambda: schedules.pyramiddrop(576, layers),
    "SparseVLM, 192 on average": lambda: schedules.sparsevlm(576, layers, budget=192),
    "VScan, 128 from the encoder": lambda: schedules.vscan(576, layers, keep=128),
    "before the model, 64 left": lambda: schedules.before(576, layers, keep=64),
}.items():
    axis.step(range(layers), make().tokens, where="mid", label=name)
axis.set_xlabel("layer")
axis.set_ylabel("image tokens that it reads")
axis.set_ylim(0)
_ = axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
