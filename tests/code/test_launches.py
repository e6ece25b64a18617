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


# (op, what, call, (Triton launches, PyTorch kernels)) of each family.
TABLE = [row for family in (_scoring,) for row in family()]


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
