"""What only a GPU can show: graph capture, no synchronisation, large tensors, streams."""

import functools

import pytest
import torch

import pyramid_ops
from pyramid_ops.verify.inputs import special_rows
from tests.bits import assert_same_bits

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def inputs(seed: int) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, 128, 160, generator=generator).cuda()
    levels = [torch.randn(2, n, 96, generator=generator).bfloat16().cuda() for n in (500, 120, 30, 1)]
    return images, levels


def attention(x: torch.Tensor, scores: torch.Tensor) -> list[torch.Tensor]:
    """Few and many queries, reductions in both orders, weights, packed segments."""
    importance = functools.partial(pyramid_ops.attention_importance, x, x)
    offsets = torch.arange(3, dtype=torch.int32, device=x.device) * x.shape[2]
    packed = x.transpose(1, 2).flatten(0, 1)
    return [
        importance(precision="grid"),
        pyramid_ops.attention_walk(x, x, steps=3),
        pyramid_ops.text_relevance(x[:, 0], x[:, 0, :9], reduction="mean"),
        pyramid_ops.text_relevance(x[:, 0], x[:, 0, :9], reduction="softmax", precision="high"),
        importance(causal=True, precision="high", center_keys=True),
        importance(head_reduction="max", query_reduction="sum", query_weights=scores[:, : x.shape[2]]),
        importance(query_indices=[-1, 0], causal=True, softcap=30.0),
        pyramid_ops.attention_importance(packed, packed, cu_seqlens_q=offsets, cu_seqlens_k=offsets, causal=True),
    ]


