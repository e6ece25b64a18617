"""A walk along attention: against powers of the matrix."""

import pytest
import torch
from torch import Tensor

import pyramid_ops
from pyramid_ops.verify.inputs import FLOATS
from tests.bits import assert_same_bits

from .test_relevance import made


def walk(query: Tensor, key: Tensor, steps: int, scale: float, reduction: str) -> Tensor:
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    attention = (query.double() @ key.double().mT * scale).softmax(3)
    p = torch.full_like(attention[:, :, :1], 1 / attention.shape[3])
    for _ in range(steps):
        p = p @ attention
    p = p[:, :, 0]
    if reduction == "rms":
        return p.square().mean(1).sqrt()
    return p.amax(1) if reduction == "max" else p.mean(1) if reduction == "mean" else p.sum(1)


@pytest.mark.parametrize("reduction", ["rms", "mean", "sum", "max"])
@pytest.mark.parametrize("precision", ["grid", "high"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_walk_is_a_power_of_attention(dtype, precision, reduction):
    query, key = made(2, 4, 150, 32, dtype=dtype), made(2, 2, 150, 32, seed=1, dtype=dtype)
    for steps, temperature, scale in ((0, 0.1, None), (1, 1.0, None), (5, 0.1, None), (3, 1.0, 0.01)):
        actual = pyramid_ops.attention_walk(
            query, key, steps=steps, temperature=temperature, scale=scale, head_reduction=reduction, precision=precision
        )
        expected = walk(query, key, steps, (scale or 32**-0.5) / temperature, reduction)
        bound = {"grid": 2e-2, "high": 1e-5}[precision] * expected.amax()
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=float(bound))


def test_walk_resolves_small_masses_in_long_rows():
    """p of 1/N and less: integers are relative to the largest p."""
    query = made(1, 1, 2500, 8)
    actual = pyramid_ops.attention_walk(query, query, steps=2, temperature=1.0)
    torch.testing.assert_close(actual.double(), walk(query, query, 2, 8**-0.5, "rms"), rtol=1e-4, atol=0)
    assert abs(float(actual.double().sum()) - 1) < 1e-5


def test_walk_recomputes_blocks_that_are_not_kept(monkeypatch):
    from pyramid_ops.reference import walk as walking

    query, key = made(1, 2, 90, 16), made(1, 1, 90, 16, seed=1)
    expected = pyramid_ops.attention_walk(query, key)
    monkeypatch.setattr(walking, "LOGITS", 1000)
    monkeypatch.setattr(walking, "KEPT", 3)
    assert_same_bits(pyramid_ops.attention_walk(query, key), expected)


def test_packed_walks_are_those_of_each_segment_alone():
    query, key, bounds = made(150, 4, 16), made(150, 2, 16, seed=1), torch.tensor([0, 40, 40, 41, 120, 140])
    for precision in ("grid", "high"):
        for steps, reduction in ((0, "rms"), (1, "max"), (3, "mean")):
            options = {"steps": steps, "head_reduction": reduction, "precision": precision}
            for most in (None, 70):
                actual = pyramid_ops.attention_walk(query, key, cu_seqlens=bounds, max_seqlen=most, **options)
                expected = torch.zeros(150)
                for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
                    rows = slice(start, min(stop, start + (most or 150)))
                    q, k = (x[None, rows].transpose(1, 2) for x in (query, key))
                    expected[rows] = pyramid_ops.attention_walk(q, k, **options)[0]
                assert_same_bits(actual, expected)


def test_walk_loses_what_flows_to_tokens_of_no_use():
    query, key = made(1, 1, 6, 8), made(1, 1, 6, 8, seed=1)
    query[0, 0, 2, 3], key[0, 0, 4, 0] = torch.nan, torch.inf
    attention = query[0, 0].double() @ key[0, 0].double().T
    attention[:, 4] = -torch.inf
    attention = attention.softmax(1)
    attention[2] = 0
    p = torch.full((6,), 1 / 6, dtype=torch.float64)
    actual = pyramid_ops.attention_walk(query, key, steps=3, scale=1.0, temperature=1.0)
    torch.testing.assert_close(actual[0].double(), p @ attention @ attention @ attention, rtol=0, atol=1e-6)
    assert actual[0, 4] == 0
    assert (pyramid_ops.attention_walk(query, torch.full_like(key, torch.nan), steps=2) == 0).all()


def test_walk_of_a_sample_alone_and_of_nothing():
    query, key = made(3, 4, 40, 16), made(3, 2, 40, 16, seed=1)
    expected = pyramid_ops.attention_walk(query, key)
    for b in range(3):
        assert_same_bits(pyramid_ops.attention_walk(query[b : b + 1], key[b : b + 1]), expected[b : b + 1])
    assert pyramid_ops.attention_walk(query[:0], key[:0]).shape == (0, 40)
    assert pyramid_ops.attention_walk(query[:, :, :0], key[:, :, :0]).shape == (3, 0)
    assert (pyramid_ops.attention_walk(query, key, steps=0) == torch.tensor(1 / 40)).all()


def test_walk_rejects_bad_input():
    q, k, bounds = made(2, 4, 5, 8), made(2, 2, 5, 8), torch.tensor([0, 5])
    for error, message, args, options in (
        (TypeError, "query: expected a tensor, got None", (None, k), {}),
        (ValueError, r"query: expected shape \[B, H, N, D\], got float32 \[4, 5, 8\]", (q[0], k[0]), {}),
        (TypeError, "key: expected dtype float32, float16, bfloat16, got int64", (q, k.long()), {}),
        (ValueError, "key: expected the layout, feature size and device of query", (q, k[..., 1:]), {}),
        (ValueError, "key: expected batch size 2 as query", (q, k[:1]), {}),
        (ValueError, "key: expected a number of heads that divides the 4 of query, got 3", (q, made(2, 3, 5, 8)), {}),
        (ValueError, r"key: expected 5 tokens as query, got float32 \[2, 2, 4, 8\]", (q, k[:, :, 1:]), {}),
        (ValueError, "steps: expected at least 0, got -1", (q, k), {"steps": -1}),
        (TypeError, "steps: expected an integer, got 1.5", (q, k), {"steps": 1.5}),
        (ValueError, "temperature: expected a number above 0, got 0", (q, k), {"temperature": 0}),
        (ValueError, "scale: expected logits that float32 can hold", (q, k), {"scale": 1e30, "temperature": 1e-30}),
        (ValueError, "head_reduction: expected one of 'rms', 'mean', 'sum', 'max'", (q, k), {"head_reduction": None}),
        (ValueError, "precision: expected one of 'grid', 'high', got 'low'", (q, k), {"precision": "low"}),
        (ValueError, r"query: expected shape \[T, H, D\], got float32 \[2, 4, 5, 8\]", (q, k), {"cu_seqlens": bounds}),
        (TypeError, "cu_seqlens: expected dtype int32, int64", (q[0], q[0]), {"cu_seqlens": bounds.float()}),
        (ValueError, "max_seqlen: expected only with cu_seqlens, got 3", (q, k), {"max_seqlen": 3}),
        (ValueError, "query: expected no gradient", (q.clone().requires_grad_(), k), {}),
    ):
        with pytest.raises(error, match=f"^attention_walk: {message}"):
            pyramid_ops.attention_walk(*args, **options)
