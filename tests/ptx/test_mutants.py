"""What the executor notices: synchronisation taken out of real kernels, and operands changed, one at a time."""

import os

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels decorated for the interpreter cannot be compiled", allow_module_level=True)

import triton

from bench.compile import committed
from tests.ptx.mutants import OPERANDS, SYNCHRONISATION, case, mutants

pytestmark = pytest.mark.skipif(
    triton.__version__ != committed()["triton"], reason="what may go unnoticed was read in the code of another Triton"
)
SLOW = pytest.mark.slow
# The last number is of statements that are not needed: the barrier before anything is in shared memory or after all of
# it was read, and the last wait for copies when none is under way.
SYNCHRONISED = [
    ("sm_80", "select_topk_levels", "70+17+5+1-33-given-index", "_select_kernel", 35, 1),
    ("sm_80", "best_match", "segments-limbs1", "_best_match_kernel", 10, 1),
    ("sm_80", "patch_entropy", "large-float32", "_patch_entropy_kernel", 7, 1),
    pytest.param("sm_80", "unit_rows", "1537-bfloat16-limbs2", "_unit_rows_kernel", 213, 3, marks=SLOW),
    ("sm_90", "best_match", "segments-limbs1", "_best_match_kernel", 11, 1),
    ("sm_90", "attention_importance", "33x65x300-1-1-float32-limbs1", "_row_kernel", 15, 2),
]


@pytest.mark.parametrize(("target", "op", "name", "kernel", "statements", "needless"), SYNCHRONISED)
def test_what_is_not_synchronised_is_noticed(target, op, name, kernel, statements, needless):
    found = list(mutants(target, op, case(op, name), kernel, {"dropped": (SYNCHRONISATION, "\n")}))
    quiet = [f"{mutant.instruction} {mutant.source}" for mutant in found if not mutant.noticed]
    assert len(found) == statements
    assert len(quiet) == needless, quiet


# The last number is of changes that change nothing: one more where a count is rounded up to whole tiles, the sign of a
# term that is +0, a tile that is masked anyway, a shift of 0.
CHANGED = [
    ("unit_rows", "64-float32-limbs2", "_unit_rows_kernel", 58, 2),
    pytest.param("unit_rows", "256-float32-limbs2", "_unit_rows_kernel", 107, 2, marks=SLOW),
    pytest.param("best_match", "130x7x128-float32-limbs1", "_best_match_kernel", 57, 10, marks=SLOW),
]


@pytest.mark.parametrize(("op", "name", "kernel", "changes", "idle"), CHANGED)
def test_changed_operands_change_bits(op, name, kernel, changes, idle):
    found = list(mutants("sm_80", op, case(op, name), kernel, OPERANDS))
    quiet = [f"{mutant.rule}: {mutant.instruction} {mutant.source}" for mutant in found if not mutant.noticed]
    assert len(found) == changes
    assert len(quiet) == idle, quiet
