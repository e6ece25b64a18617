"""No bit depends on a tile: every chooser of `kernels/tiles.py` forced to others, on cases of the ops it serves."""

import functools
import os
import zlib

import pytest
import torch

from pyramid_ops._op import OPS
from pyramid_ops.reference.arguments import Amount, Grid, Segments, Slots, Windows
from pyramid_ops.verify import inputs
from pyramid_ops.verify.cases import DESCRIPTIONS, entropy, pyramid, scoring, selection
from pyramid_ops.verify.cases.greedy import RULES
from tests.bits import assert_same_bits, poisoned, to

pytestmark = pytest.mark.kernel
SLOW = pytest.mark.slow
ALL = bool(os.environ.get("PYRAMID_OPS_TEST_ALL"))


def rows(features):
    x = inputs.special_rows(features, torch.bfloat16, seed=features)
    calls = [("token_variance", (x, 1)), *(("token_norm", (x, p)) for p in (1, 2)), ("unit_rows", (x, 2, 7))]
    return [*calls, ("paired_similarity", (x, x.flip(1)))]


def blur():
    x = pyramid.special_image((1, 1, 14, 150), torch.float32)
    for padding in ("zeros", "reflect"):
        yield "blur_downsample", (x, *pyramid.filter_args(pyramid.GAUSSIAN, padding, "mean", 14, 150))


def select():
    made = selection.levels((150, 40, 7), 40, torch.bfloat16)
    scores = [inputs.special_scores(2, size, torch.float32, size) for size in (150, 40, 7)]
    return [("select_topk_levels", (made, scores, "given", budgets, False)) for budgets in ([20, 9, 3], [35])]


def match(limbs):
    q, k = inputs.special_rows(100, torch.float32, 1), inputs.special_rows(100, torch.float32, 2).repeat(1, 17, 1)
    return [("best_match", (q, k, None, Segments(None, None, 9, 153), limbs))]


def some(op, *names):
    cases = {case.id: case.args for case in DESCRIPTIONS[op].bits()}
    return [(op, cases[name]) for name in names]


def regions():
    x = torch.randn(2, 600, 3, generator=torch.Generator().manual_seed(0)) + 100
    lengths = torch.tensor([600, 301])
    return [("region_variance", (x, lengths, Grid(*grid))) for grid in ((20, 30, 1, 3), (600, 1, 2, 1))]


def spread():
    scores = torch.arange(24).view(2, 12)
    return [("broadcast_regions", (scores, Grid(7, 90, 3, 4)))]


def scores():
    made, bounds = scoring.mixed_scores(1, 700, 2, 5), inputs.int32(3, 40, 41, 300, 690)
    yield from (("combine_scores", (made, [0.3, 0.7], True, packed)) for packed in (None, bounds))
    yield "pool_scores", (made[0], Windows(20, 35, 2, 3), "mean")
    yield "pool_scores_packed", (made[0][0], *inputs.GRIDS["hostile"], 2, 3, 90, "mean")


def histograms():
    for dtype, bins in ((torch.uint8, 256), (torch.float32, 100)):
        yield "patch_entropy", (entropy.special_pixels((1, 3, 36, 18), dtype), 18, bins)


def segments(by_index):
    values = inputs.special_scores(1, 1117, torch.bfloat16, 6)[0]
    bounds = inputs.int32(0, 300, 300, 1100, 1117)
    return [("segmented_topk", (values, bounds, Amount(None, [90, 5, 170, 17]), Slots(1000, 160), by_index))]


def packed_levels():
    levels = [level[0] for level in selection.levels((500, 40, 7), 40, torch.bfloat16, batch=1)]
    scores = [inputs.special_scores(1, size, torch.float16, size)[0] for size in (500, 40, 7)]
    bounds = [inputs.int32(0, 20, 500), inputs.int32(3, 30, 40), inputs.int32(0, 3, 7)]
    budgets = Amount(inputs.int32(9, 30, 2, 33, 3, 3).view(2, 3), [0])
    return [("select_topk_levels_packed", (levels, bounds, scores, "given", budgets, Slots(600, 45), False))]


