"""Uniform numbers from a seed: against the hash in Python integers, and how they are spread."""

import pytest
import torch

from pyramid_ops import hash_uniform
from pyramid_ops.verify.inputs import FLOATS
from tests.bits import assert_same_bits

WORD = (1 << 32) - 1


def mix(x):
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ x >> shift) * factor & WORD
    return x ^ x >> 16


@pytest.mark.parametrize("seed", [0, 1, -1, 12345, 1 << 32, -(1 << 63), (1 << 63) - 1])
def test_numbers_are_the_hash(seed):
    key = mix(mix((seed & WORD) + 0x9E3779B9 & WORD) ^ (seed >> 32 & WORD))
    expected = torch.tensor([mix(mix(i + 1) ^ key) >> 8 for i in range(200)]) / 2**24
    assert_same_bits(hash_uniform((200,), seed), expected)


def test_mix_is_that_of_murmurhash():
    assert [mix(1), mix(2), mix(0xDEADBEEF)] == [0x514E28B7, 0x30F4C306, 0x0DE5C6A9]


def test_numbers_do_not_depend_on_the_shape():
    expected = hash_uniform([60], 3)
    assert_same_bits(hash_uniform((3, 4, 5), 3).flatten(), expected)
    assert_same_bits(hash_uniform(torch.Size([7]), 3), expected[:7])
    assert hash_uniform((), 3).item() == expected[0]
    assert hash_uniform((2, 0), 3).shape == (2, 0)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_seed_for_each_sample(dtype):
    seeds = torch.tensor([5, -7, 5, 1 << 30], dtype=dtype)
    together = hash_uniform((4, 3, 50), seeds)
    for sample, seed in zip(together, seeds.tolist(), strict=True):
        assert_same_bits(sample, hash_uniform((3, 50), seed))
    assert hash_uniform((0, 3), seeds[:0]).shape == (0, 3)


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 24), (torch.float16, 11), (torch.bfloat16, 8)])
def test_numbers_are_multiples_below_one(dtype, bits):
    x = hash_uniform((1 << 16,), 1, dtype=dtype)
    assert x.dtype == dtype
    assert x.min() >= 0
    assert x.max() < 1
    expected = (hash_uniform((1 << 16,), 1).double() * 2**bits).floor() / 2**bits
    assert torch.equal(x.double(), expected)


def test_numbers_are_uniform_and_seeds_independent():
    count = 1 << 18
    streams = torch.stack([hash_uniform((count,), seed).double() for seed in (0, 1, 2, 1 << 32, -1)])
    parts = (streams * 256).long()
    for part in parts:
        chi_squared = ((part.bincount(minlength=256) - count / 256) ** 2 / (count / 256)).sum()
        assert 150 < chi_squared < 375  # 255 on average, deviation 22.6
    # Neighbours in a stream, and the same place of two streams.
    series = torch.cat([streams[:, :-1], streams[:1, 1:], streams[1:2, :-1]])
    correlation = torch.corrcoef(series)
    off = correlation - torch.eye(len(series))
    off[5, 0] = off[0, 5] = torch.corrcoef(torch.stack([streams[0, :-1], streams[0, 1:]]))[0, 1]
    off[6, 1] = off[1, 6] = 0  # the same stream again
    assert off.abs().max() < 5 / count**0.5


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("shape: expected a list or tuple", lambda: hash_uniform(5, 1)),
        (r"shape\[1\]: expected at least 0, got -1", lambda: hash_uniform((2, -1), 1)),
        (r"shape\[0\]: expected an integer, got 2.0", lambda: hash_uniform((2.0,), 1)),
        (r"shape: expected at most 2\^30", lambda: hash_uniform((1 << 16, 1 << 16), 1)),
        ("seed: expected an integer, got 1.5", lambda: hash_uniform((2,), 1.5)),
        ("seed: expected an integer of 64 bits", lambda: hash_uniform((2,), 1 << 63)),
        ("seed: expected dtype int32, int64, got float32", lambda: hash_uniform((2,), torch.ones(2))),
        (r"seed: expected shape \[B\]", lambda: hash_uniform((2,), torch.ones(2, 1).long())),
        (r"seed: expected one for each of the first size of \[2, 3\]", lambda: hash_uniform((2, 3), torch.arange(3))),
        ("dtype: expected float32, float16 or bfloat16, got torch.float64",
         lambda: hash_uniform((2,), 1, dtype=torch.float64)),
        ("device: expected a CPU or CUDA device, got meta", lambda: hash_uniform((2,), 1, device="meta")),
        (r"device: expected that of seed \(cpu\), got cuda",
         lambda: hash_uniform((2,), torch.arange(2), device="cuda")),
    ],
)  # fmt: skip
def test_bad_hashes(message, call):
    with pytest.raises((TypeError, ValueError), match=f"^hash_uniform: {message}"):
        call()


def test_dtypes_are_all_covered():
    assert {hash_uniform((1,), 1, dtype=dtype).dtype for dtype in FLOATS} == set(FLOATS)
