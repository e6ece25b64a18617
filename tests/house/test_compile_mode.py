"""`torch.compile`: one opaque custom op for each op, no graph breaks, the same bits."""

import pytest
import torch

import pyramid_ops
from pyramid_ops.verify.cases import DESCRIPTIONS
from tests.bits import assert_same_bits


def first_cases():
    for op, description in DESCRIPTIONS.items():
        cases = list(description.bits())
        for case in cases[min(5, len(cases) - 1) :: 37]:
            yield pytest.param(description.op, case.args, id=f"{op}-{case.id}")


@pytest.mark.parametrize(("op", "args"), list(first_cases()))
def test_opcheck(op, args):
    torch.library.opcheck(op.custom, tuple(op.flat.flatten(args)), test_utils=("test_schema", "test_faketensor"))


ROWS = ((0.2, 0.3, 0.5), (0.3, 0.3, 0.4), (0.5, 0.3, 0.2))


def offsets(tokens):
    return tokens.shape[1] * torch.arange(tokens.shape[0] + 1, dtype=torch.int32)


def pyramid(image):
    levels = pyramid_ops.gaussian_pyramid(image, 3)
    return levels, [pyramid_ops.patchify(level, 4) for level in levels]


def selecting(image):
    levels, tokens = pyramid(image)
    selection = pyramid_ops.select_topk_levels(tokens, 20, (0.5, 0.3, 0.2))
    union = pyramid_ops.select_topk_levels(tokens, 20, None, saliency=[pyramid_ops.token_norm(t) for t in tokens])
    positions = pyramid_ops.gather_levels(pyramid_ops.patch_positions(levels, 4), selection.indices)
    variance = pyramid_ops.token_variance(tokens[0])
    flat, bounds = [t.flatten(0, 1) for t in tokens], [offsets(t) for t in tokens]
    top = pyramid_ops.segmented_topk(variance.flatten(), bounds[0], 9, max_seqlen=tokens[0].shape[1], order="index")
    kept = pyramid_ops.compact([flat[0], flat[0].T], *top[1:], cu_seqlens=bounds[0], token_dims=(0, 1))
    ragged = pyramid_ops.select_topk_levels_packed(flat, bounds, [5, 3, 2], max_seqlen=tokens[0].shape[1])
    lengths = torch.tensor([3, 20])
    budgets = pyramid_ops.adaptive_budgets(20, tokens[0], (64, 16, 4), lengths=lengths, weights=ROWS, minimum=2)
    return [*levels[1:], *selection, *union, positions, *top, *kept.tensors, *kept[1:], *ragged, budgets]


def scoring(image):
    _, tokens = pyramid(image)
    grid = image.shape[2] // 4, image.shape[3] // 4
    variance, norm = pyramid_ops.token_variance(tokens[0]), pyramid_ops.token_norm(tokens[0])
    regions = pyramid_ops.region_variance(tokens[0], grid, (2, 3))
    spread = pyramid_ops.broadcast_regions(regions, grid, (2, 3))
    mixed = pyramid_ops.combine_scores([variance, norm], [0.3, 0.7], normalize="minmax")
    ragged_mixed = pyramid_ops.combine_scores(
        [mixed.flatten(), variance.flatten()], [1, 2], cu_seqlens=offsets(tokens[0])
    )
    entropy = pyramid_ops.patch_entropy(image, 8, bins=32)
    x = tokens[0][:, None]
    scores = pyramid_ops.attention_importance(x, x, causal=True, query_indices=[-1, 3], key_range=(2, 9))
    weighted = pyramid_ops.attention_importance(x, x, query_weights=variance, head_reduction="max", softcap=9.0)
    relevance = pyramid_ops.text_relevance(tokens[0], tokens[2], text_mask=tokens[2][..., 0] > 0.4)
    walk = pyramid_ops.attention_walk(x, x, steps=2)
    pooled = pyramid_ops.pool_scores(variance, grid)
    return [
        variance, norm, regions, spread, mixed, ragged_mixed, entropy, scores, weighted, relevance, walk, pooled
    ]  # fmt: skip


def merging(image):
    _, tokens = pyramid(image)
    units, norms = pyramid_ops.unit_rows(tokens[1], limbs=2)
    plan = pyramid_ops.tome_matching(tokens[0], 30, class_token=True)
    merged, sizes = pyramid_ops.merge_tokens(tokens[0], plan, order="original")
    back = pyramid_ops.unmerge_tokens(merged, plan, order="original")
    match = pyramid_ops.best_match(tokens[0], tokens[1], precision="grid")
    clusters, _ = pyramid_ops.assign_mean(tokens[0], match.indices, tokens[1].shape[1])
    packed = pyramid_ops.tome_matching(tokens[0][0], 5, cu_seqlens=torch.tensor([0, 10, 40], dtype=torch.int32))
    packed_tokens, _ = pyramid_ops.merge_tokens(tokens[0][0], packed)
    return [
        units, norms, *plan[:5], merged, sizes, back, *match, clusters, packed.rows, packed.cu_seqlens, packed_tokens
    ]  # fmt: skip


def progressive(image):
    encode = lambda x: pyramid_ops.patchify(x, 4)  # noqa: E731
    return pyramid_ops.progressive_select(image, encode, (8, 4, 2), target_tokens=9, order="index")


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fullgraph_compilation_gives_the_same_bits(backend, dtype):
    torch._dynamo.reset()
    image = torch.rand(2, 3, 32, 48).to(dtype)
    for function in (selecting, scoring, merging, progressive):
        assert_same_bits(torch.compile(function, fullgraph=True, backend=backend)(image), function(image))


@pytest.mark.slow  # op by op, tests/ops/test_tracing.py exports with dynamic sizes
@pytest.mark.parametrize("function", [selecting, scoring, merging])
def test_dynamic_shapes_give_the_same_bits(function):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for height in (32, 48, 64):
        image = torch.rand(2, 3, height, 48)
        assert_same_bits(compiled(image), function(image))
