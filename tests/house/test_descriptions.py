"""A registered op that lacks part of its description fails here, with a message that says which."""

import ast
import pathlib
from random import Random

import pytest
import torch

from pyramid_ops._op import OPS, Op
from pyramid_ops.verify.cases import DESCRIPTIONS
from tests.compositions import Composition, compose

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
    benchmarks = {
        node.name
        for path in (ROOT / "bench").glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    assert description.benchmark in benchmarks, f"{op}: bench/ has no function {description.benchmark}"


def test_compositions_reach_every_op(monkeypatch):
    """On the reference alone, which takes seconds."""
    reached = set()

    def reference(op, *args):
        reached.add(op.name)
        return op.reference(*args)

    monkeypatch.setattr(Op, "_run", reference)
    monkeypatch.setattr(Composition, "same", lambda self, op, *args, **options: op(*args, **options))
    for number in range(400):
        compose(Random(number), torch.device("cpu"))
        if reached >= set(OPS):
            break
    missing = sorted(set(OPS) - reached)
    assert not missing, f"no step of a composition reaches {', '.join(missing)}"


def test_cases_fit_the_signature():
    for op, description in DESCRIPTIONS.items():
        for case in description.bits():
            flat = description.op.flat.flatten(case.args)
            again = description.op.flat.unflatten(flat)
            assert [type(x) for x in again] == [type(x) for x in case.args], f"{op}: {case.id}"
