"""Kernel against reference, bit for bit: generated for every op of the registry."""

import functools
import os

import pytest
import torch

import pyramid_ops
from pyramid_ops._op import OPS
from tests import cases
from tests.bits import assert_same_bits, poisoned, to

pytestmark = pytest.mark.kernel
SLOW = pytest.mark.slow


def generated():
    for op, make in cases.CASES.items():
        for param in make():
            # What widens float16 is one instruction; golden results and random compositions have it too.
            marks = SLOW if "-float16" in param.id else param.marks
            yield pytest.param(op, param.values[0], id=f"{op}-{param.id}", marks=marks)


@pytest.mark.parametrize(("op", "args"), list(generated()))
def test_kernel_equals_reference(op, args, device):
    expected = OPS[op].reference(*args)
    args = [to(device, arg) for arg in args]
    with poisoned():
        actual = OPS[op].kernel(*args)
    assert_same_bits(actual, expected)


def test_every_op_has_cases():
    assert set(cases.CASES) == set(OPS)


@pytest.mark.parametrize("warps", [1, 2, 8])
@pytest.mark.parametrize("load_bytes", [pytest.param(2, marks=SLOW), 4, pytest.param(8, marks=SLOW), 16])
@pytest.mark.parametrize("features", [3, 200, pytest.param(1024, marks=SLOW), 2100])
def test_row_tiles_do_not_change_bits(monkeypatch, device, warps, load_bytes, features):
    from pyramid_ops.kernels import numerics, scoring

    for module in (numerics, scoring):
        tiles = functools.partial(numerics.row_tiles, warps=warps, load_bytes=load_bytes)
        monkeypatch.setattr(module, "row_tiles", tiles)
    x = cases.special_rows(features, torch.bfloat16, seed=features)
    for op, args in (("token_variance", (1,)), ("token_norm", ()), ("unit_rows", (2, 7))):
        assert_same_bits(OPS[op].kernel(x.to(device), *args), OPS[op].reference(x, *args), op)


@pytest.mark.parametrize("block", [16, 64, 128])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_pyramid_tiles_do_not_change_bits(monkeypatch, device, block, rows):
    from pyramid_ops.kernels import pyramid

    monkeypatch.setattr(pyramid, "config", lambda *_: {"ROWS": rows, "BLOCK": block, "num_warps": 1})
    x = cases.special_image((1, 1, 14, 150), torch.float32)
    for padding in ("zeros", "reflect"):
        args = cases.filter_args(cases.GAUSSIAN, padding, "mean", 14, 150)
        expected = OPS["blur_downsample"].reference(x, *args)
        assert_same_bits(OPS["blur_downsample"].kernel(x.to(device), *args), expected, padding)


@pytest.mark.parametrize("block", [16, 64, 1024])
@pytest.mark.parametrize("rows", [1, 4, 16])
def test_selection_tiles_do_not_change_bits(monkeypatch, device, block, rows):
    from pyramid_ops.kernels import selection

    config = selection.gather_config
    monkeypatch.setattr(selection, "gather_config", lambda levels: {**config(levels), "ROWS": rows, "BLOCK": block})
    monkeypatch.setattr(selection, "select_config", lambda size: {"BLOCK": block, "num_warps": 1})
    made = cases.levels((150, 40, 7), 40, torch.bfloat16)
    scores = [cases.special_scores(2, size, torch.float32, size) for size in (150, 40, 7)]
    for budgets in ([20, 9, 3], [35]):
        args = (scores, "given", budgets, False)
        expected = OPS["select_topk_levels"].reference(made, *args)
        actual = OPS["select_topk_levels"].kernel(to(device, made), to(device, scores), *args[1:])
        assert_same_bits(actual, expected, str(budgets))


@pytest.mark.parametrize("limbs", [1, 2])
@pytest.mark.parametrize(
    ("block_m", "block_n", "block_k", "splits"), [(16, 16, 16, 1), (64, 32, 64, 3), (16, 128, 32, 2)]
)
def test_matching_tiles_do_not_change_bits(monkeypatch, device, limbs, block_m, block_n, block_k, splits):
    from pyramid_ops.kernels import merging

    tiles = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": 4, "num_stages": 1}
    monkeypatch.setattr(merging, "match_config", lambda *_: tiles)
    monkeypatch.setattr(merging, "match_splits", lambda *_: splits)
    q, k = cases.special_rows(100, torch.float32, 1), cases.special_rows(100, torch.float32, 2).repeat(1, 17, 1)
    args = (None, None, None, 9, 153, limbs)
    expected = OPS["best_match"].reference(q, k, *args)
    assert_same_bits(OPS["best_match"].kernel(q.to(device), k.to(device), *args), expected)


