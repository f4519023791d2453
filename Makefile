# `make demo`: everything from nothing to the main job. `make test`: everything from nothing to the tests, slow and GPU
# ones left out.
# Both make .venv with the torch that the committed figures were measured with; TORCH=torch takes the newest.
BASE ?= python3
VENV ?= .venv
PYTHON = $(VENV)/bin/python
TORCH ?= torch==2.13.0

.PHONY: demo test install bench

install: $(VENV)/.installed

$(VENV)/.installed: setup.py pyproject.toml
	test -x $(PYTHON) || $(BASE) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check setuptools wheel $(TORCH)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -e ".[test,bench,samples,dev]"
	touch $@

demo: install
	$(PYTHON) -m benchmarks
	$(PYTHON) -m i2i train

test: install
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile --at-least 3000
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(PYTHON) -m pytest -n 2 -m "triton and not slow" --at-least 685 tests/kernels

bench: install
	$(PYTHON) -m benchmarks --full
