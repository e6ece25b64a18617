"""What compiled code executes, counted without a GPU: `python -m bench.executed` writes `results/executed.md` and
`executed.json`.

`tests/ptx` executes the PTX that Triton compiles for sm_80 and sm_90, on inputs that depend on no version. `python -m
bench.executed TEXT …` prints the table of those calls whose names have one of the texts, and writes nothing.
"""

import collections
import functools
import importlib
import json
import pkgutil
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

import pyramid_ops
from bench.compile import RESULTS
from pyramid_ops import kernels as _kernels
from pyramid_ops import plans
from pyramid_ops.kernels.choosers import forcing
from pyramid_ops.plans.halves import bipartite_plan
from pyramid_ops.verify.inputs import Source, int32, name
from tests.ptx import TARGETS, Run, executing
from tests.ptx.link import link

COMMON = 6  # opcode families that a row of the table names
BF16, FP32 = torch.bfloat16, torch.float32


class Counted(NamedTuple):
    """A public call, and of how many elements its instructions are told."""

    id: str
    elements: int
    element: str
    call: Callable[[], object]


def tokens(what: str, *shape: int, dtype: torch.dtype = BF16) -> Tensor:
    """Near normal numbers, in rows of different scale."""
    source = Source(what)
    x = sum(source.integers(-128, 128, *shape) for _ in range(4)) / 256
    return (x * source.integers(1, 33, *shape[:-1], 1) / 16).to(dtype)


def picture(what: str, *shape: int, dtype: torch.dtype = FP32) -> Tensor:
    values = Source(what).integers(0, 256, *shape)
    return values.to(dtype) if dtype == torch.uint8 else (values / 256).to(dtype)


def calls() -> Iterator[Counted]:
    """Sizes that the executor takes a few seconds for at most; every kernel of the library, which `main` checks."""
    yield from _of_images()
    yield from _of_rows()
    yield from _of_scores()
    yield from _of_selection()
    yield from _of_merging()
    yield from _of_greedy()
    yield from _of_plans()
    yield from _of_attention()
    yield from _of_budgets()


def _of_images() -> Iterator[Counted]:
    blur, outputs = pyramid_ops.blur_downsample, 3 * 128 * 128
    for dtype in (FP32, BF16, torch.uint8):
        x = picture("blur", 1, 3, 256, 256, dtype=dtype)
        yield Counted(f"blur_downsample, 3×256×256, {name(dtype)}", outputs, "outputs", functools.partial(blur, x))
    x = picture("blur", 1, 3, 256, 256, dtype=BF16)
    call = functools.partial(blur, x, padding="reflect", downsample="decimate")
    yield Counted("blur_downsample, 3×256×256, reflect, decimate, bfloat16", outputs, "outputs", call)
    for patch, bins, dtype in ((16, 256, torch.uint8), (14, 256, BF16), (64, 1024, FP32)):
        side = 128 // patch * patch
        x = picture("entropy", 1, 3, side, side, dtype=dtype)
        call = functools.partial(pyramid_ops.patch_entropy, x, patch, bins=bins)
        case = f"patch_entropy, 3×{side}×{side}, patches of {patch}, {bins} bins, {name(dtype)}"
        yield Counted(case, x.numel(), "values", call)
    x = picture("progressive", 1, 3, 128, 128, dtype=BF16)
    encode = functools.partial(pyramid_ops.patchify, patch_size=16)
    call = functools.partial(pyramid_ops.progressive_select, x, encode, (20, 8, 2), target_tokens=24)
    yield Counted("progressive_select, 3×128×128, 24 of 3 levels, bfloat16", 64 + 16 + 4, "tokens", call)


