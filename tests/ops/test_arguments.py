"""Arguments that users pass: NumPy numbers, one sample without a batch, what is refused and by which message."""

import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor

import pyramid_ops
from pyramid_ops import compat
from tests.bits import assert_same_bits


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def raises(kind: type, message: str):
    return pytest.raises(kind, match=re.escape(message))


# ToMe, as published (facebookresearch/ToMe, tome/merge.py)


def tome_rows(metric: Tensor, r: int, class_token: bool, distill_token: bool) -> tuple[list[list[int]], int]:
    """Which original tokens each output row holds, and how many tokens were merged away."""
    r = min(r, (metric.shape[1] - class_token - distill_token) // 2)
    if r <= 0:
        return [[n] for n in range(metric.shape[1])], 0
    metric = metric / metric.norm(dim=-1, keepdim=True)
    a, b = metric[..., ::2, :], metric[..., 1::2, :]
    scores = a @ b.transpose(-1, -2)
    if class_token:
        scores[..., 0, :] = -math.inf
    if distill_token:
        scores[..., :, 0] = -math.inf
    node_max, node_idx = scores.max(dim=-1)
    edge_idx = node_max.argsort(dim=-1, descending=True, stable=True)[0]
    unm_idx, src_idx = edge_idx[r:], edge_idx[:r]
    if class_token:
        unm_idx = unm_idx.sort().values
    unm = [[2 * int(n)] for n in unm_idx]
    dst = [[2 * n + 1] for n in range(b.shape[1])]
    for n in src_idx:
        dst[int(node_idx[0, n])].append(2 * int(n))
    if distill_token:
        return unm[:1] + dst[:1] + unm[1:] + dst[1:], r
    return unm + dst, r


@pytest.mark.parametrize("distill_token", [False, True])
@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("tokens", range(1, 9))
def test_no_finite_token_is_lost_and_rows_are_those_of_tome(tokens, class_token, distill_token):
    for r in range(tokens + 1):
        x = rand(1, tokens, 5, seed=tokens + 10 * r)
        expected, removed = tome_rows(x, r, class_token, distill_token)
        plan = pyramid_ops.tome_matching(x, r, class_token=class_token, distill_token=distill_token)
        if removed:
            rows = pyramid_ops.merge_indices(plan)[0]
            actual = [(rows == row).nonzero()[:, 0].tolist() for row in range(plan.num_rows)]
            assert actual == [sorted(row) for row in expected]
        assert plan.num_rows == tokens - removed
        assert (plan.rows >= 0).all()
        assert (plan.destinations >= 0).all()
        # A packed segment is a sample.
        packed = pyramid_ops.tome_matching(
            torch.cat((rand(2, 5), x[0])), r, cu_seqlens=torch.tensor([0, 2, 2 + tokens], dtype=torch.int32),
            class_token=class_token, distill_token=distill_token,
        )  # fmt: skip
        assert_same_bits(packed.rows[2:] - packed.cu_seqlens[1], plan.rows[0])


def test_the_only_odd_token_takes_the_first_even_one():
    plan = pyramid_ops.tome_matching(rand(1, 3, 4), 1, distill_token=True)
    assert (plan.sources.tolist(), plan.destinations.tolist(), plan.rows.tolist()) == ([[0]], [[1]], [[1, 1, 0]])
    assert plan.similarities.tolist() == [[-math.inf]]


def test_a_class_token_stays_where_others_match_nothing():
    x = rand(2, 6, 4)
    x[0, 2:, 0] = math.nan
    x[1, :, 0] = math.nan
    cu = torch.tensor([0, 6, 12], dtype=torch.int32)
    for plan in (
        pyramid_ops.tome_matching(x, 2, class_token=True),
        pyramid_ops.tome_matching(x.flatten(0, 1), 2, class_token=True, cu_seqlens=cu),
    ):
        assert (pyramid_ops.merge_indices(plan).flatten()[::6] >= 0).all()
        assert not {0, 6} & set(plan.sources.flatten().tolist())


def test_descending_offsets_count_as_the_greatest_before():
    x = rand(9, 4)
    given, meant = (torch.tensor(v, dtype=torch.int32) for v in ([0, 4, 2, 7, 99, 3], [0, 4, 4, 7, 9, 9]))
    assert_same_bits(
        list(pyramid_ops.tome_matching(x, 1, cu_seqlens=given)), list(pyramid_ops.tome_matching(x, 1, cu_seqlens=meant))
    )
    heads = x[:, None]
    assert_same_bits(
        pyramid_ops.attention_importance(heads, heads, cu_seqlens_q=given, cu_seqlens_k=given),
        pyramid_ops.attention_importance(heads, heads, cu_seqlens_q=meant, cu_seqlens_k=meant),
    )


def test_a_query_of_two_segments_gets_the_best_match_of_both():
    queries, keys = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.1], [1.0, 1.0], [0.0, 3.0]])
    cu_q, cu_k = torch.tensor([0, 2, 0, 2], dtype=torch.int32), torch.tensor([0, 2, 2, 3], dtype=torch.int32)
    match = pyramid_ops.best_match(queries, keys, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k)
    assert match.indices.tolist() == [0, 0]
    assert match.similarity[1] == 1.0  # key 0 of the third segment


