"""One timing loop for every case: all providers interleaved in one run."""

import json
import pathlib
import shutil
import statistics
import time
from collections.abc import Callable

import pytest
import torch

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def pytest_addoption(parser):
    group = parser.getgroup("pyramid_ops")
    group.addoption("--results", help="write what `compare` measured to this file, as JSON")
    group.addoption("--seconds", type=float, default=float("inf"), help="start no case after this time")
    group.addoption("--no-compile", action="store_true", help="leave out torch.compile, which compiles each case anew")


def pytest_configure(config):
    config.measured = {}
    config.stop_at = time.monotonic() + config.getoption("--seconds")
    if not CUDA:
        torch.set_num_threads(2)


def pytest_runtest_setup(item):
    if time.monotonic() > item.config.stop_at:
        pytest.skip(f"the {item.config.getoption('--seconds'):.0f} seconds given are over")


def pytest_sessionfinish(session):
    if path := session.config.getoption("--results"):
        pathlib.Path(path).write_text(json.dumps(session.config.measured))


@pytest.fixture(scope="session")
def compiles(request) -> bool:
    """Whether `torch.compile` can build code here, and is wanted."""
    found = CUDA or shutil.which("g++") is not None or shutil.which("clang++") is not None
    return found and not request.config.getoption("--no-compile")


def _cold_cache() -> None:
    """Push earlier data out of a GPU's L2."""
    _cold_cache.buffer = getattr(_cold_cache, "buffer", None)
    if _cold_cache.buffer is None:
        _cold_cache.buffer = torch.empty(256 << 20, dtype=torch.uint8, device=DEVICE)
    _cold_cache.buffer.zero_()


def _milliseconds(function: Callable[[], object]) -> float:
    if not CUDA:
        start = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - start)
    _cold_cache()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _peak_bytes(function: Callable[[], object]) -> int:
    """Largest memory that a call holds beyond what was there before: outputs and working memory."""
    if CUDA:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def _graphed(function: Callable[[], object]) -> Callable[[], object]:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


@pytest.fixture
def compare(request, compiles):
    """`compare(providers, arguments, floor_bytes)`: time all providers in turn and store medians, p20 and p80 in ms.

    `eager` is compiled with `torch.compile` as a provider of its own; on a GPU those `graphed` run in a CUDA graph too.
    `floor_bytes` are the bytes that any implementation must read and write. pytest-benchmark, where it is installed,
    reports `pyramid_ops` too.
    """

    def run(
        providers: dict[str, Callable],
        arguments: tuple,
        floor_bytes: int,
        rounds: int = 15,
        graphed: tuple[str, ...] = ("pyramid_ops",),
    ) -> None:
        calls = {name: lambda f=f: f(*arguments) for name, f in providers.items()}
        if compiles:
            torch._dynamo.reset()
            compiled = torch.compile(providers["eager"])
            calls["torch.compile"] = lambda: compiled(*arguments)
        if CUDA:
            calls.update({f"{name}, graph": _graphed(calls[name]) for name in graphed})
        times: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            call(), call()
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append(_milliseconds(call))
        measured = {
            name: {
                "median": statistics.median(values),
                "p20": statistics.quantiles(values, n=5)[0],
                "p80": statistics.quantiles(values, n=5)[3],
                "peak_bytes": _peak_bytes(calls[name]),
            }
            for name, values in times.items()
        }
        request.config.measured[request.node.name] = {"floor_bytes": floor_bytes, "providers": measured}
        if request.config.pluginmanager.hasplugin("benchmark"):
            request.getfixturevalue("benchmark").pedantic(calls["pyramid_ops"], rounds=3, warmup_rounds=0)

    return run
