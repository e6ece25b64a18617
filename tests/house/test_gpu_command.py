"""The machinery of `make gpu`, which itself needs a GPU: shards, verdicts, time limits."""

import itertools
import os
import subprocess
import sys

import pytest

from tests import gpu


def python(code: str, **environment: str) -> tuple[list[str], dict[str, str]]:
    return [sys.executable, "-c", code], environment


@pytest.mark.slow
def test_shards_run_every_test_once():
    def collected(shard: str) -> list[str]:
        command = [*gpu.PYTEST, "--collect-only", "tests/house/test_bits_helpers.py"]
        environment = {**os.environ, "PYRAMID_OPS_TEST_SHARD": shard}
        out = subprocess.run(command, cwd=gpu.ROOT, env=environment, capture_output=True, text=True, check=True).stdout
        return [line for line in out.splitlines() if "::" in line]

    everything = collected("")
    shards = [collected(f"{k}/3") for k in range(3)]
    assert sorted(itertools.chain(*shards)) == sorted(everything)
    assert all(shards)


def test_steps_begin_with_exactness_and_name_files_that_exist():
    steps = gpu.steps(4)
    assert steps[0].name == "tensor cores are exact"
    assert steps[-1].name == "benchmarks"
    assert len(steps[1].commands) == 4
    for step in steps:
        for command, _ in step.commands:
            for part in command:
                if part.startswith(("tests/", "--ignore=")):
                    assert (gpu.ROOT / part.removeprefix("--ignore=")).exists(), part


@pytest.mark.parametrize(
    ("codes", "verdict"),
    [
        (["pass", "pass"], "passed"),
        (["pass", "raise SystemExit(3)"], "FAILED"),
        (["import time; time.sleep(60)"], "TIMED OUT"),
    ],
)
def test_verdicts(codes, verdict):
    outcome = gpu.run(gpu.Step("a step", [python(code) for code in codes], 3.0), 100.0)
    assert outcome.verdict == verdict
    assert outcome.seconds < 30


def test_processes_get_their_environment_and_no_interpreter(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    code = "import os; print(os.environ['A'], os.environ['PYTHONPATH'], 'TRITON_INTERPRET' in os.environ)"
    assert gpu.run(gpu.Step("a step", [python(code, A="b")], 60.0), 100.0).verdict == "passed"
    assert f"b {gpu.ROOT} False" in capsys.readouterr().out


def test_what_cannot_run_is_skipped_with_a_reason():
    assert gpu.run(gpu.Step("a step", [], 60.0), 100.0)[1:] == ("SKIPPED", 0.0, "not installed")
    assert gpu.run(gpu.Step("a step", [python("pass")], 60.0), 1.0)[1:] == ("SKIPPED", 0.0, "no time left")


def test_summary_adds_up():
    text = """
17 passed, 44 deselected, 731 warnings in 40.30s
=== 1 failed, 33 passed, 2 skipped in 64.00s (0:01:04) ===
kernels, some GPU: 190 of 190 in 101.3 s
"""
    assert gpu.summary(text) == "50 passed, 1 failed, 2 skipped, kernels, some GPU: 190 of 190"
