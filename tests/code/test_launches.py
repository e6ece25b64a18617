"""How many kernels public calls launch: Triton's and PyTorch's."""

import os

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels decorated for the interpreter cannot be compiled", allow_module_level=True)

from bench import host
from tests.launch_table import TABLE
from tests.launches import launched


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


def test_committed_table_is_this_one():
    _, head, written = (host.RESULTS / "host.md").read_text().partition(host.LAUNCHES)
    assert f"{head}{written}".splitlines() == host.launches(), "python -m bench.host launches"
