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


def eager_relevance(tokens, text):
    return (tokens @ text.mT * tokens.shape[2] ** -0.5).amax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 576, 1024), (1, 5440, 1024)], ids=lambda shape: "x".join(map(str, shape)))
def test_text_relevance(compare, shape, dtype):
    """Batch, tokens, features, with 64 text tokens: the greatest dot product."""
    batch, count, features = shape
    tokens, text = (torch.randn(batch, n, features, device=DEVICE).to(dtype) for n in (count, 64))
    ours = lambda x, t: pyramid_ops.text_relevance(x, t, precision="grid")  # noqa: E731
    floor = tokens.nbytes + text.nbytes + 4 * batch * count
    compare({"pyramid_ops": ours, "eager": eager_relevance}, (tokens, text), floor)


def eager_walk(q, k):
    attention = torch.softmax(q @ k.mT * (10 * q.shape[3] ** -0.5), -1)
    p = torch.full_like(q[:, :, :1, 0], 1 / q.shape[2]).expand(-1, -1, q.shape[2])[:, :, None]
    for _ in range(5):
        p = p @ attention
    return p[:, :, 0].square().mean(1).sqrt()


@pytest.mark.parametrize("shape", SHAPES[:2], ids=lambda shape: "x".join(map(str, shape)))
def test_attention_walk(compare, shape):
    """Batch, heads, tokens, features: five steps, as AIM takes them."""
    q, k, floor = operands(shape, torch.float32, shape[2])
    ours = lambda q, k: pyramid_ops.attention_walk(q, k, precision="grid")  # noqa: E731
    compare({"pyramid_ops": ours, "eager": eager_walk}, (q, k), floor)
