"""`make gpu`: all that only a GPU can show, in at most 8 minutes, with one table at the end.

Tensor-core exactness comes first, since the ops with dot products rest on it. Needs pytest and hypothesis, no plugin of
pytest, no network; what is not installed is skipped and named.
"""

import argparse
import contextlib
import importlib.util
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import torch

ROOT = pathlib.Path(__file__).parent.parent
LIMIT = 480.0  # seconds for everything
BENCHMARKS = 100  # seconds after which no benchmark is started
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "--tb=short"]


class Step(NamedTuple):
    """Processes that run side by side, each with its environment, and the seconds they may take together."""

    name: str
    commands: list[tuple[list[str], dict[str, str]]]
    seconds: float


class Outcome(NamedTuple):
    name: str
    verdict: str
    seconds: float
    note: str = ""


def steps(workers: int) -> list[Step]:
    own = ["tests/code/test_dots.py", "tests/code/test_gpu.py"]
    suite = [
        *PYTEST,
        "-m",
        "kernel or not slow",
        "--ignore=tests/code/test_aot.py",
        *(f"--ignore={path}" for path in own),
    ]
    shards = [([*suite, "tests"], {"PYRAMID_OPS_TEST_SHARD": f"{k}/{workers}"}) for k in range(workers)]
    # Without PyTorch's cache each tensor is an allocation of its own, so that an access beside it is seen.
    memory = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    watched = [*PYTEST, "tests/code/test_gpu.py", "-k", "test_gpu_equals_cpu"]
    memcheck = [sanitizer, "--tool", "memcheck", "--error-exitcode", "99", "--target-processes", "all", *watched]
    return [
        Step("tensor cores are exact", [([*PYTEST, "tests/code/test_dots.py"], {})], 90),
        Step("native suite", shards, 210),
        Step("golden digests", [([sys.executable, "-m", "pyramid_ops", "verify"], {})], 120),
        Step("graphs, no sync, > 2^31, streams", [([*PYTEST, "tests/code/test_gpu.py"], {})], 60),
        Step("compute-sanitizer memcheck", [(memcheck, memory)] if pathlib.Path(sanitizer).exists() else [], 90),
        Step(
            "benchmarks",
            [([sys.executable, "-m", "bench", "--no-compile", f"--seconds={BENCHMARKS}"], {})],
            BENCHMARKS + 45,
        ),
    ]


def run(step: Step, seconds: float) -> Outcome:
    """Run a step within so many seconds; print what its processes print, the end of it where they are many."""
    if not step.commands:
        return Outcome(step.name, "SKIPPED", 0.0, "not installed")
    if seconds < 5:
        return Outcome(step.name, "SKIPPED", 0.0, "no time left")
    started = time.monotonic()
    deadline = started + min(seconds, step.seconds)
    with contextlib.ExitStack() as stack:
        running = []
        for command, environment in step.commands:
            out = stack.enter_context(tempfile.TemporaryFile("w+"))
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment}
            environment.pop("TRITON_INTERPRET", None)
            options = {"cwd": ROOT, "stdout": out, "stderr": subprocess.STDOUT, "start_new_session": True}
            running.append((subprocess.Popen(command, env=environment, **options), out))
        codes: list[int | None] = []
        for process, _ in running:
            try:
                codes.append(process.wait(max(0.1, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                codes.append(None)
        printed = []
        for _, out in running:
            out.seek(0)
            printed.append(out.read())
    failed = any(code != 0 for code in codes)
    for text, code in zip(printed, codes, strict=True):
        if len(printed) == 1 or code != 0:
            print(text[-20_000:])
    reasons = sorted({line for text in printed for line in re.findall(r"^SKIPPED \[\d+\] (.*)", text, re.M)})
    if len(printed) > 1:
        print(*(f"skipped: {reason}" for reason in reasons), sep="\n")
    verdict = "TIMED OUT" if None in codes else "FAILED" if failed else "passed"
    return Outcome(step.name, verdict, time.monotonic() - started, summary("\n".join(printed)))


def summary(text: str) -> str:
    """The sums of what the processes report: tests passed, failed and skipped, or digests equal."""
    counts: dict[str, int] = {}
    for line in re.findall(r"^=*\s*((?:\d+ \w+,? ?)+) in [\d.]+s", text, re.M):
        for number, what in re.findall(r"(\d+) (passed|failed|errors?|skipped)", line):
            counts[what] = counts.get(what, 0) + int(number)
    digests = re.findall(r"^(kernels.*|reference.*): (\d+ of \d+) in", text, re.M)
    return ", ".join([f"{number} {what}" for what, number in counts.items()] + [f"{k}: {n}" for k, n in digests])


def requirements() -> list[str]:
    needed = ("numpy", "pytest", "hypothesis", "triton")
    return [module for module in needed if importlib.util.find_spec(module) is None]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--workers", type=int, default=max(1, min(12, os.cpu_count() or 1)))
    arguments = parser.parse_args()
    if missing := requirements():
        print(f"needs {', '.join(missing)}")
        return 2
    if not torch.cuda.is_available():
        print("needs a CUDA GPU")
        return 2
    started = time.monotonic()
    outcomes = []
    for step in steps(arguments.workers):
        print(f"\n=== {step.name}", flush=True)
        outcomes.append(run(step, LIMIT - (time.monotonic() - started)))
        print(f"=== {outcomes[-1].verdict}", flush=True)
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print(f"{'step':34} {'verdict':10} {'seconds':>7}  note")
    for outcome in outcomes:
        print(f"{outcome.name:34} {outcome.verdict:10} {outcome.seconds:7.0f}  {outcome.note}")
    print(f"{'all':34} {'':10} {time.monotonic() - started:7.0f}")
    return int(any(outcome.verdict in ("FAILED", "TIMED OUT") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
