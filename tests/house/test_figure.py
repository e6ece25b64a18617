"""The figure of benchmark results."""

import json
import pathlib

import pytest

from bench import figure


def test_families_are_those_of_the_committed_results():
    cases = json.loads((pathlib.Path(figure.__file__).parent / "results" / "cpu.json").read_text())["cases"]
    assert {figure.family(case) for case in cases} == set(figure.FAMILIES)
    assert figure.family("gaussian_pyramid[2x3x1024x1024-float32]") == "pyramid"
    assert figure.family("compact[8x576-float32]") == "other"


def test_it_shows_every_case_that_moves_enough(tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(pyplot, "close", lambda drawn: None)
    provider = {"median": 2.0}
    small, large = (
        {"floor_bytes": size, "providers": dict.fromkeys(("pyramid_ops", "eager"), provider)} for size in (1, 10**7)
    )
    large["providers"]["pyramid_ops, graph"] = {"median": 1.0}
    path = tmp_path / "device.json"
    cases = {"tome[1]": small, "tome[2]": large}
    path.write_text(json.dumps({"device": "a device", "copy_GB_per_s": 100.0, "cases": cases}))
    assert figure.draw(path).stat().st_size > 10_000
    rate, time = pyplot.gcf().axes
    shown = [tuple(point) for points in rate.collections for point in points.get_offsets()]
    assert shown == [(10.0, 5.0), (10.0, 10.0)]
    assert [tuple(point) for points in time.collections for point in points.get_offsets()] == [(10.0, 2.0), (10.0, 1.0)]
