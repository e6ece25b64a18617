"""Random compositions of ops, kernels against reference: any shape, dtype, stride, bit pattern and tile."""

import contextlib
import functools
import os
from random import Random
from unittest import mock

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st

import pyramid_ops
from pyramid_ops import use_backend
from pyramid_ops.reference import selection as reference_selection
from tests.bits import assert_same_bits, poisoned, to
from tests.cases import FEATURES, FLOATS, special_scores
from tests.conftest import DEVICE

pytestmark = pytest.mark.kernel

# Each shard is a run of hypothesis with its own seed, so that workers share the cases. A GPU compiles most cases anew.
ALL = bool(os.environ.get("PYRAMID_OPS_TEST_ALL"))
SHARDS, CASES = (8, 5) if DEVICE.type == "cuda" else (40, 250) if ALL else (2, 25)


class Case:
    """Token levels, and what the steps so far made of them.

    All choices come from one drawn seed: hypothesis would vary separate draws too little, and cases are small already.
    """

    def __init__(self, random, device):
        self.random, self.device = random, device
        self.levels: list[torch.Tensor] = []
        self.scores: list[torch.Tensor] = []
        self.indices: torch.Tensor | None = None

    def integer(self, low, high):
        return self.random.randint(low, high)

    def choice(self, *values):
        return self.random.choice(values)

    def same(self, op, *args, **options):
        """The result of `op`: the same bits from the kernels, which write all of it and nothing beside it."""
        with use_backend("reference"):
            expected = op(*args, **options)
        args = [to(self.device, arg) for arg in args]
        options = {key: to(self.device, value) for key, value in options.items()}
        with poisoned(), use_backend("kernel"):
            actual = op(*args, **options)
        assert_same_bits(actual, expected, op.__name__)
        return expected

    def tensor(self, *shape, dtype, kinds=("plain", "bits", "ties")):
        """Ordinary values, any bit pattern, or special values with many ties; any layout."""
        generator = torch.Generator().manual_seed(self.integer(0, 2**32 - 1))
        kind = self.choice(*kinds)
        if kind == "plain" and dtype != torch.uint8:
            x = (torch.randn(shape, generator=generator) * self.choice(1.0, 50.0, 1e-30, 1e30)).to(dtype)
        elif kind == "ties" and dtype != torch.uint8:
            x = special_scores(1, torch.Size(shape).numel(), dtype, 2 * generator.initial_seed()).view(shape)
        else:
            count = torch.Size(shape).numel() * dtype.itemsize
            x = torch.randint(0, 256, (count,), generator=generator, dtype=torch.uint8).view(dtype).view(shape)
        return self.strided(x)

    def strided(self, x):
        layout = self.choice(*["contiguous", "transposed", "gaps", "offset"] * 2, "expanded")
        axis = self.integer(0, x.dim() - 1)
        if layout == "transposed":
            return x.transpose(0, axis).contiguous().transpose(0, axis)
        if layout == "gaps":
            return x.repeat_interleave(2, axis)[(slice(None),) * axis + (slice(None, None, 2),)]
        if layout == "offset":
            return torch.cat((x.reshape(-1)[:1], x.reshape(-1)))[-x.numel() :].view(x.shape) if x.numel() else x
        if layout == "expanded" and x.shape[axis]:
            return x.narrow(axis, 0, 1).expand_as(x)
        return x


def from_images(case):
    count = case.choice(2, 2, 1, 3)
    patch = case.integer(1, 2)
    batch, channels = case.choice(*[(1, 1), (1, 1), (1, 2), (2, 1)] * 4, (0, 1))
    sides = [case.choice(1, 1, 2, 3) * patch << (count - 1) for _ in range(2)]
    images = case.tensor(batch, channels, *sides, dtype=case.choice(*FEATURES))
    taps = case.choice(None, [1.0], [0.25, 0.5, 0.25], [0.0625, 0.25, 0.375, 0.25, 0.0625], [-0.3, 0.7, 1.9])
    options = {"taps": taps, "padding": case.choice("zeros", "reflect", "replicate")}
    levels = case.same(
        pyramid_ops.gaussian_pyramid, images, count, downsample=case.choice("mean", "decimate"), **options
    )
    case.levels = [case.same(pyramid_ops.patchify, level, patch) for level in levels]