def _of_rows() -> Iterator[Counted]:
    for dtype, features in ((FP32, 1024), (BF16, 1024), (BF16, 64), (BF16, 1152), (BF16, 4096)):
        rows = 64 if features > 2048 else 256
        x = tokens("rows", 1, rows, features, dtype=dtype)
        case = f"token_variance, {rows} × {features}, {name(dtype)}"
        yield Counted(case, x.numel(), "features", functools.partial(pyramid_ops.token_variance, x))
    x = tokens("rows", 1, 256, 1024)
    call = functools.partial(pyramid_ops.token_norm, x)
    yield Counted("token_norm, 256 × 1024, bfloat16", x.numel(), "features", call)
    yield Counted("token_norm, p = 1, 256 × 1024, bfloat16", x.numel(), "features", functools.partial(call, p=1))
    for features, limbs in ((1024, 1), (1024, 2), (64, 1)):
        x = tokens("rows", 1, 256, features)
        call = functools.partial(pyramid_ops.unit_rows, x, limbs=limbs)
        yield Counted(f"unit_rows, limbs={limbs}, 256 × {features}, bfloat16", x.numel(), "features", call)
    for features, dtype in ((1024, BF16), (1024, FP32), (64, BF16)):
        x = tokens("rows", 1, 256, features, dtype=dtype)
        call = functools.partial(pyramid_ops.paired_similarity, x[:, 1:], x[:, :-1])
        case = f"paired_similarity, 255 × {features}, {name(dtype)}"
        yield Counted(case, 255 * features, "features", call)
    x = tokens("channels", 1, 700, 256)
    variance = pyramid_ops.channel_variance
    yield Counted("channel_variance, 700 × 256, bfloat16", x.numel(), "features", functools.partial(variance, x))
    call = functools.partial(variance, x[0], cu_seqlens=int32(0, 100, 356, 700))
    yield Counted("channel_variance, 700 × 256 in 3 segments, bfloat16", x.numel(), "features", call)
    for features in (64, 1024):
        x = tokens("regions", 1, 1024 if features == 64 else 256, features)
        side = 32 if features == 64 else 16
        call = functools.partial(pyramid_ops.region_variance, x, (side, side))
        yield Counted(f"region_variance, {side}×{side} × {features}, bfloat16", x.numel(), "features", call)
    sides, bounds = int32(8, 12, 16, 10).view(2, 2), int32(0, 96, 256)
    call = functools.partial(pyramid_ops.region_variance, x[0], sides, cu_seqlens=bounds)
    yield Counted("region_variance, 8×12 and 16×10 × 1024, bfloat16", x.numel(), "features", call)


def _of_scores() -> Iterator[Counted]:
    call = functools.partial(pyramid_ops.hash_uniform, (2, 4096), int32(1, 2))
    yield Counted("hash_uniform, 2 of 4096, float32", 2 * 4096, "outputs", call)
    count = 8192
    pair = [tokens(f"scores-{k}", count) for k in range(2)]
    combine = functools.partial(pyramid_ops.combine_scores, pair, [0.3, 0.7])
    yield Counted(f"combine_scores, 2 of {count}, bfloat16", count, "tokens", combine)
    bounds = int32(0, 1000, 1003, 5000, count)
    call = functools.partial(combine, normalize="minmax", cu_seqlens=bounds)
    yield Counted(f"combine_scores, 2 of {count} in 4 segments, min-max, bfloat16", count, "tokens", call)
    for rule in ("mean", "iqr"):
        call = functools.partial(pyramid_ops.segment_threshold, pair[0], bounds, rule)
        yield Counted(f"segment_threshold, {rule}, {count} in 4 segments, bfloat16", count, "tokens", call)
    x = tokens("pool", 2, 4096, dtype=FP32)
    call = functools.partial(pyramid_ops.pool_scores, x, (64, 64))
    yield Counted("pool_scores, 2 of 64×64, mean, float32", 2 * 1024, "outputs", call)
    for out in ((12, 12), (10, 7)):
        call = functools.partial(pyramid_ops.pool_tokens, tokens("grid", 1, 576, 256), (24, 24), out)
        case = f"pool_tokens, 24×24 to {out[0]}×{out[1]}, 256 features, bfloat16"
        yield Counted(case, out[0] * out[1] * 256, "outputs", call)
    bounds, grids = int32(0, 1024, 1024 + 2500, 8192), int32(32, 32, 50, 50, 58, 80).view(3, 2)
    call = functools.partial(pyramid_ops.pool_scores_packed, x.flatten(), bounds, grids, capacity=2048)
    yield Counted("pool_scores_packed, 32×32, 50×50 and 58×80, mean, float32", 2041, "outputs", call)
    call = functools.partial(pyramid_ops.broadcast_regions, tokens("regions", 2, 16, dtype=FP32), (64, 64))
    yield Counted("broadcast_regions, 2 of 4×4 to 64×64, float32", 2 * 4096, "outputs", call)


