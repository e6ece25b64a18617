"""The comparison itself must be able to fail."""

import pytest
import torch

from tests.bits import GUARD, assert_same_bits, poisoned


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0000002])),
        (torch.tensor([torch.nan]), torch.tensor([1.0])),
        (torch.tensor([1]), torch.tensor([2])),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64)),
        (torch.zeros(2), torch.zeros(1, 2)),
    ],
)
def test_a_difference_is_reported(actual, expected):
    with pytest.raises(AssertionError):
        assert_same_bits(actual, expected)


def test_any_nan_equals_any_nan():
    assert_same_bits(torch.tensor([torch.nan]), torch.tensor([-torch.nan]))


def test_report_names_count_index_and_bits():
    with pytest.raises(AssertionError, match=r"1 of 4 elements differ, the first at \(1, 0\): 2.0 \(0x40000000\)"):
        assert_same_bits(torch.tensor([[1.0, 1.0], [2.0, 1.0]]), torch.ones(2, 2))


def test_a_write_out_of_bounds_is_reported():
    def overrun():
        with poisoned():
            x = torch.empty(4)
            assert x.isnan().all()
            x.as_strided((5,), (1,))[4] = 1.0

    with pytest.raises(AssertionError, match="past the end"):
        overrun()
    assert GUARD % 16 == 0
