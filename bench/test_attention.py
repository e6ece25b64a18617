"""Importance from attention against the softmax it replaces."""

import importlib.util

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import pyramid_ops
from bench.conftest import CUDA, DEVICE

SHAPES = [(1, 8, 576, 64), (1, 8, 2048, 64)]
if CUDA:
    SHAPES += [(1, 16, 5440, 64), (1, 16, 16384, 64), (4, 16, 2048, 128)]
LONG = (1, 16, 32768, 128) if CUDA else (1, 8, 8192, 128)


def operands(shape, dtype, queries):
    batch, heads, tokens, features = shape
    q, k = (torch.randn(batch, heads, n, features, device=DEVICE).to(dtype) for n in (queries, tokens))
    return q, k, q.nbytes + k.nbytes + 4 * batch * tokens


def eager(q, k):
    return torch.softmax(q @ k.mT * q.shape[3] ** -0.5, -1).mean((1, 2))


def eager_float32(q, k):
    return torch.softmax(q @ k.mT * q.shape[3] ** -0.5, -1, dtype=torch.float32).mean((1, 2))


def colreduce(q, k):
    from flash_colreduce import flash_colreduce

    return flash_colreduce(q, k, "mean").mean(1)


def high(q, k):
    return pyramid_ops.attention_importance(q, k, precision="high")


def grid(q, k):
    return pyramid_ops.attention_importance(q, k, precision="grid")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_column_mean(compare, shape, dtype):
    """Batch, heads, tokens, features: mean attention that each token receives from all."""
    q, k, floor = operands(shape, dtype, shape[2])
    providers = {"pyramid_ops": grid, "pyramid_ops, high": high, "eager": eager}
    if CUDA:
        lse = (q.float() @ k.float().mT * q.shape[3] ** -0.5).logsumexp(-1)
        providers["pyramid_ops, log-sum-exp given"] = lambda q, k: pyramid_ops.attention_importance(
            q, k, log_sum_exp=lse, precision="grid"
        )
        if dtype == torch.bfloat16:
            providers["eager, float32 softmax"] = eager_float32
        if importlib.util.find_spec("flash_colreduce"):
            providers["flash-colreduce"] = colreduce
    compare(providers, (q, k), floor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("queries", [1, 32])
def test_few_queries(compare, queries, dtype):
    """The attention of one query, or of 32, to many keys."""
    q, k, floor = operands(LONG, dtype, queries)
    compare({"pyramid_ops": grid, "pyramid_ops, high": high, "eager": eager}, (q, k), floor)


@pytest.mark.parametrize("query", [0, -1], ids=["first", "last"])
def test_beside_attention(compare, query):
    """Attention alone ("eager"), and with the scores of its first or last query: what a model pays for them."""
    q, k, floor = operands((1, 16, 4096, 64) if CUDA else (1, 8, 1024, 64), torch.bfloat16, 4096 if CUDA else 1024)

    def both(q, k):
        return scaled_dot_product_attention(q, k, k), pyramid_ops.attention_importance(q, k, query_indices=[query])

    compare(
        {"pyramid_ops": both, "eager": lambda q, k: scaled_dot_product_attention(q, k, k)},
        (q, k),
        2 * q.nbytes + floor,
        graphed=("pyramid_ops", "eager"),
    )
