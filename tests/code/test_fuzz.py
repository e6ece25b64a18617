"""Random compositions of ops, kernels against reference: any shape, dtype, stride, bit pattern and tile."""

import os
from random import Random

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from pyramid_ops import use_backend
from pyramid_ops.reference import selection as reference_selection
from pyramid_ops.verify.cases import DESCRIPTIONS
from pyramid_ops.verify.cases.pyramid import from_images
from pyramid_ops.verify.cases.scoring import score
from pyramid_ops.verify.cases.selection import select
from pyramid_ops.verify.inputs import FEATURES, special_scores
from tests.bits import assert_same_bits, poisoned, to
from tests.conftest import DEVICE

pytestmark = pytest.mark.kernel

# Each shard is a run of hypothesis with its own seed, so that workers share the cases. A GPU compiles most cases anew.
ALL = bool(os.environ.get("PYRAMID_OPS_TEST_ALL"))
SHARDS, CASES = (8, 5) if DEVICE.type == "cuda" else (40, 250) if ALL else (2, 25)


class Case:
    """Token levels, and what the steps so far made of them.

    All choices come from one drawn seed: hypothesis would vary separate draws too little, and cases are small already.
    """

    def __init__(self, random, device):
        self.random, self.device = random, device
        self.levels: list[torch.Tensor] = []
        self.scores: list[torch.Tensor] = []
        self.indices: torch.Tensor | None = None

    def integer(self, low, high):
        return self.random.randint(low, high)

    def choice(self, *values):
        return self.random.choice(values)

    def same(self, op, *args, **options):
        """The result of `op`: the same bits from the kernels, which write all of it and nothing beside it."""
        with use_backend("reference"):
            expected = op(*args, **options)
        args = [to(self.device, arg) for arg in args]
        options = {key: to(self.device, value) for key, value in options.items()}
        with poisoned(), use_backend("kernel"):
            actual = op(*args, **options)
        assert_same_bits(actual, expected, op.__name__)
        return expected

    def tensor(self, *shape, dtype, kinds=("plain", "bits", "ties")):
        """Ordinary values, any bit pattern, or special values with many ties; any layout."""
        generator = torch.Generator().manual_seed(self.integer(0, 2**32 - 1))
        kind = self.choice(*kinds)
        if kind == "plain" and dtype != torch.uint8:
            x = (torch.randn(shape, generator=generator) * self.choice(1.0, 50.0, 1e-30, 1e30)).to(dtype)
        elif kind == "ties" and dtype != torch.uint8:
            x = special_scores(1, torch.Size(shape).numel(), dtype, 2 * generator.initial_seed()).view(shape)
        else:
            count = torch.Size(shape).numel() * dtype.itemsize
            x = torch.randint(0, 256, (count,), generator=generator, dtype=torch.uint8).view(dtype).view(shape)
        return self.strided(x)

    def strided(self, x):
        layout = self.choice(*["contiguous", "transposed", "gaps", "offset"] * 2, "expanded")
        axis = self.integer(0, x.dim() - 1)
        if layout == "transposed":
            return x.transpose(0, axis).contiguous().transpose(0, axis)
        if layout == "gaps":
            return x.repeat_interleave(2, axis)[(slice(None),) * axis + (slice(None, None, 2),)]
        if layout == "offset":
            return torch.cat((x.reshape(-1)[:1], x.reshape(-1)))[-x.numel() :].view(x.shape) if x.numel() else x
        if layout == "expanded" and x.shape[axis]:
            return x.narrow(axis, 0, 1).expand_as(x)
        return x


def from_tokens(case):
    features = case.choice(1, 2, 3, 5, 8, 16, 17, 31, 33, 64, 65, 130, 257, 300, 1537)
    batch = case.choice(*[1, 1, 2] * 4, 0)
    dtype = case.choice(*FEATURES)
    sizes = [case.integer(0, 30 if features < 100 else 1 + 300 // features) for _ in range(case.integer(1, 3))]
    case.levels = [case.tensor(batch, size, features, dtype=dtype) for size in sizes]


STARTS = (from_images, from_tokens)
# In this order, each with probability 1/3.
STEPS = [step for step in dict.fromkeys(one.compose for one in DESCRIPTIONS.values()) if step not in STARTS]


def tiles(case):
    """Drawn tiles in place of the shipped ones: no bit may depend on them, and few programs suffice."""
    from pyramid_ops.kernels.tiles import forcing

    warps, load = case.choice(4, 8, 32), case.choice(16, 8, 4, 2)
    dots = {"BLOCK_N": case.choice(16, 64), "BLOCK_K": case.choice(16, 64), "num_warps": 4, "num_stages": 1}
    some = {"BLOCK": case.choice(32, 128), "num_warps": 1}
    attention = {**dots, "BLOCK_M": case.choice(16, 64)}
    return forcing(
        row_tiles=lambda choose, rows, *_: choose(rows, warps, load),
        gather_tiles={"ROWS": case.choice(8, 16, 64), "BLOCK": case.choice(32, 128, 512)},
        select_tiles={"BLOCK": case.choice(64, 16), "num_warps": 4},
        match_tiles={**dots, "BLOCK_M": case.choice(16, 64)},
        match_splits=case.choice(1, 2, 3),
        attention_tiles=attention,
        relevance_tiles=attention,
        kept_tiles=attention,
        logits_tiles={"TILES": case.choice(16, 64)},
        attention_splits=case.choice(1, 2, 3),
        combine_tiles={"ROWS": case.choice(1, 4), "COLUMNS": case.choice(32, 128), "num_warps": 1},
        pool_tiles={"BLOCK": case.choice(32, 256), "num_warps": 1},
        blur_tiles={"ROWS": case.choice(16, 5), "BLOCK": case.choice(16, 64, 128), "num_warps": 1},
        fold_tiles=some,
        entropy_tiles=some,
        budget_tiles={"SAMPLES": case.choice(1, 4)},
    )


def compose(random, device, starts=STARTS, steps=STEPS):
    case = Case(random, device)
    with tiles(case):
        case.choice(*starts)(case)
        for step in steps:
            if case.choice(True, False, False):
                step(case)


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
