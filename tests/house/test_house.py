"""The rules of the house: equal rooms, an allow-list for the reference, clean imports, packaging."""

import ast
import importlib
import inspect
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pyramid_ops
from pyramid_ops._op import OPS
from tests import cases

ROOT = pathlib.Path(__file__).parents[2]
REFERENCE = sorted((ROOT / "reference").glob("*.py"))

# What the specification may call: shape and memory, integers and comparisons, and elementwise arithmetic that rounds
# once. No float reduction, nothing that fuses a multiply and an add.
ALLOWED_CALLS = {
    *("append", "pop", "bit_length", "element_size", "index", "insert", "is_contiguous", "extend", "numel"),
    *(
        "contiguous",
        "copy_",
        "empty",
        "empty_like",
        "expand",
        "fill_",
        "flatten",
        "full",
        "new_empty",
        "new_ones",
        "ones_like",
        "new_zeros",
    ),
    *("arange", "cat", "split", "stack", "tensor", "to", "unbind", "unflatten", "view", "zeros_like", "nonzero"),
    *("index_select", "index_copy_"),
    *(
        "add",
        "mul",
        "div",
        "add_",
        "mul_",
        "sub",
        "sub_",
        "clamp_",
        "floor_",
        "bitwise_left_shift_",
        "where",
        "abs",
        "double",
        "sqrt",
        "float",
    ),
    # Of integers, see test_reference_rounds_one_operation_at_a_time.
    *(
        "amax",
        "amin",
        "maximum",
        "argmax",
        "argsort",
        "bincount",
        "clamp",
        "cumsum",
        "max",
        "repeat_interleave",
        "scatter_reduce_",
        "sort",
        "sum",
        "topk",
        "all",
    ),
    "mm",  # see test_reference_multiplies_matrices_of_grid_values_only
    *("floor", "full_like", "is_autocast_enabled", "ones", "pairwise", "tolist", "zeros"),
    *("attention", "exponentials", "fold", "take"),  # methods of the reference's own classes
}
ALLOWED_BUILTINS = {
    "abs",
    "all",
    "bool",
    "divmod",
    "enumerate",
    "int",
    "len",
    "map",
    "max",
    "min",
    "range",
    "reversed",
    "slice",
    "sorted",
    "sum",
    "tuple",
    "zip",
}


def reference_calls():
    for path in REFERENCE:
        tree = ast.parse(path.read_text())
        local = {node.name for p in REFERENCE for node in ast.walk(ast.parse(p.read_text())) if hasattr(node, "name")}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield path.name, node, local


def test_reference_calls_only_what_is_allowed():
    seen = 0
    for file, call, local in reference_calls():
        where = f"reference/{file}:{call.lineno}"
        seen += 1
        if isinstance(call.func, ast.Attribute):
            name = call.func.attr
            assert name in ALLOWED_CALLS, f"{where}: {name} is not on the allow-list"
            assert "alpha" not in [keyword.arg for keyword in call.keywords], f"{where}: alpha fuses"
            if name == "sqrt":
                chain = ast.unparse(call.func.value)
                assert chain.endswith(".double()"), f"{where}: sqrt only of float64"
        elif isinstance(call.func, ast.Name):
            allowed = ALLOWED_BUILTINS | local | {"function"}
            assert call.func.id in allowed, f"{where}: {call.func.id} is not on the allow-list"
    assert seen > 50


def test_reference_never_divides_tensors_by_python_scalars():
    for path in REFERENCE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
                assert not isinstance(node.right, ast.Constant), f"reference/{path.name}:{node.lineno}"


def test_reference_multiplies_matrices_of_grid_values_only():
    """In one function, whose operands make products that are exact in any order."""
    for path in REFERENCE:
        for function in [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]:
            for node in ast.walk(function):
                called = getattr(node.func, "attr", "") if isinstance(node, ast.Call) else ""
                operator = isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)
                if operator or called in ("mm", "bmm", "matmul", "einsum"):
                    assert (path.name, function.name) == ("numerics.py", "grid_products")


class FloatArithmetic(TorchDispatchMode):
    """Records the ATen ops that run on floating-point tensors."""

    def __init__(self):
        super().__init__()
        self.ops: dict[str, set] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        dtypes = {x.dtype for x in args if isinstance(x, torch.Tensor) and x.is_floating_point()}
        exact = " in float64" if (kwargs or {}).get("dtype") == torch.float64 else ""
        if dtypes:
            self.ops.setdefault(str(func) + exact, set()).update(dtypes)
        if "alpha" in (kwargs or {}):
            self.ops.setdefault("alpha", set()).update(dtypes)
        return func(*args, **(kwargs or {}))


# Rounds each element once, or only moves, compares or creates; mm is of exact products, clamp of finite numbers, of a
# maximum that may be NaN only the exponent counts, and what is added up in float64 are integers.
ONE_ROUNDING = re.compile(
    r"aten\.(add_?|sub_?|mul_?)\.(Tensor|out|Scalar)|aten\.div_?\.(Tensor|out)|aten\.mm\.(default|out)"
    r"|aten\.(sqrt|floor_?|amax|amin|maximum|neg|clamp_)\.default"
    r"|aten\.rsub\.Scalar|aten\.(sum\.dim_IntList|_to_copy\.default) in float64|aten\.(lt|gt|ge|eq|ne)\.\w+"
    r"|aten\.(where|abs|copy_|_to_copy|clone|fill_|zero_|nonzero|index|index_put_|index_select|slice|select|view|as_strided|expand"
    r"|unsqueeze|index_copy_?|stack|cat|unbind|alias|_unsafe_view|reshape|new_empty|new_zeros|empty_like|ones_like|lift_fresh|detach"
    r"|_local_scalar_dense|new_empty_strided|zeros_like|full_like|unfold|transpose|permute|squeeze|is_same_size)(\.\w+)?"
)


