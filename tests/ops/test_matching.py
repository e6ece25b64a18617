"""What matching means: against integers and float64."""

import pytest
import torch

import pyramid_ops
from pyramid_ops.reference.dots import grid_products, grid_rows
from pyramid_ops.reference.units import unit_rows
from tests.bits import assert_same_bits

from .merging_inputs import INF, NAN, clusters, cosine, rand


def adversarial_rows(features):
    """Rows whose unit vectors make the largest, the most cancelling and the most uneven sums."""
    signs = torch.where(torch.arange(features) % 2 == 0, 1.0, -1.0)
    spike = torch.full((features,), 1e-3)
    spike[0] = 1.0
    return torch.stack([torch.ones(features), signs, spike, -spike, rand(features), rand(features, seed=1) ** 5])


@pytest.mark.parametrize("limbs", [1, 2])
@pytest.mark.parametrize("features", [1, 3, 64, 100, 1024, 4096, 16384])
def test_similarity_equals_integer_arithmetic(features, limbs):
    rows = adversarial_rows(features)
    units, _ = unit_rows(rows[None], limbs, 10)
    high = (units[0, :, 0].double() * 2048).to(torch.int64)
    low = (units[0, :, 1].double() * 1024).to(torch.int64) if limbs == 2 else torch.zeros_like(high)
    integers = (high << 10) + low
    exact = (integers[:, None] * integers[None]).sum(-1)  # in units of 2^-42
    (operand,), _ = grid_rows(rows[None], limbs, 10)
    products = grid_products(operand, operand).double() * 4096
    assert torch.equal(products.to(torch.int64), exact)


def test_similarity_is_exact_whatever_the_ambient_precision():
    q, k = rand(1, 40, 64), rand(1, 60, 64, seed=1)
    expected = pyramid_ops.best_match(q, k, precision="grid")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_bits(pyramid_ops.best_match(q, k, precision="grid"), expected)
    torch.set_float32_matmul_precision("medium")
    try:
        assert_same_bits(pyramid_ops.best_match(q, k, precision="grid"), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("precision", "gap"), [("grid", 2.0**-9), ("high", 2.0**-20)])
@pytest.mark.parametrize("features", [8, 64, 1024])
@pytest.mark.parametrize("kind", ["clusters", "mean", "frames"])
def test_partners_equal_float64_where_similarities_differ(kind, features, precision, gap):
    if kind == "frames":
        frame = rand(1, 1, features).expand(2, 300, features)
        x = frame + 0.05 * rand(2, 300, features, seed=1)
    else:
        x = clusters(2, 300, features, torch.float32) + (3 * rand(1, 1, features, seed=9) if kind == "mean" else 0)
    q, k = x[:, ::2], x[:, 1::2]
    similarity = cosine(q, k)
    (best, second), index = similarity.topk(2).values.unbind(-1), similarity.argmax(-1)
    match = pyramid_ops.best_match(q, k, precision=precision)
    clear = best - second > gap
    assert clear.any() or precision == "grid"
    assert torch.equal(match.indices[clear], index[clear])
    assert (match.similarity.double() - best).abs().max() < gap


def test_ties_go_to_the_lower_key():
    k = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 3.0]])
    match = pyramid_ops.best_match(torch.tensor([[5.0, 0.0], [0.0, 0.1], [0.0, 0.0]]), k)
    assert match.indices.tolist() == [0, 1, 0]
    assert match.similarity.tolist() == [1.0, 1.0, 0.0]


def test_rows_without_a_finite_norm_match_nothing():
    x = torch.tensor([[1.0, 0.0], [NAN, 0.0], [INF, 1.0], [0.0, 0.0], [3e38, 3e38]])
    match = pyramid_ops.best_match(x, x)
    assert match.indices.tolist() == [0, -1, -1, 0, -1]
    assert match.similarity.tolist() == [1.0, -INF, -INF, 0.0, -INF]
    assert pyramid_ops.best_match(x[:1], x[1:3]).indices.tolist() == [-1]


def test_segments_match_inside_themselves():
    q, k = rand(50, 16), rand(70, 16, seed=1)
    cu_q, cu_k = torch.tensor([0, 20, 20, 50], dtype=torch.int32), torch.tensor([0, 30, 60, 70], dtype=torch.int32)
    match = pyramid_ops.best_match(q, k, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, max_seqlen_q=30, max_seqlen_k=30)
    for s in (0, 2):
        rows = slice(int(cu_q[s]), int(cu_q[s + 1]))
        alone = pyramid_ops.best_match(q[rows], k[int(cu_k[s]) : int(cu_k[s + 1])])
        assert_same_bits([x[rows] for x in match], list(alone))


def test_masked_keys_are_not_matched():
    q, k = rand(2, 9, 16), rand(2, 30, 16, seed=1)
    mask = torch.arange(30).expand(2, 30) >= 20
    match = pyramid_ops.best_match(q, k, key_mask=mask)
    assert_same_bits(match.indices, pyramid_ops.best_match(q, k[:, 20:]).indices + 20)


@pytest.mark.slow
def test_memory_grows_with_tokens_not_their_square():
    x = rand(1, 16384, 64, dtype=torch.bfloat16)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        plan = pyramid_ops.tome_matching(x, 4096)
        pyramid_ops.merge_tokens(x, plan)
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert peak < 32 << 20  # the similarity matrix alone would be 256 MB
