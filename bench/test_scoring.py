"""Token scores against torch."""

import pytest
import torch

import pyramid_ops
from bench.conftest import CUDA, DEVICE

SHAPES = [(1, 576, 1024), (2, 5440, 1024), (2, 5440, 64), (1, 5440, 4096), (2, 5440, 1152)]
if CUDA:
    SHAPES += [(16, 5440, 1024), (64, 5440, 1024), (4, 65536, 1024)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("op", ["token_variance", "token_norm"])
def test_scores(compare, op, shape, dtype):
    features = torch.randn(shape, device=DEVICE).to(dtype)
    eager = (lambda x: x.var(-1)) if op == "token_variance" else (lambda x: x.norm(dim=-1))
    scores = 4 * features.shape[0] * features.shape[1]
    compare({"pyramid_ops": getattr(pyramid_ops, op), "eager": eager}, (features,), features.nbytes + scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES[:3], ids=lambda shape: "x".join(map(str, shape)))
def test_unit_rows(compare, shape, dtype):
    """Against float16 unit vectors that are not on a grid."""
    features = torch.randn(shape, device=DEVICE).to(dtype)
    eager = lambda x: (torch.nn.functional.normalize(x.float(), dim=-1).half(), x.float().norm(dim=-1))  # noqa: E731
    floor = features.nbytes + 2 * features.numel() + 4 * features.shape[0] * features.shape[1]
    compare({"pyramid_ops": pyramid_ops.unit_rows, "eager": eager}, (features,), floor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("frames", [16, 128] if CUDA else [16])
def test_paired_similarity(compare, frames, dtype):
    """Each of 256 patches with the same patch of the frame before; eager rounds in the inputs' dtype."""
    features = torch.randn(frames, 256, 1024, device=DEVICE).to(dtype)
    eager = lambda x: torch.nn.functional.cosine_similarity(x[1:], x[:-1], dim=-1)  # noqa: E731
    ours = lambda x: pyramid_ops.paired_similarity(x[1:], x[:-1])  # noqa: E731
    compare({"pyramid_ops": ours, "eager": eager}, (features,), features.nbytes + 4 * (frames - 1) * 256)


@pytest.mark.parametrize("reduction", ["mean", "max"])
@pytest.mark.parametrize("side", [64, 256])
def test_pool_scores(compare, side, reduction):
    scores = torch.randn(4, side * side, device=DEVICE)
    pool = torch.nn.functional.avg_pool2d if reduction == "mean" else torch.nn.functional.max_pool2d
    eager = lambda x: pool(x.view(-1, 1, side, side), 2, ceil_mode=True).flatten(1)  # noqa: E731
    ours = lambda x: pyramid_ops.pool_scores(x, (side, side), reduction=reduction)  # noqa: E731
    compare({"pyramid_ops": ours, "eager": eager}, (scores,), scores.nbytes + scores.nbytes // 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("out", [(12, 12), (10, 10)], ids=str)
def test_pool_tokens(compare, out, dtype):
    tokens = torch.randn(8, 576, 1024, device=DEVICE).to(dtype)

    def eager(x):
        return torch.nn.functional.adaptive_avg_pool2d(x.mT.unflatten(2, (24, 24)), out).flatten(2).mT

    ours = lambda x: pyramid_ops.pool_tokens(x, (24, 24), out)  # noqa: E731
    written = tokens.nbytes * out[0] * out[1] // 576
    compare({"pyramid_ops": ours, "eager": eager}, (tokens,), tokens.nbytes + written)


def test_pool_scores_packed(compare):
    """32 images of 16 to 64 patches a side; eager pools one after the other, and knows their sides on the host."""
    sides = torch.randint(16, 65, (32, 2), generator=torch.Generator().manual_seed(0))
    bounds = torch.nn.functional.pad(sides.prod(1).cumsum(0), (1, 0)).int().to(DEVICE)
    scores, grids, table = torch.randn(int(bounds[-1]), device=DEVICE), sides.int().to(DEVICE), sides.tolist()

    def eager(scores):
        images = scores.split([height * width for height, width in table])
        pooled = [
            torch.nn.functional.avg_pool2d(x.view(1, *side), 2, ceil_mode=True, count_include_pad=False).flatten()
            for x, side in zip(images, table, strict=True)
        ]
        return torch.cat(pooled)

    ours = lambda x: pyramid_ops.pool_scores_packed(x, bounds, grids).scores  # noqa: E731
    compare({"pyramid_ops": ours, "eager": eager}, (scores,), scores.nbytes + scores.nbytes // 4)


def min_max(x):
    low, high = x.aminmax(dim=1, keepdim=True)
    return (x - low) / (high - low)


@pytest.mark.parametrize("shape", [(2, 5440), (16, 65536)], ids=lambda shape: "x".join(map(str, shape)))
def test_combine_scores(compare, shape):
    scores = [torch.randn(shape, device=DEVICE) for _ in range(2)]
    eager = lambda a, b: 0.3 * min_max(a) + 0.7 * min_max(b)  # noqa: E731
    ours = lambda *x: pyramid_ops.combine_scores(x, [0.3, 0.7], normalize="minmax")  # noqa: E731
    compare({"pyramid_ops": ours, "eager": eager}, tuple(scores), 3 * scores[0].nbytes)


@pytest.mark.parametrize("rule", ["mean", "quantile", "iqr"])
@pytest.mark.parametrize("shape", [(4, 576), (2, 5440), (16, 65536)], ids=lambda shape: "x".join(map(str, shape)))
def test_segment_threshold(compare, shape, rule):
    scores = torch.randn(shape, device=DEVICE)

    def eager(x):
        if rule == "mean":
            return x.mean(1)
        if rule == "quantile":
            return x.quantile(0.9, 1)
        first, third = x.quantile(torch.tensor([0.25, 0.75], device=DEVICE), 1)
        return third + 1.5 * (third - first)

    ours = lambda x: pyramid_ops.segment_threshold(x, rule=rule, q=0.9)  # noqa: E731
    compare({"pyramid_ops": ours, "eager": eager}, (scores,), scores.nbytes)


@pytest.mark.parametrize("segments", [4, 4096])
def test_combine_scores_packed(compare, segments):
    """2^18 tokens in segments of any length; eager finds the segment of each token and scatters."""
    tokens = 1 << 18
    scores = [torch.randn(tokens, device=DEVICE) for _ in range(2)]
    ends = torch.randint(0, tokens, (segments - 1,), device=DEVICE).sort().values
    bounds = torch.nn.functional.pad(torch.nn.functional.pad(ends, (1, 0)), (0, 1), value=tokens).int()

    def eager(*scores):
        segment = torch.searchsorted(bounds, torch.arange(tokens, device=DEVICE), right=True) - 1
        total = torch.zeros(tokens, device=DEVICE)
        for x, weight in zip(scores, (0.3, 0.7), strict=True):
            none = x.new_zeros(segments)
            low = none.scatter_reduce(0, segment, x, "amin", include_self=False)
            high = none.scatter_reduce(0, segment, x, "amax", include_self=False)
            total += weight * (x - low[segment]) / (high - low)[segment]
        return total

    ours = lambda *x: pyramid_ops.combine_scores(x, [0.3, 0.7], normalize="minmax", cu_seqlens=bounds)  # noqa: E731
    compare({"pyramid_ops": ours, "eager": eager}, tuple(scores), 3 * scores[0].nbytes)


@pytest.mark.parametrize("shape", [(4, 5440), (16, 65536)], ids=lambda shape: "x".join(map(str, shape)))
def test_hash_uniform(compare, shape):
    """Eager is the device's own generator, whose numbers differ between devices."""
    seeds = torch.arange(shape[0], device=DEVICE)
    ours = lambda seeds: pyramid_ops.hash_uniform(shape, seeds)  # noqa: E731
    eager = lambda seeds: torch.rand(shape, device=seeds.device)  # noqa: E731
    compare({"pyramid_ops": ours, "eager": eager}, (seeds,), 4 * shape[0] * shape[1])
