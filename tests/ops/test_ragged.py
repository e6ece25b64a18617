"""Ragged batches: top-k of packed segments and packed pyramids."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pyramid_ops
from pyramid_ops import segmented_topk, select_topk_levels, select_topk_levels_packed
from pyramid_ops.verify.inputs import FEATURES, FLOATS, int32, special_scores
from tests.bits import assert_same_bits
from tests.ops.test_selection import FLOAT32, brute_force


def packed(lengths: list) -> torch.Tensor:
    return torch.tensor([sum(lengths[:s]) for s in range(len(lengths) + 1)], dtype=torch.int32)


@given(
    st.lists(st.tuples(st.lists(FLOAT32, max_size=12), st.integers(0, 15)), min_size=1, max_size=6),
    st.sampled_from(["number", "sequence", "tensor"]),
    st.booleans(),
    st.integers(0, 14) | st.none(),
)
def test_topk_equals_brute_force(segments, kind, by_index, capacity):
    scores = torch.tensor([value for values, _ in segments for value in values], dtype=torch.float32)
    bounds = packed([len(values) for values, _ in segments])
    each = [k for _, k in segments] if kind != "number" else [segments[0][1]] * len(segments)
    capacity = max(each) if kind == "tensor" and capacity is None else capacity
    k = {"number": each[0], "sequence": each, "tensor": int32(*each)}[kind]
    order = "index" if by_index else "value"
    top = segmented_topk(scores, bounds, k, max_seqlen=12, capacity=capacity, order=order)
    slots = max(each) if capacity is None else capacity
    assert top.values.shape == top.indices.shape == (len(segments), slots)
    for s, wanted in enumerate(each):
        values = scores[bounds[s] : bounds[s + 1]]
        expected = [i for _, i in brute_force([values.tolist()], [min(wanted, slots)], False, by_index)]
        assert top.counts[s] == len(expected)
        assert top.indices[s].tolist() == expected + [-1] * (slots - len(expected))
        assert_same_bits(top.values[s, : len(expected)], values[expected])
        assert (top.values[s, len(expected) :] == -math.inf).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("lengths", [[576] * 4, [1000, 0, 7, 4096], [1 << 20]])
def test_topk_equals_torch_topk(lengths, dtype):
    generator = torch.Generator().manual_seed(0)
    bounds = packed(lengths)
    parts = []
    for n in lengths:
        if dtype == torch.float32:
            parts.append(torch.randperm(n, generator=generator).float())
        else:
            parts.append(torch.randn(n, generator=generator).to(dtype))
    scores = torch.cat(parts)
    top = segmented_topk(scores, bounds, 300, max_seqlen=max(lengths))
    for s, part in enumerate(parts):
        used = min(300, len(part))
        values, indices = part.topk(used)
        assert_same_bits(top.values[s, :used], values)
        if dtype == torch.float32:
            assert torch.equal(top.indices[s, :used], indices)
        stable = part.sort(descending=True, stable=True).indices[:used]
        assert torch.equal(top.indices[s, :used], stable)
    by_index = segmented_topk(scores, bounds, 300, max_seqlen=max(lengths), order="index")
    for s in range(len(lengths)):
        used = top.counts[s]
        assert torch.equal(by_index.indices[s, :used], top.indices[s, :used].sort().values)


def test_whole_segments_are_sorted():
    scores = torch.randn(9000)
    top = segmented_topk(scores, int32(0, 4000, 9000), 6000, max_seqlen=5000)
    assert top.counts.tolist() == [4000, 5000]
    for s, part in enumerate((scores[:4000], scores[4000:])):
        assert_same_bits(top.values[s, : len(part)], part.sort(descending=True).values)


def test_offsets_and_counts_are_clamped():
    scores = torch.arange(10.0)
    top = segmented_topk(scores, int32(-5, 4, 2, 99), int32(-1, 3, 99), max_seqlen=100, capacity=4)
    assert top.counts.tolist() == [0, 0, 4]
    assert top.indices.tolist() == [[-1] * 4, [-1] * 4, [7, 6, 5, 4]]
    assert top.values[2].tolist() == [9, 8, 7, 6]
    longer = segmented_topk(scores, int32(0, 10), 2, max_seqlen=4)
    assert longer.indices.tolist() == [[3, 2]]


def test_infinite_scores_keep_tokens():
    scores = torch.tensor([math.inf, 0.1, 0.9, 0.5, math.inf])
    assert segmented_topk(scores, int32(0, 5), 3, max_seqlen=5, order="index").indices.tolist() == [[0, 2, 4]]


@pytest.mark.kernel
def test_a_segment_alone_equals_the_segment_in_a_batch(device):
    bounds = int32(0, 40, 40, 1000)
    scores = special_scores(1, 1000, torch.float32, 4)[0].to(device)
    with pyramid_ops.use_backend("kernel"):
        batch = segmented_topk(scores, bounds.to(device), 20, max_seqlen=1000)
        for s in range(3):
            part = scores[bounds[s] : bounds[s + 1]].clone()
            alone = segmented_topk(part, int32(0, len(part)).to(device), 20, max_seqlen=1000)
            assert_same_bits(alone, [x[s : s + 1] for x in batch])


def ragged_pyramid(dtype=torch.float32, features=16):
    generator = torch.Generator().manual_seed(3)
    lengths = ([60, 0, 33, 100], [15, 1, 8, 25], [4, 0, 2, 6])
    levels = [(50 * torch.randn(sum(n), features, generator=generator)).to(dtype) for n in lengths]
    return levels, [packed(n) for n in lengths], lengths


@pytest.mark.parametrize("order", ["saliency", "index"])
@pytest.mark.parametrize("saliency", ["variance", "norm", "given"])
@pytest.mark.parametrize("dtype", FEATURES)
def test_packed_levels_equal_each_sample_alone(dtype, saliency, order):
    levels, bounds, lengths = ragged_pyramid(dtype)
    budgets = int32(20, 3, 1, 5, 5, 5, 0, 8, 1, 99, 99, 99).view(4, 3)
    scores = [torch.randn(len(level)) for level in levels]
    given = saliency == "given"
    kept = select_topk_levels_packed(
        levels, bounds, budgets, max_seqlen=100, capacity=140, saliency=scores if given else saliency, order=order
    )
    assert kept.tokens.shape == (4 * 140, 16)
    for b in range(4):
        counts = [min(int(budgets[b, k]), lengths[k][b]) for k in range(3)]
        alone = select_topk_levels(
            [level[bounds[k][b] : bounds[k][b + 1]][None] for k, level in enumerate(levels)],
            saliency=[s[bounds[k][b] : bounds[k][b + 1]][None] for k, s in enumerate(scores)] if given else saliency,
            order=order,
            budgets=counts,
        )
        rows = slice(kept.cu_seqlens[b], kept.cu_seqlens[b + 1])
        assert kept.counts[b].tolist() == counts
        assert_same_bits((kept.tokens[rows], kept.indices[rows]), (alone.tokens[0], alone.indices[0]))
    assert (kept.tokens[kept.cu_seqlens[-1] :] == 0).all()
    assert (kept.indices[kept.cu_seqlens[-1] :] == -1).all()
    assert_same_bits(pyramid_ops.gather_levels([level[None] for level in levels], kept.rows[None])[0], kept.tokens)


def test_coarse_levels_get_what_capacity_leaves():
    levels, bounds, _ = ragged_pyramid()
    kept = select_topk_levels_packed(levels, bounds, [20, 8, 2], max_seqlen=100, capacity=25)
    assert kept.counts.tolist() == [[20, 5, 0], [0, 1, 0], [20, 5, 0], [20, 5, 0]]
    assert kept.cu_seqlens.tolist() == [0, 25, 26, 51, 76]
    assert select_topk_levels_packed(levels, bounds, [20, 8, 2], max_seqlen=100).tokens.shape == (4 * 30, 16)
    short = select_topk_levels_packed(levels, bounds, [200, 0, 0], max_seqlen=50)
    assert short.counts[:, 0].tolist() == [50, 0, 33, 50]
    assert short.indices[:, 1].max() < 50


S = torch.zeros(9)


C = int32(0, 4, 9)


TOPK = [
    (TypeError, "scores: expected a tensor, got None", lambda op: op(None, C, 1, max_seqlen=9)),
    (ValueError, r"scores: expected shape \[T\]", lambda op: op(S[None], C, 1, max_seqlen=9)),
    (TypeError, "scores: expected dtype float32, float16, bfloat16", lambda op: op(S.long(), C, 1, max_seqlen=9)),
    (ValueError, "scores: expected no gradient", lambda op: op(S.clone().requires_grad_(), C, 1, max_seqlen=9)),
    (TypeError, "cu_seqlens: expected dtype int32, int64, got", lambda op: op(S, C > 0, 1, max_seqlen=9)),
    (TypeError, "cu_seqlens: expected a tensor", lambda op: op(S, [0, 9], 1, max_seqlen=9)),
    (ValueError, r"cu_seqlens: expected shape \[S\+1\]", lambda op: op(S, C[None], 1, max_seqlen=9)),
    (ValueError, "cu_seqlens: expected at least one element", lambda op: op(S, C[:0], 1, max_seqlen=9)),
    (TypeError, "max_seqlen: expected an integer, got 9.5", lambda op: op(S, C, 1, max_seqlen=9.5)),
    (ValueError, "max_seqlen: expected at least 0", lambda op: op(S, C, 1, max_seqlen=-1)),
    (ValueError, "k: expected at least 0, got -1", lambda op: op(S, C, -1, max_seqlen=9)),
    (TypeError, "k: expected an integer, got True", lambda op: op(S, C, True, max_seqlen=9)),
    (TypeError, "k: expected an integer, got 1.5", lambda op: op(S, C, 1.5, max_seqlen=9)),
    (ValueError, "k: expected one for each of 2 segments, got 3", lambda op: op(S, C, [1, 1, 1], max_seqlen=9)),
    (ValueError, r"k\[1\]: expected at least 0, got -2", lambda op: op(S, C, [1, -2], max_seqlen=9)),
    (ValueError, "k: expected at most 256", lambda op: op(S, torch.zeros(301).int(), [1] * 300, max_seqlen=9)),
    (ValueError, r"k: expected shape \[2\] on cpu", lambda op: op(S, C, C, max_seqlen=9, capacity=1)),
    (TypeError, "k: expected dtype int32, int64, bool", lambda op: op(S, C, C[1:].short(), max_seqlen=9, capacity=1)),
    (ValueError, "capacity: expected a number where k is a tensor", lambda op: op(S, C, C[1:], max_seqlen=9)),
    (ValueError, "capacity: expected at least 0", lambda op: op(S, C, 1, max_seqlen=9, capacity=-1)),
    (ValueError, "capacity: expected at most 2\\^30 rows", lambda op: op(S, C, 1, max_seqlen=9, capacity=1 << 30)),
    (ValueError, "order: expected one of 'value', 'index'", lambda op: op(S, C, 1, max_seqlen=9, order="saliency")),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "call"), TOPK)
def test_bad_topk(error, message, call):
    with pytest.raises(error, match=f"^segmented_topk: {message}"):
        call(segmented_topk)


F, B, _ = ragged_pyramid()


LEVELS = [
    (TypeError, "pyramid_features: expected a list or tuple", lambda op: op(F[0], B, [1] * 3, max_seqlen=9)),
    (ValueError, r"pyramid_features\[0\]: expected shape \[T, D\]", lambda op: op([F[0][None]], B, [1], max_seqlen=9)),
    (ValueError, r"pyramid_features\[1\]: expected the device, dtype, feature size",
     lambda op: op([F[0], F[1][:, 1:]], B[:2], [1, 1], max_seqlen=9)),
    (TypeError, "cu_seqlens: expected a list of tensors", lambda op: op(F, B[0], [1] * 3, max_seqlen=9)),
    (ValueError, "cu_seqlens: expected one for each of 3 levels, got 2",
     lambda op: op(F, B[:2], [1] * 3, max_seqlen=9)),
    (ValueError, r"cu_seqlens\[1\]: expected shape \[5\] on cpu",
     lambda op: op(F, [B[0], B[1][:2], B[2]], [1] * 3, max_seqlen=9)),
    (TypeError, r"cu_seqlens\[2\]: expected dtype int32",
     lambda op: op(F, [*B[:2], B[2].float()], [1] * 3, max_seqlen=9)),
    (ValueError, "budgets: expected one for each of 3 levels, got 1", lambda op: op(F, B, [1], max_seqlen=9)),
    (ValueError, r"budgets\[1\]: expected at least 0", lambda op: op(F, B, [1, -1, 1], max_seqlen=9)),
    (ValueError, r"budgets: expected shape \[4, 3\] on cpu",
     lambda op: op(F, B, torch.ones(3, 4).int(), max_seqlen=9, capacity=3)),
    (ValueError, "capacity: expected a number where budgets",
     lambda op: op(F, B, torch.ones(4, 3).int(), max_seqlen=9)),
    (ValueError, r"saliency\[0\]: expected \[193\] on cpu",
     lambda op: op(F, B, [1] * 3, max_seqlen=9, saliency=[torch.ones(5)] * 3)),
    (ValueError, "saliency: expected one of 'variance', 'norm'",
     lambda op: op(F, B, [1] * 3, max_seqlen=9, saliency="value")),
    (ValueError, "order: expected one of 'saliency', 'index'",
     lambda op: op(F, B, [1] * 3, max_seqlen=9, order="value")),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "call"), LEVELS)
def test_bad_packed_levels(error, message, call):
    with pytest.raises(error, match=f"^select_topk_levels_packed: {message}"):
        call(select_topk_levels_packed)
