# `make demo`: everything from nothing to the main job. `make test`: everything from nothing to all tests.
# Both make .venv; torch is pinned there to the CPU build that the committed figures were measured with. On a GPU machine, or
# to use an environment of your own, give PYTHON=... of an environment with torch and run the last lines by hand.
BASE ?= python3
VENV ?= .venv
PYTHON = $(VENV)/bin/python
TORCH ?= torch==2.13.0

.PHONY: demo test install bench lint

install: $(VENV)/.installed

$(VENV)/.installed: setup.py
	test -x $(PYTHON) || $(BASE) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check setuptools wheel $(TORCH)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -e ".[test,bench,samples,dev]"
	touch $@

demo: install
	$(PYTHON) -m benchmarks
	$(PYTHON) -m i2i train

test: install
	$(PYTHON) -m ruff check .
	$(PYTHON) -m pytest

bench: install
	$(PYTHON) -m benchmarks --full
