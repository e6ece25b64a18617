"""Dense tensors by one index set: against indexing, kernel against reference, what is copied, misuse."""

import pytest
import torch

import pyramid_ops
from pyramid_ops import compact
from pyramid_ops._op import OPS
from tests.bits import assert_same_bits, poisoned, to

B, N, K = 3, 11, 5


def layouts() -> list:
    """Tensors of a decoder layer, the dimension that counts tokens, and one that is not contiguous."""
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    return [
        (random(B, N, 24), 1),
        (random(B, N) > 0, 1),
        (torch.arange(B * N).view(B, N), -1),
        (torch.arange(N)[None], 1),
        (torch.arange(3 * B * N).view(3, B, N).movedim(1, 0), 2),
        (random(B, 2, N, 8).bfloat16(), 2),
        (random(B, N, 2, 8).half().transpose(1, 2), -2),
        (random(B, N, 2, 8).half(), 1),
        (random(B, 2, 2, N, 3).double()[..., 1:], 3),
        (torch.complex(random(B, N, 3), random(B, N, 3)).conj(), 1),
        (random(1, 4, N, 2), 2),
        (random(B, N, 0), 1),
    ]


def wanted(x: torch.Tensor, dim: int, indices: torch.Tensor, counts: list) -> torch.Tensor:
    """Token by token."""
    rows = x.expand(B, *x.shape[1:]).movedim(dim, 1)
    out = rows.new_zeros(B, K, *rows.shape[2:])
    for b in range(B):
        for k in range(max(0, min(counts[b], K))):
            if 0 <= indices[b, k] < N:
                out[b, k] = rows[b, indices[b, k]]
    return out.movedim(1, dim)


INDICES = torch.tensor([[0, 3, 10, 7, 7], [1, -1, 11, 2, 1 << 40], [10, 9, 8, 7, 6]])


@pytest.mark.parametrize("counts", [None, [5, 4, 0], [-3, 99, 2]])
def test_equals_indexing(counts):
    tensors, dims = zip(*layouts(), strict=True)
    given = None if counts is None else torch.tensor(counts, dtype=torch.int32)
    kept = compact(tensors, INDICES, given, token_dims=dims)
    counts = [5, 5, 5] if counts is None else counts
    for x, dim, moved in zip(tensors, dims, kept.tensors, strict=True):
        expected = wanted(x, dim, INDICES, counts)
        assert moved.dtype == x.dtype
        assert torch.equal(moved, expected)
    used = [max(0, min(count, K)) for count in counts]
    assert kept.cu_seqlens.dtype == torch.int32
    assert kept.cu_seqlens.tolist() == [sum(used[:b]) for b in range(B + 1)]
    assert kept.positions.tolist() == [[k if k < count else 0 for k in range(K)] for count in used]


def test_positions_of_three_axes():
    positions = torch.arange(3 * B * N).view(3, B, N)
    kept = compact([positions.movedim(1, 0)], INDICES.clamp(0, N - 1), token_dims=2).tensors[0].movedim(0, 1)
    assert torch.equal(kept, positions.gather(2, INDICES.clamp(0, N - 1).expand(3, B, K)))


def test_one_sample_equals_packed():
    x = torch.randn(1, N, 6)
    bounds, counts = torch.tensor([0, N], dtype=torch.int32), torch.tensor([3])
    dense = compact([x], INDICES[:1], counts)
    packed = compact([x[0]], INDICES[:1], counts, cu_seqlens=bounds)
    assert_same_bits(dense.tensors[0][0], packed.tensors[0])
    assert_same_bits(dense.cu_seqlens, packed.cu_seqlens)
    assert_same_bits(dense.positions[0], packed.positions)


def test_empty():
    none = torch.empty(B, 0, dtype=torch.int64)
    kept = compact([torch.ones(B, N, 2), torch.ones(B, 4, N)], none, token_dims=(1, 2))
    assert [x.shape for x in kept.tensors] == [(B, 0, 2), (B, 4, 0)]
    assert kept.cu_seqlens.tolist() == [0] * (B + 1)
    assert kept.positions.shape == (B, 0)
    assert compact([torch.ones(B, 0, 2)], none).tensors[0].shape == (B, 0, 2)
    assert compact([torch.ones(0, N, 2)], none[:0]).tensors[0].shape == (0, 0, 2)


def test_keys_and_values_are_not_copied(monkeypatch):
    """The op sees them where they lie."""
    seen = []
    monkeypatch.setattr(
        pyramid_ops.ops.gathering,
        "compact_op",
        lambda tensors, *args: seen.extend(tensors) or OPS["compact"](tensors, *args),
    )
    keys, values = torch.randn(B, 4, N, 8), torch.randn(B, N, 4, 8)
    hidden = torch.randn(2 * B, 2 * N, 16)[::2, ::2, 3:]
    positions = torch.arange(3 * B * N).view(3, B, N).movedim(1, 0)
    given = [keys, values.transpose(1, 2), values, hidden, positions]
    compact(given, INDICES, token_dims=(2, 2, 1, 1, 2))
    assert [x.data_ptr() for x in seen] == [x.data_ptr() for x in given]


