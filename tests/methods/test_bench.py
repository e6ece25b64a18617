"""The benchmark of methods: that its eager code keeps the same tokens, on those that take little."""

import os
import re

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("launches are those of compiled kernels", allow_module_level=True)

from bench.methods.__main__ import main

NAMES = ["hiprune", "fastv", "foveal", "dycoke"]


def test_eager_code_keeps_the_same_tokens(tmp_path):
    out = tmp_path / "methods.md"
    assert main([*NAMES, "--tokens", "576", "--rounds", "1", "--out", str(out)]) == 0
    found = dict(re.findall(r"^\| `(\w+)` \|.* \| ([\d.]+) \|$", out.read_text(), re.MULTILINE))
    assert found == dict.fromkeys(NAMES, "1.000")


def test_what_takes_too_long_is_left_out(tmp_path):
    out = tmp_path / "methods.md"
    assert main(["hiprune", "--tokens", "576", "2880", "--limit", "0", "--rounds", "1", "--out", str(out)]) == 0
    assert "## 2880 tokens" in out.read_text()
    assert "| `hiprune` |" + " – |" * 8 in out.read_text()