def everything(images: torch.Tensor, levels: list[torch.Tensor]) -> list[torch.Tensor]:
    tokens, indices = pyramid_ops.select_topk_levels(levels, budgets=[40, 20, 9, 1])
    union = pyramid_ops.select_topk_levels(levels, 70, None, saliency="norm")
    scores = pyramid_ops.token_variance(levels[0])
    norms = pyramid_ops.token_norm(levels[0])
    plan = pyramid_ops.tome_matching(levels[0], 200)
    merged, merged_sizes = pyramid_ops.merge_tokens(levels[0], plan)
    match = pyramid_ops.best_match(levels[0], levels[1], precision="high")
    offsets = torch.arange(0, 501, 100, dtype=torch.int32, device=images.device)
    packed = pyramid_ops.tome_matching(levels[0][0], 30, cu_seqlens=offsets)
    regions = pyramid_ops.region_variance(levels[0], (20, 25))
    sizes = [level.shape[1] for level in levels]
    flat = [level.flatten(0, 1) for level in levels]
    bounds = [torch.arange(3, dtype=torch.int32, device=x.device) * (len(x) // 2) for x in flat]
    budgets = bounds[1][1:].view(2, 1) // torch.arange(2, 6, dtype=torch.int32, device=images.device)
    ragged = pyramid_ops.select_topk_levels_packed(flat, bounds, budgets, max_seqlen=500, capacity=200)
    pixels, ends = images.flatten(), torch.arange(3, dtype=torch.int32, device=images.device) * 60000
    best = pyramid_ops.segmented_topk(pixels, ends, [70, 5000], max_seqlen=60000)
    top = pyramid_ops.segmented_topk(scores.flatten(), bounds[0], budgets[:, 0], max_seqlen=500, capacity=40)
    tensors = [flat[0], flat[0].view(-1, 4, 24).transpose(0, 1), scores.flatten()]
    moved = pyramid_ops.compact(tensors, *top[1:], cu_seqlens=bounds[0], token_dims=(0, 1, 0))
    pyramid = pyramid_ops.gaussian_pyramid(images, 4)
    positions = pyramid_ops.patch_positions(pyramid, 4)
    selected = torch.zeros_like(indices[:, :5])  # a choice that depends on no data
    return [
        *plan[:5],
        merged,
        merged_sizes,
        pyramid_ops.unmerge_tokens(merged, plan),
        *match,
        *pyramid_ops.assign_mean(levels[0], match.indices, 120),
        *pyramid_ops.merge_tokens(levels[0][0], packed, mode="amax", order="original"),
        *ragged,
        *best,
        *top,
        *moved.tensors,
        *moved[1:],
        *pyramid[1:],
        *[pyramid_ops.patchify(level, 4) for level in pyramid],
        pyramid_ops.gather_levels(positions, selected),
        tokens,
        indices,
        *union,
        scores,
        pyramid_ops.gather_levels(levels, indices),
        *pyramid_ops.unit_rows(levels[1], limbs=2),
        *attention(levels[1][:, None], scores),
        regions,
        pyramid_ops.broadcast_regions(regions, (20, 25)),
        pyramid_ops.paired_similarity(levels[0][:, 1:], levels[0][:, :-1]),
        pyramid_ops.pool_tokens(levels[0], (20, 25), (10, 10)),
        pyramid_ops.token_norm(levels[0], p=1),
        pyramid_ops.channel_variance(levels[0]),
        pyramid_ops.channel_variance(levels[0][0], cu_seqlens=offsets),
        pyramid_ops.hash_uniform((2, 99), offsets[:2]),
        pyramid_ops.hash_uniform((99,), 3, device=images.device),
        pyramid_ops.patch_entropy(images, 16),
        pyramid_ops.pool_scores(scores, (20, 25)),
        pyramid_ops.pool_scores(scores, (20, 25), window=(3, 2), reduction="max"),
        *[pyramid_ops.combine_scores([scores, norms], [0.3, 0.7], normalize=mode) for mode in (None, "minmax")],
        pyramid_ops.combine_scores([scores[0], norms[0]], [0.3, 0.7], normalize="minmax", cu_seqlens=offsets),
        pyramid_ops.allocate_budgets_batch(70, scores[:, :4], sizes, maximum=50),
        pyramid_ops.adaptive_budgets(70, levels[2] / 8, sizes, lengths=scores[:, 0].int()),
        *pyramid_ops.progressive_select(images, lambda x: pyramid_ops.patchify(x, 8), (40, 20, 9), target_tokens=40),
    ]


def on_cpu(images: torch.Tensor, levels: list[torch.Tensor]) -> list[torch.Tensor]:
    return everything(images.cpu(), [level.cpu() for level in levels])


def test_gpu_equals_cpu():
    arguments = inputs(0)
    assert_same_bits(everything(*arguments), on_cpu(*arguments))


def test_captured_graph_replays_on_new_data():
    images, levels = inputs(0)
    everything(images, levels)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = everything(images, levels)
    new_images, new_levels = inputs(1)
    images.copy_(new_images)
    for level, new in zip(levels, new_levels, strict=True):
        level.copy_(new)
    graph.replay()
    assert_same_bits(outputs, on_cpu(new_images, new_levels))


def test_nothing_synchronises():
    arguments = inputs(0)
    everything(*arguments)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_two_streams():
    streams = [torch.cuda.Stream() for _ in range(2)]
    arguments = [inputs(seed) for seed in range(2)]
    torch.cuda.synchronize()
    outputs: list[list] = [[], []]
    for _ in range(20):  # in turn, so that the streams run side by side
        for stream, argument, repeated in zip(streams, arguments, outputs, strict=True):
            with torch.cuda.stream(stream):
                repeated.append(everything(*argument))
    torch.cuda.synchronize()
    for argument, repeated in zip(arguments, outputs, strict=True):
        expected = on_cpu(*argument)
        for output in repeated:
            assert_same_bits(output, expected)


@pytest.mark.slow
def test_more_than_2_to_the_31_elements():
    free, _ = torch.cuda.mem_get_info()
    if free < 24 << 30:
        pytest.skip("needs 24 GB of free GPU memory")
    rows = torch.zeros(3, 700_001, 1024, dtype=torch.bfloat16, device="cuda")
    assert rows.numel() > 1 << 31
    last = special_rows(1024, torch.bfloat16)[0, :1].cuda()
    rows[2, -1] = last
    assert_same_bits(pyramid_ops.token_variance(rows)[2, -1:], pyramid_ops.token_variance(last.cpu()))
    tokens, indices = pyramid_ops.select_topk_levels([rows], 1, None)
    assert indices[2].tolist() == [[0, 700_000]]
    assert_same_bits(tokens[2], last)
    units, norms = pyramid_ops.unit_rows(rows)
    assert_same_bits((units[2, -1:], norms[2, -1:]), pyramid_ops.unit_rows(last.cpu()))
    assert not units[2, -2].any()
    del units
    indices = torch.zeros(1, 2_100_001, 2, dtype=torch.int64, device="cuda")
    indices[0, -1, 1] = 700_000
    gathered = pyramid_ops.gather_levels([rows[2:]], indices)
    assert gathered.numel() > 1 << 31
    assert_same_bits(gathered[0, -1:], last)
    assert not gathered[0, -2].any()
    del gathered, rows
    image = torch.zeros(1, 1, 50_000, 50_000, dtype=torch.uint8, device="cuda")
    image[..., -2:, -2:] = 200
    assert pyramid_ops.blur_downsample(image, taps=[1.0])[0, 0, -1, -1] == 200