def _of_selection() -> Iterator[Counted]:
    for features, sizes, keep in ((64, (1024, 256, 64, 16), 68), (1024, (256, 64, 16, 4), 17)):
        levels, count = [tokens(f"level-{size}", 1, size, features) for size in sizes], sum(sizes)
        select = functools.partial(pyramid_ops.select_topk_levels, levels, keep)
        yield Counted(f"select_topk_levels, {keep} of {count} × {features}, bfloat16", count, "tokens", select)
    by_index = functools.partial(select, order="index")
    yield Counted("select_topk_levels, 17 of 340 × 1024, by index, bfloat16", count, "tokens", by_index)
    chosen = pyramid_ops.select_topk_levels(levels, 85).indices
    call = functools.partial(pyramid_ops.gather_levels, levels, chosen)
    yield Counted("gather_levels, 85 × 1024, bfloat16", 85 * 1024, "features", call)
    bounds = int32(0, 1000, 1576, 4096)
    topk = functools.partial(pyramid_ops.segmented_topk, tokens("keys", 4096, dtype=FP32), bounds, max_seqlen=2520)
    yield Counted("segmented_topk, 64 of up to 2520, float32", 4096, "tokens", functools.partial(topk, 64))
    call = functools.partial(pyramid_ops.segmented_topk, tokens("keys", 576, dtype=FP32), int32(0, 576), 64)
    yield Counted("segmented_topk, 64 of 576, float32", 576, "tokens", functools.partial(call, max_seqlen=576))
    keys, bounds = tokens("keys", 32768), int32(0, 30000, 32768)
    call = functools.partial(pyramid_ops.segmented_topk, keys, bounds, 512, max_seqlen=30000)
    yield Counted("segmented_topk, 512 of up to 30000, bfloat16", 32768, "tokens", call)
    packed = [tokens(f"packed-{size}", size, 64) for size in (1024, 256)]
    offsets = [int32(0, 600, 1024), int32(0, 150, 256)]
    call = functools.partial(pyramid_ops.select_topk_levels_packed, packed, offsets, [50, 14], max_seqlen=600)
    yield Counted("select_topk_levels_packed, 64 of up to 750 × 64, bfloat16", 1280, "tokens", call)
    kept, taken = chosen[:1, :64, 1].sort().values, int32(48)
    tensors = [tokens("dense", 1, 256, 1024), tokens("heads", 1, 8, 256, 128)]
    call = functools.partial(pyramid_ops.compact, tensors, kept, taken, token_dims=(1, 2))
    yield Counted("compact, 48 of 256, 1024 and 8 heads of 128, bfloat16", 2 * 48 * 1024, "features", call)


