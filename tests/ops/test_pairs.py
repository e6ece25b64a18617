"""What paired similarity means: against float64 and best_match."""

import pytest
import torch

from pyramid_ops import best_match, paired_similarity
from pyramid_ops.verify.inputs import FEATURES, FLOATS, special_rows
from tests.bits import assert_same_bits

from .merging_inputs import INF, NAN, rand


def by_best_match(x, y):
    """One query and one key to a sample."""
    match = best_match(x.reshape(-1, 1, x.shape[-1]), y.reshape(-1, 1, y.shape[-1]), precision="high")
    return match.similarity.view(x.shape[:-1])


@pytest.mark.parametrize("dtype", FEATURES)
@pytest.mark.parametrize("features", [1, 3, 64, 100, 1024, 1600, 16384])
def test_it_is_best_match_of_one_key_each(features, dtype):
    x, y = special_rows(features, dtype, 1), special_rows(features, dtype, 2)
    assert_same_bits(paired_similarity(x, y), by_best_match(x, y))
    near = (x.float() + 0.01 * rand(2, 9, features)).to(dtype)
    assert_same_bits(paired_similarity(x, near), by_best_match(x, near))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("features", [3, 64, 1024, 4096])
def test_it_is_the_cosine(features, dtype):
    x, y = rand(3, 50, features, dtype=dtype), rand(3, 50, features, seed=1, dtype=dtype)
    y[1] = (x[1].float() + 0.02 * y[1].float()).to(dtype)
    expected = torch.nn.functional.cosine_similarity(x.double(), y.double(), dim=-1)
    actual = paired_similarity(x, y)
    assert actual.dtype == torch.float32
    assert (actual.double() - expected).abs().max() < 2.0**-21 * features**0.5
    assert (actual.double() - expected).abs().mean() < 2.0**-21


def test_frames_of_a_video_are_ranked_as_by_float64():
    """EVS keeps the patches least like their place in the frame before."""
    frame = rand(1, 256, 1024)
    frames = (frame + 0.02 * rand(8, 256, 1024, seed=1)).bfloat16()
    exact = torch.nn.functional.cosine_similarity(frames[1:].double(), frames[:-1].double(), dim=-1).flatten()
    found = paired_similarity(frames[1:], frames[:-1]).flatten()
    wanted = set(exact.topk(500, largest=False).indices.tolist())
    assert len(wanted & set(found.topk(500, largest=False).indices.tolist())) >= 497


def test_special_rows():
    x = torch.tensor([[3.0, 0.0], [0.0, 0.0], [NAN, 1.0], [1.0, 1.0], [INF, 0.0], [3e38, 3e38], [1e-30, 0.0]])
    y = torch.tensor([[-6.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, -INF], [1.0, 0.0], [1.0, 1.0], [1e30, 0.0]])
    assert_same_bits(paired_similarity(x, y), torch.tensor([-1.0, 0.0, -INF, -INF, -INF, -INF, 1.0]))


@pytest.mark.parametrize("shape", [(1, 1, 40), (3, 1, 40), (1, 20, 40)])
def test_one_partner_of_several_rows(shape):
    x, y = rand(3, 20, 40), rand(*shape, seed=1)
    assert_same_bits(paired_similarity(x, y), paired_similarity(x, y.expand_as(x).contiguous()))
    assert_same_bits(paired_similarity(x[0], y[0, :1]), paired_similarity(x[0], y[0, :1].repeat(20, 1)))


def test_strided_packed_and_mixed_rows_agree():
    x = rand(6, 20, 33)
    y = rand(6, 20, 33, seed=1).half()
    expected = paired_similarity(x, y)
    for view in (lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), lambda x: x.mT.contiguous().mT):
        assert_same_bits(paired_similarity(view(x), view(y)), expected)
    assert_same_bits(paired_similarity(x.flatten(0, 1), y.flatten(0, 1)), expected.flatten())
    assert_same_bits(paired_similarity(y, x), expected)
    assert_same_bits(paired_similarity(x[4:5], y[4:5]), expected[4:5])
    assert paired_similarity(x[:0], y[:0]).shape == (0, 20)


X = torch.zeros(2, 12, 4)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("x: expected a tensor", lambda: paired_similarity([1], X)),
        ("y: expected a tensor", lambda: paired_similarity(X, None)),
        (r"x: expected shape \[B, N, D\] or \[T, D\], got float32 \[4\]", lambda: paired_similarity(X[0, 0], X)),
        ("y: expected dtype float32", lambda: paired_similarity(X, X.double())),
        ("x: expected 1 to 16384 features", lambda: paired_similarity(X[..., :0], X)),
        (r"y: expected the shape, or 1 in place of all but the last size,.*got float32 \[12, 4\]",
         lambda: paired_similarity(X, X[0])),
        (r"y: expected the shape.*got float32 \[2, 12, 3\]", lambda: paired_similarity(X, X[..., :3])),
        (r"y: expected the shape.*got float32 \[2, 12, 1\]", lambda: paired_similarity(X, X[..., :1])),
        (r"y: expected the shape.*got float32 \[2, 11, 4\]", lambda: paired_similarity(X, X[:, 1:])),
        (r"y: expected the shape.*got float32 \[2, 12, 4\]", lambda: paired_similarity(X[:1], X)),
        ("y: expected no gradient", lambda: paired_similarity(X, X.clone().requires_grad_())),
    ],
)  # fmt: skip
def test_bad_pairs(message, call):
    with pytest.raises((TypeError, ValueError), match=f"^paired_similarity: {message}"):
        call()