@pytest.mark.parametrize(
    ("block_m", "block_n", "block_k", "splits"),
    [
        pytest.param(16, 16, 16, 1, marks=SLOW),
        pytest.param(16, 32, 16, 1, marks=SLOW),
        (64, 32, 32, 3),
        pytest.param(32, 64, 64, 2, marks=SLOW),
    ],
)
def test_attention_tiles_do_not_change_bits(monkeypatch, device, block_m, block_n, block_k, splits):
    from pyramid_ops.kernels import attention

    tiles = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": 4, "num_stages": 1}
    kept = {"TILES": block_n, "num_warps": 4}
    logits_tiles = attention.logits_tiles
    monkeypatch.setattr(attention, "logits_tiles", lambda *args: (own := logits_tiles(*args)) and {**own, **kept})
    monkeypatch.setattr(attention, "attention_config", lambda *_: (tiles, tiles))
    monkeypatch.setattr(attention, "kept_config", lambda *_: (tiles, tiles))
    monkeypatch.setattr(attention, "attention_splits", lambda *_: splits)
    step = 11 if os.environ.get("PYRAMID_OPS_TEST_ALL") else 14
    for param in list(cases.attention_importance())[15:84:step]:
        args = param.values[0]
        expected = OPS["attention_importance"].reference(*args)
        assert_same_bits(OPS["attention_importance"].kernel(*to(device, args)), expected, param.id)


@pytest.mark.parametrize("block", [pytest.param(16, marks=SLOW), 64])
def test_merging_tiles_do_not_change_bits(monkeypatch, device, block):
    from pyramid_ops.kernels import merging

    monkeypatch.setattr(merging, "merge_config", lambda *_: {"BLOCK": block, "num_warps": 1})
    for param in list(cases.merge_tokens())[1:12:5]:
        args = param.values[0]
        assert_same_bits(OPS["merge_tokens"].kernel(*to(device, args)), OPS["merge_tokens"].reference(*args), param.id)


@pytest.mark.parametrize("regions", [1, 2, 8])
def test_region_tiles_do_not_change_bits(monkeypatch, device, regions):
    from pyramid_ops.kernels import regions as kernels

    monkeypatch.setattr(kernels, "combine_config", lambda arch: {"TILES": regions, "num_warps": regions})
    x = torch.randn(2, 600, 3, generator=torch.Generator().manual_seed(0)) + 100
    lengths = torch.tensor([600, 301])
    for grid in ((20, 30, 1, 3), (600, 1, 2, 1)):
        expected = OPS["region_variance"].reference(x, [lengths], *grid)
        assert_same_bits(OPS["region_variance"].kernel(x.to(device), [lengths.to(device)], *grid), expected, str(grid))


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("columns", [32, 256])
def test_score_tiles_do_not_change_bits(monkeypatch, device, rows, columns):
    from pyramid_ops.kernels import scoring

    tiles = {"ROWS": rows, "COLUMNS": columns, "num_warps": 1}
    monkeypatch.setattr(scoring, "combine_config", lambda tokens: tiles)
    monkeypatch.setattr(scoring, "pool_config", lambda windows: {"BLOCK": rows * columns, "num_warps": 1})
    scores, bounds = cases.mixed_scores(1, 700, 2, 5), cases.int32(3, 40, 41, 300, 690)
    for packed in (None, bounds):
        expected = OPS["combine_scores"].reference(scores, [0.3, 0.7], True, packed)
        actual = OPS["combine_scores"].kernel(to(device, scores), [0.3, 0.7], True, to(device, packed))
        assert_same_bits(actual, expected, str(packed))
    expected = OPS["pool_scores"].reference(scores[0], 20, 35, 2, 3, "mean")
    assert_same_bits(OPS["pool_scores"].kernel(scores[0].to(device), 20, 35, 2, 3, "mean"), expected)


@pytest.mark.parametrize("block", [32, 256, 2048])
@pytest.mark.parametrize("warps", [1, 8])
def test_histogram_tiles_do_not_change_bits(monkeypatch, device, block, warps):
    from pyramid_ops.kernels import regions as kernels

    monkeypatch.setattr(kernels, "entropy_config", lambda values: {"BLOCK": block, "num_warps": warps})
    for dtype, bins in ((torch.uint8, 256), (torch.float32, 100)):
        x = cases.special_pixels((1, 3, 36, 18), dtype)
        expected = OPS["patch_entropy"].reference(x, 18, bins)
        assert_same_bits(OPS["patch_entropy"].kernel(x.to(device), 18, bins), expected, str(dtype))


