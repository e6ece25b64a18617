"""Kernel against reference, bit for bit: generated for every op of the registry."""

import zlib

import pytest
import torch

import pyramid_ops
from pyramid_ops.verify.cases import DESCRIPTIONS, pyramid, selection
from tests.bits import assert_same_bits, poisoned, to

pytestmark = pytest.mark.kernel
SLOW = pytest.mark.slow


FEW = 20  # cases of an op that `make test` runs all; of more some so many, whichever their names select


def generated():
    for op, description in DESCRIPTIONS.items():
        # What widens float16 is one instruction; golden results and random compositions have it too.
        cases = list(description.bits())
        slow = [case.slow or "-float16" in case.id for case in cases]
        every = -(-slow.count(False) // FEW)
        for case, is_slow in zip(cases, slow, strict=True):
            marks = SLOW if is_slow or zlib.crc32(case.id.encode()) % max(every, 1) else ()
            yield pytest.param(description.op, case.args, id=f"{op}-{case.id}", marks=marks)


@pytest.mark.parametrize(("op", "args"), list(generated()))
def test_kernel_equals_reference(op, args, device):
    expected = op.reference(*args)
    args = [to(device, arg) for arg in args]
    with poisoned():
        actual = op.kernel(*args)
    assert_same_bits(actual, expected)


def test_a_sample_alone_equals_the_sample_in_a_batch(device):
    made = to(device, selection.levels((60, 20, 5), 96, torch.bfloat16, batch=3))
    images = pyramid.special_image((3, 2, 20, 22), torch.float32).to(device)
    with pyramid_ops.use_backend("kernel"):
        tokens, indices = pyramid_ops.select_topk_levels(made, budgets=[9, 4, 2])
        made_levels = pyramid_ops.gaussian_pyramid(images, 3)
        for b in range(3):
            alone = pyramid_ops.select_topk_levels([level[b : b + 1] for level in made], budgets=[9, 4, 2])
            assert_same_bits(alone, (tokens[b : b + 1], indices[b : b + 1]))
            alone = pyramid_ops.gaussian_pyramid(images[b : b + 1], 3)
            assert_same_bits(alone, [level[b : b + 1] for level in made_levels])
        match = pyramid_ops.best_match(made[0], made[1])
        means, totals = pyramid_ops.assign_mean(made[0], match.indices % 3, 3)
        for b in range(3):
            alone = pyramid_ops.best_match(made[0][b : b + 1], made[1][b : b + 1])
            assert_same_bits(list(alone), [x[b : b + 1] for x in match])
            alone = pyramid_ops.assign_mean(made[0][b : b + 1], match.indices[b : b + 1] % 3, 3)
            assert_same_bits(list(alone), [means[b : b + 1], totals[b : b + 1]])
            heads = made[0][b : b + 1, None]
            alone = pyramid_ops.attention_importance(heads, heads, query_indices=[-1, 4])
            both = pyramid_ops.attention_importance(made[0][:, None], made[0][:, None], query_indices=[-1, 4])
            assert_same_bits(alone, both[b : b + 1])
            alone = pyramid_ops.region_variance(made[0][b : b + 1], (6, 10), (2, 3))
            assert_same_bits(alone, pyramid_ops.region_variance(made[0], (6, 10), (2, 3))[b : b + 1])
            alone = pyramid_ops.patch_entropy(images[b : b + 1, :, :, :20], 10)
            assert_same_bits(alone, pyramid_ops.patch_entropy(images[..., :20], 10)[b : b + 1])
