"""Ragged batches: per-segment topk in a loop, and indexing of each tensor with one index."""

import pytest
import torch

import pyramid_ops
from bench.conftest import DEVICE

LENGTHS = {
    "8x576": [576] * 8,
    "64x576": [576] * 64,
    "8 of 60 to 9000": [60, 9000, 576, 2880, 1024, 5440, 256, 4096],
    "1x2^20": [1 << 20],
}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def bounds_of(lengths):
    return torch.tensor([sum(lengths[:s]) for s in range(len(lengths) + 1)], dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize(
    ("order", "dtype"), [("value", torch.float32), ("value", torch.bfloat16), ("index", torch.float32)]
)
@pytest.mark.parametrize("case", LENGTHS)
def test_segmented_topk(compare, case, order, dtype):
    lengths = LENGTHS[case]
    scores = torch.randn(sum(lengths), device=DEVICE).to(dtype)
    wanted = [max(1, n // 4) for n in lengths]

    def ours(scores, bounds, lengths, wanted):
        return pyramid_ops.segmented_topk(scores, bounds, wanted, max_seqlen=max(lengths), order=order)

    def eager(scores, bounds, lengths, wanted):
        parts = [part.topk(k) for part, k in zip(scores.split(lengths), wanted, strict=True)]
        if order == "value":
            return parts
        indices = [part.indices.sort().values for part in parts]
        return [(part[i], i) for part, i in zip(scores.split(lengths), indices, strict=True)]

    arguments = (scores, bounds_of(lengths), lengths, wanted)
    compare({"pyramid_ops": ours, "eager": eager}, arguments, scores.nbytes + sum(wanted) * (8 + scores.element_size()))


@DTYPES
@pytest.mark.parametrize("case", ["8x576", "64x576"])
def test_compact(compare, case, dtype):
    """One decoder layer: hidden states, keys and values of 8 heads, positions and a mask."""
    lengths = LENGTHS[case]
    total, bounds = sum(lengths), bounds_of(lengths)
    hidden = torch.randn(total, 4096, device=DEVICE).to(dtype)
    keys, values = torch.randn(2, 8, total, 128, device=DEVICE).to(dtype)
    tensors = [hidden, keys, values, torch.arange(total, device=DEVICE), torch.ones(total, device=DEVICE).bool()]
    dims = (0, 1, 1, 0, 0)
    scores = torch.randn(total, device=DEVICE)
    top = pyramid_ops.segmented_topk(scores, bounds, 288, max_seqlen=576, order="index")

    def ours(tensors, indices, bounds):
        return pyramid_ops.compact(tensors, indices, cu_seqlens=bounds, token_dims=dims).tensors

    def eager(tensors, indices, bounds):
        source = (bounds[:-1, None] + indices).flatten()
        return [x.index_select(dim, source) for x, dim in zip(tensors, dims, strict=True)]

    floor = sum(x.nbytes for x in tensors)  # half of the tokens are read, as many are written
    compare({"pyramid_ops": ours, "eager": eager}, (tensors, top.indices, bounds), floor)


@DTYPES
def test_select_topk_levels_packed(compare, dtype):
    """Four images of different sizes, a quarter to a twentieth of their tokens kept."""
    sides, wanted = (64, 48, 40, 24), (273, 150, 300, 144)
    lengths = [[(side >> k) ** 2 for side in sides] for k in range(4)]
    levels = [torch.randn(sum(n), 1024, device=DEVICE).to(dtype) for n in lengths]
    weights = (0.4, 0.3, 0.2, 0.1)
    each = [pyramid_ops.allocate_budgets(k, weights, [n[b] for n in lengths]) for b, k in enumerate(wanted)]
    budgets = torch.tensor(each, dtype=torch.int32, device=DEVICE)
    bounds = [bounds_of(n) for n in lengths]

    def ours(levels, bounds, budgets):
        kept = pyramid_ops.select_topk_levels_packed(levels, bounds, budgets, max_seqlen=4096, capacity=300)
        return kept.tokens, kept.indices

    def eager(levels, bounds, budgets):
        tokens = []
        for b in range(len(sides)):
            for k, level in enumerate(levels):
                part = level.split(lengths[k])[b]
                tokens.append(part[part.var(-1).topk(each[b][k]).indices])
        return torch.cat(tokens)

    kept = sum(wanted) * 1024 * levels[0].element_size()
    floor = sum(level.nbytes for level in levels) + 2 * kept
    compare({"pyramid_ops": ours, "eager": eager}, (levels, bounds, budgets), floor)