def move():
    tensors = [torch.arange(2 * 50 * 9, dtype=torch.int16).view(2, 50, 9)]
    indices = torch.arange(24).view(2, 12) % 11
    return [("compact", (tensors, indices, inputs.int32(11, 9), inputs.int32(0, 10, 50)))]


def gather():
    return some("gather_levels", "33-uint8", "1100-int16", "1-int64")


ATTENTION = [
    "3x200x64-2-1-bfloat16-limbs2",
    "70x90x80-3-1-float16-limbs2",
    "2x65x130-3-1-float32-limbs2",
    "1x9x257-1-1-bfloat16-limbs2",
    "mean-sum-True-3",
]
if ALL:
    ATTENTION += ["1x70x16-16-2-float32-limbs2", "1x40x256-2-2-float32-limbs1", "mean-max-False-1"]
RELEVANCE = ["3x2x1-max-float32-limbs2", "70x33x128-mean-float32-limbs2", "130x5x65-max-bfloat16-limbs1"]
WALKS = ["2:1x9x3-sum-float32-limbs1", "3:3x33x130-sum-float32-limbs1", "2:1x70x24-sum-float32-limbs1"]


def of_streams():
    for features in (3, 200, 1024, 2100):
        for warps in (1, 2, 8):
            for load in (2, 4, 8, 16):
                tiles = {"row_tiles": functools.partial(_rows, warps, load)}
                yield f"rows-{features}-{warps}-{load}", tiles, rows(features), load in (2, 8) or features == 1024
    for block in (16, 64, 128):
        for count in (1, 3, 64):
            yield (
                f"blur-{block}-{count}",
                {"blur_tiles": {"ROWS": count, "BLOCK": block, "num_warps": 1}},
                blur(),
                False,
            )
    for block in (16, 64, 1024):
        for count in (1, 4, 16):
            tiles = {
                "gather_tiles": {"ROWS": count, "BLOCK": block},
                "select_tiles": {"BLOCK": block, "num_warps": 1},
                "rank_tiles": {"RANK_BLOCK": max(2, block // count)},
                "rank_work": 0,
            }
            yield f"select-{block}-{count}", tiles, [*select(), *gather()], False
    for block, count in ((32, 8), (256, 64)):
        tiles = {"rank_all_tiles": {"ROWS": count, "RANK_BLOCK": block, "num_warps": 1}, "rank_work": 1 << 30}
        yield f"ranks-{block}-{count}", tiles, [*select(), *segments(False)], False


def of_products():
    for m, n, k, splits in ((16, 16, 16, 1), (64, 32, 64, 3), (16, 128, 32, 2)):
        tiles = {"match_tiles": _dots(m, n, k), "match_splits": splits, "flat_tiles": {"BLOCK": m}}
        for limbs in (1, 2):
            yield f"match-{m}-{n}-{k}-limbs{limbs}", tiles, match(limbs), False
    for m, n, k, size in ((16, 16, 16, 16), (64, 32, 64, 64), (16, 64, 32, 4)):
        tiles = {"similarity_tiles": _dots(m, n, k), "nearest_rows": m + n // 3, "square_tiles": {"BLOCK": n // 2}}
        tiles["nearest_tiles"] = {"SIZE": size, "GROUPS": 64, "num_warps": 1}
        tiles["flat_tiles"] = {"BLOCK": m}
        yield f"clusters-{m}-{n}-{k}", tiles, some("dpc_knn", "counts", "segments"), False
        yield f"nearest-{m}-{n}-{k}", tiles, some("nearest", "masked-grid", "ranked-far", "segments-near"), False
    for m, n, k, splits in ((16, 16, 16, 1), (16, 32, 16, 1), (64, 32, 32, 3), (32, 64, 64, 2)):
        dots = _dots(m, n, k)
        tiles = {"attention_tiles": dots, "kept_tiles": dots, "attention_splits": splits}
        tiles["logits_tiles"] = {"TILES": n, "num_warps": 4}
        tiles["flat_tiles"], tiles["finish_tiles"] = {"BLOCK": 8 * m}, {"BLOCK": 2 * n}
        calls = some("attention_importance", *ATTENTION)
        yield f"attention-{m}-{n}-{k}", tiles, calls, (m, n) != (64, 32)
        yield (
            f"relevance-{m}-{n}-{k}",
            {"relevance_tiles": dots},
            some("text_relevance", *RELEVANCE),
            (m, n) != (64, 32),
        )
        walks = {name: tiles[name] for name in ("attention_tiles", "attention_splits", "flat_tiles", "finish_tiles")}
        yield f"walk-{m}-{n}-{k}", walks, some("attention_walk", *WALKS), (m, n) != (64, 32)


def of_the_rest():
    for block in (16, 64):
        tiles = {"fold_tiles": {"BLOCK": block, "num_warps": 1}}
        calls = some("fold_groups", "33-mean-float32", "1-mean-bfloat16", "33-amax-bfloat16")
        calls += some("pool_tokens", "65-7x5x4x5-mean-float32", "300-7x5x3x2-amax-float16")
        yield f"fold-{block}", tiles, calls, block == 16
    for count in (1, 2, 8):
        yield f"regions-{count}", {"region_tiles": {"TILES": count, "num_warps": count}}, regions(), False
    for block in (16, 64):
        tiles = {"channel_tiles": {"BLOCK": block, "num_warps": 1}}
        calls = some("channel_variance", "129x40-float32", "65x8-float16", "segments", "channels-bfloat16")
        yield f"channels-{block}", tiles, calls, block == 64
    for block, count in ((32, 1), (64, 8)):
        calls = some("center_keys", "97x80-float32-packed", "31x33-bfloat16-masked", "small-40")
        yield f"center-{block}-{count}", {"center_tiles": {"ROWS": count, "BLOCK": block}}, calls, False
    for block in (32, 256):
        yield f"spread-{block}", {"broadcast_tiles": {"BLOCK": block, "num_warps": 1}}, spread(), False
    for count in (1, 4):
        for columns in (32, 256):
            tiles = {
                "combine_tiles": {"ROWS": count, "COLUMNS": columns, "num_warps": 1},
                "pool_tiles": {"BLOCK": count * columns, "num_warps": 1},
                "flat_tiles": {"BLOCK": 16 * count},
            }
            calls = [*scores(), *some("hash_uniform", "127", "1025")]
            yield f"scores-{count}-{columns}", tiles, calls, False
    for block, chunks in ((16, 1), (64, 3), (1024, 8)):
        tiles = {"threshold_tiles": {"BLOCK": block, "CHUNKS": chunks, "num_warps": 1}}
        calls = some("segment_threshold", "1025-0", "1025-1", "primes-2", "257-3", "pairs-1")
        yield f"thresholds-{block}-{chunks}", tiles, calls, False
    for block in (32, 256, 2048):
        for warps in (1, 8):
            tiles = {"entropy_tiles": {"BLOCK": block, "num_warps": warps}}
            yield f"histograms-{block}-{warps}", tiles, histograms(), False
    for samples in (1, 4, 128):
        tiles = {"budget_tiles": {"SAMPLES": samples, "num_warps": 1}}
        calls = some("allocate_budgets_batch", "5-5-bounds0", "5-tensors-bounds0", "5-273-bounds1", "5-largest")
        calls += some("adaptive_weights", "one-length", "one-row", "strided")
        yield f"budgets-{samples}", tiles, calls, False


def of_choices():
    for chunk, block, count, rank in ((256, 64, 16, 32), (512, 128, 4, 128), (1024, 1024, 64, 64)):
        tiles = {
            "select_tiles": {"BLOCK": block, "num_warps": 1},
            "chunk_tiles": {"CHUNK": chunk, "BLOCK": block, "num_warps": 1},
            "order_tiles": {"ROWS": count, "BLOCK": rank, "num_warps": 1},
        }
        for by_index in (False, True):
            for ways, limits in {"one": {}, "several": {"one_program": 0}, "sorted": {"rank_limit": 0}}.items():
                case = f"segments-{chunk}-{'index' if by_index else 'value'}-{ways}"
                yield case, {**tiles, **limits, "rank_work": 0}, segments(by_index), False
    for limit, block in ((1 << 20, 64), (0, 64), (0, 256)):
        for count in (4, 16):
            tiles = {
                "gather_tiles": {"ROWS": count, "BLOCK": block},
                "select_tiles": {"BLOCK": block, "num_warps": 1},
                "chunk_tiles": {"CHUNK": 256, "BLOCK": block, "num_warps": 1},
                "rank_tiles": {"RANK_BLOCK": 4 * count},
                "one_program": limit,
            }
            yield f"packed-levels-{limit}-{block}-{count}", tiles, packed_levels(), False
    for block in (1, 16, 256):
        for count in (1, 16, 128):
            tiles = {"token_tiles": {"ROWS": count, "BLOCK": block}, "locate_tiles": {"BLOCK": max(2, count)}}
            yield f"move-{block}-{count}", tiles, move(), False
    for m, n, block in ((32, 64, 1), (64, 32, 2), (64, 64, 4)):
        tiles = {
            "alike_tiles": _dots(m, n, 32),
            "order_tiles": {"ROWS": 8 * block, "BLOCK": m},
            "leader_tiles": {"BLOCK": block, "num_warps": 1},
            "join_tiles": {"ROWS": 16 // block, "BLOCK": block},
        }
        calls = some("suppress", "clusters-5-limbs2", "clusters-7-limbs1", "primes-limbs1", "primes-short")
        yield f"leaders-{m}-{n}", tiles, calls, m == 32
    for block, count in ((16, 1), (64, 8), (256, 128)):
        tiles = {
            "keep_tiles": {"BLOCK": block},
            "token_tiles": {"ROWS": count, "BLOCK": block},
            "scan_tiles": {"ROWS": count, "BLOCK": block},
        }
        yield f"plans-{block}-{count}", tiles, of_plans(), False

    greedy = some("greedy_select", *[f"{rule}-small" for rule in RULES], "maxmin-candidates", "dpp-some")
    for block, count, limit, fit in ((16, 4, 0, 0), (32, 8, 0, 8000), (64, 16, 1 << 18, 1 << 20)):
        tiles = {
            "similarity_tiles": _dots(16 * count if count < 8 else 64, 32, 32),
            "spread_tiles": _dots(16 * count if count < 8 else 64, 32, 32),
            "apart_tiles": {"BLOCK": block, "num_warps": 1},
            "square_tiles": {"ROWS": count, "BLOCK": block},
            "farthest_tiles": _dots(16, block, 16),
            "gram_limit": fit,
            "greedy_tiles": {"BLOCK": block, "num_warps": 2},
            "factor_tiles": {"ROWS": count, "BLOCK": block, "num_warps": 2},
            "step_tiles": {"ROWS": count, "BLOCK": block},
            "cover_tiles": {"ROWS": count, "BLOCK": block},
            "alone_limit": limit,
        }
        yield f"greedy-{block}-{count}", tiles, greedy, count == 8
    for block, count, limit in ((16, 4, 0), (32, 8, 1 << 18)):
        pairs = {"ROWS": count, "BLOCK": block}
        tiles = {"rounds_tiles": pairs, "cover_tiles": pairs, "flat_tiles": {"BLOCK": block}, "alone_limit": limit}
        yield f"rounds-{block}-{count}", tiles, some("bipartite_prune", "half", "packed-small"), False


def of_plans():
    """A case of each op of plans."""
    families = {op: list(DESCRIPTIONS[op].golden())[-1] for op in ("keep_tokens", "move_tokens", "match_halves")}
    families |= {op: next(DESCRIPTIONS[op].golden()) for op in ("join_tokens", "group_tokens", "trace_rows")}
    yield from ((op, case.args) for op, case in families.items())


def choices():
    """(name, forced tiles by chooser, calls, slow)."""
    yield from of_streams()
    yield from of_products()
    yield from of_the_rest()
    yield from of_choices()


def _rows(warps, load, choose, tensors, *_):
    return choose(tensors, warps, load)


def _dots(m, n, k):
    return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "num_warps": 4, "num_stages": 1}


def marked():
    """In `make test` the first choice of a kind, and of the others half, whichever their names select."""
    kinds = set()
    for case, tiles, calls, slow in choices():
        calls, kind = list(calls), case.partition("-")[0]
        slow = slow or (kind in kinds and zlib.crc32(case.encode()) % 2 == 1)
        kinds.add(kind)
        marks = [pytest.mark.op(op) for op in {op for op, _ in calls}]
        yield pytest.param(tiles, calls, id=case, marks=[*marks, SLOW] if slow else marks)


CHOICES = list(marked())


@pytest.mark.parametrize(("tiles", "calls"), CHOICES)
def test_tiles_do_not_change_bits(device, tiles, calls):
    from pyramid_ops.kernels.choosers import forcing

    for op, args in calls:
        expected = OPS[op].reference(*args)
        with forcing(**tiles), poisoned():
            actual = OPS[op].kernel(*to(device, args))
        assert_same_bits(actual, expected, op)


def test_every_chooser_is_forced():
    from pyramid_ops.kernels.choosers import CHOOSERS

    here = {"many_segments"}  # below
    assert {name for param in CHOICES for name in param.values[0]} | here == set(CHOOSERS)


def test_many_segments_have_one_program_each(device):
    from pyramid_ops.kernels.choosers import forcing

    def never(*_):
        raise AssertionError("several programs to a segment")

    bounds, scores = inputs.int32(0, 300, 303, 304, 600), inputs.special_scores(1, 600, torch.float32, 2)[0]
    args = (scores, bounds, Amount(None, [9]), Slots(300, 9), False)
    with forcing(one_program=100, many_segments=3, chunk_tiles=never):
        actual = OPS["segmented_topk"].kernel(*to(device, args))
    assert_same_bits(actual, OPS["segmented_topk"].reference(*args))


@pytest.mark.slow
@pytest.mark.parametrize("by_index", [False, True])
def test_full_size_topk(device, by_index):
    """A segment of 2^20 scores beside short ones; 5000 of them, so that they are sorted."""
    from pyramid_ops.kernels.choosers import forcing

    tiles = {"chunk_tiles": {"CHUNK": 1 << 16, "BLOCK": 1 << 14, "num_warps": 4}} if device.type == "cpu" else {}
    bounds = inputs.int32(0, 100, 100 + (1 << 20), 20100 + (1 << 20))
    scores = torch.randn(20100 + (1 << 20), generator=torch.Generator().manual_seed(0)).bfloat16()  # ties
    args = (scores, bounds, Amount(None, [5000]), Slots(1 << 20, 5000), by_index)
    with forcing(**tiles):
        actual = OPS["segmented_topk"].kernel(*to(device, args))
    assert_same_bits(actual, OPS["segmented_topk"].reference(*args))


@pytest.mark.slow
def test_full_size_selection(device):
    """The documented size: 273 of 5440 tokens."""
    from pyramid_ops.kernels.choosers import forcing

    tiles = {"gather_tiles": {"ROWS": 32}, "row_tiles": functools.partial(_rows, 64, 16)}
    made = [
        torch.randn(1, n, 256, generator=torch.Generator().manual_seed(n)).bfloat16() for n in (4096, 1024, 256, 64)
    ]
    args = (made, [], "variance", [111, 81, 54, 27], False)
    with forcing(**(tiles if device.type == "cpu" else {})):
        actual = OPS["select_topk_levels"].kernel(*to(device, args))
    assert_same_bits(actual, OPS["select_topk_levels"].reference(*args))


@pytest.mark.slow
def test_full_size_pyramid(device):
    from pyramid_ops.kernels.choosers import forcing

    tiles = {"blur_tiles": {"ROWS": 128, "BLOCK": 256, "num_warps": 4}} if device.type == "cpu" else {}
    x = pyramid.special_image((1, 1, 512, 512), torch.float32)
    args = (x, *pyramid.filter_args(pyramid.GAUSSIAN, "zeros", "mean", 512, 512))
    with forcing(**tiles):
        actual = OPS["blur_downsample"].kernel(*to(device, args))
    assert_same_bits(actual, OPS["blur_downsample"].reference(*args))
