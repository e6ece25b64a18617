"""The search over tiles: what it reads from compiled code."""

import os
import pathlib
import re

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels decorated for the interpreter cannot be compiled", allow_module_level=True)

from bench import tiles

CASES = {case.name: case for case in tiles.cases()}


def test_warps_that_an_sm_holds():
    small = {"registers": 32, "shared": 0}
    assert tiles.resident_warps("sm_90", small, 4) == 64
    assert tiles.resident_warps("sm_90", small, 1) == 32
    assert tiles.resident_warps("sm_90", {"registers": 255, "shared": 0}, 8) == 8
    assert tiles.resident_warps("sm_90", {"registers": 32, "shared": 113 << 10}, 4) == 8
    assert tiles.resident_warps("sm_80", {"registers": 32, "shared": 113 << 10}, 4) == 4


def test_the_shipped_tile_is_read_and_another_one_in_its_place():
    case = CASES["best_match, grid, D = 64"]
    (shipped,) = tiles.read(case, "sm_90", None)
    (other,) = tiles.read(case, "sm_90", case.candidates[0])
    assert (shipped["tiles"]["BLOCK_M"], shipped["tiles"]["num_warps"]) == (128, 4)
    assert other["tiles"] == case.candidates[0]
    assert shipped["spills"] == other["spills"] == 0
    assert shipped["each"] < other["each"]


def test_committed_table_is_of_what_is_shipped():
    """Each case and target, the shipped tile first, and none that spills."""
    text = (pathlib.Path(tiles.__file__).parent / "results" / "tiles.md").read_text()
    sections = dict(re.findall(r"^## (.*?)\n\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    assert list(sections) == [f"{case.name}, `{kernel}`" for case in CASES.values() for kernel in case.kernels]
    for case in CASES.values():
        for target in tiles.SHARED:
            for number, row in enumerate(tiles.read(case, target, None)):
                rows = re.findall(
                    rf"^\| {target} \| (.*?) \| \d+ \| (\d+) ", sections[f"{case.name}, `{case.kernels[number]}`"], re.M
                )
                assert rows[0] == (tiles._describe(row["tiles"]), "0")
                assert len(rows) >= len(case.candidates)
