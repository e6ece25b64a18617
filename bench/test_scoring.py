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
