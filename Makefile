# Everything runs in .venv/, made from pyproject.toml and constraints-cpu.txt and reused until one of them changes.
SYSTEM_PYTHON ?= python3
VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
WORKERS ?= 2
PARALLEL := -m pytest -n $(WORKERS) --dist worksteal
PYTEST := $(PYTHON) $(PARALLEL)
TRITONS := 3.6.0 3.7.1
QUICK := tests/ops tests/methods tests/serving tests/house
SLOWER := tests/ops/test_tracing.py $(patsubst %,tests/house/test_%.py,package compile_mode verify documents)

.PHONY: demo quick op test test-all test-tritons check docs golden bench gpu clean

demo: $(READY)
	$(PYTHON) -m pyramid_ops select

$(READY): pyproject.toml constraints-cpu.txt
	test -x $(PYTHON) || $(SYSTEM_PYTHON) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt "setuptools>=77"
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt --no-build-isolation -e ".[demo,test,bench]"
	touch $@

# Meaning, errors and the rules of the house on the reference; no kernel runs.
quick: $(READY)
	$(PYTEST) -m "not slow and not kernel" $(QUICK) $(SLOWER:%=--ignore=%)

# One op: bits, tiles and digests in the interpreter, then compiled and executed code, digests, meaning and doctests.
op: $(READY)
	@test -n "$(OP)" || { echo "which op? make op OP=token_norm"; exit 2; }
	TRITON_INTERPRET=1 $(PYTEST) --op $(OP) -m "kernel and not slow"
	$(PYTEST) --op $(OP) -m "not slow and not kernel" --doctest-modules pyramid_ops tests

# The interpreter, then the reference, compiled and executed kernels, doctests and packaging.
test: $(READY)
	TRITON_INTERPRET=1 $(PYTEST) -m "kernel and not slow"
	$(PYTEST) -m "not slow and not kernel" --doctest-modules pyramid_ops tests

test-all: check $(VENV)/.ray
	TRITON_INTERPRET=1 PYRAMID_OPS_TEST_ALL=1 $(PYTEST) -m kernel
	PYRAMID_OPS_TEST_ALL=1 $(PYTEST) -m "not kernel" --doctest-modules pyramid_ops tests
	$(MAKE) test-tritons

# Where it can be installed: the example on Ray Data is tested then, and skipped elsewhere.
$(VENV)/.ray: $(READY)
	-$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt --no-build-isolation -e ".[ray]"
	touch $@

# Interpreter, compiled and executed code under older Tritons, each in an environment of its own.
test-tritons: $(TRITONS:%=.venv-triton-%/.ready)
	for version in $(TRITONS); do \
		TRITON_INTERPRET=1 .venv-triton-$$version/bin/python $(PARALLEL) -m "kernel and not slow" && \
		PYRAMID_OPS_TEST_ALL=1 .venv-triton-$$version/bin/python $(PARALLEL) \
			tests/code/test_aot.py tests/code/test_executed.py tests/ptx || exit 1; \
	done

.venv-triton-%/.ready: constraints-cpu.txt
	test -x .venv-triton-$*/bin/python || $(SYSTEM_PYTHON) -m venv .venv-triton-$*
	.venv-triton-$*/bin/python -m pip install --quiet --disable-pip-version-check \
		torch==2.13.0 triton==$* "numpy<2.4" pytest pytest-xdist hypothesis
	touch $@

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Pages, API reference and gallery in docs/_build/html; a warning is an error.
docs: $(VENV)/.docs
	rm -rf docs/generated docs/_build
	$(PYTHON) -m sphinx -W --keep-going -q -b html docs docs/_build/html

$(VENV)/.docs: $(READY)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt --no-build-isolation -e ".[docs]"
	touch $@

# Only where the specification changes: see tests/update_golden.py.
golden: $(READY)
	$(PYTHON) -m tests.update_golden

bench: $(READY)
	$(PYTHON) -m bench

# On a machine with a CUDA GPU, with its own interpreter, offline and uninstalled: make gpu PYTHON=python3
gpu:
	PYTHONPATH=. $(PYTHON) -m tests.gpu

clean:
	rm -rf .venv .venv-triton-* docs/_build docs/generated build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