# One sample without a batch


def test_one_sample_needs_no_batch():
    x, y = rand(12), rand(12, seed=1)
    for normalize in (None, "minmax"):
        assert_same_bits(
            pyramid_ops.combine_scores([x, y], [1.0, 2.0], normalize=normalize),
            pyramid_ops.combine_scores([x[None], y[None]], [1.0, 2.0], normalize=normalize)[0],
        )
    assert_same_bits(pyramid_ops.pool_scores(x, (3, 4)), pyramid_ops.pool_scores(x[None], (3, 4))[0])
    assert_same_bits(
        pyramid_ops.broadcast_regions(x[:4], (5, 6), (2, 2)),
        pyramid_ops.broadcast_regions(x[None, :4], (5, 6), (2, 2))[0],
    )
    features, lengths = rand(12, 5), torch.tensor([7])
    assert_same_bits(
        pyramid_ops.region_variance(features, (3, 4), (1, 2), lengths=lengths),
        pyramid_ops.region_variance(features[None], (3, 4), (1, 2), lengths=lengths)[0],
    )
    with raises(ValueError, "combine_scores: scores[1]: expected [12] on cpu, got float32 [1, 12] on cpu"):
        pyramid_ops.combine_scores([x, y[None]], [1.0, 2.0])
    with raises(ValueError, "combine_scores: scores[0]: expected shape [B, N] or [T], got float32 [] on cpu"):
        pyramid_ops.combine_scores([x[0]], [1.0])


# NumPy, ranges and sizes


def test_numpy_numbers_are_numbers():
    q = rand(2, 2, 6, 4)
    expected = pyramid_ops.attention_importance(
        q, q, query_indices=[1, -1], key_range=(1, 5), scale=0.1, temperature=0.7, softcap=3.0
    )
    for indices in (np.array([1, -1]), (np.int64(1), np.int32(-1)), [np.uint8(1), -1]):
        actual = pyramid_ops.attention_importance(
            q, q, query_indices=indices, key_range=torch.Size((1, 5)), scale=np.float64(0.1),
            temperature=np.float64(0.7), softcap=np.float64(3.0),
        )  # fmt: skip
        assert_same_bits(actual, expected)
    assert_same_bits(
        pyramid_ops.attention_importance(q, q, query_indices=range(2, 5)),
        pyramid_ops.attention_importance(q, q, query_indices=[2, 3, 4]),
    )
    assert_same_bits(
        pyramid_ops.attention_importance(q, q, scale=np.float32(0.1), key_range=np.array([0, 3])),
        pyramid_ops.attention_importance(q, q, scale=float(np.float32(0.1)), key_range=(0, 3)),
    )
    assert_same_bits(
        pyramid_ops.attention_walk(q, q, steps=np.int8(2), temperature=np.float32(0.1)),
        pyramid_ops.attention_walk(q, q, steps=2, temperature=float(np.float32(0.1))),
    )
    tokens = rand(2, 12, 4)
    assert_same_bits(list(pyramid_ops.tome_matching(tokens, np.int64(3))), list(pyramid_ops.tome_matching(tokens, 3)))
    merges = [compat.bipartite_soft_matching_random2d(tokens, w, 3, 2, s, r)[0] for w, s, r in
              ((4, 1, 5), (np.int64(4), np.int16(1), np.uint8(5)))]  # fmt: skip
    assert_same_bits(merges[0](tokens), merges[1](tokens))


