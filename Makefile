# `make demo`: everything from nothing to the main job. `make check`: the quick tier of the tests, for every edit.
# `make test`: all tests but the slow ones and those that need a GPU.
# All make .venv with the torch that the committed figures were measured with; TORCH=torch installs the latest release.
BASE ?= python3
VENV ?= .venv
PYTHON = $(VENV)/bin/python
TORCH ?= torch==2.13.0
# two workers of one thread each; the machine's cores are theirs
PYTEST = OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2

.PHONY: demo check test lint types install bench

install: $(VENV)/.installed

$(VENV)/.installed: setup.py pyproject.toml
	test -x $(PYTHON) || $(BASE) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check setuptools wheel $(TORCH)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -e ".[test,bench,samples,dev]"
	touch $@

demo: install
	$(PYTHON) -m benchmarks
	$(PYTHON) -m i2i train

lint: install
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types: install
	$(PYTHON) -m basedpyright --pythonpath $(PYTHON)

check: lint types
	KERNELS_TEST_ISA=best $(PYTEST) -m "not long and not slow and not triton" --at-least 2500

test: lint types
	$(PYTEST) -m "not slow and not triton" --dist loadfile --at-least 4200
	TRITON_INTERPRET=1 $(PYTEST) -m "triton and not slow" --at-least 685 tests/kernels

bench: install
	$(PYTHON) -m benchmarks --full