def _of_merging() -> Iterator[Counted]:
    for features, precision in ((64, "grid"), (64, "high"), (256, "grid")):
        x = tokens("match", 1, 512, features)
        call = functools.partial(pyramid_ops.best_match, x[:, ::2], x[:, 1::2], precision=precision)
        yield Counted(f"best_match, {precision}, 256 × 256, D = {features}, bfloat16", 256 * 256, "products", call)
    x = tokens("nearest", 1, 256, 64)
    for what, options in (("grid", {"precision": "grid"}), ("euclidean", {"metric": "euclidean"})):
        call = functools.partial(pyramid_ops.nearest, x, x, 8, exclude_self=True, **options)
        yield Counted(f"nearest, 8 by {what}, 256 × 256, D = 64, bfloat16", 256 * 256, "products", call)
    call = functools.partial(pyramid_ops.dpc_knn, x, 24, 7)
    yield Counted("dpc_knn, 24 clusters of 256 × 64, bfloat16", 256 * 256, "pairs", call)
    x, scores = tokens("match", 2, 256, 64), tokens("scores", 2, 256, dtype=FP32)
    call = functools.partial(pyramid_ops.suppress, x, 0.15, scores=scores, precision="grid")
    yield Counted("suppress, grid, by score, 2 × 256 × 64, bfloat16", 2 * 256 * 256, "products", call)
    call = functools.partial(pyramid_ops.suppress, x[0], 0.15, cu_seqlens=int32(0, 100, 256), max_seqlen=160)
    yield Counted("suppress, high, 256 in 2 segments, D = 64, bfloat16", 100 * 100 + 156 * 156, "products", call)
    x, clusters = tokens("merge", 1, 512, 1024), Source("clusters").integers(0, 128, 1, 512)
    clusters[:, 100:300] = 5
    call = functools.partial(pyramid_ops.assign_mean, x, clusters, 128)
    yield Counted("assign_mean, 512 × 1024 to 128, one of 200, bfloat16", x.numel(), "features", call)
    segments = {"cu_seqlens": int32(0, 200, 512), "cu_clusters": int32(0, 64, 128)}
    call = functools.partial(pyramid_ops.assign_mean, x[0], clusters[0] % 64, 128, **segments)
    yield Counted("assign_mean, 512 × 1024 packed to 128, bfloat16", x.numel(), "features", call)
    plan = pyramid_ops.tome_matching(tokens("merge", 1, 256, 64), 96)
    call = functools.partial(pyramid_ops.merge_tokens, tokens("merge", 1, 256, 1024), plan)
    yield Counted("merge_tokens, 256 × 1024 to 160, bfloat16", 256 * 1024, "features", call)
    call = functools.partial(pyramid_ops.merge_indices, plan, order="original")
    yield Counted("merge_indices, 256 to 160, original order", 256, "tokens", call)
    order = Source("pairs").bits(512).argsort()
    call = functools.partial(bipartite_plan, x[:, :384], x[:, 384:], order[:384], order[384:], 200, 1)
    yield Counted("bipartite_plan, grid, 200 of 384 into 128, D = 1024, bfloat16", 384 * 128, "products", call)


def _of_greedy() -> Iterator[Counted]:
    x, bounds = tokens("greedy", 1, 288, 256), int32(0, 100, 288)
    for rule, k in (("maxmin", 32), ("dpp", 16), ("coverage", 4)):
        call = functools.partial(pyramid_ops.greedy_select, x, k, rule=rule)
        yield Counted(f"greedy_select, {rule}, {k} of 288 × 256, bfloat16", 288 * 288, "products", call)
    call = functools.partial(pyramid_ops.greedy_select, x[0], 8, cu_seqlens=bounds, max_seqlen=200, order="index")
    yield Counted("greedy_select, 8 of two segments of 288 × 256, by index", 288 * 288, "products", call)
    anew = functools.partial(pyramid_ops.greedy_select, x, 8)
    yield Counted("greedy_select, maxmin without similarities, 8 of 288 × 256", 288 * 288, "products", _without(anew))
    x = tokens("greedy", 1, 1100, 64)
    call = functools.partial(pyramid_ops.greedy_select, x, 240, rule="dpp")
    yield Counted("greedy_select, dpp, 240 of 1100 × 64, bfloat16", 1100 * 1100, "products", call)
    for rows, k, step in ((500, 300, 100), (1100, 1084, 8)):
        x = tokens("greedy", 1, rows, 64)
        call = functools.partial(pyramid_ops.bipartite_prune, x, k, step=step)
        yield Counted(f"bipartite_prune, {k} of {rows} × 64, {step} a round, bfloat16", rows * rows, "products", call)


def _without(call: Callable[[], object]) -> Callable[[], object]:
    """As where the similarities of a sample do not fit."""

    def forced() -> object:
        with forcing(gram_limit=0):
            return call()

    return forced


def _of_plans() -> Iterator[Counted]:
    scores, flags = tokens("scores", 2, 640, dtype=FP32), Source("flags").integers(0, 3, 2, 640) > 0
    keep = functools.partial(plans.keep, scores, 96, candidates=flags, forced=~flags, capacity=320)
    for order in ("index", "value"):
        call = functools.partial(keep, order=order)
        yield Counted(f"keep, 96 of 2 × 640, by {order}, float32", 2 * 640, "tokens", call)
    plan = keep()
    hidden, cache, positions = tokens("h", 2, 640, 1024), tokens("c", 2, 4, 640, 64), flags.to(torch.int64)
    call = functools.partial(plans.apply, plan, [hidden, cache, cache, positions], align="right")
    yield Counted("apply, 2 of 640 × 1024, keys and values of 4 × 64", 2 * 320 * (1024 + 512), "features", call)
    square = tokens("square", 1, 1, 640, 640)
    call = functools.partial(plans.apply, plan, square, dims=(2, 3))
    yield Counted("apply, mask of 640 × 640 for 2, bfloat16", 2 * 320 * 320, "outputs", call)
    yield Counted("mask, 2 × 640", 2 * 640, "tokens", functools.partial(plans.mask, plan))
    metric = tokens("metric", 2, 640, 64)
    call = functools.partial(plans.join, metric, plan, precision="grid")
    yield Counted("join, grid, 2 × 640 × 64 to 320, bfloat16", 2 * 640 * 640, "products", call)
    call = functools.partial(plans.tome, metric, 160, class_token=True, precision="grid")
    yield Counted("tome, grid, 2 × 640 × 64, 160 merged, bfloat16", 2 * 320 * 320, "products", call)


