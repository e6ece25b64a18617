"""What engines call: counts before, masks after, each image as alone."""

import pytest
import torch

from pyramid_ops import plans, serving
from pyramid_ops.ops.greedy import greedy_select


def published(embeds, size, merge, q):
    """vLLM's rule, in float64: indices of what stays."""
    frames, rows, columns = size[0], size[1] // merge, size[2] // merge
    x = embeds.double().reshape(frames, rows * columns, -1)
    cosine = torch.nn.functional.cosine_similarity(x[1:], x[:-1], dim=-1)
    different = torch.cat([torch.full((1, rows * columns), 255.0), 1 - cosine]).flatten()
    count = max(rows * columns, int(frames * rows * columns * (1 - q)))
    return different.argsort(descending=True, stable=True)[:count].sort().values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "merge"), [((6, 8, 4), 2), ((1, 4, 4), 1), ((3, 5, 7), 1), ((4, 6, 6), 2)])
@pytest.mark.parametrize("q", [0.0, 0.3, 0.75, 0.99])
def test_contract_of_vllm(size, merge, q, dtype):
    count = size[0] * (size[1] // merge) * (size[2] // merge)
    embeds = torch.randn(count, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    got = serving.compute_retention_mask(embeds, torch.tensor(size), merge, q)
    expected = published(embeds, size, merge, q)
    assert got.shape == (count,)
    assert got.dtype == torch.bool
    assert torch.equal(got.nonzero().flatten(), expected)
    assert len(expected) == serving.compute_retained_tokens_count(count // size[0], size[0], q)


def test_a_still_video_keeps_its_first_frame():
    frame = torch.randn(9, 16)
    got = serving.compute_retention_mask(frame.repeat(5, 1), (5, 3, 3), 1, 0.6)
    assert bool(got[:9].all())
    assert int(got.sum()) == 18


SIZES = [(1, 4, 5), (2, 3, 3), (1, 1, 1), (4, 2, 2)]


@pytest.mark.parametrize("method", serving.METHODS)
@pytest.mark.parametrize("rate", [0.0, 0.4, 0.9])
def test_a_packed_batch_is_each_alone(method, rate):
    lengths = [a * b * c for a, b, c in SIZES]
    generator = torch.Generator().manual_seed(1)
    x, scores = torch.randn(sum(lengths), 16, generator=generator), torch.rand(sum(lengths), generator=generator)
    given = scores if method in ("attention", "cdpruner") else None
    together = serving.retention_mask(method, x, SIZES, rate, scores=given)
    for size, a, b, part in zip(SIZES, x.split(lengths), scores.split(lengths), together.split(lengths), strict=True):
        given = b if method in ("attention", "cdpruner") else None
        assert torch.equal(serving.retention_mask(method, a, size, rate, scores=given), part)
        assert int(part.sum()) == serving.retained_count(method, size, rate)


def test_methods_are_what_they_say():
    x, scores = torch.randn(20, 16), torch.rand(20)
    size = (1, 4, 5)
    best = scores.topk(8).indices.sort().values
    assert torch.equal(serving.retention_mask("attention", x, size, 0.6, scores=scores).nonzero().flatten(), best)
    for method, options in (("divprune", {}), ("cdpruner", {"rule": "dpp", "relevance": scores[None]})):
        plan = greedy_select(x[None], 8, **options)
        given = scores if method == "cdpruner" else None
        assert torch.equal(serving.retention_mask(method, x, size, 0.6, scores=given), plans.mask(plan)[0])


def test_positions_are_those_of_qwen():
    got = serving.media_positions((3, 2, 4), start=7, step=2)
    expected = [(7 + 2 * t, 7 + h, 7 + w) for t in range(3) for h in range(2) for w in range(4)]
    assert got.T.tolist() == [list(each) for each in expected]


def test_nothing_at_all():
    assert serving.retention_mask("divprune", torch.randn(0, 8), [], 0.5).shape == (0,)


def test_a_count_is_of_the_decimal_number():
    for n in range(1, 120):
        for percent in range(100):
            left = n * (100 - percent) // 100
            assert serving.retained_count("divprune", (1, 1, n), percent / 100) == left, (n, percent)
        for left in range(1, n + 1):
            assert serving.retained_count("attention", (1, 1, n), 1 - left / n) == left


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: serving.retained_count("fastv", (1, 2, 2), 0.5),
            "retained_count: method: expected one of 'attention'",
        ),
        (lambda: serving.retained_count("evs", (2, 2), 0.5), "retained_count: size: expected .frames, rows, columns."),
        (
            lambda: serving.retained_count("evs", (0, 2, 2), 0.5),
            r"retained_count: size\[0\]: expected at least 1, got 0",
        ),
        (lambda: serving.retained_count("evs", (1, 2, 2), 1.0), "rate: expected at least 0 and less than 1, got 1.0"),
        (
            lambda: serving.retention_mask("divprune", torch.rand(5, 3), (1, 2, 2), 0.5),
            "retention_mask: sizes: expected 5 tokens as the embeddings, got 4",
        ),
        (
            lambda: serving.retention_mask("attention", torch.rand(4, 3), (1, 2, 2), 0.5),
            "retention_mask: scores: expected a tensor .T. for 'attention', got None",
        ),
        (
            lambda: serving.retention_mask("evs", torch.rand(4, 3), (1, 2, 2), 0.5, scores=torch.rand(4)),
            "retention_mask: scores: expected None for 'evs'",
        ),
        (
            lambda: serving.retention_mask("attention", torch.rand(80, 3), (5, 4, 4), 0.5, scores=torch.rand(99)),
            r"retention_mask: scores: expected \[80\] on cpu, got float32 \[99\]",
        ),
        (
            lambda: serving.retention_mask("cdpruner", torch.rand(4, 3), (1, 2, 2), 0.5, scores=torch.rand(5)),
            r"retention_mask: scores: expected \[4\] on cpu, got float32 \[5\]",
        ),
        (
            lambda: serving.compute_retained_tokens_count(64, 8, -1),
            "tokens_count: q: expected at least 0 and less than 1",
        ),
        (
            lambda: serving.compute_retained_tokens_count(64, 8, 2),
            "tokens_count: q: expected at least 0 and less than 1",
        ),
        (lambda: serving.compute_retained_tokens_count(64, 8, 1.0), "q: expected at least 0 and less than 1, got 1.0"),
        (lambda: serving.compute_retained_tokens_count(64, 0, 0.5), "num_frames: expected at least 1, got 0"),
        (
            lambda: serving.compute_retention_mask(torch.rand(128, 3), (2, 8, 8), 1, 1.0),
            "compute_retention_mask: q: expected at least 0 and less than 1, got 1.0",
        ),
        (
            lambda: serving.compute_retention_mask(torch.rand(128, 3), (2, 8, 8), 0, 0.5),
            "compute_retention_mask: spatial_merge_size: expected at least 1, got 0",
        ),
        (
            lambda: serving.compute_retention_mask(torch.rand(128, 3), (2, 8, 8), 9, 0.5),
            "compute_retention_mask: spatial_merge_size: expected at most 8, got 9",
        ),
        (
            lambda: serving.compute_retention_mask(torch.rand(64, 3), torch.tensor([8, 8]), 1, 0.5),
            "compute_retention_mask: video_size_thw: expected .frames, rows, columns.",
        ),
        (lambda: serving.media_positions((1, 1, 1), step=-1), "media_positions: step: expected at least 0, got -1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
