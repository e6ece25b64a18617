"""Rounds of bipartite pruning against the eager loop of VisPruner's code."""

import pytest
import torch

import pyramid_ops
from bench.conftest import CUDA, DEVICE

SHAPES = [(504, 1024, 72), (504, 1024, 432)]
if CUDA:
    SHAPES += [(2808, 1024, 320)]


def eager(x, k, step=8):
    """Similarities of what is left anew in every round."""
    rows = x / x.norm(dim=-1, keepdim=True)
    left = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    while left.shape[1] > k:
        gone = min(step, left.shape[1] - k)
        even, odd = rows[:, ::2], rows[:, 1::2]
        order = (even @ odd.mT).amax(-1).argsort(1, descending=True)[:, gone:]
        rows = torch.cat((even.gather(1, order[..., None].expand(-1, -1, x.shape[2])), odd), 1)
        left = torch.cat((left[:, ::2].gather(1, order), left[:, 1::2]), 1)
    return left


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_rounds(compare, shape):
    """Tokens, features, tokens left; float32."""
    tokens, features, k = shape
    x = torch.randn(1, tokens, features, device=DEVICE)
    compare({"pyramid_ops": pyramid_ops.bipartite_prune, "eager": eager}, (x, k), x.nbytes + 8 * k)
