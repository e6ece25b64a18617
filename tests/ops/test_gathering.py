"""Rows of levels and of packed tensors, moved by indices."""

import pytest
import torch

from pyramid_ops import compact, gather_levels, segmented_topk, select_topk_levels, token_norm
from pyramid_ops.verify.inputs import int32
from tests.bits import assert_same_bits

from .test_ragged import packed
from .test_selection import L, features


def test_gather_levels_of_masks_positions_and_tokens():
    levels = features((6, 3), 5)
    indices = torch.tensor([[[1, 2], [0, 0], [-1, -1]], [[0, 5], [1, 3], [2, 0]]])
    out = gather_levels(levels, indices)
    assert_same_bits(out[0, :2], torch.stack((levels[1][0, 2], levels[0][0, 0])))
    assert_same_bits(out[1, :1], levels[0][1, 5:])
    assert_same_bits(torch.cat((out[0, 2:], out[1, 1:])), torch.zeros(3, 5))
    for dtype in (torch.bool, torch.int64, torch.float64, torch.complex64, torch.int16):
        typed = [level.to(dtype) for level in levels]
        gathered = gather_levels(typed, indices)
        assert gathered.dtype == dtype
        assert torch.equal(gathered[0, 0], typed[1][0, 2])
    flat = [level[..., 0] for level in levels]
    assert gather_levels(flat, indices).shape == (2, 3)
    deep = [level.view(2, -1, 5, 1, 1).expand(-1, -1, 5, 2, 3) for level in levels]
    assert torch.equal(gather_levels(deep, indices)[..., 1, 2], out)
    shared = [level[:1] for level in levels]
    assert torch.equal(gather_levels(shared, indices)[1, 0], levels[0][0, 5])


def test_pending_negation_and_conjugation_are_resolved():
    scores = torch.complex(torch.zeros(1, 6), torch.arange(6.0)[None]).conj().imag
    assert scores.is_neg()
    level = torch.rand(1, 6, 8)
    assert select_topk_levels([level], saliency=[scores], budgets=[3]).indices[0, :, 1].tolist() == [0, 1, 2]
    negated = torch._neg_view(level)
    assert_same_bits(token_norm(negated), token_norm(level))
    assert_same_bits(
        select_topk_levels([negated], budgets=[2]).tokens, -select_topk_levels([level], budgets=[2]).tokens
    )
    indices = torch.tensor([[[0, 4]]])
    conjugated = torch.complex(level, level).conj()
    assert torch.equal(gather_levels([conjugated], indices)[0, 0], conjugated[0, 4])


PAIRS = torch.zeros(2, 3, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("message", "levels", "indices"),
    [
        ("indices: expected dtype int64", L, PAIRS.int()),
        (r"indices: expected shape \[B, K, 2\]", L, PAIRS[..., :1]),
        (r"indices: expected shape \[B, K, 2\]", L, PAIRS[0]),
        ("levels: expected a non-empty list", [], PAIRS),
        ("levels: expected a non-empty list", L[0], PAIRS),
        (r"levels\[0\]: expected a batch size of 1 or 3", L, PAIRS[:1].expand(3, 3, 2)),
        (r"levels\[1\]: expected the device, dtype", [L[0], L[1].half()], PAIRS),
        ("levels: expected a dtype of at most 8 bytes", [x.to(torch.complex128) for x in L], PAIRS),
    ],
)
def test_bad_gather(message, levels, indices):
    with pytest.raises((TypeError, ValueError), match=f"^gather_levels: {message}"):
        gather_levels(levels, indices)


def layouts(tokens: int):
    """Tensors of a decoder layer, the dimension that counts tokens, and one that is not contiguous."""
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    return [
        (random(tokens, 24), 0),
        (random(tokens) > 0, 0),
        (torch.arange(tokens), -1),
        (torch.arange(3 * tokens).view(3, tokens), 1),
        (random(2, tokens, 8).bfloat16(), 1),
        (random(tokens, 2, 8).half(), 0),
        (random(tokens, 2, 8).transpose(0, 1), -2),
        (torch.complex(random(5, tokens, 3), random(5, tokens, 3)).conj(), 1),
        (random(2, 2, tokens, 3).double()[..., 1:], 2),
        (random(2, 3, tokens, 4).transpose(0, 1), 2),
    ]