Q = rand(1, 1, 4, 4)
ATTENTION = [
    ({"query_indices": [1.0]}, TypeError, "query_indices[0]: expected an integer, got 1.0 (float)"),
    ({"query_indices": np.array([0.0, 2.0])}, TypeError, "query_indices[0]: expected an integer, got 0.0 (float)"),
    ({"query_indices": [0, True]}, TypeError, "query_indices[1]: expected an integer, got True (bool)"),
    ({"query_indices": [0, 4]}, ValueError, "query_indices[1]: expected less than 4, got 4"),
    ({"query_indices": [0, -5]}, ValueError, "query_indices[1]: expected at least -4, got -5"),
    ({"query_indices": torch.Size(())}, ValueError, "query_indices: expected at least one index"),
    ({"query_indices": 3}, TypeError, "query_indices: expected a list or tuple of numbers, got 3 (int)"),
    (
        {"query_indices": np.zeros((1, 1), dtype=int)},
        TypeError,
        "query_indices[0]: expected an integer, got [0] (list)",
    ),
    ({"query_indices": torch.tensor([0.0])}, TypeError, "query_indices: expected dtype int32, int64, got float32 [1]"),
    ({"key_range": (0, 2.0)}, TypeError, "key_range[1]: expected an integer, got 2.0 (float)"),
    ({"key_range": 3}, TypeError, "key_range: expected a list or tuple of numbers, got 3 (int)"),
    ({"key_range": (0, 1, 2)}, ValueError, "key_range: expected (start, stop), got (0, 1, 2)"),
    ({"scale": "1"}, TypeError, "scale: expected a number, got '1' (str)"),
    ({"scale": torch.tensor(1.0)}, TypeError, "scale: expected a number, got float32 [] on cpu"),
    ({"temperature": 0}, ValueError, "temperature: expected a number above 0, got 0"),
    ({"causal": 1}, TypeError, "causal: expected a bool, got 1 (int)"),
    ({"query_weights": rand(4)}, ValueError, "query_weights: expected shape [B, Nq], got float32 [4] on cpu"),
    (
        {"log_sum_exp": rand(1, 2, 4)},
        ValueError,
        "log_sum_exp: expected [1, 1, 4] on cpu, got float32 [1, 2, 4] on cpu",
    ),
]


@pytest.mark.parametrize(("options", "kind", "message"), ATTENTION)
def test_attention_names_what_is_wrong(options, kind, message):
    with raises(kind, f"attention_importance: {message}"):
        pyramid_ops.attention_importance(Q, Q, **options)


X = rand(1, 12, 4)
COMPAT = [
    (lambda: compat.bipartite_soft_matching(X, 2.5), "bipartite_soft_matching: r: expected an integer, got 2.5"),
    (lambda: compat.bipartite_soft_matching(X, 2, 1), "bipartite_soft_matching: class_token: expected a bool, got 1"),
    (
        lambda: compat.kth_bipartite_soft_matching(X, 2.0),
        "kth_bipartite_soft_matching: k: expected an integer, got 2.0",
    ),
    (lambda: random2d(r=3.0), "bipartite_soft_matching_random2d: r: expected an integer, got 3.0 (float)"),
    (lambda: random2d(seed=1.5), "bipartite_soft_matching_random2d: seed: expected an integer, got 1.5 (float)"),
    (lambda: random2d(seed=None), "bipartite_soft_matching_random2d: seed: expected an integer, got None (NoneType)"),
    (lambda: random2d(sx=2.0), "bipartite_soft_matching_random2d: sx: expected an integer, got 2.0 (float)"),
    (lambda: random2d(generator=3), "bipartite_soft_matching_random2d: generator: expected a torch.Generator, got 3"),
    (lambda: random2d(no_rand=1), "bipartite_soft_matching_random2d: no_rand: expected a bool, got 1 (int)"),
    (lambda: random2d(choices=[[0]]), "bipartite_soft_matching_random2d: choices: expected a tensor, got [[0]] (list)"),
    (lambda: compat.merge_wavg(lambda x: x, X), "merge_wavg: merge: expected what a matching of this module returns"),
    (lambda: compat.merge_wavg(None, [1]), "merge_wavg: x: expected a tensor, got [1] (list)"),
    (lambda: compat.merge_source(None, None), "merge_source: x: expected a tensor, got None (NoneType)"),
]


def random2d(w=4, h=3, sx=2, sy=1, r=2, **options):
    return compat.bipartite_soft_matching_random2d(X, w, h, sx, sy, r, **options)


@pytest.mark.parametrize(("call", "message"), COMPAT, ids=[message for _, message in COMPAT])
def test_compat_names_function_and_argument(call, message):
    with raises(TypeError, message):
        call()


def test_a_grid_has_to_hold_a_cell():
    for sx, sy in ((5, 1), (2, 4)):
        message = f"sx, sy: expected a cell within the grid of 4×3 tokens, got {sx}×{sy}"
        with raises(ValueError, f"bipartite_soft_matching_random2d: {message}"):
            random2d(sx=sx, sy=sy)
        assert random2d(sx=sx, sy=sy, r=0)[0](X) is X
    assert random2d(sx=3, sy=2, r=100)[0](X).shape == (1, 1, 4)
    with raises(ValueError, "bipartite_soft_matching: metric: expected shape [B, N, C], got float32 [12, 4] on cpu"):
        compat.bipartite_soft_matching(X[0], 2)


