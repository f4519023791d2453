# `make demo`: everything from nothing to the main job. `make check`: the quick tier of the tests, for every edit.
# `make test`: all tests but the slow ones and those that need a GPU.
# Workers of one thread each. Three on two cores where many tests wait for processes that they started; idle workers take
# over what others have left, or the longest file would end alone.
# All make .venv with the torch that the committed figures were measured with; TORCH=torch installs the latest release.
BASE ?= python3
VENV ?= .venv
PYTHON = $(VENV)/bin/python
TORCH ?= torch==2.13.0
# Not compiled to bytecode: most modules of the packages are never imported, and Python compiles those that are.
PIP = $(PYTHON) -m pip install --quiet --disable-pip-version-check --no-compile
PYTEST = OMP_NUM_THREADS=1 $(PYTHON) -m pytest

.PHONY: demo check test lint types build install bench

install: $(VENV)/.installed

$(VENV)/.installed: setup.py pyproject.toml
	test -x $(PYTHON) || $(BASE) -m venv $(VENV)
	$(PIP) "setuptools>=77" wheel
	$(PIP) --no-build-isolation $(TORCH) -e ".[test,bench,samples,dev]"
	touch $@

demo: install
	$(PYTHON) -m benchmarks
	$(PYTHON) -m i2i train

lint: install
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types: install
	$(PYTHON) -m basedpyright --pythonpath $(PYTHON)

build: install
	$(PYTHON) -c "import kernels; print(kernels.backend_report())"

check: install
	$(MAKE) -j 2 lint types
	KERNELS_TEST_ISA=best $(PYTEST) -n 2 --dist worksteal -m "not long and not slow and not triton" --at-least 2500

test: install
	$(MAKE) -j 3 lint types build
	$(PYTEST) -n 3 --dist worksteal --durations 30 -m "not slow and not triton" --at-least 3800
	TRITON_INTERPRET=1 $(PYTEST) -n 2 --dist worksteal --durations 10 -m "triton and not slow" --at-least 200 tests/kernels

bench: install
	$(PYTHON) -m benchmarks --full