@pytest.mark.parametrize("op", sorted(OPS))
def test_reference_rounds_one_operation_at_a_time(op):
    arguments = [param.values[0] for param in cases.CASES[op]() if "slow" not in [mark.name for mark in param.marks]]
    with FloatArithmetic() as recorded:
        for args in arguments:
            OPS[op].reference(*args)
    assert recorded.ops or op in ("broadcast_regions", "compact", "gather_levels")
    for name, dtypes in recorded.ops.items():
        assert ONE_ROUNDING.fullmatch(name), f"{op}: {name} on {dtypes}"
        assert "sqrt" not in name or dtypes == {torch.float64}


@pytest.mark.parametrize("op", sorted(OPS))
def test_rooms_share_name_and_signature(op):
    pytest.importorskip("triton")
    entry = OPS[op]
    assert inspect.signature(entry.kernel) == inspect.signature(entry.reference)
    assert entry.kernel.__name__ == entry.reference.__name__ == op
    assert hasattr(importlib.import_module(f"pyramid_ops.{entry.module}"), op)


def test_rooms_do_not_import_each_other():
    for room in ("kernels", "reference"):
        for path in (ROOT / room).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                for name in names:
                    banned = ("pyramid_ops", "kernels", "reference") + (("triton",) if room == "reference" else ())
                    assert not name.startswith(banned), f"{path}: imports {name}"
                assert not (isinstance(node, ast.ImportFrom) and node.level > 1), path


def test_public_surface():
    assert pyramid_ops.__all__ == sorted(pyramid_ops.__all__)
    for name in pyramid_ops.__all__:
        public = getattr(pyramid_ops, name)
        document = inspect.getdoc(public)
        if not (isinstance(public, type) and issubclass(public, tuple)):
            for section in ("Examples", ">>> "):
                assert section in document, f"{name}: {section} is missing"
        if name in OPS:
            for section in ("Parameters", "Returns", "Raises"):
                assert section in document or "gaussian_pyramid" in document, f"{name}: {section} is missing"


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_import_has_no_side_effects():
    code = """
import sys, torch, pyramid_ops
assert "triton.language" not in sys.modules or sys.modules["torch"] is torch
assert not torch.cuda.is_initialized()
assert "pyramid_ops.kernels.scoring" not in sys.modules
import pyramid_ops.kernels.selection, pyramid_ops.kernels.pyramid
assert not torch.cuda.is_initialized()
"""
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_cpu_needs_no_triton():
    code = """
import sys
sys.modules["triton"] = None
import torch, pyramid_ops
x = [torch.randn(1, n, 8) for n in (9, 4)]
assert pyramid_ops.select_topk_levels(x, budgets=[2, 1]).tokens.shape == (1, 3, 8)
assert len(pyramid_ops.gaussian_pyramid(torch.rand(1, 1, 8, 8), 3)) == 3
"""
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_kernels_on_cpu_need_the_interpreter():
    pytest.importorskip("triton")
    code = """
import torch, pyramid_ops
with pyramid_ops.use_backend("kernel"):
    pyramid_ops.token_norm(torch.rand(1, 2, 3))
"""
    result = python(code, TRITON_INTERPRET="0")
    assert "RuntimeError: token_norm: kernels on CPU tensors need TRITON_INTERPRET=1" in result.stderr


def test_use_backend_rejects_unknown_names():
    with pytest.raises(ValueError, match="use_backend: backend: expected 'kernel' or 'reference', got 'gpu'"):
        with pyramid_ops.use_backend("gpu"):
            pass


@pytest.mark.parametrize("via_sdist", [False, True])
def test_wheel_holds_each_module_once(tmp_path, via_sdist):
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("needs setuptools 77")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyramid_ops", "kernels", "reference", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    run = {"check": True, "capture_output": True, "cwd": tmp_path}
    build = "import sys, setuptools.build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"
    if via_sdist:
        subprocess.run([sys.executable, "-c", build, "build_sdist", str(tmp_path)], **{**run, "cwd": source})
        shutil.unpack_archive(next(tmp_path.glob("*.tar.gz")), tmp_path, filter="data")
        source = next(path for path in tmp_path.glob("pyramid_ops-*") if path.is_dir())
    subprocess.run([sys.executable, "-c", build, "build_wheel", str(tmp_path)], **{**run, "cwd": source})
    wheel = next(tmp_path.glob("*.whl"))
    names = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")]
    expected = [f"pyramid_ops/{path.name}" for path in (ROOT / "pyramid_ops").glob("*.py")]
    for room in ("kernels", "reference"):
        expected += [f"pyramid_ops/{room}/{path.name}" for path in (ROOT / room).glob("*.py")]
    assert sorted(names) == sorted(expected)
    assert "pyramid_ops/golden.json" in zipfile.ZipFile(wheel).namelist()
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    code = "import pyramid_ops, pyramid_ops.verify as v; print(pyramid_ops.__file__); raise SystemExit(v.main())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(installed)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(installed) in result.stdout
    assert "yes: the same bits" in result.stdout