@pytest.mark.parametrize("samples", [1, 4, 128])
def test_budget_tiles_do_not_change_bits(monkeypatch, device, samples):
    from pyramid_ops.kernels import budgets

    monkeypatch.setattr(budgets, "budget_config", lambda levels: {"SAMPLES": samples, "num_warps": 1})
    for param in cases.allocate_budgets_batch():
        if param.id.startswith("5-") or param.id == "batch-65":
            args = param.values[0]
            args = (
                args[0][:12],
                [total[:12] for total in args[1]],
                args[2],
                [size[:12] for size in args[3]],
                *args[4:],
            )
            expected = OPS["allocate_budgets_batch"].reference(*args)
            actual = OPS["allocate_budgets_batch"].kernel(*[to(device, arg) for arg in args])
            assert_same_bits(actual, expected, param.id)


def test_a_sample_alone_equals_the_sample_in_a_batch(device):
    made = to(device, cases.levels((60, 20, 5), 96, torch.bfloat16, batch=3))
    images = cases.special_image((3, 2, 20, 22), torch.float32).to(device)
    with pyramid_ops.use_backend("kernel"):
        tokens, indices = pyramid_ops.select_topk_levels(made, budgets=[9, 4, 2])
        pyramid = pyramid_ops.gaussian_pyramid(images, 3)
        for b in range(3):
            alone = pyramid_ops.select_topk_levels([level[b : b + 1] for level in made], budgets=[9, 4, 2])
            assert_same_bits(alone, (tokens[b : b + 1], indices[b : b + 1]))
            alone = pyramid_ops.gaussian_pyramid(images[b : b + 1], 3)
            assert_same_bits(alone, [level[b : b + 1] for level in pyramid])
        match = pyramid_ops.best_match(made[0], made[1])
        means, totals = pyramid_ops.assign_mean(made[0], match.indices % 3, 3)
        for b in range(3):
            alone = pyramid_ops.best_match(made[0][b : b + 1], made[1][b : b + 1])
            assert_same_bits(list(alone), [x[b : b + 1] for x in match])
            alone = pyramid_ops.assign_mean(made[0][b : b + 1], match.indices[b : b + 1] % 3, 3)
            assert_same_bits(list(alone), [means[b : b + 1], totals[b : b + 1]])
            heads = made[0][b : b + 1, None]
            alone = pyramid_ops.attention_importance(heads, heads, query_indices=[-1, 4])
            both = pyramid_ops.attention_importance(made[0][:, None], made[0][:, None], query_indices=[-1, 4])
            assert_same_bits(alone, both[b : b + 1])
            alone = pyramid_ops.region_variance(made[0][b : b + 1], (6, 10), (2, 3))
            assert_same_bits(alone, pyramid_ops.region_variance(made[0], (6, 10), (2, 3))[b : b + 1])
            alone = pyramid_ops.patch_entropy(images[b : b + 1, :, :, :20], 10)
            assert_same_bits(alone, pyramid_ops.patch_entropy(images[..., :20], 10)[b : b + 1])


@pytest.mark.slow
def test_full_size_selection(device, monkeypatch):
    """The documented size: 273 of 5440 tokens."""
    if device.type == "cpu":
        from pyramid_ops.kernels import numerics, scoring, selection

        config = selection.gather_config
        monkeypatch.setattr(selection, "gather_config", lambda levels: {**config(levels), "ROWS": 32})
        monkeypatch.setattr(scoring, "row_tiles", functools.partial(numerics.row_tiles, warps=64))
    made = [
        torch.randn(1, n, 256, generator=torch.Generator().manual_seed(n)).bfloat16() for n in (4096, 1024, 256, 64)
    ]
    args = ([], "variance", [111, 81, 54, 27], False)
    actual = OPS["select_topk_levels"].kernel(to(device, made), *args)
    assert_same_bits(actual, OPS["select_topk_levels"].reference(made, *args))


@pytest.mark.slow
def test_full_size_pyramid(device, monkeypatch):
    if device.type == "cpu":
        from pyramid_ops.kernels import pyramid

        monkeypatch.setattr(pyramid, "config", lambda *_: {"ROWS": 128, "BLOCK": 256, "num_warps": 4})
    x = cases.special_image((1, 1, 512, 512), torch.float32)
    args = cases.filter_args(cases.GAUSSIAN, "zeros", "mean", 512, 512)
    expected = OPS["blur_downsample"].reference(x, *args)
    assert_same_bits(OPS["blur_downsample"].kernel(x.to(device), *args), expected)
