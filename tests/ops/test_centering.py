"""Keys less their mean: against float64, each segment alone, and what the mean leaves out."""

import pytest
import torch

from pyramid_ops import attention_importance
from pyramid_ops.ops.centering import center_keys_op, center_logits_op
from pyramid_ops.verify.inputs import FLOATS
from tests.bits import assert_same_bits


def rand(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("size", "width"), [(1, 8), (32, 64), (33, 5), (500, 80)])
def test_centered_keys_and_means(size, width, dtype):
    key = 5 + rand(2, 3, size, width, dtype=dtype)
    centered, means = center_keys_op(key, None, None, size)
    expected = key.double().mean(2, keepdim=True)
    torch.testing.assert_close(means.double(), expected, rtol=1e-5, atol=1e-5)
    assert_same_bits(centered, key.float() - means)


def test_keys_that_are_masked_or_not_finite_are_left_out():
    key = rand(2, 2, 70, 16)
    mask = torch.rand(2, 70, generator=torch.Generator().manual_seed(1)) < 0.5
    key[0, 1, 3, 5], key[0, 0, 40, 0], key[1, 1, 69, 15] = torch.nan, torch.inf, -torch.inf
    _, means = center_keys_op(key, mask, None, 70)
    for b in range(2):
        for h in range(2):
            counted = mask[b] & key[b, h].isfinite().all(1)
            expected = key[b, h, counted].double().mean(0)
            torch.testing.assert_close(means[b, h, 0].double(), expected, rtol=1e-5, atol=1e-6)
    centered, means = center_keys_op(key, torch.zeros_like(mask), None, 70)
    assert (means == 0).all()
    assert_same_bits(centered, key)


def test_segments_are_as_each_alone():
    key, bounds = rand(1, 2, 200, 24), torch.tensor([5, 5, 38, 39, 150, 180], dtype=torch.int32)
    centered, means = center_keys_op(key, None, bounds, 100)
    for s, (start, stop) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        here = key[:, :, start:stop]
        alone, mean = center_keys_op(here[:, :, :100], None, None, min(100, stop - start))
        assert_same_bits(means[:, :, s : s + 1], mean, f"segment {s}")
        assert_same_bits(centered[:, :, start : min(stop, start + 100)], alone, f"segment {s}")
        assert_same_bits(centered[:, :, start:stop], here - mean)
    outside = torch.cat((torch.arange(5), torch.arange(180, 200)))
    assert_same_bits(centered[:, :, outside], key[:, :, outside])


@pytest.mark.parametrize("dtype", FLOATS)
def test_logits_of_the_mean(dtype):
    query, means, lse = rand(1, 4, 50, 40, dtype=dtype), rand(1, 2, 3, 40, seed=1), rand(1, 4, 50, seed=2)
    bounds = torch.tensor([0, 20, 20, 45], dtype=torch.int32)
    found = center_logits_op(lse, query, means, bounds, 0.125)
    for h in range(4):
        for i in range(50):
            mean = means[0, h // 2, 0 if i < 20 else 2].double() * (i < 45)
            expected = lse[0, h, i].double() - (query[0, h, i].double() * mean).sum() * 0.125
            assert abs(found[0, h, i] - expected) < 1e-5


def test_packed_attention_with_centred_keys_is_that_of_each_segment():
    q, k, bounds = rand(60, 4, 16), 3 + rand(60, 2, 16, seed=1), torch.tensor([0, 13, 60])
    offsets = {"cu_seqlens_q": bounds, "cu_seqlens_k": bounds}
    lse = rand(4, 60, seed=2) + 9
    for given in (None, lse):
        packed = attention_importance(q, k, **offsets, center_keys=True, log_sum_exp=given)
        for start, stop in ((0, 13), (13, 60)):
            pair = (x[start:stop].transpose(0, 1)[None] for x in (q, k))
            of_one = None if given is None else given[None, :, start:stop]
            alone = attention_importance(*pair, center_keys=True, log_sum_exp=of_one)
            assert_same_bits(packed[start:stop], alone[0])
