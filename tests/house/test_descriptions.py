"""A registered op that lacks part of its description fails here, with a message that says which."""

import ast
import pathlib

import pytest

from pyramid_ops._op import OPS
from pyramid_ops.verify.cases import DESCRIPTIONS

ROOT = pathlib.Path(__file__).parents[2]


def test_every_op_is_described():
    missing = sorted({*OPS} - {*DESCRIPTIONS})
    assert not missing, f"pyramid_ops/verify/cases: no Description of {', '.join(missing)}"


@pytest.mark.parametrize("op", DESCRIPTIONS)
def test_descriptions_are_complete(op):
    description = DESCRIPTIONS[op]
    for part in ("golden", "bits", "ones", "compiled"):
        names = [entry.id for entry in getattr(description, part)()]
        assert names, f"{op}: {part} gives nothing"
        assert len(names) == len(set(names)) or part == "compiled", f"{op}: {part} repeats a name"
    assert description.compose.__doc__ or callable(description.compose), f"{op}: compose is no step"
    benchmarks = {
        node.name
        for path in (ROOT / "bench").glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    assert description.benchmark in benchmarks, f"{op}: bench/ has no function {description.benchmark}"


def test_cases_fit_the_signature():
    for op, description in DESCRIPTIONS.items():
        for case in description.bits():
            flat = description.op.flat.flatten(case.args)
            again = description.op.flat.group(flat)
            assert [type(x) for x in again] == [type(x) for x in case.args], f"{op}: {case.id}"