def _of_attention() -> Iterator[Counted]:
    q, k = tokens("q", 1, 4, 256, 64), tokens("k", 1, 2, 256, 64)
    score, logits = pyramid_ops.attention_importance, 4 * 256 * 256
    for what, options in (
        ("grid", {}),
        ("high", {}),
        ("grid, max of heads first", {"head_reduction": "max"}),
    ):
        call = functools.partial(score, q, k, precision=what.split(",")[0], **options)
        yield Counted(f"attention_importance, {what}, 4 heads of 256 × 64, bfloat16", logits, "logits", call)
    q, k = tokens("q", 1, 16, 1, 128), tokens("k", 1, 4, 1024, 128)
    for precision in ("grid", "high"):
        call = functools.partial(score, q, k, query_indices=[-1], causal=True, precision=precision)
        case = f"attention_importance, {precision}, last query, 16 heads, 4 of 1024 × 128, bfloat16"
        yield Counted(case, 16 * 1024, "logits", call)
    q, k, seen = tokens("q", 2, 4, 256, 64), tokens("k", 2, 2, 256, 64), Source("seen").integers(0, 4, 2, 256)
    for what, options in (
        ("8 queries", {"query_indices": [3, 50, 51, 90, 120, 200, 201, 255]}),
        ("a quarter of the queries, masked keys", {"query_mask": seen == 0, "key_mask": seen > 0}),
        ("weighted queries", {"query_weights": seen.to(FP32)}),
    ):
        call = functools.partial(score, q, k, causal=True, precision="grid", **options)
        yield Counted(f"attention_importance, grid, {what}, 2 × 4 heads of 256 × 64", 2 * 4 * 256 * 256, "logits", call)
    options = {"center_keys": True, "log_sum_exp": tokens("lse", 2, 4, 256, dtype=FP32), "key_mask": seen > 0}
    call = functools.partial(score, q, k, precision="grid", **options)
    yield Counted(
        "attention_importance, grid, centred keys, 2 × 4 heads of 256 × 64", 2 * 4 * 256 * 256, "logits", call
    )
    x, words = tokens("tokens", 1, 256, 256), tokens("words", 1, 32, 256)
    for precision, reduction in (("grid", "max"), ("high", "mean")):
        call = functools.partial(pyramid_ops.text_relevance, x, words, reduction=reduction, precision=precision)
        yield Counted(
            f"text_relevance, {precision}, {reduction}, 256 × 32, D = 256, bfloat16", 256 * 32, "products", call
        )
    call = functools.partial(
        pyramid_ops.text_relevance, x, words, reduction="softmax", token_mask=seen[:1] > 0, precision="grid"
    )
    yield Counted("text_relevance, grid, softmax, masked, 256 × 32, D = 256, bfloat16", 256 * 32, "products", call)
    q, k = tokens("q", 1, 4, 128, 64), tokens("k", 1, 2, 128, 64)
    call = functools.partial(pyramid_ops.attention_walk, q, k, steps=2, precision="grid")
    yield Counted("attention_walk, grid, 2 steps, 4 heads of 128 × 64, bfloat16", 2 * 4 * 128 * 128, "logits", call)
    q, k = (x[0].transpose(0, 1) for x in (q, k))
    call = functools.partial(pyramid_ops.attention_walk, q, k, steps=2, cu_seqlens=int32(0, 32, 128), precision="grid")
    case = "attention_walk, grid, 2 steps, 4 heads of 32 and 96 × 64, bfloat16"
    yield Counted(case, 2 * 4 * (32 * 32 + 96 * 96), "logits", call)


