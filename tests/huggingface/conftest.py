"""Tests of `pyramid_ops.huggingface`: skipped where transformers is missing, but in CI, which has to install it."""

import importlib.util
import os

import pytest
import torch

if not os.environ.get("CI") and importlib.util.find_spec("transformers") is None:
    collect_ignore_glob = ["*"]


@pytest.fixture(autouse=True)
def _inference():
    """Without gradients, and on one thread: models are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)
