"""ToMe's and tomesd's functions against their own code."""

import pytest
import torch

import pyramid_ops
from pyramid_ops import compat
from tests.bits import assert_same_bits

from .merging_inputs import cosine, rand, tome, tome_merge


@pytest.mark.parametrize(("w", "h", "sx", "sy"), [(8, 6, 2, 2), (9, 7, 2, 3), (5, 5, 1, 2)])
@pytest.mark.parametrize("no_rand", [True, False])
def test_random2d_equals_tomesd(w, h, sx, sy, no_rand):
    tomesd = pytest.importorskip("tomesd.merge")
    metric, x = rand(2, w * h, 24), rand(2, w * h, 7, seed=1)
    cells = (h // sy) * (w // sx)
    for r in (3, w * h - cells, 10**6):
        random = [torch.Generator().manual_seed(5) for _ in range(2)]
        theirs = tomesd.bipartite_soft_matching_random2d(metric, w, h, sx, sy, r, no_rand, random[0])
        ours = compat.bipartite_soft_matching_random2d(metric, w, h, sx, sy, r, no_rand, random[1])
        for mode in ("mean", "sum", "amax"):
            # Token by token: tomesd's order of destinations comes from an unstable sort.
            expected, actual = (unmerge(merge(x, mode=mode)) for merge, unmerge in (theirs, ours))
            assert torch.allclose(actual, expected, atol=1e-5), (r, mode)
            assert ours[0](x, mode=mode).shape == theirs[0](x, mode=mode).shape


def test_random2d_hash_needs_no_generator():
    metric = rand(1, 400, 8)
    first, again, other = (
        compat.bipartite_soft_matching_random2d(metric, 20, 20, 2, 2, 100, seed=seed)[0].plan for seed in (1, 1, 2)
    )
    assert_same_bits(list(first[:5]), list(again[:5]))
    assert not torch.equal(first.rows, other.rows)
    places = compat._hash(3, 40_000, torch.device("cpu")) % 4
    assert (places.bincount(minlength=4) - 10_000).abs().max() < 400
    chosen = torch.full((10, 10), 3)
    plan = compat.bipartite_soft_matching_random2d(metric, 20, 20, 2, 2, 300, choices=chosen)[0].plan
    assert plan.destinations.remainder(40).min() > 20
    assert (plan.destinations % 2 == 1).all()


def test_kth_matching_follows_tome():
    metric, x = rand(2, 23, 8), rand(2, 23, 5, seed=1)
    for k in (2, 3, 5):
        count = 23 // k * k
        merge, unmerge = compat.kth_bipartite_soft_matching(metric, k)
        groups = metric[:, :count].unflatten(1, (-1, k))
        partner = cosine(groups[:, :, : k - 1].flatten(1, 2), groups[:, :, k - 1]).argmax(-1)
        tokens = x[:, :count].unflatten(1, (-1, k))
        source, target = tokens[:, :, : k - 1].flatten(1, 2), tokens[:, :, k - 1]
        index = partner[..., None].expand(-1, -1, 5)
        for mode in ("mean", "sum", "amax"):
            expected = target.scatter_reduce(1, index, source, mode)
            assert torch.allclose(merge(x, mode=mode), expected, atol=1e-6)
        back = torch.cat((target.gather(1, index).unflatten(1, (-1, k - 1)), target[:, :, None]), 2).flatten(1, 2)
        assert_same_bits(unmerge(target), back)
        x2, size = compat.merge_wavg(merge, x)
        assert size.sum() == 2 * count
        assert x2.shape == target.shape


def test_wavg_and_source_follow_tome():
    metric, x = rand(2, 17, 8), rand(2, 17, 5, seed=1)
    size = torch.randint(1, 5, (2, 17, 1), generator=torch.Generator().manual_seed(0)).float()
    merge, unmerge = compat.bipartite_soft_matching(metric, 6, class_token=True)
    plan = tome(metric, 6, class_token=True)
    sizes = tome_merge(size, plan, "sum")
    expected = tome_merge(x * size, plan, "sum") / sizes
    merged, new_size = compat.merge_wavg(merge, x, size)
    assert torch.equal(new_size, sizes)
    assert torch.allclose(merged, expected, atol=1e-6)
    source = compat.merge_source(merge, x)
    assert torch.equal(source, tome_merge(torch.eye(17).expand(2, 17, 17).contiguous(), plan, "amax"))
    assert torch.equal(source.argmax(1), pyramid_ops.merge_indices(merge.plan))
    again = compat.merge_source(compat.bipartite_soft_matching(merged, 3)[0], merged, source)
    assert torch.equal(again.sum(1), torch.ones(2, 17))
    assert unmerge(merged).shape == x.shape
    nothing, _ = compat.bipartite_soft_matching(metric, 0)
    assert nothing(x, mode="sum") is x
    assert compat.merge_wavg(nothing, x)[1].shape == (2, 17, 1)
    assert nothing.plan is None


def test_kth_matching_takes_the_tokens_of_its_metric():
    merge, _ = compat.kth_bipartite_soft_matching(rand(1, 10, 4), 3)
    for call in (merge, lambda x: compat.merge_wavg(merge, x)):
        with pytest.raises(ValueError, match=r"x: expected 10 tokens as the metric, got float32 \[1, 30, 4\]"):
            call(rand(1, 30, 4))
    with pytest.raises(TypeError, match="^kth_bipartite_soft_matching: x: expected a tensor"):
        merge([1])
    with pytest.raises(ValueError, match="^kth_bipartite_soft_matching: k: expected at most the 5 tokens"):
        compat.kth_bipartite_soft_matching(rand(1, 5, 4), 6)


def test_sizes_of_uint8_tokens_do_not_wrap():
    merge, _ = compat.bipartite_soft_matching(torch.ones(1, 800, 4), 400)
    assert compat.merge_wavg(merge, torch.ones(1, 800, 1, dtype=torch.uint8))[1].sum() == 800


def test_source_is_float32_whatever_the_default_dtype():
    x = rand(1, 8, 4)
    merge, _ = compat.bipartite_soft_matching(x, 3)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert compat.merge_source(merge, x).dtype == torch.float32
    finally:
        torch.set_default_dtype(before)
    with pytest.raises(TypeError, match="^merge_source: merge: expected what a matching"):
        compat.merge_source(None, x)
    with pytest.raises(TypeError, match="^merge_source: source: expected a tensor"):
        compat.merge_source(merge, x, 3)