@pytest.mark.kernel
@pytest.mark.parametrize("counts", [None, [5, 4, 0], [-3, 99, 2]])
def test_kernel_equals_reference(device, counts):
    tensors, dims = zip(*[(x, dim) for x, dim in layouts() if not x.is_complex()], strict=True)
    given = None if counts is None else torch.tensor(counts, dtype=torch.int32)
    expected = compact(tensors, INDICES, given, token_dims=dims)
    with pyramid_ops.use_backend("kernel"), poisoned():
        actual = compact(to(device, tensors), *to(device, [INDICES, given]), token_dims=dims)
    assert_same_bits(actual, expected)


@pytest.mark.kernel
@pytest.mark.parametrize(("rows", "block"), [(1, 1), (16, 4), (4, 256)])
def test_tiles_do_not_change_bits(device, rows, block):
    from pyramid_ops.kernels.choosers import forcing

    tensors = [torch.arange(B * 2 * N * 9, dtype=torch.int16).view(B, 2, N, 9)]
    args = (tensors, INDICES, torch.tensor([4, 1, 5], dtype=torch.int32), None)
    expected = OPS["compact"].reference(*args)
    with poisoned(), forcing(token_tiles={"ROWS": rows, "BLOCK": block}):
        actual = OPS["compact"].kernel(*[to(device, x) for x in args])
    assert_same_bits(actual, expected)


@pytest.mark.kernel
def test_one_launch_and_one_for_each_tensor(monkeypatch, device):
    from pyramid_ops.kernels import gathering

    launches = []
    launch = gathering.launch
    monkeypatch.setattr(gathering, "launch", lambda *args, **options: launches.append(1) or launch(*args, **options))
    x = torch.zeros(B, N, 4, device=device)
    with pyramid_ops.use_backend("kernel"):
        compact([x, x, x[..., 0]], INDICES.to(device))
    assert len(launches) == 4


def test_compiles_to_one_graph():
    x, keys = torch.randn(B, N, 4), torch.randn(B, 2, N, 4)
    function = lambda x, keys, counts: compact([x, keys], INDICES, counts, token_dims=(1, 2))  # noqa: E731
    counts = torch.tensor([4, 0, 9])
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert_same_bits(compiled(x, keys, counts), function(x, keys, counts))


X = torch.zeros(B, N, 4)
I = torch.zeros(B, K, dtype=torch.int64)  # noqa: E741
C = torch.arange(B + 1, dtype=torch.int32) * N


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, r"tensors\[0\]: expected shape \[B, N\] or \[B, N, F\]", lambda: compact([X[0, :, 0]], I)),
        (ValueError, r"tensors\[0\]: expected a batch size of 1 or 3 in dimension 0", lambda: compact([X[:2]], I)),
        (ValueError, r"tensors\[1\]: expected 11 tokens on cpu", lambda: compact([X, X[:, 1:]], I)),
        (ValueError, r"token_dims\[0\]: expected a dimension other than that", lambda: compact([X], I, token_dims=0)),
        (ValueError, r"token_dims\[0\]: expected a dimension other than that", lambda: compact([X], I, token_dims=-3)),
        (ValueError, r"token_dims\[0\]: expected less than 3, got 3", lambda: compact([X], I, token_dims=3)),
        (ValueError, "indices: expected at most 4 for each sample, got 5", lambda: compact([X[:, :4]], I)),
        (ValueError, r"indices: expected shape \[B, K\]", lambda: compact([X], I[0])),
        (ValueError, r"counts: expected shape \[3\] on cpu", lambda: compact([X], I, C)),
        (ValueError, r"tensors\[0\]: expected token_dims .* got None for float32 \[3, 11, 4\]",
         lambda: compact([X], I, cu_seqlens=C)),
        (ValueError, r"tensors\[0\]: expected token_dims", lambda: compact([X], I[:, :1], cu_seqlens=C)),
        (ValueError, r"tensors\[0\]: expected token_dims", lambda: compact([X[:2]], I, cu_seqlens=C)),
        (ValueError, r"tensors\[1\]: expected token_dims",
         lambda: compact([X[:, 0], X], I, cu_seqlens=C)),
    ],
)  # fmt: skip
def test_misuse(error, message, call):
    with pytest.raises(error, match=f"^compact: {message}"):
        call()


def test_packed_heads_of_as_many_tokens_as_segments():
    """What looks dense is taken as packed if that is said."""
    bounds = torch.tensor([0, 2, 3, 3], dtype=torch.int32)
    kept = compact([X[:, :2]], I, torch.tensor([2, 1, 0]), cu_seqlens=bounds, token_dims=0)
    assert kept.tensors[0].shape == (B * K, 2, 4)
    assert kept.cu_seqlens.tolist() == [0, 2, 3, 3]
