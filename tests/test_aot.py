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
    for shape in ((1, 1, 2, 2), (1, 1, 2, 64), (1, 3, 64, 2), (1, 3, 64, 48)):
        x = torch.empty(shape)
        for taps in ([1.0], [0.1] * 3, [0.1] * 11):
            case = f"blur_downsample-{shape[2]}-{shape[3]}-{len(taps)}"
            yield case, lambda x=x, taps=taps: pyramid_ops.blur_downsample(x, taps=taps, padding="reflect")


# They read scores, offsets and indices of packed segments, which start anywhere.
NARROW = {
    *("_select_segment_kernel", "_count_kernel", "_take_chunk_kernel", "_order_kernel", "_locate_rows_kernel"),
}

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
        assert "tt.dot" not in kernel.asm["ttir"]
        if wide and kernel_name not in NARROW:
            widest = "LDG.E.64" if dtype == torch.uint8 else "LDG.E.128"
            assert any(load.startswith(widest) for load in code["loads"]), code


@pytest.mark.parametrize(("dtype", "call", "wide"), SHIPPED + ONES)
def test_amd_code(dtype, call, wide):
    """gfx942: compiles, within shared memory, nothing spilled to memory."""
    for kernel_name, kernel in aot.compiled("gfx942", call):
        text = kernel.asm["amdgcn"]
        assert kernel.metadata.shared <= aot.SHARED_LIMIT["gfx942"]
        assert re.findall(r"\.private_segment_fixed_size:\s+(\d+)", text) == ["0"], kernel_name
