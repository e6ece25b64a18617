"""The machine code of every shipped configuration, compiled ahead of time for GPUs that need not be there."""

import functools
import os
import re

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels decorated for the interpreter cannot be compiled", allow_module_level=True)

import pyramid_ops
from bench import compile as aot


def ones():
    """Sizes, strides and budgets equal to 1, which Triton turns into constants."""
    one = torch.empty(1, 1, 1)
    plan = pyramid_ops.tome_matching(torch.ones(1, 70, 1), 34)
    levels = [torch.empty(2, size, 64) for size in (256, 1)]
    scores = [torch.empty(2, size, dtype=torch.float16) for size in (256, 1)]
    indices = torch.empty(1, 1, 2, dtype=torch.int64)
    yield "token_variance", lambda: pyramid_ops.token_variance(one, correction=0)
    yield "token_norm", lambda: pyramid_ops.token_norm(one)
    yield "unit_rows", lambda: pyramid_ops.unit_rows(one)
    yield "select_topk_levels", lambda: pyramid_ops.select_topk_levels([one, one], budgets=[1, 1], saliency="norm")
    yield "select_topk_levels-1-last", lambda: pyramid_ops.select_topk_levels(levels, budgets=[20, 1], saliency=scores)
    yield "select_topk_levels-1-first", lambda: pyramid_ops.select_topk_levels(levels[::-1], budgets=[1, 20])
    yield "select_topk_levels-union", lambda: pyramid_ops.select_topk_levels(levels, 1, None, order="index")
    yield "gather_levels", lambda: pyramid_ops.gather_levels([one], indices)
    bounds = torch.empty(2, dtype=torch.int32)
    for size, k in ((1, 1), (1, bounds[:1]), (513, [1]), (1 << 20, [1])):
        topk = functools.partial(pyramid_ops.segmented_topk, torch.empty(size), bounds, k, max_seqlen=size, capacity=1)
        yield f"segmented_topk-{size}-{type(k).__name__}", topk
    for size in (1, 1 << 20):
        packed = [torch.empty(size, 1), torch.empty(1, 1)]
        select = functools.partial(pyramid_ops.select_topk_levels_packed, packed, [bounds] * 2, [1, 0])
        yield f"select_topk_levels_packed-{size}", functools.partial(select, max_seqlen=size)
    for counts in (None, bounds[:1]):
        tensors = [one[0], torch.empty(1, dtype=torch.bool), torch.empty(1, dtype=torch.int64)]
        move = functools.partial(pyramid_ops.compact, tensors, indices[0, :, :1], counts, cu_seqlens=bounds)
        yield f"compact-{counts is None}", move
    far = torch.empty(4).as_strided((1, 4, 1), (1 << 31, 1, 1))
    yield "select_topk_levels-far", lambda: pyramid_ops.select_topk_levels([one, far], budgets=[1, 2], saliency="norm")
    many = torch.empty(1, 70, 1)
    none = torch.zeros(1, 70, dtype=torch.int64)
    offsets = torch.zeros(2, dtype=torch.int32)
    mask = torch.ones(1, dtype=torch.bool)
    packed = {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets}
    for precision in ("grid", "high"):
        match = functools.partial(pyramid_ops.best_match, precision=precision)
        yield f"best_match-{precision}", lambda f=match: f(one, one)
        yield f"best_match-{precision}-1-key", lambda f=match: f(torch.empty(1, 300, 100), torch.empty(1, 1, 100))
        yield f"best_match-{precision}-packed", lambda f=match: f(one[0], one[0], key_mask=mask, **packed)
    for width in (1, 65):
        yield f"assign_mean-{width}", lambda w=width: pyramid_ops.assign_mean(torch.empty(1, 1, w), none[:, :1], 1)
    weights = torch.ones(1, 70)
    yield "assign_mean-long", lambda: pyramid_ops.assign_mean(many, none, 1, weights=weights)
    yield "merge_tokens-amax", lambda: pyramid_ops.merge_tokens(many, plan, weights, mode="amax")
    count = torch.ones(1, dtype=torch.int64)
    yield "region_variance", lambda: pyramid_ops.region_variance(one, (1, 1), (1, 1))
    yield "region_variance-lengths", lambda: pyramid_ops.region_variance(one, (1, 1), (1, 1), lengths=count)
    yield "region_variance-column", lambda: pyramid_ops.region_variance(levels[0], (256, 1), (3, 1))
    yield "broadcast_regions", lambda: pyramid_ops.broadcast_regions(one[0], (1, 1), (1, 1))
    yield "broadcast_regions-row", lambda: pyramid_ops.broadcast_regions(one[0].expand(2, 3), (1, 256), (1, 3))
    yield "patch_entropy", lambda: pyramid_ops.patch_entropy(one[None], 1, bins=2)
    yield "patch_entropy-bytes", lambda: pyramid_ops.patch_entropy(torch.empty(1, 1, 2, 4, dtype=torch.uint8), 2)
    yield "allocate_budgets_batch", lambda: pyramid_ops.allocate_budgets_batch(1, one[0], [1], minimum=1, maximum=1)
    yield "allocate_budgets_batch-tensors", lambda: pyramid_ops.allocate_budgets_batch(count, one[0], count[:, None])
    yield "adaptive_budgets", lambda: pyramid_ops.adaptive_budgets(1, one, [1], weights=[[1.0]], thresholds=[])
    for shape in ((1, 1, 2, 2), (1, 1, 2, 64), (1, 3, 64, 2), (1, 3, 64, 48)):
        x = torch.empty(shape)
        for taps in ([1.0], [0.1] * 3, [0.1] * 11):
            case = f"blur_downsample-{shape[2]}-{shape[3]}-{len(taps)}"
            yield case, lambda x=x, taps=taps: pyramid_ops.blur_downsample(x, taps=taps, padding="reflect")


