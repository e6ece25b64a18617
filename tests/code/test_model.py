"""What `bench.model` predicts: arithmetic on counts, which are exact, and as committed."""

import os

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels decorated for the interpreter cannot be compiled", allow_module_level=True)

import triton

import pyramid_ops
from bench import model
from bench.executed import Counted, measure

COMMITTED = model.committed()
AGAIN = "python -m bench.model, and commit bench/results/model.*"
FAST = ("token_variance, 577 × 1024 (CLIP-L/336)", "segmented_topk, 64 of 1 × 576")


def counts(programs, threads, of_one, launches=1):
    return {
        "launches": launches,
        "programs": launches * programs,
        "threads": [threads],
        "warp instructions": launches * programs * of_one,
        "barriers": 2.0,
        "loads": [10, 10, 10],
        "stores": [4, 4, 4],
    }


@pytest.mark.parametrize(
    ("programs", "threads", "clocks"),
    [
        (132, 128, 250),
        (264, 128, 500),
        (133, 128, 500),
        (1, 128, 250),
        (132, 32, 1000),
        (264, 32, 1000),
        (660, 32, 1250),
    ],
)
def test_the_busiest_multiprocessor_decides(programs, threads, clocks):
    """1000 instructions a program; one scheduler issues for a warp, whatever else is idle."""
    found = counts(programs, threads, 1000)
    assert model.instruction_time(found) == pytest.approx(clocks / model.CLOCK)
    thrice = counts(programs, threads, 1000, launches=3)
    assert model.instruction_time(thrice) == pytest.approx(3 * clocks / model.CLOCK)


def test_bounds_are_of_bytes_products_or_instructions():
    kernels = {"a": counts(132, 128, 1000), "b": counts(132, 128, 3000, launches=2)}
    for work, floor in (
        (model.Work(int, 43 * 10**6), 10.0),
        (model.Work(int, 43 * 10**6, 790 * 10**7), 10.0),
        (model.Work(int, 43 * 10**6, 790 * 10**8), 100.0),
        (model.Work(int, 43), 1e-5),
    ):
        found = model.predicted(work, kernels)
        issue = 1e6 * 1750 / model.CLOCK
        assert found["floor"]["H200"] == pytest.approx(floor)
        assert found["issue"] == pytest.approx(issue)
        assert found["bound"]["H200"] == pytest.approx(max(floor, issue))
        assert found["most"] == ["b", pytest.approx(6 / 7)]
        assert (found["launches"], found["barriers"], found["bytes requested"]) == (3, 6.0, 2 * 14 * 32)


def test_a_call_that_reads_each_byte_once():
    """Bytes requested are the bytes that must move, for rows that are read at once and a score of 4 bytes each."""
    work = model.rows(pyramid_ops.token_norm, 128, 512)
    assert work.bytes == 128 * 512 * 2 + 128 * 4
    found = model.predicted(work, measure("sm_90", Counted("", 1, "call", work.call)))
    assert found["bytes requested"] - work.bytes == pytest.approx(0, abs=128 * 32)
    assert found["bound"]["H100"] > found["floor"]["H100"] > found["floor"]["H200"] > 0


def test_committed_table_has_every_case():
    assert list(COMMITTED["cases"]) == [case for case, _ in model.cases()], AGAIN
    table = (model.RESULTS / "model.md").read_text()
    assert "Nothing here was measured on a GPU" in table
    for case, found in COMMITTED["cases"].items():
        assert model.row(case, found) in table.splitlines(), AGAIN


@pytest.mark.skipif(
    COMMITTED["triton"] != triton.__version__,
    reason=f"the committed table is of Triton {COMMITTED['triton']}, here is {triton.__version__}",
)
@pytest.mark.parametrize("case", FAST)
def test_predictions_are_those_committed(case):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    work = dict(model.cases())[case]()
    found = model.predicted(work, measure(model.TARGET, Counted(case, 1, "call", work.call)))
    torch.set_num_threads(threads)
    assert found == COMMITTED["cases"][case], AGAIN
