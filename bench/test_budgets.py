"""Budgets for each sample of a batch against torch, and selection one level at a time against all at once."""

import functools

import pytest
import torch

import pyramid_ops
from bench.conftest import CUDA, DEVICE

SIZES = (4096, 1024, 256, 64)
ROWS = ((0.15, 0.20, 0.35, 0.30), (0.25, 0.30, 0.25, 0.20), (0.35, 0.30, 0.20, 0.15))


def eager_largest_remainder(weights):
    quotas = 273 * weights / weights.sum(1, keepdim=True)
    budgets = quotas.floor()
    rank = (budgets - quotas).argsort(stable=True, dim=1).argsort(dim=1)
    budgets = (budgets + (rank < 273 - budgets.sum(1, keepdim=True))).int()
    return budgets.clamp(max=torch.tensor(SIZES, device=weights.device))


@pytest.mark.parametrize("batch", [1, 64])
def test_allocate_budgets_batch(compare, batch):
    """Eager loses what a level cannot take."""
    weights = torch.rand(batch, 4, device=DEVICE)
    ours = lambda w: pyramid_ops.allocate_budgets_batch(273, w, SIZES)  # noqa: E731
    compare({"pyramid_ops": ours, "eager": eager_largest_remainder}, (weights,), 2 * weights.nbytes)


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("op", ["adaptive_weights", "adaptive_budgets"])
def test_adaptive(compare, op, batch):
    instruction = 0.1 * torch.randn(batch, 32, 1024, device=DEVICE)
    rows = torch.tensor(ROWS, device=DEVICE)

    def eager(x):
        difficulty = torch.sigmoid(0.1 * x.shape[1] + 10 * x.flatten(1).var(1))
        weights = rows[(difficulty >= 0.3).long() + (difficulty >= 0.7)]
        return weights if op == "adaptive_weights" else eager_largest_remainder(weights)

    arguments = {"adaptive_weights": lambda x: (x,), "adaptive_budgets": lambda x: (273, x, SIZES)}[op]
    ours = lambda x: getattr(pyramid_ops, op)(*arguments(x))  # noqa: E731
    compare({"pyramid_ops": ours, "eager": eager}, (instruction,), instruction.nbytes)


@pytest.mark.parametrize("side", [1024, 2048, *([4096] if CUDA else [])])
def test_progressive_select(compare, side):
    """`eager` here builds all levels with the same ops and then selects: look at the peaks."""
    images = torch.rand(1, 3, side, side, device=DEVICE)
    encode = functools.partial(pyramid_ops.patchify, patch_size=16)
    budgets = (111, 81, 54, 13)

    def at_once(images):
        levels = [encode(level) for level in pyramid_ops.gaussian_pyramid(images, 4)]
        return pyramid_ops.select_topk_levels(levels, budgets=budgets)

    ours = lambda images: pyramid_ops.progressive_select(images, encode, budgets)  # noqa: E731
    compare({"pyramid_ops": ours, "eager": at_once}, (images,), 2 * images.nbytes)