TENSOR_CORE = {"sm_80": r"mma\.sync", "sm_90": r"wgmma\.mma_async", "sm_100": r"tcgen05\.mma"}


def clean_accumulators(ttir: str) -> bool:
    """Whether every tt.dot adds to zero, or to itself around a loop that begins at zero."""
    zeros = set(re.findall(r"(%\S+) = arith\.constant dense<0\.0+e\+00> : tensor<\S+xf32>", ttir))
    dots = dict(re.findall(r"(%\S+) = tt\.dot %\S+, %\S+, (%\w+)", ttir))
    carried = dict(
        pair for loop in re.findall(r"iter_args\((.*?)\)", ttir) for pair in re.findall(r"(%\w+) = (%\w+)", loop)
    )
    yielded = {name for line in re.findall(r"scf\.yield (.*?) :", ttir) for name in line.split(", ")}
    return all(
        accumulator in zeros or (carried.get(accumulator) in zeros and result in yielded)
        for result, accumulator in dots.items()
    )


def test_accumulator_check_finds_an_added_value():
    loop = "%c = arith.constant dense<0.000000e+00> : tensor<4x4xf32>\n%r = scf.for iter_args(%a = %c)\n"
    assert clean_accumulators(loop + "%d = tt.dot %x, %y, %a\nscf.yield %d : f32")
    assert not clean_accumulators(loop + "%d = tt.dot %x, %y, %other\nscf.yield %d : f32")
    assert not clean_accumulators(loop.replace("= %c)", "= %o)") + "%d = tt.dot %x, %y, %a\nscf.yield %d : f32")
    assert not clean_accumulators(loop + "%d = tt.dot %x, %y, %a\n%e = arith.addf %d, %z\nscf.yield %e : f32")


# These read single values that lie apart, a few numbers for each sample, or segments that start anywhere.
SCATTERED = (
    "_select_segment_kernel",
    "_count_kernel",
    "_take_chunk_kernel",
    "_order_kernel",
    "_locate_rows_kernel",
    "_region_variance_kernel",
    "_broadcast_regions_kernel",
    "_patch_entropy_kernel",
    "_allocate_budgets_kernel",
    "_adaptive_weights_kernel",
)

SHIPPED = [
    pytest.param(dtype, call, True, id=f"{case.replace(', ', '-').replace(' ', '')}-{aot.name(dtype)}")
    for case, dtype, call in aot.shipped()
]
ONES = [pytest.param(torch.float32, call, False, id=f"one-{case}") for case, call in ones()]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize(("dtype", "call", "wide"), SHIPPED + ONES)
def test_nvidia_code(target, dtype, call, wide):
    kernels = aot.compiled(target, call)
    assert kernels
    for kernel_name, kernel in kernels:
        code = aot.report(kernel)
        ptx = kernel.asm["ptx"]
        assert code["spills"] == 0, code
        assert code["stack"] == 0, code
        assert code["shared"] <= aot.SHARED_LIMIT[target], code
        assert not re.search(r"\bfma\.rn", ptx), f"{kernel_name}: fused multiply and add"
        assert not re.search(r"\b(div|sqrt|ex2)\.(approx|full)|\.ftz\.f32", ptx), f"{kernel_name}: inexact arithmetic"
        assert clean_accumulators(kernel.asm["ttir"]), f"{kernel_name}: a product that starts from another value"
        if kernel_name == "_best_match_kernel":
            assert re.search(TENSOR_CORE[target], ptx), f"{kernel_name}: no tensor cores"
        else:
            assert "tt.dot" not in kernel.asm["ttir"]
        if wide and kernel_name not in SCATTERED:
            widest = ".64" if dtype == torch.uint8 else ".128"
            assert any(load.endswith(widest) for load in code["loads"]), code


@pytest.mark.parametrize(("dtype", "call", "wide"), SHIPPED + ONES)
def test_amd_code(dtype, call, wide):
    """gfx942: compiles, within shared memory, nothing spilled to memory."""
    for kernel_name, kernel in aot.compiled("gfx942", call):
        text = kernel.asm["amdgcn"]
        assert kernel.metadata.shared <= aot.SHARED_LIMIT["gfx942"]
        assert re.findall(r"\.private_segment_fixed_size:\s+(\d+)", text) == ["0"], kernel_name
