"""No value of a device integer makes a public call fault, and kernels and reference agree on all of them."""

import itertools

import pytest

import pyramid_ops
from tests.hostile import OF_INTEGERS, OF_OFFSETS, OFFSETS, X, assert_rooms_agree, int32


@pytest.mark.parametrize("call", OF_OFFSETS)
@pytest.mark.parametrize("segments", [0, 1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_no_offsets_fault(call, segments):
    for values in itertools.product((-1, 0, 1, 3, 4, 6), repeat=segments + 1):
        OF_OFFSETS[call](int32(values))


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 4])
def test_no_offsets_make_a_plan_fault(tokens):
    for segments in range(5):
        for values in itertools.product(range(-1, tokens + 2), repeat=segments + 1):
            pyramid_ops.tome_matching(X[:tokens], 1, cu_seqlens=int32(values), distill_token=segments % 2 == 1)


@pytest.mark.parametrize("call", OF_INTEGERS)
def test_no_integers_fault(call):
    for seed in range(60):
        OF_INTEGERS[call](seed)


@pytest.mark.kernel
@pytest.mark.parametrize("values", OFFSETS, ids=str)
@pytest.mark.parametrize("call", OF_OFFSETS)
def test_rooms_agree_on_any_offsets(call, values):
    assert_rooms_agree(OF_OFFSETS[call], int32(values))


@pytest.mark.kernel
@pytest.mark.parametrize("call", OF_INTEGERS)
def test_rooms_agree_on_any_integers(call):
    for seed in range(6):
        assert_rooms_agree(OF_INTEGERS[call], seed)
