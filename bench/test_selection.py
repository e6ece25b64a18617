"""Selection, scores included, against per-level topk + gather + cat."""

import pytest
import torch

import pyramid_ops
from bench.conftest import CUDA, DEVICE

PYRAMIDS = {"1360": (1024, 256, 64, 16), "5440": (4096, 1024, 256, 64), "87040": (65536, 16384, 4096, 1024)}
SHAPES = [(1, "1360", 1024), (2, "5440", 1024), (2, "5440", 64), (1, "5440", 4096), (1, "87040", 256)]
if CUDA:
    SHAPES += [(1, "5440", 1024), (16, "5440", 1024), (64, "5440", 1024)]


def eager(levels, budgets):
    tokens, indices = [], []
    for number, (level, k) in enumerate(zip(levels, budgets, strict=True)):
        best = level.var(-1).topk(k, 1).indices
        tokens.append(level.gather(1, best[..., None].expand(-1, -1, level.shape[2])))
        indices.append(torch.stack((torch.full_like(best, number), best), -1))
    return torch.cat(tokens, 1), torch.cat(indices, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_select_topk_levels(compare, shape, dtype):
    batch, pyramid, features = shape
    levels = [torch.randn(batch, size, features, device=DEVICE).to(dtype) for size in PYRAMIDS[pyramid]]
    budgets = pyramid_ops.allocate_budgets(273, (0.4, 0.3, 0.2, 0.1), PYRAMIDS[pyramid])
    ours = lambda levels, budgets: pyramid_ops.select_topk_levels(levels, budgets=budgets)  # noqa: E731
    selected = batch * sum(budgets) * features * levels[0].element_size()
    floor = sum(level.nbytes for level in levels) + 2 * selected
    compare({"pyramid_ops": ours, "eager": eager}, (levels, budgets), floor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gather_levels(compare, dtype):
    """273 rows of 1024 features from four levels, in any order."""
    levels = [torch.randn(2, size, 1024, device=DEVICE).to(dtype) for size in PYRAMIDS["5440"]]
    level = torch.randint(4, (2, 273), device=DEVICE)
    index = torch.randint(64, (2, 273), device=DEVICE)
    indices = torch.stack((level, index), 2)
    starts = torch.tensor([0, 4096, 5120, 5376], device=DEVICE)

    def eager(levels, indices):
        row = starts[indices[..., 0]] + indices[..., 1]
        return torch.cat(levels, 1).gather(1, row[..., None].expand(-1, -1, levels[0].shape[2]))

    floor = 2 * 2 * 273 * 1024 * levels[0].element_size()
    compare({"pyramid_ops": pyramid_ops.gather_levels, "eager": eager}, (levels, indices), floor)
