"""Every public method says what it is, what differs from its authors' code, and what it costs."""

import inspect
import pathlib
import re

import pytest

from pyramid_ops import cost, methods

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs/methods.md").read_text()
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if re.match(r"\| [^M|].*test_\w+\.py", line)]
PUBLIC = [name for name in methods.__all__ if inspect.isfunction(getattr(methods, name))]
PARTS = ("Rule: ", "Parameters\n---", "Returns\n---", "Raises\n---", "Differs: ", "Cost: ", "References\n---", ">>> ")


@pytest.mark.parametrize("name", PUBLIC)
def test_documents_have_their_parts(name):
    document = inspect.getdoc(getattr(methods, name))
    places = [document.find(part) for part in PARTS]
    assert -1 not in places, f"{name}: {PARTS[places.index(-1)]!r} is missing"
    assert places == sorted(places), f"{name}: in another order"
    source = document[document.index("References\n") : document.index("Examples\n")]
    assert "arXiv" in source or "20" in source, f"{name}: no paper"


def test_the_page_names_every_method():
    assert set(PUBLIC) <= set(re.findall(r"`(\w+)`", PAGE))
    assert cost.report("llava-1.5-7b", methods=["pyramiddrop"]) in PAGE


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_the_page_tells_papers_and_tests(row):
    _, papers, names, *_, files = row
    papers = set(re.findall(r"\d{4}\.\d{5}", papers))
    files = [ROOT / ("" if "/" in name else "tests/methods") / name for name in re.findall(r"`([\w/]+\.py)`", files)]
    tests = "".join(path.read_text() for path in files)
    for name in re.findall(r"`([\w.]+)`", names):
        if name.endswith(".py") or name.startswith("schedules."):
            continue
        assert re.search(rf"\b{name}\b", tests), f"{name}: in none of {files}"
        if name in PUBLIC:
            document = inspect.getdoc(getattr(methods, name))
            source = document[document.index("References\n") : document.index("Examples\n")]
            said = set(re.findall(r"\d{4}\.\d{5}", source))
            assert papers <= said, f"{name}: {papers}, but its docstring has {said}"
            assert papers or not said, name


def test_every_file_of_methods_is_public():
    files = {path.stem for path in pathlib.Path(methods.__file__).parent.glob("[!_]*.py")}
    assert {f"pyramid_ops.methods.{file}" for file in files - {"retained"}} == {
        getattr(methods, name).__module__ for name in PUBLIC
    }


@pytest.mark.parametrize("name", methods.retained.__all__)
def test_counts_are_of_methods(name):
    assert name in PUBLIC
    assert ">>> " in inspect.getdoc(getattr(methods.retained, name))
