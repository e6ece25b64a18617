"""What `bench.executed` counts: exact where it can be counted by hand, and as committed."""

import functools
import os

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels decorated for the interpreter cannot be compiled", allow_module_level=True)

import triton

import pyramid_ops
from bench import executed
from tests.ptx import TARGETS, executing
from tests.ptx.counts import Counts
from tests.ptx.link import link

COMMITTED = executed.committed()
AGAIN = "python -m bench.executed, and commit bench/results/executed.*"
LANES = np.arange(64)
FAST = (
    "token_norm, 256 × 1024, bfloat16",
    "combine_scores, 2 of 8192, bfloat16",
    "segmented_topk, 64 of up to 2520, float32",
    "best_match, grid, 256 × 256, D = 64, bfloat16",
)


@functools.lru_cache(None)
def calls():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them wait for each other longer than they work
    made = list(executed.calls())
    torch.set_num_threads(threads)
    named = {counted.id: counted for counted in made}
    assert len(named) == len(made), "two calls of one name"
    return named


def counted(space, kind, where, size, lanes=LANES):
    counts = Counts()
    counts.access("k", space, kind, np.asarray(where, np.uint64 if space == "global" else np.int64), size, lanes)
    counts.launched("k")
    return {what.removeprefix(f"{space} {kind}: "): number for (_, what), number in counts.numbers.items()}


@pytest.mark.parametrize(
    ("where", "size", "requested", "needed", "distinct"),
    [
        (4096 + 4 * LANES, 4, 8, 256, 8),
        (4096 + 16 * LANES, 16, 32, 1024, 32),
        (4096 + 32 * LANES, 4, 64, 256, 64),
        (4096 + 0 * LANES, 4, 2, 8, 1),
        (4096 + 4 * (LANES % 32), 4, 8, 256, 4),
        (4096 + 16 + 4 * LANES, 4, 10, 256, 9),
    ],
    ids=["side by side", "wide", "apart", "one address", "two warps alike", "between sectors"],
)
def test_sectors(where, size, requested, needed, distinct):
    assert counted("global", "load", where, size) == {
        "instructions": 2,
        "sectors requested": requested,
        "bytes needed": needed,
        "sectors distinct": distinct,
    }


@pytest.mark.parametrize(
    ("where", "size", "wavefronts", "conflicts"),
    [
        (4 * LANES, 4, 2, 0),
        (2 * LANES, 2, 2, 0),
        (16 * LANES, 16, 8, 0),
        (8 * LANES, 8, 4, 0),
        (8 * LANES, 4, 4, 2),
        (128 * LANES, 4, 64, 62),
        (0 * LANES, 4, 2, 0),
        (132 * LANES, 4, 2, 0),
    ],
    ids=["words", "halves", "16 bytes", "8 bytes", "every other word", "one bank", "one word", "padded"],
)
def test_bank_conflicts(where, size, wavefronts, conflicts):
    assert counted("shared", "load", where, size) == {"wavefronts": wavefronts, "conflicts": conflicts}


@pytest.mark.parametrize("space", ["global", "shared"])
def test_atomics_at_one_address_repeat(space):
    assert counted(space, "atomic", 4 * (LANES % 8), 4)["repeats"] == 48


def measured(call, elements=1):
    with executing("sm_80", count=True, sanitize=False) as run:
        call()
    return run, executed.counts(run, elements)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_byte_of_rows_is_read_once(dtype):
    x = torch.ones(1, 64, 512, dtype=dtype)
    run, found = measured(lambda: pyramid_ops.token_norm(x), x.numel())
    assert found["_score_kernel"]["loads"] == [x.nbytes // 32] * 3
    assert found["_score_kernel"]["stores"][1:] == [64 * 4 // 32] * 2
    assert found["_score_kernel"]["atomics"] == [0, 0, 0]
    (ptx,) = run.executed
    code = link(ptx).code
    # No loop, and no branch that is taken: every thread runs every instruction.
    threads = found["_score_kernel"]["programs"] * code.threads
    assert found["_score_kernel"]["thread instructions"] == threads * len(code.instructions)
    assert found["_score_kernel"]["warp instructions"] == threads // 32 * len(code.instructions)
    assert found["_score_kernel"]["per element"] == round(threads * len(code.instructions) / x.numel(), 2)
    assert found["_score_kernel"]["barriers"] == sum(at.opcode == "bar.sync" for at in code.instructions)


def test_combined_scores_are_read_and_written_once():
    scores = [torch.ones(1, 2048), torch.ones(1, 2048)]
    _, found = measured(lambda: pyramid_ops.combine_scores(scores, [1, 2]))
    assert set(found) == {"_combine_scores_kernel"}
    assert found["_combine_scores_kernel"]["loads"] == [2 * 2048 * 4 // 32] * 3
    assert found["_combine_scores_kernel"]["stores"] == [2048 * 4 // 32] * 3


def test_copied_rows():
    levels = [torch.ones(1, 16, 64), torch.ones(1, 4, 64)]
    indices = torch.tensor([[[0, 3], [1, 2], [0, 5], [0, 3]]])
    _, found = measured(lambda: pyramid_ops.gather_levels(levels, indices))
    # Three rows of four are different, and the indices are 64 bytes.
    assert found["_gather_levels_kernel"]["loads"][2] == 3 * 256 // 32 + 2
    assert found["_gather_levels_kernel"]["stores"] == [4 * 256 // 32] * 3


def test_committed_table_has_every_kernel_and_call():
    keys = [key.split(" | ") for key in COMMITTED["counts"]]
    assert {call for call, _, _ in keys} == set(calls()), AGAIN
    for target in TARGETS:
        assert {kernel for _, kernel, where in keys if where == target} == executed.kernels(), AGAIN


@pytest.mark.skipif(
    COMMITTED["triton"] != triton.__version__,
    reason=f"the committed table is of Triton {COMMITTED['triton']}, here is {triton.__version__}",
)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("call", FAST)
def test_counts_are_those_committed(call, target):
    ends = f" | {target}"
    old = {
        key.split(" | ")[1]: found
        for key, found in COMMITTED["counts"].items()
        if key.startswith(f"{call} | ") and key.endswith(ends)
    }
    assert executed.measure(target, calls()[call]) == old, AGAIN