def _of_budgets() -> Iterator[Counted]:
    for levels in (4, 64):
        weights = picture("weights", 64, levels)
        call = functools.partial(pyramid_ops.allocate_budgets_batch, 20 * levels, weights, [64] * levels)
        yield Counted(f"allocate_budgets_batch, 64 of {levels} levels", 64, "samples", call)
    weights = picture("weights", 8, 1024)
    call = functools.partial(pyramid_ops.allocate_budgets_batch, 20480, weights, [64] * 1024, surplus="weight")
    yield Counted("allocate_budgets_batch, 8 of 1024 levels, surplus by weight", 8, "samples", call)
    x, lengths = tokens("instruction", 2, 77, 1024, dtype=FP32), int32(20, 77)
    call = functools.partial(pyramid_ops.adaptive_budgets, 273, x, (4096, 1024, 256, 64), lengths=lengths)
    yield Counted("adaptive_budgets, 2 of 77 × 1024, float32", x.numel(), "features", call)


def kernels_by_module() -> dict[str, set[str]]:
    """The names of all kernels of the library, by the module that has them."""
    modules = [
        importlib.import_module(f"{_kernels.__name__}.{found.name}")
        for found in pkgutil.iter_modules(_kernels.__path__)
    ]
    return {
        module.__name__: {
            what
            for what, value in vars(module).items()
            if isinstance(value, triton.JITFunction) and what.endswith("_kernel")
        }
        for module in modules
    }


def kernels() -> set[str]:
    return set().union(*kernels_by_module().values())


def _family(opcode: str) -> str:
    """`ld.global` of ld.global.v4.b32, `add` of add.rn.f32."""
    first, *parts = opcode.split(".")
    if first in ("ld", "st", "atom", "red"):
        space = next(part for part in parts if part.startswith(("global", "shared", "param")))
        return f"{first}.{space.split(':')[0]}"
    return f"{first}.{parts[0]}" if first in ("bar", "cp", "wgmma") else first


def counts(run: Run, elements: int) -> dict[str, dict[str, Any]]:
    """Of each kernel that ran: its launches, instructions, accesses of memory and opcodes."""
    codes: dict[str, list[str]] = collections.defaultdict(list)
    for ptx in run.executed:
        codes[run.names[ptx]].append(ptx)
    return {kernel: _counts(run, kernel, codes[kernel], elements) for kernel in codes}


