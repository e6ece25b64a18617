"""The house has two directions: down the layers, and across the rooms, where an op is one row."""

import ast
import functools
import graphlib
import importlib
import inspect
import pathlib
import sys
from collections.abc import Iterator

import pytest

from pyramid_ops._op import OPS

ROOT = pathlib.Path(__file__).parents[2]
BASE = {"_checks", "_op", "_packed", "results"}
#: What each room or layer may import, beside itself and the standard library. Later layers import downwards only.
MAY_IMPORT = {
    "reference": {"torch"},
    "kernels": {"torch", "triton", "reference.arguments"},
    **{name: {"torch", "numpy", *BASE} for name in BASE},
    "ops": {"torch", "numpy", "reference", *BASE},
    "plans": {"torch", "numpy", "reference", "ops", *BASE},
    "methods": {"torch", "numpy", "plans", "ops", *BASE},
    "huggingface": {"torch", "transformers", "cost", "plans", "methods", "ops", *BASE},
    "distributed": {"torch", "_op"},
    "serving": {"torch", "plans", "methods", "ops", *BASE},
    "schedules": {"methods", "ops", *BASE},
    "cost": {"schedules", *BASE},
    "compat": {"torch", "numpy", "plans", "ops", *BASE},
    "verify": {"torch", "numpy", "", "reference", "ops", "plans", *BASE},
    "demo": {"torch", "numpy", "", "methods", "plans", "matplotlib", "PIL", "rich", "skimage", *BASE},
    "": {"plans", "ops", *BASE},
    "__main__": {"cost", "demo", "schedules", "verify", "torch", "numpy", "", *BASE},
}


def modules() -> Iterator[tuple[str, pathlib.Path]]:
    """(dotted name below pyramid_ops, file); the package itself is ""."""
    for path in sorted((ROOT / "pyramid_ops").rglob("*.py")):
        parts = path.relative_to(ROOT / "pyramid_ops").with_suffix("").parts
        if parts[0] not in ("kernels", "reference"):
            yield ".".join(part for part in parts if part != "__init__"), path
    for room in ("kernels", "reference"):
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), path


MODULES = dict(modules())


@functools.cache
def tree(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(module: str) -> Iterator[tuple[str, str]]:
    """(what is imported, name): modules below pyramid_ops as MODULES has them, others by their first name."""
    path = MODULES[module]
    package = module.split(".") if path.stem == "__init__" and module else module.split(".")[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first, _, rest = alias.name.partition(".")
                yield (rest if first == "pyramid_ops" else first), ""
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield node.module.split(".")[0], ""
                continue
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                yield (whole, "") if whole in MODULES else (".".join(base), alias.name)


@pytest.mark.parametrize("module", MODULES)
def test_layers_import_downwards_only(module):
    own = module.split(".")[0]
    for target, name in imports(module):
        first = target.split(".")[0]
        allowed = MAY_IMPORT.get(own)
        assert allowed is not None, f"MAY_IMPORT does not say what {own} may import"
        standard = first in sys.stdlib_module_names and first not in {name.split(".")[0] for name in MODULES}
        free = (first == own and (own or not target)) or standard
        assert free or first in allowed or target in allowed, f"{module} imports {target} {name}"


def test_modules_are_imported_by_name_in_the_open():
    """Not by a string, but where an op looks for its kernel, and not as attributes of the package."""
    for module in MODULES:
        packages = {
            alias.asname or alias.name
            for node in ast.walk(tree(MODULES[module]))
            if isinstance(node, ast.Import)
            for alias in node.names
            if alias.name == "pyramid_ops"
        }
        for node in ast.walk(tree(MODULES[module])):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("importlib.import_module", "import_module", "__import__"):
                assert module in ("_op", "__main__", "verify.page"), f"{module}:{node.lineno}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in packages:
                assert node.attr not in MODULES, f"{module}:{node.lineno}: {ast.unparse(node)}"


def test_imports_have_no_cycle():
    # The top package only collects; what is imported from it stands below.
    graph = {
        module: {target for target, _ in imports(module) if target in MODULES and target}
        for module, path in MODULES.items()
        if module
    }
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", MODULES)
def test_no_private_name_crosses_files(module):
    for target, name in imports(module):
        if target in MODULES:
            assert not name.startswith("_") or name == "__version__", f"{module}: {name} of {target}"
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree(MODULES[module]))
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    for node in ast.walk(tree(MODULES[module])):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported:
            own = node.attr.startswith("__") or node.attr in ("_fields", "_make", "_replace", "_asdict")
            assert own or not node.attr.startswith("_"), f"{module}:{node.lineno}: {node.value.id}.{node.attr}"


SOURCES = [path for room in ("bench", "tests") for path in sorted((ROOT / room).rglob("*.py"))] + list(MODULES.values())
SOURCES += [path for room in ("docs", "docs/gallery", "examples") for path in sorted((ROOT / room).glob("*.py"))]


@pytest.mark.parametrize("module", MODULES)
def test_no_error_is_an_assertion(module):
    """Users need TypeError or ValueError, and `python -O` leaves assertions out."""
    assert [node.lineno for node in ast.walk(tree(MODULES[module])) if isinstance(node, ast.Assert)] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    """At most 500 lines, and 80 of a function without its signature and docstring; kernels apart."""
    assert path.read_text().count("\n") <= 500
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef) and "triton.jit" not in map(_called, node.decorator_list):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body:
                lines = node.end_lineno - body[0].lineno + 1
                assert lines <= 80, f"{node.name}, line {node.lineno}: {lines} lines"


def _called(node: ast.expr) -> str:
    return ast.unparse(node.func if isinstance(node, ast.Call) else node)


@pytest.mark.parametrize("op", sorted(OPS))
def test_an_op_is_one_row(op):
    """A function of one name and signature in the file of one name of each room."""
    pytest.importorskip("triton")
    entry = OPS[op]
    assert inspect.signature(entry.kernel) == inspect.signature(entry.reference)
    assert entry.kernel.__name__ == entry.reference.__name__ == op
    file = importlib.import_module(f"pyramid_ops.ops.{entry.module}")
    assert getattr(file, f"{op}_op") is entry


def test_every_family_has_its_file_in_every_room():
    families = {entry.module for entry in OPS.values()}
    for room in ("kernels", "reference", "pyramid_ops/ops", "pyramid_ops/verify/cases"):
        assert families <= {path.stem for path in (ROOT / room).glob("*.py")}, room
    assert families <= {path.stem.removeprefix("test_") for path in (ROOT / "tests/ops").glob("*.py")}


def test_every_file_of_ops_is_public_and_described():
    starred = {target.split(".")[1] for target, name in imports("") if name == "*" and target.startswith("ops.")}
    public = {module.split(".")[1] for module in MODULES if module.startswith("ops.") and exported(module)}
    assert starred == public
    cases = {module.split(".")[2] for module in MODULES if module.startswith("verify.cases.")}
    assert cases == {
        target.split(".")[2] for target, _ in imports("verify.cases") if target.startswith("verify.cases.")
    }


def exported(module: str) -> bool:
    return any(
        isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        for node in tree(MODULES[module]).body
    )
