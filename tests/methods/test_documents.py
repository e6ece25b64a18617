"""Every public method says what it is, what differs from its authors' code, and what it costs."""

import inspect
import pathlib
import re

import pytest

from pyramid_ops import cost, methods

PAGE = (pathlib.Path(__file__).parents[2] / "docs/methods.md").read_text()
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


def test_every_file_of_methods_is_public():
    files = {path.stem for path in pathlib.Path(methods.__file__).parent.glob("[!_]*.py")}
    assert {f"pyramid_ops.methods.{file}" for file in files - {"retained"}} == {
        getattr(methods, name).__module__ for name in PUBLIC
    }


@pytest.mark.parametrize("name", methods.retained.__all__)
def test_counts_are_of_methods(name):
    assert name in PUBLIC
    assert ">>> " in inspect.getdoc(getattr(methods.retained, name))