def from_tokens(case):
    features = case.choice(1, 2, 3, 5, 8, 16, 17, 31, 33, 64, 65, 130, 257, 300, 1537)
    batch = case.choice(*[1, 1, 2] * 4, 0)
    dtype = case.choice(*FEATURES)
    sizes = [case.integer(0, 30 if features < 100 else 1 + 300 // features) for _ in range(case.integer(1, 3))]
    case.levels = [case.tensor(batch, size, features, dtype=dtype) for size in sizes]


def score(case):
    if case.choice(True, False, False):
        op = case.choice(pyramid_ops.token_variance, pyramid_ops.token_norm)
        case.scores = [case.same(op, level) for level in case.levels]
    else:
        dtype = case.choice(*FLOATS)
        kinds = ("ties", "ties", "bits", "plain")
        case.scores = [case.tensor(*level.shape[:2], dtype=dtype, kinds=kinds) for level in case.levels]


def units(case):
    case.same(pyramid_ops.unit_rows, case.choice(*case.levels), limbs=case.integer(1, 2))


def select(case):
    sizes = [level.shape[1] for level in case.levels]
    saliency = case.scores or case.choice("variance", "norm")
    options = {"saliency": saliency, "order": case.choice("saliency", "index")}
    if case.choice(True, False):
        options["budgets"] = [case.integer(0, size) for size in sizes]
    else:
        options.update(target_tokens=case.integer(0, sum(sizes)), level_weights=None)
    case.indices = case.same(pyramid_ops.select_topk_levels, case.levels, **options).indices


def gather(case):
    batch = case.levels[0].shape[0]
    indices = case.indices
    if indices is None:
        generator = torch.Generator().manual_seed(case.integer(0, 2**32 - 1))
        indices = torch.randint(-2, 6, (batch, case.integer(0, 9), 2), generator=generator)
    case.same(pyramid_ops.gather_levels, case.levels, case.strided(indices))


def offsets(case, tokens):
    """int32 offsets of up to four segments, now and then out of range or descending."""
    ends = [case.integer(0, tokens) for _ in range(case.integer(0, 4))]
    if case.choice(*[True] * 5, False):
        ends = sorted(ends)
        return torch.tensor([case.choice(0, 0, -3), *ends, case.choice(tokens, tokens + 9)], dtype=torch.int32)
    return torch.tensor([*ends, 0], dtype=torch.int32)


def pack(case):
    """Segments of the scores, the best of each, and what they move."""
    if not case.scores or not case.levels[0].shape[0]:
        return
    scores, rows = case.scores[0].flatten(), case.levels[0].flatten(0, 1)
    bounds = offsets(case, len(scores))
    counts = torch.tensor([case.integer(-1, 9) for _ in bounds[1:]], dtype=torch.int32)
    k = case.choice(case.integer(0, 9), counts.clamp(min=0).tolist(), counts)
    options = {"max_seqlen": case.choice(len(scores), case.integer(0, 20)), "order": case.choice("value", "index")}
    if isinstance(k, torch.Tensor) or case.choice(True, False):
        options["capacity"] = case.integer(0, 8)
    if not isinstance(k, int) and not len(k):
        return
    best = case.same(pyramid_ops.segmented_topk, scores, bounds, k, **options)
    kept = case.choice(best.counts, None)
    case.same(pyramid_ops.compact, [rows, scores], best.indices, kept, cu_seqlens=bounds)


def regions(case):
    level = case.levels[0]
    tokens = level.shape[1]
    if tokens:
        down = case.choice(*[side for side in range(1, tokens + 1) if tokens % side == 0])
        grid = (down, tokens // down)
        parts = tuple(case.integer(1, min(side, 3)) for side in grid)
        scores = case.same(pyramid_ops.region_variance, level, grid, parts)
        case.same(pyramid_ops.broadcast_regions, scores, grid, parts)


def match(case):
    precision = case.choice("grid", "high")
    queries, keys = case.choice(*case.levels), case.choice(*case.levels)
    found = case.same(pyramid_ops.best_match, queries, keys, precision=precision)
    if keys.shape[1]:
        sizes = case.tensor(*queries.shape[:2], dtype=torch.float32, kinds=("plain", "ties"))
        weights = case.choice(None, sizes)
        case.same(pyramid_ops.assign_mean, queries, found.indices, keys.shape[1], weights=weights)


def merge(case):
    level = case.choice(*case.levels)
    flags = case.choice({}, {"class_token": True}, {"class_token": True, "distill_token": True})
    order = case.choice("tome", "original")
    if case.choice(True, False) and level.shape[0]:
        level = level.flatten(0, 1)
        starts = torch.tensor(sorted(case.integer(0, len(level)) for _ in range(3)), dtype=torch.int32)
        plan = case.same(pyramid_ops.tome_matching, level, case.integer(0, 9), cu_seqlens=starts, **flags)
    else:
        plan = case.same(pyramid_ops.tome_matching, level, case.integer(0, 12), **flags)
    mode = case.choice("mean", "sum", "amax")
    merged, _ = case.same(pyramid_ops.merge_tokens, level, plan, mode=mode, order=order)
    case.same(pyramid_ops.unmerge_tokens, merged, plan, order=order)


def pool(case):
    tokens = case.levels[0].shape[1]
    if tokens:
        down = case.choice(*[side for side in range(1, tokens + 1) if tokens % side == 0])
        scores = case.tensor(case.levels[0].shape[0], tokens, dtype=case.choice(*FLOATS))
        options = {"window": (case.integer(1, 4), case.integer(1, 4)), "reduction": case.choice("mean", "sum", "max")}
        case.same(pyramid_ops.pool_scores, scores, (down, tokens // down), **options)


def combine(case):
    shape = case.choice(case.levels[0].shape[:2], (2, case.integer(0, 600)))
    options = {"normalize": case.choice(None, "minmax")}
    if case.choice(True, False):
        shape = (case.integer(0, 600),)
        options["cu_seqlens"] = offsets(case, *shape)
    scores = [case.tensor(*shape, dtype=case.choice(*FLOATS)) for _ in range(case.integer(1, 3))]
    weights = [case.choice(1, -0.5, 0.3, 1e30) for _ in scores]
    case.same(pyramid_ops.combine_scores, scores, weights, **options)


def few_features(case, level):
    """At most 70 mostly, for the time that interpreted tiles of 16 features take."""
    return level.shape[2] if case.choice(*[False] * 7, True) else min(level.shape[2], 70)


def attend(case):
    level = case.choice(*case.levels)
    features = few_features(case, level)
    heads, shared = case.choice((1, 1), (2, 1), (4, 2), (2, 2))
    queries, keys = case.integer(0, 20), case.integer(0, 40)
    dtype = case.choice(*FLOATS)
    options = {
        "causal": case.choice(True, False),
        "softcap": case.choice(None, None, 20.0),
        "temperature": case.choice(1.0, 0.1),
        "head_reduction": case.choice("mean", "sum", "max", "rms"),
        "query_reduction": case.choice("mean", "sum", "max"),
        "reduce_first": case.choice("heads", "queries"),
        "precision": case.choice("grid", "high"),
        "center_keys": False,
    }
    if options["softcap"] is None:
        options["center_keys"] = case.choice(True, False, False, False)
    if case.choice(True, False):
        q, k = case.tensor(queries, heads, features, dtype=dtype), case.tensor(keys, shared, features, dtype=dtype)
        rows = (queries,)
        segments = case.integer(1, 3)
        for name, size in (("cu_seqlens_q", queries), ("cu_seqlens_k", keys)):
            ends = sorted(case.integer(0, size) for _ in range(segments + 1))
            options[name] = torch.tensor(ends, dtype=torch.int32)
    else:
        batch = level.shape[0]
        q, k = (case.tensor(batch, h, n, features, dtype=dtype) for h, n in ((heads, queries), (shared, keys)))
        rows = (batch, queries)
    which = case.choice("all", "indices", "weights")
    if which == "indices":
        options["query_indices"] = torch.tensor([case.integer(-2, 22) for _ in range(case.integer(0, 4))]).long()
    if which == "weights":
        options["query_weights"] = case.tensor(*rows, dtype=torch.float32, kinds=("plain", "ties", "bits"))
    if case.choice(True, False, False):
        shape = (heads, *rows) if len(rows) == 1 else (rows[0], heads, rows[1])
        options["log_sum_exp"] = case.tensor(*shape, dtype=torch.float32, kinds=("plain", "ties"))
    case.same(pyramid_ops.attention_importance, q, k, **options)


def relate(case):
    level = case.choice(*case.levels)
    batch, features = level.shape[0], few_features(case, level)
    dtype = case.choice(*FLOATS)
    tokens, text = (case.tensor(batch, case.integer(0, 25), features, dtype=dtype) for _ in range(2))
    options = {"reduction": case.choice("max", "mean", "softmax"), "precision": case.choice("grid", "high")}
    case.same(pyramid_ops.text_relevance, tokens, text, **options)
    if case.choice(True, False):
        return
    heads, shared = case.choice((1, 1), (2, 1), (2, 2))
    count = case.integer(0, 20)
    q, k = (case.tensor(batch, h, count, features, dtype=dtype) for h in (heads, shared))
    options = {"steps": case.integer(0, 3), "head_reduction": case.choice("mean", "sum", "max", "rms")}
    case.same(pyramid_ops.attention_walk, q, k, precision=case.choice("grid", "high"), **options)


STARTS = (from_images, from_tokens)
STEPS = (
    score,
    units,
    select,
    gather,
    pack,
    regions,
    match,
    merge,
    pool,
    combine,
    attend,
    relate,
)  # in this order, each with probability 1/3


@contextlib.contextmanager
def tiles(case):
    """Drawn tiles in place of the shipped ones: no bit may depend on them, and few programs suffice."""
    from pyramid_ops.kernels import attention, merging, numerics, pyramid, scoring, selection

    row_tiles = functools.partial(numerics.row_tiles, warps=case.choice(4, 8, 32), load_bytes=case.choice(16, 8, 4, 2))
    gather_config = selection.gather_config
    gather_tiles = {"ROWS": case.choice(8, 16, 64), "BLOCK": case.choice(32, 128, 512)}
    select_tiles = {"BLOCK": case.choice(64, 16), "num_warps": 4}
    match_tiles = {"BLOCK_M": case.choice(16, 64), "BLOCK_N": case.choice(16, 64), "BLOCK_K": case.choice(16, 64)}
    match_tiles.update(num_warps=4, num_stages=1)
    score_tiles = {"ROWS": case.choice(1, 4), "COLUMNS": case.choice(32, 128), "num_warps": 1}
    blur_tiles = {"ROWS": case.choice(16, 5), "BLOCK": case.choice(16, 64, 128), "num_warps": 1}
    attention_tiles = tuple({**match_tiles, "BLOCK_M": case.choice(16, 64)} for _ in range(2))
    logits_tiles = attention.logits_tiles
    rows = {"TILES": case.choice(16, 64)}
    with (
        mock.patch.object(attention, "attention_config", return_value=attention_tiles),
        mock.patch.object(attention, "kept_config", return_value=attention_tiles),
        mock.patch.object(attention, "logits_tiles", lambda *args: (own := logits_tiles(*args)) and {**own, **rows}),
        mock.patch.object(attention, "attention_splits", return_value=case.choice(1, 2, 3)),
        mock.patch.object(numerics, "row_tiles", row_tiles),
        mock.patch.object(scoring, "row_tiles", row_tiles),
        mock.patch.object(scoring, "combine_config", return_value=score_tiles),
        mock.patch.object(scoring, "pool_config", return_value={"BLOCK": case.choice(32, 256), "num_warps": 1}),
        mock.patch.object(selection, "gather_config", lambda levels: {**gather_config(levels), **gather_tiles}),
        mock.patch.object(selection, "select_config", return_value=select_tiles),
        mock.patch.object(pyramid, "config", return_value=blur_tiles),
        mock.patch.object(merging, "match_config", return_value=match_tiles),
        mock.patch.object(merging, "match_splits", return_value=case.choice(1, 2, 3)),
        mock.patch.object(merging, "merge_config", return_value={"BLOCK": case.choice(32, 128), "num_warps": 1}),
    ):
        yield


def compose(random, device, starts=STARTS, steps=STEPS):
    case = Case(random, device)
    with tiles(case):
        case.choice(*starts)(case)
        for step in steps:
            if case.choice(True, False, False):
                step(case)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_compositions_have_the_same_bits(shard, device):
    ran = 0

    @seed(shard)
    @settings(max_examples=CASES, database=None)
    @given(st.randoms(use_true_random=True))
    def check(random):
        nonlocal ran
        compose(random, device)
        ran += 1

    check()
    assert ran >= CASES


@pytest.mark.slow
def test_a_difference_in_ties_is_found(device, monkeypatch):
    def key(x):  # without the rule that −0 equals 0
        bits = x.contiguous().view(torch.int32)
        bits = torch.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FFFFFFF, bits)
        return bits ^ ((bits >> 31) & 0x7FFFFFFF)

    monkeypatch.setattr(reference_selection, "ordered_key", key)

    def many():
        for number in range(300):
            compose(Random(number), device, [from_tokens], [score, select])

    with pytest.raises(AssertionError, match="select_topk_levels"):
        many()
