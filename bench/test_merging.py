"""ToMe matching and merging against its usual eager code."""

import pytest
import torch

import pyramid_ops
from bench.conftest import CUDA, DEVICE

SHAPES = [(1, 576, 1024, 64), (2, 4096, 64, 64), (2, 4096, 1024, 1024), (2, 4096, 1024, 64)]
if CUDA:
    SHAPES += [(16, 4096, 1024, 64), (1, 16384, 1024, 1024), (1, 65536, 128, 128)]


def eager(x, metric, r):
    """As in ToMe: the similarity matrix, an unstable sort, scatter_reduce."""
    metric = metric / metric.norm(dim=-1, keepdim=True)
    scores = metric[:, ::2] @ metric[:, 1::2].transpose(-1, -2)
    best, partner = scores.max(-1)
    order = best.argsort(dim=-1, descending=True)[..., None]
    left, merged = order[:, r:], order[:, :r]
    into = partner[..., None].gather(1, merged)

    def merge(x):
        width = x.shape[2]
        even, odd = x[:, ::2], x[:, 1::2]
        source = even.gather(1, merged.expand(-1, -1, width))
        odd = odd.scatter_reduce(1, into.expand(-1, -1, width), source, "sum")
        return torch.cat((even.gather(1, left.expand(-1, -1, width)), odd), 1)

    sizes = merge(torch.ones_like(x[..., :1]))
    return merge(x) / sizes, sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_tome(compare, shape, dtype):
    """Batch, tokens, features, features of the metric; half of the tokens that can be merged are."""
    batch, tokens, features, metric_features = shape
    x = torch.randn(batch, tokens, features, device=DEVICE).to(dtype)
    metric = torch.randn(batch, tokens, metric_features, device=DEVICE).to(dtype)

    def ours(precision):
        def run(x, metric, r):
            return pyramid_ops.merge_tokens(x, pyramid_ops.tome_matching(metric, r, precision=precision))

        return run

    r = tokens // 4
    kept = batch * (tokens - r) * features * x.element_size()
    providers = {"pyramid_ops": ours("grid"), "pyramid_ops, high": ours("high"), "eager": eager}
    compare(providers, (x, metric, r), x.nbytes + metric.nbytes + kept)