def test_integers_have_64_bits():
    with raises(ValueError, "tome_matching: r: expected an integer of 64 bits, got 9223372036854775808"):
        pyramid_ops.tome_matching(X, 1 << 63)
    with raises(ValueError, "segmented_topk: k[0]: expected an integer of 64 bits"):
        pyramid_ops.segmented_topk(X[0, :, 0], torch.tensor([0, 5]).int(), [1 << 64], max_seqlen=5, capacity=2)


def test_tensors_that_are_not_dense_are_named():
    quantized = torch.quantize_per_tensor(rand(2, 3), 0.1, 0, torch.qint8)
    with raises(TypeError, "token_norm: features: expected a dense tensor, got a quantized one of torch.qint8"):
        pyramid_ops.token_norm(quantized)
    with raises(TypeError, "token_norm: features: expected a dense tensor, got a sparse_coo one of torch.float32"):
        pyramid_ops.token_norm(rand(2, 3).to_sparse())
    with raises(TypeError, "token_norm: features: expected a dense tensor, got a nested one of torch.float32"):
        pyramid_ops.token_norm(torch.nested.nested_tensor([rand(2, 3)]))


def test_positions_are_where_they_are_said_to_be():
    sizes = [(4, 4), (2, 2)]
    torch.set_default_device("meta")
    try:
        assert all(x.device.type == "cpu" for x in pyramid_ops.patch_positions(sizes, 2))
        assert all(x.device.type == "meta" for x in pyramid_ops.patch_positions(sizes, 2, device="meta"))
        assert pyramid_ops.patch_positions([torch.zeros(1, 1, 4, 4, device="cpu")], 2)[0].device.type == "cpu"
    finally:
        torch.set_default_device(None)


def test_plans_are_checked():
    plan = pyramid_ops.tome_matching(X, 2)
    for wrong, kind, message in (
        (plan._replace(rows=plan.rows.int()), TypeError, "plan.rows: expected dtype int64, got int32 [1, 12]"),
        (plan._replace(sources=plan.sources[0]), ValueError, "plan.sources: expected shape [B, r], got int64 [2]"),
        (plan._replace(sources=plan.sources.repeat(2, 1)), ValueError, "plan.sources: expected the batch size"),
        (plan._replace(num_rows=-1), ValueError, "plan.num_rows: expected at least 0, got -1"),
        (plan._replace(num_rows=10.0), TypeError, "plan.num_rows: expected an integer, got 10.0 (float)"),
    ):
        with raises(kind, f"merge_tokens: {message}"):
            pyramid_ops.merge_tokens(X, wrong)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: pyramid_ops.token_norm([0.5] * 9999), TypeError, "token_norm: features: expected a tensor, got [0.5"),
        (
            lambda: pyramid_ops.select_topk_levels([rand(2, 5, 4)], 3, saliency=np.ones((2, 5))),
            TypeError,
            "select_topk_levels: saliency: expected 'variance'",
        ),
        (
            lambda: pyramid_ops.combine_scores([rand(2, 5)], [1.0], normalize=np.ones(3)),
            ValueError,
            "combine_scores: normalize: expected None or 'minmax'",
        ),
        (
            lambda: pyramid_ops.unmerge_tokens(
                rand(1, 3, 2).to(torch.complex128), pyramid_ops.tome_matching(rand(1, 4, 2), 1)
            ),
            TypeError,
            "unmerge_tokens: merged: expected a dtype of at most 8 bytes",
        ),
    ],
)
def test_messages_are_short_and_name_their_op(call, kind, message):
    with raises(kind, message) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 400


@pytest.mark.kernel
def test_kernels_read_no_pending_negation(device):
    q = rand(1, 1, 4, 4).to(device)
    given = torch._neg_view(torch.full((1, 1, 4), -2.0, device=device))
    levels, pairs = [rand(1, 5, 2).to(device)], torch._neg_view(-torch.tensor([[[0, 3], [0, 1]]], device=device))
    calls = (
        lambda: pyramid_ops.attention_importance(q, q, log_sum_exp=given),
        lambda: pyramid_ops.gather_levels(levels, pairs),
        lambda: pyramid_ops.compact(levels, pairs[..., 1]).tensors[0],
    )
    for call in calls:
        with pyramid_ops.use_backend("reference"):
            expected = call()
        with pyramid_ops.use_backend("kernel"):
            assert_same_bits(call(), expected)
