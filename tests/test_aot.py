"""The machine code of every shipped configuration, compiled ahead of time for GPUs that need not be there."""

import os
import re

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels decorated for the interpreter cannot be compiled", allow_module_level=True)

from bench import compile as aot
from pyramid_ops._dispatch import OPS
from tests.cases import GAUSSIAN, filter_args, name

NVIDIA = ("sm_80", "sm_90", "sm_100")


def tokens(features, dtype, sizes=(512,)):
    return [torch.empty(2, size, features, dtype=dtype) for size in sizes]


def launches():
    """(id, dtype, launch) over the sizes, dtypes and options that choose a configuration, and arguments equal to 1."""
    full = (torch.float32, torch.bfloat16)
    for dtype in full:
        for size in (64, 768, 1024, 4096, 16384):
            x = tokens(size, dtype)[0]
            yield f"token_variance-{size}", dtype, lambda x=x: OPS["token_variance"].kernel(x, 1)
            yield f"token_norm-{size}", dtype, lambda x=x: OPS["token_norm"].kernel(x)
        for size in (64, 1024):
            x = tokens(size, dtype)[0]
            yield f"unit_rows-{size}", dtype, lambda x=x: OPS["unit_rows"].kernel(x, 2)
        levels = tokens(1024, dtype, (4096, 1024, 256, 64))
        for budgets in ([111, 81, 54, 27], [273]):
            yield (
                f"select_topk_levels-{len(budgets)}",
                dtype,
                lambda levels=levels, budgets=budgets: OPS["select_topk_levels"].kernel(
                    levels, [], "variance", budgets, False
                ),
            )
        indices = torch.empty(2, 273, 2, dtype=torch.int64)
        yield "gather_levels", dtype, lambda levels=levels, i=indices: OPS["gather_levels"].kernel(levels, i)
    levels = tokens(1024, torch.float16, (256, 1))
    scores = [level[..., 0].contiguous() for level in levels]
    yield (
        "select_topk_levels-given",
        torch.float16,
        lambda: OPS["select_topk_levels"].kernel(levels, scores, "given", [20, 1], False),
    )
    for dtype in (*full, torch.uint8):
        for padding in ("zeros", "reflect", "replicate"):
            for downsample in ("mean", "decimate"):
                x = torch.empty(2, 3, 1024, 1024, dtype=dtype)
                args = filter_args(GAUSSIAN, padding, downsample, 1024, 1024)
                yield (
                    f"blur_downsample-{padding}-{downsample}",
                    dtype,
                    lambda x=x, args=args: OPS["blur_downsample"].kernel(x, *args),
                )
    for shape in ((1, 1, 2, 2), (1, 3, 64, 48)):
        x = torch.empty(shape)
        args = filter_args((1.0,), "zeros", "mean", *shape[2:])
        yield (
            f"blur_downsample-{shape[2]}",
            torch.float32,
            lambda x=x, args=args: OPS["blur_downsample"].kernel(x, *args),
        )
    one = tokens(1, torch.float32, (1,))[0][:1]
    yield "token_variance-one", torch.float32, lambda: OPS["token_variance"].kernel(one, 0)
    yield "unit_rows-one", torch.float32, lambda: OPS["unit_rows"].kernel(one, 1)
    yield (
        "select_topk_levels-one",
        torch.float32,
        lambda: OPS["select_topk_levels"].kernel([one, one], [], "norm", [1, 1], False),
    )
    yield (
        "gather_levels-one",
        torch.float32,
        lambda: OPS["gather_levels"].kernel([one], torch.empty(1, 1, 2, dtype=torch.int64)),
    )


LAUNCHES = [pytest.param(dtype, launch, id=f"{case}-{name(dtype)}") for case, dtype, launch in launches()]


def uses_wide_loads(case: str) -> bool:
    """Kernels that read rows of features or images; not those on single elements."""
    return "one" not in case and "given" not in case and "blur_downsample-2-" not in case


@pytest.mark.parametrize("target", [*NVIDIA])
@pytest.mark.parametrize(("dtype", "launch"), LAUNCHES)
def test_nvidia_code(request, target, dtype, launch):
    kernels = aot.compiled(target, launch)
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
        if kernel_name != "_select_kernel" and uses_wide_loads(request.node.callspec.id):
            wide = "LDG.E.64" if dtype == torch.uint8 else "LDG.E.128"
            assert any(load.startswith(wide) for load in code["loads"]), code


@pytest.mark.parametrize(("dtype", "launch"), LAUNCHES)
def test_amd_code(dtype, launch):
    """gfx942: compiles, within shared memory, nothing spilled to memory."""
    for kernel_name, kernel in aot.compiled("gfx942", launch):
        text = kernel.asm["amdgcn"]
        assert kernel.metadata.shared <= aot.SHARED_LIMIT["gfx942"]
        assert re.findall(r"\.private_segment_fixed_size:\s+(\d+)", text) == ["0"], kernel_name
