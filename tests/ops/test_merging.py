"""What merging means: against the published rules in float64."""

import pytest
import torch

import pyramid_ops
from pyramid_ops import MergePlan, compat
from pyramid_ops.verify.inputs import int32
from tests.bits import assert_same_bits

from .merging_inputs import INF, NAN, clusters, cosine, rand, tome, tome_merge


@pytest.mark.parametrize("tokens", [2, 3, 7, 64, 197])
@pytest.mark.parametrize(("class_token", "distill_token"), [(False, False), (True, False), (True, True)])
def test_plan_and_merge_follow_tome(tokens, class_token, distill_token):
    x = rand(3, tokens, 24, seed=tokens)
    protected = class_token + distill_token
    for r in {0, 1, (tokens - protected) // 4, (tokens - protected) // 2}:
        r = max(0, min(r, (tokens - protected) // 2))
        plan = pyramid_ops.tome_matching(x, r, class_token=class_token, distill_token=distill_token)
        expected = tome(x, r, class_token, distill_token)
        for name, tensor in zip(("sources", "destinations", "unmerged"), expected, strict=False):
            assert torch.equal(getattr(plan, name), tensor), name
        assert torch.allclose(plan.similarities.double(), expected[3], atol=2e-6)
        for mode, reduce in (("mean", "mean"), ("sum", "sum"), ("amax", "amax")):
            merged, sizes = pyramid_ops.merge_tokens(x, plan, mode=mode)
            assert torch.allclose(merged.double(), tome_merge(x.double(), expected, reduce, distill_token), atol=1e-5)
            assert torch.equal(sizes.sum(1), torch.full((3,), float(tokens)))
        ones = torch.ones(3, tokens, 1)
        assert torch.equal(sizes[..., None], tome_merge(ones, expected, "sum", distill_token))


def test_class_and_distillation_tokens_stay_in_front():
    x = rand(2, 20, 8)
    plan = pyramid_ops.tome_matching(x, 9, class_token=True, distill_token=True)
    merged, sizes = pyramid_ops.merge_tokens(x, plan)
    assert_same_bits(merged[:, :2], x[:, :2])
    assert (sizes[:, :2] == 1).all()
    assert pyramid_ops.merge_indices(plan)[:, :2].tolist() == [[0, 1], [0, 1]]


def test_r_is_capped_and_small_inputs_work():
    for tokens, r, left in ((1, 5, 1), (2, 5, 1), (3, 5, 2), (0, 1, 0), (5, 0, 5)):
        x = rand(2, tokens, 4)
        plan = pyramid_ops.tome_matching(x, r)
        merged, sizes = pyramid_ops.merge_tokens(x, plan)
        assert merged.shape == (2, left, 4)
        assert sizes.shape == (2, left)
        assert pyramid_ops.unmerge_tokens(merged, plan).shape == x.shape


def test_original_order_keeps_the_order_of_tokens():
    x = rand(2, 33, 8)
    plan = pyramid_ops.tome_matching(x, 11)
    tome_order, _ = pyramid_ops.merge_tokens(x, plan)
    merged, _ = pyramid_ops.merge_tokens(x, plan, order="original")
    for b in range(2):
        kept = [i for i in range(33) if i not in plan.sources[b].tolist()]
        rows = pyramid_ops.merge_indices(plan)[b]
        assert_same_bits(merged[b], tome_order[b, rows[kept]])
        assert pyramid_ops.merge_indices(plan, order="original")[b, kept].tolist() == list(range(22))
    assert_same_bits(
        pyramid_ops.unmerge_tokens(merged, plan, order="original"), pyramid_ops.unmerge_tokens(tome_order, plan)
    )


def test_unmerge_gives_each_token_its_group():
    x = rand(2, 40, 8)
    plan = pyramid_ops.tome_matching(x, 15)
    merged, sizes = pyramid_ops.merge_tokens(x, plan)
    rows = pyramid_ops.merge_indices(plan)
    assert_same_bits(pyramid_ops.unmerge_tokens(merged, plan), merged.gather(1, rows[..., None].expand(-1, -1, 8)))
    counts = torch.stack([rows[b].bincount(minlength=25) for b in range(2)])
    assert torch.equal(counts.float(), sizes)


def test_all_zero_tokens_have_similarity_zero_and_merge_last():
    x = rand(1, 12, 4).abs()
    x[0, 4] = 0
    plan = pyramid_ops.tome_matching(x, 6)
    assert plan.sources[0, -1] == 4
    assert plan.similarities[0, -1] == 0


def test_tokens_that_are_not_finite_merge_with_nothing_and_spread_no_nan():
    x = rand(1, 12, 4)
    x[0, 2, 0], x[0, 5, 1] = NAN, INF
    plan = pyramid_ops.tome_matching(x, 5)
    assert 2 not in plan.sources[0].tolist()
    assert 5 not in plan.destinations[0].tolist()
    merged, _ = pyramid_ops.merge_tokens(x, plan, order="original")
    assert merged.isfinite().all(-1).sum() == 5
    plan = pyramid_ops.tome_matching(x, 6)  # one source too many: token 2 is dropped
    assert plan.sources[0, -1] == 2
    assert plan.destinations[0, -1] == -1
    merged, sizes = pyramid_ops.merge_tokens(x, plan)
    assert merged.isnan().sum() == 0
    assert sizes.sum() == 11
    assert pyramid_ops.merge_indices(plan)[0, 2] == -1
    assert pyramid_ops.merge_indices(plan, order="original")[0, 2] == -1
    assert (pyramid_ops.unmerge_tokens(merged, plan)[0, 2] == 0).all()


@pytest.mark.parametrize(("class_token", "distill_token"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("order", ["tome", "original"])
def test_packed_tokens_equal_their_segments_alone(order, class_token, distill_token):
    lengths = [17, 0, 40, 1, 2, 3, 64]
    starts = torch.tensor([0, *lengths]).cumsum(0)
    x = rand(int(starts[-1]) + 5, 12)  # five rows in no segment
    sizes = rand(len(x), seed=3).abs() + 1
    flags = {"class_token": class_token, "distill_token": distill_token}
    plan = pyramid_ops.tome_matching(x, 9, cu_seqlens=starts.to(torch.int32), max_seqlen=64, **flags)
    merged, totals = pyramid_ops.merge_tokens(x, plan, sizes, order=order)
    rows = pyramid_ops.merge_indices(plan, order=order)
    back = pyramid_ops.unmerge_tokens(merged, plan, order=order)
    used = dict.fromkeys(("sources", "destinations", "unmerged", "similarities"), 0)
    for s in range(len(lengths)):
        here = slice(int(starts[s]), int(starts[s + 1]))
        out = slice(int(plan.cu_seqlens[s]), int(plan.cu_seqlens[s + 1]))
        alone = pyramid_ops.tome_matching(x[None, here], 9, **flags)
        expected, expected_sizes = pyramid_ops.merge_tokens(x[None, here], alone, sizes[None, here], order=order)
        assert_same_bits(merged[out], expected[0], f"segment {s}")
        assert_same_bits(totals[out], expected_sizes[0])
        expected_rows = pyramid_ops.merge_indices(alone, order=order)[0]
        assert torch.equal(rows[here], expected_rows + out.start)
        assert_same_bits(back[here], pyramid_ops.unmerge_tokens(expected, alone, order=order)[0])
        for name in used:
            part = getattr(alone, name)[0]
            shift = 0 if name == "similarities" else here.start
            assert torch.equal(getattr(plan, name)[used[name] : used[name] + len(part)], part + shift), name
            used[name] += len(part)
    last = int(plan.cu_seqlens[-1])
    assert (rows[-5:] == -1).all()
    assert (merged[last:] == 0).all()
    assert (plan.sources[used["sources"] :] == -1).all()


def test_weighted_mean_against_float64():
    x, sizes = rand(2, 300, 16), torch.rand(2, 300, generator=torch.Generator().manual_seed(1)) + 0.5
    plan = pyramid_ops.tome_matching(x, 140)
    merged, totals = pyramid_ops.merge_tokens(x, plan, sizes)
    rows = pyramid_ops.merge_indices(plan)
    total = torch.zeros(2, 160, dtype=torch.float64).scatter_add(1, rows, sizes.double())
    weighted = (x * sizes[..., None]).double()
    mean = torch.zeros(2, 160, 16, dtype=torch.float64).scatter_add(1, rows[..., None].expand_as(x), weighted)
    assert torch.allclose(merged.double(), mean / total[..., None], atol=1e-5)
    assert torch.allclose(totals.double(), total, rtol=1e-6)


def test_additions_follow_the_written_order():
    """A destination with 70 sources: chunks of 32, 32 and 6, each on its own from +0."""
    x = rand(1, 142, 1) * 10 ** rand(1, 142, 1, seed=1)
    plan = pyramid_ops.tome_matching(torch.ones(1, 142, 4), 70)
    assert plan.destinations.unique().tolist() == [1]
    merged, _ = pyramid_ops.merge_tokens(x, plan, mode="sum")
    sources = plan.sources[0].sort().values.tolist()
    total = x[0, 1, 0]
    for start in range(0, 70, 32):
        chunk = torch.tensor(0.0)
        for token in sources[start : start + 32]:
            chunk = chunk + x[0, token, 0]
        total = total + chunk
    assert_same_bits(merged[0, 1, 0], total)


def test_a_lone_token_is_unchanged():
    x = rand(1, 9, 5)
    x[0, 8, 0] = -0.0
    merged, _ = pyramid_ops.merge_tokens(x, pyramid_ops.tome_matching(x, 2), torch.full((1, 9), 3.0), order="original")
    plan = pyramid_ops.tome_matching(x, 2)
    rows = pyramid_ops.merge_indices(plan, order="original")[0]
    alone = [i for i in range(9) if (rows == rows[i]).sum() == 1]
    assert_same_bits(merged[0, rows[alone]], x[0, alone])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_assign_mean(dtype):
    x = rand(2, 500, 12, dtype=dtype)
    assignment = torch.randint(-1, 9, (2, 500), generator=torch.Generator().manual_seed(2))
    assignment[0, :200] = 3
    assignment[assignment == 5] = 6
    weights = torch.rand(2, 500, generator=torch.Generator().manual_seed(3))
    for w in (None, weights):
        means, totals = pyramid_ops.assign_mean(x, assignment, 8, weights=w)
        used = torch.ones(2, 500) if w is None else w
        for b in range(2):
            for c in range(8):
                here = assignment[b] == c
                total = used[b, here].double().sum()
                assert abs(totals[b, c] - total) < 1e-4
                mean = (x[b, here].double() * used[b, here, None].double()).sum(0) / total if c != 5 else x[b, 0] * 0
                assert torch.allclose(
                    means[b, c].double(), mean.double(), atol=1e-2 if dtype != torch.float32 else 1e-6
                )


@pytest.mark.parametrize("mode", ["sum", "amax"])
def test_assign_sum_and_maximum(mode):
    x, assignment = rand(2, 50, 12), torch.randint(-1, 9, (2, 50), generator=torch.Generator().manual_seed(2))
    weights = torch.rand(2, 50, generator=torch.Generator().manual_seed(3))
    found, totals = pyramid_ops.assign_mean(x, assignment, 8, weights=weights, mode=mode)
    for b in range(2):
        for c in range(8):
            rows, w = x[b, assignment[b] == c].double(), weights[b, assignment[b] == c].double()
            expected = (rows * w[:, None]).sum(0) if mode == "sum" else rows.amax(0)
            assert torch.allclose(found[b, c].double(), expected, atol=1e-6)
            assert abs(totals[b, c] - w.sum()) < 1e-5


@pytest.mark.parametrize("mode", ["mean", "sum", "amax"])
def test_packed_clusters_are_those_of_each_segment_alone(mode):
    generator = torch.Generator().manual_seed(0)
    lengths, many = [20, 0, 1, 45], [3, 2, 1, 7]
    bounds, cu_clusters = (torch.tensor([0, *part]).cumsum(0) for part in (lengths, many))
    x, weights = rand(70, 5), torch.rand(70, generator=generator)
    assignment = torch.randint(-1, 8, (70,), generator=generator)
    options = {"cu_seqlens": bounds, "cu_clusters": cu_clusters, "weights": weights, "mode": mode}
    tokens, sizes = pyramid_ops.assign_mean(x, assignment, 15, **options)
    for s, (start, length, row, count) in enumerate(zip(bounds, lengths, cu_clusters, many, strict=False)):
        here = slice(start, start + length)
        alone = pyramid_ops.assign_mean(x[here], assignment[here], count, weights=weights[here], mode=mode)
        assert_same_bits(tokens[row : row + count], alone.tokens, f"segment {s}")
        assert_same_bits(sizes[row : row + count], alone.sizes, f"segment {s}")
    assert (tokens[13:] == 0).all()
    assert (sizes[13:] == 0).all()
    fewer, _ = pyramid_ops.assign_mean(x, assignment, 4, **options)
    assert_same_bits(fewer, tokens[:4])


def test_packed_clusters_take_what_best_match_gives():
    """Each token of a segment joins its most similar centre of the segment."""
    x, centres = rand(30, 8), rand(7, 8, seed=1)
    of_x, of_centres = torch.tensor([0, 11, 30]), torch.tensor([0, 4, 7])
    match = pyramid_ops.best_match(x, centres, cu_seqlens_q=of_x, cu_seqlens_k=of_centres)
    means, _ = pyramid_ops.assign_mean(x, match.indices, 7, cu_seqlens=of_x, cu_clusters=of_centres)
    for s in range(2):
        rows, keys = x[of_x[s] : of_x[s + 1]], centres[of_centres[s] : of_centres[s + 1]]
        nearest = cosine(rows[None], keys[None])[0].argmax(-1)
        for c in range(len(keys)):
            expected = rows[nearest == c].mean(0) if (nearest == c).any() else torch.zeros(8)
            assert torch.allclose(means[of_centres[s] + c], expected, atol=1e-6)


def test_empty_clusters_are_zero():
    means, totals = pyramid_ops.assign_mean(rand(4, 3), torch.tensor([0, 9, -1, 0]), 3)
    assert (means[1:] == 0).all()
    assert totals.tolist() == [2.0, 0.0, 0.0]
    assert (
        pyramid_ops.assign_mean(rand(2, 0, 3), torch.zeros(2, 0, dtype=torch.int64), 2).tokens.tolist()
        == [[[0.0] * 3] * 2] * 2
    )


def test_vscan_merging_is_a_mean_over_kept_and_dropped():
    """VScan: each dropped token joins its most similar kept token, (kept + sum) / (1 + n)."""
    kept, dropped = rand(1, 10, 16), rand(1, 60, 16, seed=1)
    match = pyramid_ops.best_match(dropped, kept)
    assignment = torch.cat((torch.arange(10)[None], match.indices), 1)
    means, totals = pyramid_ops.assign_mean(torch.cat((kept, dropped), 1), assignment, 10)
    for i in range(10):
        joined = dropped[0, cosine(dropped, kept)[0].argmax(-1) == i]
        assert torch.allclose(means[0, i], (kept[0, i] + joined.sum(0)) / (1 + len(joined)), atol=1e-6)
        assert totals[0, i] == 1 + len(joined)


def test_aim_merges_twice_without_sizes():
    x = clusters(1, 64, 16, torch.float32)
    once = x
    for _ in range(2):
        r = once.shape[1] // 2
        expected = tome_merge(once.double(), tome(once, r), "mean")
        once, _ = pyramid_ops.merge_tokens(once, pyramid_ops.tome_matching(once, r))
        assert torch.allclose(once.double(), expected, atol=1e-6)
    assert once.shape[1] == 16


def test_proportional_attention_adds_log_sizes():
    """Tokens that were equal count as often after merging as before."""
    base = rand(1, 6, 16)
    x = base.repeat_interleave(2, 1)
    plan = pyramid_ops.tome_matching(x, 6)
    merged, sizes = pyramid_ops.merge_tokens(x, plan)
    query = rand(1, 5, 16, seed=2)
    before = (query @ x.mT / 4).softmax(-1) @ x
    after = (query @ merged.mT / 4 + sizes.log()[:, None]).softmax(-1) @ merged
    assert sizes.max() == 2
    assert torch.allclose(before, after, atol=1e-6)


BAD = [
    (lambda: pyramid_ops.best_match(rand(3, 4), rand(3, 5)), ValueError, "best_match: keys: expected the batch size"),
    (lambda: pyramid_ops.best_match(rand(2, 3, 4), rand(3, 4)), ValueError, "best_match: keys: expected"),
    (lambda: pyramid_ops.best_match([1], rand(3, 4)), TypeError, "best_match: queries: expected a tensor"),
    (lambda: pyramid_ops.best_match(rand(3, 4).double(), rand(3, 4)), TypeError, "best_match: queries: expected dtype"),
    (
        lambda: pyramid_ops.best_match(rand(3, 4), rand(3, 4), precision="low"),
        ValueError,
        "best_match: precision: expected one of 'grid', 'high', got 'low'",
    ),
    (
        lambda: pyramid_ops.best_match(rand(3, 4), rand(3, 4), key_mask=torch.ones(3)),
        TypeError,
        "best_match: key_mask: expected dtype bool",
    ),
    (
        lambda: pyramid_ops.best_match(rand(3, 4), rand(3, 4), key_mask=torch.ones(4, dtype=torch.bool)),
        ValueError,
        r"best_match: key_mask: expected \[3\]",
    ),
    (
        lambda: pyramid_ops.best_match(rand(3, 4), rand(3, 4), cu_seqlens_q=torch.zeros(2, dtype=torch.int32)),
        ValueError,
        "best_match: cu_seqlens_k: expected with the other offsets",
    ),
    (
        lambda: pyramid_ops.best_match(rand(3, 4), rand(3, 4), max_seqlen_q=3),
        ValueError,
        "best_match: max_seqlen_q: expected only with",
    ),
    (lambda: pyramid_ops.tome_matching(rand(2, 8, 4), -1), ValueError, "tome_matching: r: expected at least 0, got -1"),
    (lambda: pyramid_ops.tome_matching(rand(2, 8, 4), 1.5), TypeError, "tome_matching: r: expected an integer"),
    (lambda: pyramid_ops.tome_matching(rand(8, 4), 1), ValueError, "tome_matching: cu_seqlens: expected offsets"),
    (
        lambda: pyramid_ops.tome_matching(rand(2, 8, 4), 1, class_token=1),
        TypeError,
        "tome_matching: class_token: expected a bool",
    ),
    (
        lambda: pyramid_ops.tome_matching(rand(8, 4), 1, cu_seqlens=torch.zeros(2, dtype=torch.int16)),
        TypeError,
        "tome_matching: cu_seqlens: expected dtype int32",
    ),
    (
        lambda: pyramid_ops.tome_matching(rand(2, 8, 4), 1, cu_seqlens=torch.zeros(2, dtype=torch.int32)),
        ValueError,
        "tome_matching: cu_seqlens: expected only with packed",
    ),
    (lambda: pyramid_ops.merge_tokens(rand(2, 8, 4), (1, 2)), TypeError, "merge_tokens: plan: expected a MergePlan"),
    (lambda: pyramid_ops.merge_tokens(rand(2, 9, 4), plan()), ValueError, r"merge_tokens: x: expected \[2, 8, D\]"),
    (
        lambda: pyramid_ops.merge_tokens(rand(2, 8, 4), plan(), torch.ones(2, 9)),
        ValueError,
        r"merge_tokens: sizes: expected \[2, 8\]",
    ),
    (
        lambda: pyramid_ops.merge_tokens(rand(2, 8, 4), plan(), mode="max"),
        ValueError,
        "merge_tokens: mode: expected one of 'mean', 'sum', 'amax', got 'max'",
    ),
    (
        lambda: pyramid_ops.merge_tokens(rand(2, 8, 4), plan(), order="index"),
        ValueError,
        "merge_tokens: order: expected one of 'tome', 'original'",
    ),
    (lambda: pyramid_ops.unmerge_tokens(rand(2, 8, 4), plan()), ValueError, r"unmerge_tokens: merged: expected \[2, 6"),
    (
        lambda: pyramid_ops.assign_mean(rand(4, 2), torch.zeros(4), 2),
        TypeError,
        "assign_mean: assignment: expected dtype int64",
    ),
    (
        lambda: pyramid_ops.assign_mean(rand(4, 2), torch.zeros(3, dtype=torch.int64), 2),
        ValueError,
        r"assign_mean: assignment: expected \[4\]",
    ),
    (
        lambda: pyramid_ops.assign_mean(rand(4, 2), torch.zeros(4, dtype=torch.int64), -1),
        ValueError,
        "assign_mean: num_clusters: expected at least 0, got -1",
    ),
    (
        lambda: pyramid_ops.assign_mean(rand(4, 2), torch.zeros(4, dtype=torch.int64), 2, mode="max"),
        ValueError,
        "assign_mean: mode: expected one of 'mean', 'sum', 'amax', got 'max'",
    ),
    (
        lambda: pyramid_ops.assign_mean(rand(4, 2), torch.zeros(4, dtype=torch.int64), 2, cu_seqlens=int32(0, 4)),
        ValueError,
        "assign_mean: cu_clusters: expected with cu_seqlens",
    ),
    (
        lambda: pyramid_ops.assign_mean(
            rand(4, 2), torch.zeros(4, dtype=torch.int64), 2, cu_seqlens=int32(0, 4), cu_clusters=int32(0, 1, 2)
        ),
        ValueError,
        r"assign_mean: cu_clusters: expected shape \[2\]",
    ),
    (
        lambda: pyramid_ops.assign_mean(
            rand(1, 4, 2), torch.zeros(1, 4, dtype=torch.int64), 2, cu_seqlens=int32(0, 4), cu_clusters=int32(0, 2)
        ),
        ValueError,
        r"assign_mean: cu_seqlens: expected with packed tokens \[T, D\]",
    ),
    (
        lambda: pyramid_ops.tome_matching(rand(2, 8, 4).requires_grad_(), 1),
        ValueError,
        "tome_matching: metric: expected no gradient",
    ),
    (
        lambda: compat.bipartite_soft_matching_random2d(rand(2, 8, 4), 3, 3, 2, 2, 1),
        ValueError,
        "bipartite_soft_matching_random2d: metric: expected 3 · 3 tokens",
    ),
]


def plan() -> MergePlan:
    return pyramid_ops.tome_matching(rand(2, 8, 4), 2)


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
