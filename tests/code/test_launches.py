"""How many kernels public calls launch: Triton's and PyTorch's."""

import os
from functools import partial

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels decorated for the interpreter cannot be compiled", allow_module_level=True)

import pyramid_ops
from tests.launches import launched


def _scoring():
    x = torch.zeros(2, 1360, 1024, dtype=torch.bfloat16)
    yield "token_variance", "dense", partial(pyramid_ops.token_variance, x), (1, 0)
    yield "token_norm", "dense", partial(pyramid_ops.token_norm, x), (1, 0)


def _attention():
    query, key = (torch.zeros(2, heads, count, 64, dtype=torch.bfloat16) for heads, count in ((4, 100), (2, 300)))
    score, op = partial(pyramid_ops.attention_importance, query, key), "attention_importance"
    yield op, "all", score, (7, 0)
    yield op, "last", partial(score, query_indices=[-1]), (6, 0)
    yield op, "last-causal", partial(score, query_indices=[-1], causal=True), (6, 0)
    yield op, "list", partial(score, query_indices=[3, 5, 9], causal=True), (6, 2)
    yield op, "list-on-device", partial(score, query_indices=torch.tensor([3, 5, 9])), (6, 0)
    yield op, "weights", partial(score, query_weights=torch.ones(2, 100), causal=True), (8, 0)
    yield op, "range", partial(score, key_range=(3, 100)), (7, 1)
    offsets = {"cu_seqlens_q": torch.tensor([0, 50, 100]).int(), "cu_seqlens_k": torch.tensor([0, 100, 300]).int()}
    packed = partial(pyramid_ops.attention_importance, query[0].transpose(0, 1), key[0].transpose(0, 1), **offsets)
    yield op, "packed", packed, (7, 2)
    yield op, "packed-last", partial(packed, query_indices=[-1]), (6, 3)
    yield op, "packed-weights", partial(packed, query_weights=torch.ones(100)), (8, 2)


# (op, what, call, (Triton launches, PyTorch kernels)) of each family.
TABLE = [row for family in (_scoring, _attention) for row in family()]


@pytest.mark.parametrize(
    ("call", "expected"),
    [pytest.param(call, count, id=f"{op}-{what}", marks=pytest.mark.op(op)) for op, what, call, count in TABLE],
)
def test_launches(call, expected):
    assert launched(call) == expected


def test_views_and_allocations_do_not_count():
    x = torch.zeros(4, 6)
    assert launched(lambda: torch.empty_like(x.view(6, 4).T[1:].expand(2, 3, 6))) == (0, 0)
    assert launched(lambda: (torch.zeros(0), torch.zeros(3).add_(1), x.reshape(2, 12), x.T.contiguous())) == (0, 3)
