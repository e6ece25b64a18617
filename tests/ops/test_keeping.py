"""What stays and what moves with it, against plain code for each sample."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import pyramid_ops
from pyramid_ops import plans
from tests.bits import assert_same_bits

K = st.integers(0, 10)
VALUES = st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.5, -3.0, math.inf, -math.inf, math.nan])


def rank(score: float, largest: bool) -> float:
    """The better the lower; NaN above +inf."""
    place = 1e300 if math.isnan(score) else min(max(score, -1e200), 1e200)
    return -place if largest else place


def plainly(scores, k, candidates, forced, threshold, largest, capacity, order):
    """The tokens of one sample that stay, by sorting."""
    allowed = [i for i in range(len(scores)) if candidates[i] and not forced[i]]
    if threshold is not None:
        allowed = [i for i in allowed if (scores[i] > threshold if largest else scores[i] < threshold)]
    best = sorted(allowed, key=lambda i: (rank(scores[i], largest), i))[: len(scores) if k is None else k]
    stays = ([i for i in range(len(scores)) if forced[i]] + best)[:capacity]
    return sorted(stays) if order == "index" else stays


@st.composite
def problems(draw):
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    flags = st.lists(st.booleans(), min_size=sum(lengths), max_size=sum(lengths))
    return (
        lengths,
        draw(st.lists(VALUES, min_size=sum(lengths), max_size=sum(lengths))),
        draw(
            st.none() | st.integers(0, 10) | st.lists(st.integers(0, 10), min_size=len(lengths), max_size=len(lengths))
        ),
        draw(st.none() | flags),
        draw(st.none() | flags),
        draw(st.none() | VALUES.filter(math.isfinite)),
        draw(st.booleans()),
        draw(st.none() | st.integers(0, max(lengths))),
        draw(st.sampled_from(["index", "value"])),
    )


@settings(max_examples=300, deadline=None)
@given(problems(), st.booleans(), st.booleans())
def test_keep_is_what_sorting_keeps(problem, dense, on_device):
    lengths, scores, k, candidates, forced, threshold, largest, capacity, order = problem
    if dense:
        lengths = [min(lengths)] * len(lengths)
        scores, candidates, forced = (None if x is None else x[: sum(lengths)] for x in (scores, candidates, forced))
        capacity = None if capacity is None else min(capacity, lengths[0])
    total, segments = sum(lengths), len(lengths)
    bounds = [sum(lengths[:s]) for s in range(segments + 1)]
    shape = (segments, lengths[0]) if dense else (total,)
    options = {
        "candidates": None if candidates is None else torch.tensor(candidates, dtype=torch.bool).view(shape),
        "forced": None if forced is None else torch.tensor(forced, dtype=torch.bool).view(shape),
        "threshold": threshold if threshold is None or not on_device else torch.full((segments,), threshold),
        "largest": largest,
        "capacity": capacity,
        "order": order,
    }
    if not dense:
        options |= {"cu_seqlens": torch.tensor(bounds), "max_seqlen": max(lengths)}
    given_k = torch.tensor(k) if on_device and isinstance(k, list) else k
    plan = plans.keep(torch.tensor(scores, dtype=torch.float32).view(shape), given_k, **options)
    expected = []
    for s, (start, end) in enumerate(itertools.pairwise(bounds)):
        part = slice(start, end)
        kept = plainly(
            scores[part],
            k[s] if isinstance(k, list) else k,
            [True] * (end - start) if candidates is None else candidates[part],
            [False] * (end - start) if forced is None else forced[part],
            threshold,
            largest,
            capacity,
            order,
        )
        expected.append(kept)
    assert plan.counts.tolist() == [len(kept) for kept in expected]
    rows = plan.indices.tolist()
    if dense:
        assert [[i for i in row if i >= 0] for row in rows] == expected
        assert all(row[len(kept) :] == [-1] * (len(row) - len(kept)) for row, kept in zip(rows, expected, strict=True))
        flat = [[bounds[s] + i for i in kept] for s, kept in enumerate(expected)]
    else:
        flat = [[bounds[s] + i for i in kept] for s, kept in enumerate(expected)]
        assert rows == [i for kept in flat for i in kept] + [-1] * (len(rows) - sum(map(len, expected)))
        assert plan.cu_seqlens.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
    marked = plans.mask(plan).flatten()
    assert marked.nonzero()[:, 0].tolist() == sorted(i for kept in flat for i in kept)


def test_default_capacity():
    scores, forced = torch.rand(2, 9), torch.zeros(2, 9, dtype=torch.bool)
    for k, options, capacity in (
        (3, {}, 3),
        (30, {}, 9),
        ([2, 5], {}, 5),
        (torch.tensor([2, 5]), {}, 9),
        (3, {"forced": forced}, 9),
        (None, {"threshold": 0.5}, 9),
        (3, {"threshold": 0.5}, 3),
    ):
        assert plans.keep(scores, k, **options).indices.shape == (2, capacity)


def moved(x, plan, dim, right, fill):
    """A tensor with the batch first, moved sample by sample."""
    out = []
    for b, tokens in enumerate(plan.indices):
        kept = x[b].index_select(dim - 1, tokens[tokens >= 0])
        empty = torch.full_like(x[b].index_select(dim - 1, torch.zeros_like(tokens[tokens < 0])), fill)
        out.append(torch.cat((empty, kept) if right else (kept, empty), dim - 1))
    return torch.stack(out)


@pytest.mark.parametrize("align", ["left", "right"])
def test_apply_moves_everything(align):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 9, generator=generator)
    plan, right = plans.keep(scores, [2, 5], threshold=-1.0), align == "right"
    hidden, cache = torch.randn(2, 9, 6, generator=generator), torch.randn(2, 4, 9, 3, generator=generator)
    positions, grid = torch.arange(18).view(2, 9), torch.arange(54).view(3, 2, 9)
    angles = torch.randn(1, 9, 4, generator=generator)
    square = torch.randn(2, 1, 9, 9, generator=generator) > 0
    columns = torch.randn(1, 1, 5, 9, generator=generator)
    result = plans.apply(
        plan,
        [hidden, cache.bfloat16(), positions, grid, angles, angles[0, :, 0], square, columns],
        dims=[1, 2, 1, 2, 1, 0, (2, 3), -1],
        batch_dims=[0, 0, 0, 1, 0, 0, 0, 0],
        align=align,
        fill=[0, -math.inf, -1, 7, 0.5, 2, True, -1e30],
    )
    shared = angles.expand(2, -1, -1)
    expected = [
        moved(hidden, plan, 1, right, 0),
        moved(cache.bfloat16(), plan, 2, right, -math.inf),
        moved(positions, plan, 1, right, -1),
        moved(grid.movedim(1, 0), plan, 2, right, 7).movedim(0, 1),
        moved(shared, plan, 1, right, 0.5),
        moved(shared[:, :, 0], plan, 1, right, 2),
        moved(moved(square, plan, 2, right, True), plan, 3, right, True),
        moved(columns.expand(2, -1, -1, -1), plan, 3, right, -1e30),
    ]
    for actual, wanted in zip(result, expected, strict=True):
        assert actual.dtype == wanted.dtype
        assert torch.equal(actual, wanted)


def test_apply_moves_packed_tokens():
    bounds = torch.tensor([0, 4, 4, 11])
    scores, hidden = torch.rand(11), torch.randn(11, 6)
    plan = plans.keep(scores, 3, cu_seqlens=bounds, max_seqlen=7)
    assert plan.cu_seqlens.tolist() == [0, 3, 3, 6]
    x, heads, positions, one = plans.apply(
        plan, [hidden, hidden.view(11, 2, 3).transpose(0, 1), torch.arange(33).view(3, 11), scores], dims=[0, 1, 1, 0]
    )
    kept = torch.cat(
        [start + scores[start:end].topk(min(3, end - start)).indices.sort().values for start, end in ((0, 4), (4, 11))]
    )
    assert torch.equal(x[:6], hidden[kept])
    assert torch.equal(heads[:, :6], hidden.view(11, 2, 3).transpose(0, 1)[:, kept])
    assert torch.equal(positions[:, :6], torch.arange(33).view(3, 11)[:, kept])
    assert torch.equal(one[:6], scores[kept])
    assert all(not rest.any() for rest in (x[6:], heads[:, 6:], positions[:, 6:], one[6:]))


def test_a_filler_is_no_nan():
    scores = torch.tensor([[1.0, 2.0, 3.0]])
    plan = plans.keep(scores, [3], candidates=scores > 2)
    assert plans.apply(plan, torch.full((1, 3, 2), math.nan))[0, 1:].tolist() == [[0.0, 0.0]] * 2
    with pytest.raises(ValueError, match=r"apply: fill\[0\]: expected a finite number, got nan"):
        plans.apply(plan, scores, fill=math.nan)


def test_plans_are_plain_data():
    plan = plans.join(X, plans.keep(torch.rand(2, 9), 3))
    for other in (pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan)):
        assert isinstance(other, pyramid_ops.Merge)
        assert torch.equal(
            plans.apply(other, plan.rows[:, :, None].float()), plans.apply(plan, plan.rows[:, :, None].float())
        )


def test_left_padded_samples_are_as_alone():
    lengths, size = [9, 4], 9
    scores, hidden = torch.randn(2, size), torch.randn(2, size, 6)
    there = torch.arange(size) >= size - torch.tensor(lengths)[:, None]
    plan = plans.keep(scores, 3, candidates=there)
    together = plans.apply(plan, hidden, align="right")
    for b, length in enumerate(lengths):
        alone = plans.apply(plans.keep(scores[b : b + 1, -length:], 3), hidden[b : b + 1, -length:])
        assert torch.equal(together[b], alone[0])


BAD = {
    "keep: scores: expected shape [B, N], got float32 [9]": lambda: plans.keep(torch.rand(9), 3),
    "keep: scores: expected shape [T], got float32 [2, 9]": lambda: plans.keep(
        torch.rand(2, 9), 3, cu_seqlens=torch.tensor([0, 9])
    ),
    "keep: max_seqlen: expected only with cu_seqlens, got 3": lambda: plans.keep(torch.rand(2, 9), 3, max_seqlen=3),
    "keep: candidates: expected dtype bool, got float32 [2, 9]": lambda: plans.keep(
        torch.rand(2, 9), 3, candidates=torch.rand(2, 9)
    ),
    "keep: forced: expected [2, 9] on cpu, got bool [2, 8]": lambda: plans.keep(
        torch.rand(2, 9), 3, forced=torch.rand(2, 8) > 0
    ),
    "keep: threshold: expected [2] on cpu, got float32 [1]": lambda: plans.keep(
        torch.rand(2, 9), threshold=torch.rand(1)
    ),
    "keep: threshold: expected a finite number, got nan": lambda: plans.keep(torch.rand(2, 9), threshold=math.nan),
    "keep: k: expected at least 0, got -1": lambda: plans.keep(torch.rand(2, 9), -1),
    "keep: k: expected one for each of 2 samples or segments, got 1": lambda: plans.keep(torch.rand(2, 9), [1]),
    "keep: k: expected an integer, got 2.0 (float)": lambda: plans.keep(torch.rand(2, 9), 2.0),
    "keep: capacity: expected at most 9, the tokens there are, got 10": lambda: plans.keep(
        torch.rand(2, 9), 3, capacity=10
    ),
    "keep: order: expected one of 'index', 'value', got 'best'": lambda: plans.keep(torch.rand(2, 9), 3, order="best"),
    "keep: largest: expected a bool, got 1 (int)": lambda: plans.keep(torch.rand(2, 9), 3, largest=1),
    "mask: plan: expected a Keep or Merge, got 3 (int)": lambda: plans.mask(3),
    "apply: tensors: expected a tensor, or a list or tuple of them, got None": lambda: plans.apply(PLAN, None),
    "apply: tensors[0]: expected 9 tokens in dimension 1 as the plan, got float32 [2, 8, 3]": lambda: plans.apply(
        PLAN, torch.rand(2, 8, 3)
    ),
    "apply: tensors[0]: expected a batch of 1 or 2 in dimension 0, got 3": lambda: plans.apply(
        PLAN, torch.rand(3, 9, 3)
    ),
    "apply: tensors[1]: expected a dtype of at most 8 bytes": lambda: plans.apply(
        PLAN, [torch.rand(2, 9), torch.zeros(2, 9, dtype=torch.complex128)]
    ),
    "apply: dims: expected one for each of 1 tensors, got 2": lambda: plans.apply(PLAN, torch.rand(2, 9), dims=[1, 1]),
    "apply: dims[0]: expected the last two dimensions of a dense tensor, got (1, 2)": lambda: plans.apply(
        PLAN, torch.rand(2, 9, 9, 2), dims=(1, 2)
    ),
    "apply: dims[0]: expected less than 2, got 2": lambda: plans.apply(PLAN, torch.rand(2, 9), dims=2),
    "apply: dims[0]: expected a dimension for 5 of them, got None": lambda: plans.apply(
        PLAN, torch.rand(2, 1, 1, 9, 1)
    ),
    "apply: batch_dims[0]: expected another dimension than that of the tokens, got 1": lambda: plans.apply(
        PLAN, torch.rand(2, 9), batch_dims=1
    ),
    "apply: align: expected one of 'left', 'right', got 'top'": lambda: plans.apply(
        PLAN, torch.rand(2, 9), align="top"
    ),
    "apply: align: expected 'left' for packed tokens, got 'right'": lambda: plans.apply(
        PACKED, torch.rand(9), align="right"
    ),
    "apply: mode[0]: expected one of 'mean', 'sum', 'amax', 'owner', got 'max'": lambda: plans.apply(
        PLAN, torch.rand(2, 9), mode="max"
    ),
    "apply: fill[0]: expected a number that torch.uint8 can hold, got -1": lambda: plans.apply(
        PLAN, torch.zeros(2, 9, dtype=torch.uint8), fill=-1
    ),
    "apply: fill[0]: expected a number that torch.int64 can hold, got 0.5": lambda: plans.apply(
        PLAN, torch.zeros(2, 9, dtype=torch.int64), fill=0.5
    ),
    "apply: fill[0]: expected a number that torch.float16 can hold, got 100000.0": lambda: plans.apply(
        PLAN, torch.zeros(2, 9, dtype=torch.float16), fill=1e5
    ),
    "apply: weights: expected [2, 9] on cpu, got float32 [2, 3]": lambda: plans.apply(
        PLAN, torch.rand(2, 9), weights=torch.rand(2, 3)
    ),
    "apply: plan.counts: expected [2] on cpu, got int32 [1]": lambda: plans.apply(
        PLAN._replace(counts=PLAN.counts[:1]), torch.rand(2, 9)
    ),
    "apply: plan.indices: expected dtype int64, got int32 [2, 3]": lambda: plans.apply(
        PLAN._replace(indices=PLAN.indices.int()), torch.rand(2, 9)
    ),
}
X = torch.rand(2, 9, 4)
PLAN = plans.keep(torch.rand(2, 9), 3)
PACKED = plans.keep(torch.rand(9), 3, cu_seqlens=torch.tensor([0, 4, 9]))


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises((TypeError, ValueError)) as caught:
        BAD[message]()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("packed", [False, True])
def test_plans_compile_in_one_graph(packed):
    def both(scores, hidden, cache, bounds):
        plan = plans.keep(scores, 3, candidates=scores > -1, forced=scores > 1, capacity=5, cu_seqlens=bounds)
        moved = plans.apply(plan, [hidden, cache], dims=[-2, -2], fill=-1)
        merged = plans.apply(plans.join(hidden, plan), hidden)
        return plan.indices, plan.counts, plans.mask(plan), *moved, merged

    args = (torch.randn(2, 9), torch.randn(2, 9, 6), torch.randn(2, 4, 9, 3), None)
    if packed:
        args = (torch.randn(9), torch.randn(9, 6), torch.randn(4, 9, 3), torch.tensor([0, 4, 9]))
    compiled = torch.compile(both, backend="eager", fullgraph=True)(*args)
    for actual, expected in zip(compiled, both(*args), strict=True):
        assert torch.equal(actual, expected)


def all_plans(scores, hidden, positions):
    plan = plans.keep(scores, 3, candidates=scores > -1, forced=scores > 1)
    moved = plans.apply(plan, [hidden, positions], align="right")
    second = plans.keep(moved[0][..., 0].contiguous(), 2)
    merged = plans.apply(plans.tome(hidden, 2, class_token=True), [hidden, scores], mode=["mean", "sum"])
    return *moved, *merged, plans.mask(plan), plans.apply(plans.join(hidden, plan), hidden), plans.then(plan, second)


def inputs(batch, tokens):
    return torch.randn(batch, tokens), torch.randn(batch, tokens, 6), torch.arange(tokens).expand(batch, tokens)


def test_plans_compile_once_for_any_size():
    compiled = torch.compile(all_plans, backend="eager", fullgraph=True, dynamic=True)
    for batch, tokens in ((2, 9), (3, 12), (4, 15)):
        args = inputs(batch, tokens)
        assert_same_bits(compiled(*args), all_plans(*args))


def test_plans_export_for_any_batch():
    class Module(torch.nn.Module):
        def forward(self, scores, hidden, positions):
            return all_plans(scores, hidden, positions)[:-1]

    dynamic = {0: torch.export.Dim("B", max=1024)}
    exported = torch.export.export(Module(), inputs(2, 9), dynamic_shapes=(dynamic, dynamic, dynamic))
    args = inputs(5, 9)
    assert_same_bits(exported.module()(*args), all_plans(*args)[:-1])


def test_plans_of_fake_tensors():
    with FakeTensorMode():
        shapes = [tuple(x.shape) for x in all_plans(*inputs(2, 9))[:-1]]
    assert shapes == [tuple(x.shape) for x in all_plans(*inputs(2, 9))[:-1]]


def test_host_arguments_of_any_integer_type():
    scores = torch.rand(2, 9)
    for k in (np.int64(3), [np.int32(3), 3], torch.tensor([3, 3]), np.array([3, 3])):
        assert plans.keep(scores, k, capacity=np.int64(3)).counts.tolist() == [3, 3]
