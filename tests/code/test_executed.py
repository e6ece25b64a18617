"""The compiled code itself, executed and sanitised: the bits of the reference, no fault, in two orders of programs."""

import json
import os
import re
from random import Random

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels decorated for the interpreter cannot be compiled", allow_module_level=True)

import triton

from bench.compile import RESULTS, committed
from pyramid_ops._op import OPS
from pyramid_ops.kernels.choosers import forcing
from pyramid_ops.verify.cases import DESCRIPTIONS
from tests import hostile
from tests.bits import assert_same_bits, poisoned, to
from tests.compositions import compose
from tests.ptx import TARGETS, THREADS, executing
from tests.ptx.coverage import ENOUGH, REASONS

SLOW = pytest.mark.slow
CPU = torch.device("cpu")
EVERY = 16  # of the cases of an op, in `make test`
# Random compositions, mostly of code that nothing else compiles: some seconds each.
ALL = bool(os.environ.get("PYRAMID_OPS_TEST_ALL"))
SHARDS = 20 if ALL else 2
COMPOSITIONS = (2000 if triton.__version__ == committed()["triton"] else 500) if ALL else 4


def generated():
    for op, description in DESCRIPTIONS.items():
        for number, case in enumerate(description.bits()):
            for shift, target in enumerate(TARGETS):
                fast = number % EVERY == shift * EVERY // 2 and not case.slow
                marks = [pytest.mark.op(op), *([] if fast else [SLOW])]
                for limits in ({}, description.limits) if description.limits else ({},):
                    case_id = f"{op}-{case.id}-{target}{'-limits' * bool(limits)}"
                    yield pytest.param(target, op, case.args, limits, id=case_id, marks=marks)


@pytest.mark.parametrize(("target", "op", "args", "limits"), list(generated()))
def test_executed_code_equals_reference(target, op, args, limits):
    """All programs at once, and one after the other: what one writes and another reads would differ."""
    expected = OPS[op].reference(*args)
    for together in (THREADS, 1):
        given = [to(CPU, arg) for arg in args]
        with executing(target, together=together) as run, poisoned(), forcing(**limits):
            actual = OPS[op].kernel(*given)
        assert_same_bits(actual, expected)
        assert not run.faults, f"\n{run.faults}"


@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("target", TARGETS)
def test_random_compositions(target, shard):
    for number in range(SHARDS * TARGETS.index(target) + shard, COMPOSITIONS, 2 * SHARDS):
        with executing(target) as run:
            compose(Random(number), CPU)
        assert not run.faults, f"composition {number}\n{run.faults}"


HOSTILE = [
    *((name, call, hostile.int32(values)) for name, call in hostile.OF_OFFSETS.items() for values in hostile.OFFSETS),
    *((name, call, number) for name, call in hostile.OF_INTEGERS.items() for number in range(6)),
]


@pytest.mark.parametrize(
    ("target", "call", "argument"),
    [
        pytest.param(
            target, call, argument, id=f"{name}-{k}-{target}", marks=() if k % 15 == 7 * (target == "sm_90") else SLOW
        )
        for k, (name, call, argument) in enumerate(HOSTILE)
        for target in TARGETS
    ],
)
def test_no_device_integer_leads_out_of_a_tensor(target, call, argument):
    with executing(target) as run:
        hostile.assert_rooms_agree(call, argument)
    assert not run.faults, f"\n{run.faults}"


def test_committed_coverage():
    """Of each kernel on each target at least 98 % of the instructions are executed, or it is said why not."""
    table = (RESULTS / "coverage.md").read_text()
    found = re.findall(r"^\| (sm_\d+) \| `(\w+)` \| \d+ \| \d+ \| ([\d.]+) %", table, re.M)
    counted = json.loads((RESULTS / "executed.json").read_text())["counts"]
    assert {(target, kernel) for target, kernel, _ in found} == {tuple(key.split(" | ")[:0:-1]) for key in counted}
    low = {kernel for _, kernel, share in found if float(share) < ENOUGH}
    assert low == set(REASONS)
