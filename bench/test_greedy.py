"""Greedy picks against eager loops of the same steps as the authors' code."""

import pytest
import torch

import pyramid_ops
from bench.conftest import CUDA, DEVICE

SHAPES = [(576, 1024, 64), (576, 1024, 192)]
if CUDA:
    SHAPES += [(2880, 1024, 192), (2880, 1024, 640)]


def divprune(x, k):
    """Max-min cosine distance: a minimum over the rows picked so far at each step."""
    units = x / x.norm(dim=1, keepdim=True)
    distances = 1.0 - units @ units.mT
    picks = torch.empty(k, dtype=torch.long, device=x.device)
    for t in range(k):
        if t == 0:
            scores = torch.topk(distances, 2, dim=0, largest=False).values[1, :]
        else:
            scores = torch.index_select(distances, 0, picks[:t]).min(dim=0).values
        picks[t] = torch.argmax(scores)
    return picks


def cdpruner(x, k, relevance):
    """Fast greedy MAP inference of a determinantal point process."""
    units = x / x.norm(dim=-1, keepdim=True)
    kernel = relevance[:, None] * (units @ units.mT) * relevance[None]
    columns = torch.zeros(k, len(x), device=x.device)
    left = kernel.diagonal().clone()
    picks = torch.empty(k, dtype=torch.long, device=x.device)
    for t in range(k):
        j = torch.argmax(left)
        picks[t] = j
        columns[t] = (kernel[j] - torch.einsum("t,tn->n", columns[:t, j], columns[:t])) / torch.sqrt(left[j])
        left = left - torch.square(columns[t])
        left[j] = -float("inf")
    return picks


@pytest.mark.parametrize("rule", ["maxmin", "dpp"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_greedy(compare, shape, rule):
    """Tokens, features, picks; float32."""
    tokens, features, k = shape
    x = torch.randn(tokens, features, device=DEVICE)
    relevance = torch.rand(tokens, device=DEVICE) if rule == "dpp" else None

    def ours(x, k):
        given = None if relevance is None else relevance[None]
        return pyramid_ops.greedy_select(x[None], k, rule=rule, relevance=given)

    eager = divprune if rule == "maxmin" else lambda x, k: cdpruner(x, k, relevance)
    compare({"pyramid_ops": ours, "eager": eager}, (x, k), x.nbytes + 8 * k)
