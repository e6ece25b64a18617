import importlib.util
import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from pyramid_ops._op import OPS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")

settings.register_profile("default", deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
settings.register_profile("all", deadline=None, max_examples=500, suppress_health_check=list(HealthCheck))
settings.load_profile("all" if os.environ.get("PYRAMID_OPS_TEST_ALL") else "default")

# "k/n" runs every n-th test from the k-th on: what `tests/gpu.py` does where there is no xdist.
SHARD = os.environ.get("PYRAMID_OPS_TEST_SHARD")

if os.environ.get("PYTEST_XDIST_WORKER") or SHARD:
    torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--op", help="only tests of one op: those that name it, and its family's")


def of_op(item, op) -> bool:
    """Whether a test has the op as its parameter or mark, or is of the op's family."""
    given = getattr(item, "callspec", None) and item.callspec.params.get("op")
    named = {getattr(given, "name", None), getattr(given, "__name__", None), given if isinstance(given, str) else None}
    named |= {mark.args[0] for mark in item.iter_markers("op")}
    module = OPS[op].module
    family = (f"tests/ops/test_{module}.py", f"tests/ops/test_{module}_", f"pyramid_ops/ops/{module}.py")
    return op in named or (named == {None} and item.nodeid.startswith(family))


def pytest_collection_modifyitems(config, items):
    if op := config.getoption("--op"):
        if op not in OPS:
            raise pytest.UsageError(f"--op: expected one of {', '.join(sorted(OPS))}, got {op}")
        others = [item for item in items if not of_op(item, op)]
        items[:] = [item for item in items if of_op(item, op)]
        config.hook.pytest_deselected(items=others)
    if SHARD:
        first, step = map(int, SHARD.split("/"))
        kept = items[first::step]
        config.hook.pytest_deselected(items=[item for k, item in enumerate(items) if k % step != first])
        items[:] = kept
    if importlib.util.find_spec("triton") is None:
        reason = "Triton is not installed"
    elif DEVICE.type == "cpu" and not INTERPRETED:
        reason = "needs TRITON_INTERPRET=1 or a CUDA GPU"
    else:
        return
    for item in items:
        if "kernel" in item.keywords:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def _few_programs():
    """A program takes the interpreter some ms whatever it holds: larger tiles, but where a test forces its own."""
    if not INTERPRETED:
        yield
        return
    import pyramid_ops.kernels.tiles  # noqa: F401, its choosers
    from pyramid_ops.kernels.choosers import forcing

    with forcing(rank_all_tiles={"ROWS": 128, "RANK_BLOCK": 512}, blur_tiles={"ROWS": 16}):
        yield


@pytest.fixture
def device():
    return DEVICE
