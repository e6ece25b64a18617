"""Launches of each method are those that its docstring says, Triton's and PyTorch's; none reads a value of a tensor."""

import inspect
import os
import re
from functools import partial

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels decorated for the interpreter cannot be compiled", allow_module_level=True)

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from pyramid_ops import methods
from tests.launches import launched

HALF = torch.bfloat16
QUERY, KEY = torch.zeros(2, 8, 640, 64, dtype=HALF), torch.zeros(2, 2, 640, 64, dtype=HALF)
HIDDEN, IMAGE = torch.zeros(2, 640, 128, dtype=HALF), torch.zeros(2, 640, dtype=torch.bool)
SCORES, PATCHES = torch.zeros(2, 576), torch.zeros(2, 576, 128, dtype=HALF)

IN_LLM, GROUPS = {"keep": 144, "capacity": 208}, torch.tensor([0, 300, 640, 1280]).int()
GRID = {"keep": 144, "grid": (24, 24)}
SIDES = (24, 12, 6, 3)
LEVELS, GRIDS = [PATCHES[:, : side * side].clone() for side in SIDES], [(side, side) for side in SIDES]
VIDEO = PATCHES[:, None].expand(-1, 8, -1, -1).clone()
KEPT = methods.fastervlm(SCORES, keep=40)
CALLS = {
    "adaptive_select": partial(methods.adaptive_select, LEVELS, PATCHES[:, :9], keep=99),
    "drop_frames": partial(methods.drop_frames, PATCHES[:, :16]),
    "dycoke": partial(methods.dycoke, VIDEO, keep=99),
    "fastvid": partial(methods.fastvid, VIDEO, SCORES[:, None].expand(-1, 8, -1), [2, 2, 3, 1], salient=6, context=4),
    "fastvid_windows": partial(methods.fastvid_windows, [0.5, 0.9]),
    "vidcom2": partial(methods.vidcom2, VIDEO, keep=999),
    "holov": partial(methods.holov, SCORES, keep=144),
    "evs": partial(methods.evs, VIDEO, keep=999),
    "prunevid": partial(methods.prunevid, VIDEO, [2, 2, 3, 1]),
    "prunevid_windows": partial(methods.prunevid_windows, [0, 0, 1, 1]),
    "level_alignment": partial(methods.level_alignment, LEVELS, PATCHES[:, 0].clone()),
    "query_levels": partial(methods.query_levels, LEVELS, PATCHES[:, 0].clone()),
    "skip_levels": partial(methods.skip_levels, LEVELS, PATCHES[:, 0].clone()),
    "tokenflex": partial(methods.tokenflex, PATCHES, (24, 24)),
    "redundant_levels": partial(methods.redundant_levels, LEVELS, GRIDS),
    "query_regions": partial(methods.query_regions, PATCHES, (24, 24), PATCHES[:, 0].clone()),
    "dtoma_decode": partial(methods.dtoma_decode, SCORES, SCORES > 0, SCORES.int(), referenced=SCORES > 0),
    "foveal": partial(methods.foveal, torch.zeros(2, 2), (24, 24)),
    "tension": partial(methods.tension, [(SCORES, SCORES)], torch.zeros(2, 1)),
    "lod_select": partial(methods.lod_select, SCORES, (24, 24)),
    "ptp": partial(methods.ptp, SCORES.view(2, 4, 144), SCORES.view(2, 4, 144), keep=99),
    "ptp_described": partial(methods.ptp_described, LEVELS, GRIDS, PATCHES[:, :9], keep=99),
    "ptp_relevance": partial(methods.ptp_relevance, QUERY, KEY, IMAGE),
    "pyramid_select": partial(methods.pyramid_select, LEVELS, keep=99),
    "aim_merge": partial(methods.aim_merge, PATCHES),
    "hiprune": partial(methods.hiprune, SCORES, SCORES, **GRID),
    "hired": partial(methods.hired, SCORES, torch.zeros(2, 5, 576), tiles=(2, 2), **GRID),
    "hired_described": partial(methods.hired_described, [SCORES, SCORES]),
    "prumerge_select": partial(methods.prumerge_select, SCORES),
    "vispruner": partial(methods.vispruner, PATCHES, SCORES, keep=144, important=72),
    "vscan": partial(methods.vscan, PATCHES, SCORES, SCORES, **GRID),
    "aim_described": partial(methods.aim_described, QUERY, KEY, IMAGE, IMAGE, alpha=0.5, **IN_LLM),
    "aim_prune": partial(methods.aim_prune, QUERY, KEY, IMAGE, **IN_LLM),
    "cdpruner": partial(methods.cdpruner, PATCHES, SCORES, keep=144),
    "cdpruner_relevance": partial(methods.cdpruner_relevance, PATCHES, PATCHES[:, :9]),
    "aim_pair": partial(methods.aim_pair, PATCHES),
    "dtoma_merge": partial(methods.dtoma_merge, PATCHES, (24, 24)),
    "dart": partial(methods.dart, HIDDEN, KEY, IMAGE, IMAGE, each=15, capacity=208),
    "prumerge": partial(methods.prumerge, PATCHES, PATCHES, SCORES, KEPT),
    "prumerge_plus_select": partial(methods.prumerge_plus_select, SCORES),
    "vscan_described": partial(methods.vscan_described, PATCHES, threshold=0.9),
    "divprune": partial(methods.divprune, PATCHES, keep=144),
    "greedyprune": partial(methods.greedyprune, PATCHES, SCORES, keep=144),
    "scope": partial(methods.scope, PATCHES, SCORES, keep=144),
    "class_attention": partial(methods.class_attention, QUERY, QUERY),
    "fastervlm": partial(methods.fastervlm, SCORES, keep=144),
    "fitprune": partial(methods.fitprune, QUERY, KEY, IMAGE, IMAGE, **IN_LLM),
    "fitprune_described": partial(methods.fitprune_described, QUERY, KEY, IMAGE, IMAGE, **IN_LLM),
    "prunevid_llm": partial(methods.prunevid_llm, QUERY, KEY, IMAGE, IMAGE, GROUPS, keep=28, longest=400, capacity=208),
    "sparsevlm": partial(methods.sparsevlm, QUERY, KEY, IMAGE, IMAGE, **IN_LLM),
    "sparsevlm_cosine": partial(methods.sparsevlm_cosine, PATCHES, PATCHES[:, :1], SCORES, keep=144),
    "sparsevlm_described": partial(methods.sparsevlm_described, SCORES, SCORES > 0),
    "sparsevlm_raters": partial(methods.sparsevlm_raters, HIDDEN, IMAGE, IMAGE),
    "sparsevlm_recycle": partial(methods.sparsevlm_recycle, HIDDEN, torch.zeros(2, 640), IMAGE, number=276),
    "vscan_decode": partial(methods.vscan_decode, QUERY[:, :, :5], KEY, IMAGE, **IN_LLM),
    "fastv": partial(methods.fastv, QUERY, KEY, IMAGE, **IN_LLM),
    "pyramiddrop": partial(methods.pyramiddrop, QUERY, KEY, IMAGE, **IN_LLM),
    "visionzip": partial(methods.visionzip, SCORES, PATCHES, dominant=54, contextual=10),
}


PUBLIC = [name for name in methods.__all__ if inspect.isfunction(getattr(methods, name))]


@pytest.mark.parametrize("name", PUBLIC)
def test_cost_is_what_the_docstring_says(name):
    said = re.search(r"Cost: (\d+) launches(?: and (\d+) of PyTorch)?", inspect.getdoc(getattr(methods, name)))
    assert said, "Cost: … launches and … of PyTorch"
    assert launched(CALLS[name]) == (int(said[1]), int(said[2] or 0))


@pytest.mark.parametrize("name", PUBLIC)
def test_no_value_on_the_device_is_read(name):
    call = CALLS[name]
    with FakeTensorMode() as mode:
        given = tree_map_only(torch.Tensor, mode.from_tensor, (call.args, call.keywords))
        call.func(*given[0], **given[1])
