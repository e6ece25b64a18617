"""Random compositions of ops, kernels against reference."""

import os
from random import Random

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from pyramid_ops.reference import selection as reference_selection
from pyramid_ops.verify.cases.scoring import score
from pyramid_ops.verify.cases.selection import select
from tests.compositions import compose, from_tokens
from tests.conftest import DEVICE

pytestmark = pytest.mark.kernel

# Each shard is a run of hypothesis with its own seed, so that workers share the cases. A GPU compiles most cases anew.
ALL = bool(os.environ.get("PYRAMID_OPS_TEST_ALL"))
SHARDS, CASES = (8, 5) if DEVICE.type == "cuda" else (40, 250) if ALL else (4, 6)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_compositions_have_the_same_bits(shard, device):
    ran = 0

    @seed(shard)
    @settings(max_examples=CASES, database=None)
    @given(st.randoms(use_true_random=True))
    def check(random):
        nonlocal ran
        compose(random, device)
        ran += 1

    check()
    assert ran >= CASES


@pytest.mark.slow
def test_a_difference_in_ties_is_found(device, monkeypatch):
    def key(x):  # without the rule that −0 equals 0
        bits = x.contiguous().view(torch.int32)
        bits = torch.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FFFFFFF, bits)
        return bits ^ ((bits >> 31) & 0x7FFFFFFF)

    monkeypatch.setattr(reference_selection, "ordered_key", key)

    def many():
        for number in range(300):
            compose(Random(number), device, [from_tokens], [score, select])

    with pytest.raises(AssertionError, match="select_topk_levels"):
        many()
