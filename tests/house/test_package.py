"""The package as users meet it: public names, imports without side effects, wheels."""

import inspect
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import pyramid_ops

ROOT = pathlib.Path(__file__).parents[2]


def test_public_surface():
    """What the table of docs/ops.md names, each documented; beside it the tuples that ops return."""
    functions = [name for name in pyramid_ops.__all__ if inspect.isfunction(getattr(pyramid_ops, name))]
    table = [line.split("|")[1] for line in (ROOT / "docs/ops.md").read_text().splitlines() if line.startswith("| `")]
    assert set(functions) == {name for cell in table for name in re.findall(r"`(\w+)`", cell)}
    for name in functions:
        document = inspect.getdoc(getattr(pyramid_ops, name))
        for section in ("Parameters", "Returns", "Raises", "Examples", ">>> "):
            assert section in document or name == "use_backend", f"{name}: {section} is missing"
    others = {getattr(pyramid_ops, name) for name in pyramid_ops.__all__} - {
        getattr(pyramid_ops, name) for name in functions
    }
    assert all(issubclass(kind, tuple) and kind.__doc__ for kind in others)


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
import sys, numpy, torch
before = set(sys.modules)
import pyramid_ops
new = {name.split(".")[0] for name in set(sys.modules) - before}
assert new <= {"pyramid_ops", *sys.stdlib_module_names}, new
assert not [name for name in sys.modules if name.startswith(("pyramid_ops.kernels", "pyramid_ops.demo"))]
assert not torch.cuda.is_initialized()
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


def test_the_version_is_one_everywhere():
    version = re.escape(pyramid_ops.__version__)
    for name, pattern in {
        "pyproject.toml": rf'^version = "{version}"$',
        "CITATION.cff": rf"^version: {version}$",
        "CHANGELOG.md": rf"^## \[{version}\] - \d{{4}}-\d\d-\d\d$",
    }.items():
        assert re.search(pattern, (ROOT / name).read_text(), re.MULTILINE), name


def test_the_workflow_calls_targets_of_the_makefile():
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    targets = re.search(r"target: \[(.*)\]", workflow).group(1).split(", ")
    assert "test" in targets
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


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
    own = [path.relative_to(ROOT) for path in (ROOT / "pyramid_ops").rglob("*.py")]
    expected = {str(path) for path in own if path.parts[1] not in ("kernels", "reference")}
    for room in ("kernels", "reference"):
        expected |= {f"pyramid_ops/{room}/{path.name}" for path in (ROOT / room).glob("*.py")}
    assert sorted(names) == sorted(expected)
    assert {"pyramid_ops/verify/golden.json", "pyramid_ops/py.typed"} <= {*zipfile.ZipFile(wheel).namelist()}
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    extras = "import sys; sys.modules |= dict.fromkeys(('matplotlib', 'PIL', 'rich', 'skimage', 'transformers'))\n"
    code = "import pyramid_ops, pyramid_ops.verify as v; print(pyramid_ops.__file__); raise SystemExit(v.main())"
    result = subprocess.run(
        [sys.executable, "-c", extras + code],
        env={**os.environ, "PYTHONPATH": str(installed)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(installed) in result.stdout
    assert "yes: the same bits" in result.stdout
