import importlib.util
import os

import pytest
import torch
from hypothesis import HealthCheck, settings

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")

settings.register_profile("default", deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
settings.register_profile("all", deadline=None, max_examples=500, suppress_health_check=list(HealthCheck))
settings.load_profile("all" if os.environ.get("PYRAMID_OPS_TEST_ALL") else "default")

# "k/n" runs every n-th test from the k-th on: what `tests/gpu.py` does where there is no xdist.
SHARD = os.environ.get("PYRAMID_OPS_TEST_SHARD")

if os.environ.get("PYTEST_XDIST_WORKER") or SHARD:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
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


@pytest.fixture
def device():
    return DEVICE