def _counts(run: Run, kernel: str, codes: list[str], elements: int) -> dict[str, Any]:
    of_warps: collections.Counter[str] = collections.Counter()
    thread_instructions = warps = 0
    for ptx in codes:
        code, executed = link(ptx).code, run.executed[ptx]
        warps += executed[0][1]  # nothing branches back to the first block
        for block, (threads, times) in executed.items():
            first, end = code.blocks[block]
            thread_instructions += threads * (end - first)
            for at in code.instructions[first:end]:
                of_warps[_family(at.opcode)] += times
    numbers = run.counts.numbers if run.counts else {}

    def sectors(kind: str) -> list[int]:
        kind = f"global {kind}"
        needed = -(-numbers[kernel, f"{kind}: bytes needed"] // 32)
        return [numbers[kernel, f"{kind}: sectors requested"], needed, numbers[kernel, f"{kind}: sectors distinct"]]

    def shared(what: str) -> int:
        return sum(numbers[kernel, f"shared {kind}: {what}"] for kind in ("load", "store", "atomic"))

    launches = [programs for launched, programs, _ in run.launches if launched == kernel]
    return {
        "launches": len(launches),
        "programs": sum(launches),
        "threads": sorted({link(ptx).code.threads for ptx in codes}),
        "warp instructions": of_warps.total(),
        "thread instructions": thread_instructions,
        "per element": round(thread_instructions / elements, 2),
        "loads": sectors("load"),
        "stores": sectors("store"),
        "atomics": sectors("atomic"),
        "repeats": sum(numbers[kernel, f"{space} atomic: repeats"] for space in ("global", "shared")),
        "wavefronts": shared("wavefronts"),
        "conflicts": shared("conflicts"),
        "barriers": round(of_warps["bar.sync"] / warps, 2),
        "mix": dict(sorted(of_warps.items(), key=lambda item: (-item[1], item[0]))),
    }


def measure(target: str, counted: Counted) -> dict[str, dict[str, Any]]:
    with executing(target, count=True, sanitize=False) as run:
        counted.call()
    return counts(run, counted.elements)


def committed() -> dict[str, Any]:
    """`results/executed.json`: the Triton version, and the counts of each call, kernel and target."""
    return json.loads((RESULTS / "executed.json").read_text())


def _row(counted: Counted, kernel: str, found: dict[str, Any]) -> str:
    def sectors(kind: str) -> str:
        numbers = found[kind] if len({*found[kind]}) > 1 else found[kind][:1]
        return " / ".join(f"{number:,}" for number in numbers) if any(numbers) else ""

    total = found["warp instructions"]
    mix = [f"{what} {100 * times / total:.0f}" for what, times in list(found["mix"].items())[:COMMON]]
    repeats = [f"{found['repeats']:,} repeats"] if found["repeats"] else []
    atomics = ", ".join([*filter(None, [sectors("atomics")]), *repeats])
    conflicts = f"{found['conflicts']:,} of {found['wavefronts']:,}" if found["wavefronts"] else ""
    cells = [
        counted.id,
        f"{counted.elements:,} {counted.element}",
        f"`{kernel}`",
        f"{found['launches']}",
        f"{found['programs']:,}",
        ", ".join(map(str, found["threads"])),
        f"{total:,}",
        f"{found['per element']:,.1f}",
        sectors("loads"),
        sectors("stores"),
        atomics,
        conflicts,
        f"{found['barriers']:g}",
        ", ".join(mix),
    ]
    return f"| {' | '.join(cells)} |"


HEAD = [
    "| call | elements | kernel | launches | programs | threads | warp instructions | for each element | loads "
    "| stores | atomics | conflicts | barriers | mix, % |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
]


def main(texts: list[str]) -> None:
    torch.set_num_threads(1)
    table: dict[str, dict[str, Any]] = {}
    rows: dict[str, list[str]] = {target: [] for target in TARGETS}
    for counted in calls():
        if texts and not any(text in counted.id for text in texts):
            continue
        for target in TARGETS:
            for kernel, found in measure(target, counted).items():
                table[f"{counted.id} | {kernel} | {target}"] = found
                rows[target].append(_row(counted, kernel, found))
    tables = [line for target in TARGETS for line in ("", f"## {target}", "", *HEAD, *rows[target])]
    if texts:
        print("\n".join(tables))
        return
    for target in TARGETS:
        missing = kernels() - {key.split(" | ")[1] for key in table if key.endswith(target)}
        if missing:
            raise SystemExit(f"no call runs {', '.join(sorted(missing))} for {target}")
    entries = ",\n".join(f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(found)}" for key, found in table.items())
    (RESULTS / "executed.json").write_text(f'{{"triton": "{triton.__version__}", "counts": {{\n{entries}\n}}}}\n')
    lines = [
        "# Executed instructions and accesses",
        "",
        f"Triton {triton.__version__}: counts of the PTX that an executor on the CPU ran, not of machine code, and no",
        "time. The assembler removes moves and merges and orders instructions; the steps of a division and the like,",
        "which are one instruction here, it adds.",
        "",
        "*warp instructions* are those that some thread of a warp reaches, over all launches; *for each element* are",
        "thread instructions over the elements of the call. *loads*, *stores* and *atomics* are sectors of 32 bytes of",
        "global memory: those that the instructions of warps request / those that the distinct bytes of every such",
        "instruction would fill, added and rounded up / those that a launch touches at all, added over launches; one",
        "number where the three are equal. *repeats* are lanes whose atomic goes to the same address as that of a lane",
        "before them in the warp, in global or shared memory. *conflicts* are wavefronts of shared memory that bank",
        "conflicts add, of all; what `wgmma` reads is not among them. *barriers* are what a warp passes, on average.",
        "*mix* is the share of the most frequent opcodes among warp instructions.",
        "",
        "`executed.json` beside this file has the same numbers and all of the mix.",
        *tables,
    ]
    (RESULTS / "executed.md").write_text("\n".join(lines) + "\n")
    print(f"{len(table)} rows in {RESULTS}")


if __name__ == "__main__":
    main(sys.argv[1:])
