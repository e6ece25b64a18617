"""Leaders against the loop over tokens that they are usually found by."""

import pytest
import torch

import pyramid_ops
from bench.conftest import CUDA, DEVICE

SHAPES = [(1, 576, 1024), (1, 2048, 1024), (8, 576, 64)]
if CUDA:
    SHAPES += [(8, 2880, 1024), (1, 16384, 1024)]


@torch.compiler.disable
def eager(x, threshold):
    """No token is left out for being led: that would take a look at the device for each."""
    x = x / x.norm(dim=-1, keepdim=True)
    alike = x @ x.mT >= threshold
    free = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    leader = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
    for token in range(x.shape[1]):
        joins = alike[:, token] & free & free[:, token : token + 1]
        leader = torch.where(joins, token, leader)
        free = free & ~joins
    return leader


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_suppress(compare, shape, dtype):
    """Tokens near a hundred centers."""
    batch, tokens, features = shape
    centers = torch.randn(batch, 100, features, device=DEVICE)
    member = torch.randint(0, 100, (batch, tokens, 1), device=DEVICE)
    x = centers.gather(1, member.expand(shape)) + 0.3 * torch.randn(shape, device=DEVICE)
    providers = {
        "pyramid_ops": lambda x, t: pyramid_ops.suppress(x, t, precision="grid"),
        "pyramid_ops, high": pyramid_ops.suppress,
        "eager": eager,
    }
    compare(providers, (x.to(dtype), 0.8), x.to(dtype).nbytes, rounds=7)