def test_compaction_equals_indexing():
    bounds, lengths = packed([50, 0, 7, 30]), [50, 0, 7, 30]
    scores = torch.randn(87)
    top = segmented_topk(scores, bounds, int32(10, 3, 9, 5), max_seqlen=50, capacity=12, order="index")
    tensors, dims = zip(*layouts(87), strict=True)
    kept = compact(tensors, top.indices, top.counts, cu_seqlens=bounds, token_dims=dims)
    counts = [min(k, n) for k, n in zip((10, 3, 9, 5), lengths, strict=True)]
    assert kept.cu_seqlens.tolist() == packed(counts).tolist()
    assert kept.cu_seqlens.dtype == torch.int32
    assert kept.positions.tolist() == [i for n in counts for i in range(n)] + [0] * (48 - sum(counts))
    source = torch.cat([bounds[s] + top.indices[s, :n] for s, n in enumerate(counts)])
    for x, dim, moved in zip(tensors, dims, kept.tensors, strict=True):
        expected = x.index_select(dim, source)
        padding = list(x.shape)
        padding[dim] = 48 - sum(counts)
        assert moved.dtype == x.dtype
        assert torch.equal(moved, torch.cat((expected, x.new_zeros(padding)), dim))


def test_compaction_moves_bits_and_outside_rows_are_zero():
    x = torch.tensor([0x7F800001, -1, -(1 << 31), 5], dtype=torch.int32).view(torch.float32)[:, None]
    indices = torch.tensor([[1, 0, 2, -1], [0, 1, 1, 9]])
    kept = compact([x], indices, cu_seqlens=int32(0, 3, 4))
    assert kept.tensors[0].view(torch.int32)[:, 0].tolist() == [-1, 0x7F800001, -(1 << 31), 0, 5, 0, 0, 0]
    assert kept.cu_seqlens.tolist() == [0, 4, 8]
    clamped = compact([x], indices, int32(-3, 99), cu_seqlens=int32(0, 3, 4))
    assert clamped.cu_seqlens.tolist() == [0, 0, 4]
    assert clamped.tensors[0].view(torch.int32)[:, 0].tolist() == [5] + [0] * 7


X, I = torch.zeros(9, 4), torch.zeros(2, 3, dtype=torch.int64)  # noqa: E741
C = int32(0, 4, 9)
COMPACT = [
    (TypeError, "tensors: expected a list or tuple", lambda op: op(X, I, cu_seqlens=C)),
    (ValueError, "tensors: expected at least one tensor", lambda op: op([], I, cu_seqlens=C)),
    (TypeError, r"tensors\[0\]: expected a tensor, got None", lambda op: op([None], I, cu_seqlens=C)),
    (ValueError, r"tensors\[0\]: expected shape \[T\] or", lambda op: op([X[0, 0]], I, cu_seqlens=C)),
    (TypeError, r"tensors\[0\]: expected a dtype of at most 8 bytes",
     lambda op: op([X.to(torch.complex128)], I, cu_seqlens=C)),
    (ValueError, r"tensors\[1\]: expected 9 tokens on cpu", lambda op: op([X, X[1:]], I, cu_seqlens=C)),
    (ValueError, r"tensors\[0\]: expected no gradient", lambda op: op([X.clone().requires_grad_()], I, cu_seqlens=C)),
    (TypeError, "indices: expected dtype int64", lambda op: op([X], I.int(), cu_seqlens=C)),
    (ValueError, r"indices: expected shape \[S, K\]", lambda op: op([X], I[0], cu_seqlens=C)),
    (ValueError, r"cu_seqlens: expected shape \[3\] on cpu", lambda op: op([X], I, cu_seqlens=C[1:])),
    (ValueError, r"counts: expected shape \[2\] on cpu", lambda op: op([X], I, C, cu_seqlens=C)),
    (TypeError, "counts: expected dtype int32", lambda op: op([X], I, X[:2, 0], cu_seqlens=C)),
    (ValueError, "token_dims: expected one for each of 1 tensors, got 2",
     lambda op: op([X], I, cu_seqlens=C, token_dims=(0, 1))),
    (ValueError, r"token_dims\[0\]: expected less than 2, got 2", lambda op: op([X], I, cu_seqlens=C, token_dims=2)),
    (ValueError, r"token_dims\[0\]: expected at least -2, got -3", lambda op: op([X], I, cu_seqlens=C, token_dims=-3)),
    (TypeError, r"token_dims\[0\]: expected an integer", lambda op: op([X], I, cu_seqlens=C, token_dims=0.0)),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "call"), COMPACT)
def test_bad_compaction(error, message, call):
    with pytest.raises(error, match=f"^compact: {message}"):
        call(compact)
