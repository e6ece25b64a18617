"""What the nearest keys mean: against float64, `best_match` and plain loops."""

import pytest
import torch

import pyramid_ops
from tests.bits import assert_same_bits

from .merging_inputs import INF, NAN, clusters, cosine, rand

HIGH = {"precision": "high"}


def squared(a, b):
    """Squared distances in float64."""
    return (a.double()[..., :, None, :] - b.double()[..., None, :, :]).square().sum(-1)


def frames(tokens, features, seed=0):
    """Four frames that differ little, one after the other."""
    frame = rand(tokens // 4, features, seed=seed)
    return torch.cat([frame + 0.02 * rand(tokens // 4, features, seed=seed + k) for k in range(1, 5)])


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", ["random", "clusters", "mean", "frames"])
def test_neighbours_equal_float64_where_values_differ(kind, metric, largest):
    x = clusters(1, 200, 48, torch.float32)[0] if kind == "clusters" else rand(200, 48)
    x = frames(200, 48) if kind == "frames" else x + (3 * rand(1, 48, seed=9) if kind == "mean" else 0)
    values = cosine(x, x) if metric == "cosine" else squared(x, x)
    descends = largest == (metric == "cosine")
    values.fill_diagonal_(-INF if descends else INF)
    expected = values.topk(7, largest=descends)
    found = pyramid_ops.nearest(x, x, 6, metric=metric, exclude_self=True, largest=largest, **HIGH)
    error = (found.values - expected.values[:, :6]).abs()
    assert (error <= (1e-6 if metric == "cosine" else 2e-5 * expected.values[:, :6] + 1e-5)).all()
    clear = expected.values.diff().abs() > (2e-6 if metric == "cosine" else 5e-5 * expected.values[:, :6] + 2e-5)
    clear = clear.int().cumprod(-1).bool()  # up to the first pair that may be the other way round
    assert clear.double().mean() > 0.5
    assert torch.equal(found.indices[clear], expected.indices[:, :6][clear])


@pytest.mark.parametrize("precision", ["grid", "high"])
def test_one_nearest_is_the_best_match(precision):
    x = torch.cat([rand(2, 40, 24), torch.zeros(2, 3, 24), rand(2, 40, 24)], 1)
    x[0, 50], x[1, 3, 5] = NAN, INF
    mask = rand(2, 83, seed=3) > 0
    same = {"precision": precision}
    for keys, key_mask in ((x, None), (x, mask), (x.flip(1)[:, :9], None), (x[:, :0], None)):
        match = pyramid_ops.best_match(x, keys, key_mask=key_mask, **same)
        near = pyramid_ops.nearest(x, keys, key_mask=key_mask, **same)
        assert_same_bits([part[..., 0] for part in near], list(match))
    offsets = {"cu_seqlens_q": torch.tensor([0, 30, 30, 80]), "cu_seqlens_k": torch.tensor([2, 20, 60, 83])}
    options = {**same, **offsets, "max_seqlen_k": 15}
    match = pyramid_ops.best_match(x[0], x[1], key_mask=mask[0], **options)
    near = pyramid_ops.nearest(x[0], x[1], key_mask=mask[0], **options)
    assert_same_bits([part[..., 0] for part in near], list(match))


def test_ties_go_to_the_lower_key():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    for metric in ("cosine", "euclidean"):
        near = pyramid_ops.nearest(x, x, 4, metric=metric, exclude_self=True)
        assert near.indices.tolist() == [[2, 4, 1, 3], [3, 0, 2, 4], [0, 4, 1, 3], [1, 0, 2, 4], [0, 2, 1, 3]]
        far = pyramid_ops.nearest(x, x, 4, metric=metric, largest=False)
        assert far.indices.tolist() == [[1, 3, 0, 2], [0, 2, 4, 1], [1, 3, 0, 2], [0, 2, 4, 1], [1, 3, 0, 2]]
        assert near.values[0].tolist() == ([1, 1, 0, 0] if metric == "cosine" else [0, 0, 2, 2])


def test_duplicates_are_at_distance_zero_and_no_distance_is_negative():
    x = rand(60, 37) * 10.0 ** torch.arange(-20, 40).clamp(max=18)[:, None]
    x = torch.cat([x, x, x * (1 + 2**-22)])
    near = pyramid_ops.nearest(x, x, 2, metric="euclidean")
    assert (near.values[:120] == 0).all()
    assert torch.equal(near.indices[:60], torch.stack((torch.arange(60), torch.arange(60, 120)), 1))
    everything = pyramid_ops.nearest(x, x, 64, metric="euclidean").values
    assert (everything >= 0).all()
    assert not torch.signbit(everything).any()


def test_distances_are_symmetric():
    x, y = rand(20, 33), rand(30, 33, seed=1) * 5
    there, back = (pyramid_ops.nearest(*pair, 30, metric="euclidean") for pair in ((x, y), (y, x)))
    distance = torch.zeros(20, 30).scatter_(1, there.indices, there.values)
    assert torch.equal(torch.zeros(30, 20).scatter_(1, back.indices[:, :20], back.values[:, :20]).T, distance)


def test_distances_beyond_float32_are_infinite_and_still_keys():
    x = torch.tensor([[3e30, 0.0], [0.0, 3e30], [0.0, 0.0], [3e30, 0.0]])
    near = pyramid_ops.nearest(x, x, 5, metric="euclidean")
    assert near.indices.tolist() == [[0, 3, 1, 2, -1], [1, 0, 2, 3, -1], [2, 0, 1, 3, -1], [0, 3, 1, 2, -1]]
    assert near.values[0].tolist() == [0, 0, INF, INF, INF]
    far = pyramid_ops.nearest(x, x, 5, metric="euclidean", largest=False)
    assert far.indices[0].tolist() == [1, 2, 0, 3, -1]
    assert far.values[0].tolist() == [INF, INF, 0, 0, -INF]


def test_fewer_keys_than_wanted():
    x = rand(3, 8)
    x[1, 2] = NAN
    for metric, largest, nothing in (
        ("cosine", True, -INF),
        ("cosine", False, INF),
        ("euclidean", True, INF),
        ("euclidean", False, -INF),
    ):
        near = pyramid_ops.nearest(x, x, 64, metric=metric, largest=largest)
        assert sorted(near.indices[0, :2].tolist()) == [0, 2]
        assert (near.indices[0, 2:] == -1).all()
        assert (near.values[0, 2:] == nothing).all()
        assert (near.indices[1] == -1).all()
        assert (near.values[1] == nothing).all()
    assert pyramid_ops.nearest(x, x, 0).indices.shape == (3, 0)
    assert (pyramid_ops.nearest(x, x[:0], 2).indices == -1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_rank_and_masks_leave_keys_out(metric, dtype):
    x, rank = rand(2, 50, 16), (rand(2, 50, seed=1) * 3).round().to(dtype)
    rank[0, :8] = torch.tensor([NAN, INF, -INF, 0.0, -0.0, NAN, INF, -NAN])
    mask = rand(2, 50, seed=2) > -0.5
    everything = pyramid_ops.nearest(x, x, 50, metric=metric, **HIGH)
    near = pyramid_ops.nearest(x, x, 4, metric=metric, rank=rank, key_mask=mask, **HIGH)
    order = rank.float().nan_to_num(4e30, 3e30, -3e30)  # NaN above +inf
    for b in range(2):
        for i in range(50):
            above = (order[b] > order[b, i]) | ((order[b] == order[b, i]) & (torch.arange(50) < i))
            allowed = [j for j in everything.indices[b, i].tolist() if above[j] and mask[b, j]][:4]
            assert near.indices[b, i].tolist() == allowed + [-1] * (4 - len(allowed))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_segments_have_neighbours_inside_themselves(metric):
    q, k, rank = rand(50, 16), rand(50, 16, seed=1), rand(50, seed=2)
    cu_q, cu_k = torch.tensor([0, 20, 20, 50]), torch.tensor([0, 30, 35, 50])
    options = {"metric": metric, "exclude_self": True}
    near = pyramid_ops.nearest(q, k, 6, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, max_seqlen_q=30, **options)
    same = pyramid_ops.nearest(q, q, 6, cu_seqlens_q=cu_q, cu_seqlens_k=cu_q, rank=rank, **options)
    for s in (0, 2):
        rows, columns = slice(int(cu_q[s]), int(cu_q[s + 1])), slice(int(cu_k[s]), int(cu_k[s + 1]))
        alone = pyramid_ops.nearest(q[rows], k[columns], 6, **options)
        assert_same_bits([x[rows] for x in near], list(alone))
        alone = pyramid_ops.nearest(q[rows], q[rows], 6, rank=rank[rows], **options)
        assert_same_bits([x[rows] for x in same], list(alone))


def test_many_short_segments():
    x, cu = rand(1000, 16), torch.arange(0, 1001, 8)
    near = pyramid_ops.nearest(x, x, 3, exclude_self=True, cu_seqlens_q=cu, cu_seqlens_k=cu, max_seqlen_k=8)
    alone = pyramid_ops.nearest(x.view(125, 8, 16), x.view(125, 8, 16), 3, exclude_self=True)
    assert_same_bits(list(near), [part.flatten(0, 1) for part in alone])


def test_a_query_of_no_segment_has_no_neighbours():
    x = rand(6, 4)
    cu = torch.tensor([1, 3, 3, 5])
    near = pyramid_ops.nearest(x, x, 1, cu_seqlens_q=cu, cu_seqlens_k=cu, max_seqlen_q=1)
    assert near.indices.flatten().tolist() == [-1, 0, -1, 0, -1, -1]


def test_equal_tensors_and_one_tensor_are_alike():
    x = rand(2, 30, 8)
    for metric in ("cosine", "euclidean"):
        assert_same_bits(
            list(pyramid_ops.nearest(x, x, 3, metric=metric)), list(pyramid_ops.nearest(x, x.clone(), 3, metric=metric))
        )


BAD = [
    (lambda x: pyramid_ops.nearest(x, x[:, :2]), ValueError, "nearest: keys: expected the batch size"),
    (lambda x: pyramid_ops.nearest(x, x, -1), ValueError, "nearest: k: expected at least 0, got -1"),
    (lambda x: pyramid_ops.nearest(x, x, 65), ValueError, "nearest: k: expected at most 64, got 65"),
    (lambda x: pyramid_ops.nearest(x, x, 1.0), TypeError, "nearest: k: expected an integer"),
    (lambda x: pyramid_ops.nearest(x, x, metric="l2"), ValueError, "nearest: metric: expected one of 'cosine', 'eu"),
    (
        lambda x: pyramid_ops.nearest(x, x, metric="euclidean", precision="grid"),
        ValueError,
        "nearest: precision: expected 'high' with Euclidean distances, got 'grid'",
    ),
    (lambda x: pyramid_ops.nearest(x, x, largest=1), TypeError, "nearest: largest: expected a bool"),
    (lambda x: pyramid_ops.nearest(x, x, exclude_self=None), TypeError, "nearest: exclude_self: expected a bool"),
    (lambda x: pyramid_ops.nearest(x, x, rank=torch.ones(3)), ValueError, r"nearest: rank: expected \[5\]"),
    (lambda x: pyramid_ops.nearest(x, x, rank=torch.arange(5)), TypeError, "nearest: rank: expected dtype float32"),
    (lambda x: pyramid_ops.nearest(x, x[:3], rank=torch.ones(5)), ValueError, "nearest: rank: expected only with as"),
    (lambda x: pyramid_ops.nearest(x, x, key_mask=torch.ones(5)), TypeError, "nearest: key_mask: expected dtype bool"),
    (lambda x: pyramid_ops.nearest(x, x, max_seqlen_k=3), ValueError, "nearest: max_seqlen_k: expected only with"),
    (
        lambda x: pyramid_ops.nearest(x[:, :1], x[:1, :1].expand((1 << 20) + 1, 1)),
        ValueError,
        r"nearest: keys: expected at most 2\^20 keys",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(rand(5, 4))


def test_memory_is_not_of_all_pairs():
    x = rand(1, 8192, 16)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        pyramid_ops.nearest(x, x, 4, metric="euclidean")
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert peak < 64 << 20  # all distances would be 256 MB
