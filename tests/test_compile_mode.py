"""`torch.compile`: one opaque custom op for each op, no graph breaks, the same bits."""

import pytest
import torch

import pyramid_ops
from pyramid_ops._dispatch import OPS
from tests import cases
from tests.bits import assert_same_bits


def first_cases():
    for op, make in cases.CASES.items():
        for k, param in enumerate(make()):
            if k % 37 == 5:
                yield pytest.param(op, param.values[0], id=f"{op}-{param.id}")


@pytest.mark.parametrize(("op", "args"), list(first_cases()))
def test_opcheck(op, args):
    torch.library.opcheck(OPS[op].custom, args, test_utils=("test_schema", "test_faketensor"))


def offsets(tokens):
    return tokens.shape[1] * torch.arange(tokens.shape[0] + 1, dtype=torch.int32)


def pipeline(image):
    levels = pyramid_ops.gaussian_pyramid(image, 3)
    tokens = [pyramid_ops.patchify(level, 4) for level in levels]
    selection = pyramid_ops.select_topk_levels(tokens, 20, (0.5, 0.3, 0.2))
    union = pyramid_ops.select_topk_levels(tokens, 20, None, saliency=[pyramid_ops.token_norm(t) for t in tokens])
    positions = pyramid_ops.gather_levels(pyramid_ops.patch_positions(levels, 4), selection.indices)
    variance = pyramid_ops.token_variance(tokens[0])
    units, norms = pyramid_ops.unit_rows(tokens[1], limbs=2)
    packed, bounds = [t.flatten(0, 1) for t in tokens], [offsets(t) for t in tokens]
    top = pyramid_ops.segmented_topk(variance.flatten(), bounds[0], 9, max_seqlen=tokens[0].shape[1], order="index")
    kept = pyramid_ops.compact([packed[0], packed[0].T], *top[1:], cu_seqlens=bounds[0], token_dims=(0, 1))
    ragged = pyramid_ops.select_topk_levels_packed(packed, bounds, [5, 3, 2], max_seqlen=tokens[0].shape[1])
    results = [*levels[1:], *selection, *union, positions, variance, units, norms]
    return [*results, *top, *kept.tensors, *kept[1:], *ragged]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fullgraph_compilation_gives_the_same_bits(backend, dtype):
    torch._dynamo.reset()
    image = torch.rand(2, 3, 32, 48).to(dtype)
    assert_same_bits(torch.compile(pipeline, fullgraph=True, backend=backend)(image), pipeline(image))


def test_dynamic_shapes_recompile_to_the_same_bits():
    torch._dynamo.reset()
    compiled = torch.compile(pipeline, fullgraph=True, backend="aot_eager", dynamic=True)
    for height in (32, 48, 64):
        image = torch.rand(2, 3, height, 48)
        assert_same_bits(compiled(image), pipeline(image))
