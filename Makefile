# Two commands on a fresh machine: `make quickstart` and `make test`. Nothing is needed but Python >= 3.11 and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/quickstart
# The suite is compile-bound: two workers by default, more cores may take more.
TEST_WORKERS ?= 2

# XLA on CPU allocates its scratch memory anew each step; with huge pages glibc takes a fifth off a step on Linux.
HUGE_PAGES := GLIBC_TUNABLES=glibc.malloc.hugetlb=1

.PHONY: quickstart test lint types test-slow bench bench-quick clean

quickstart: $(VENV)/.installed-core
	$(HUGE_PAGES) $(BIN)/python experiments/quickstart.py --workdir=$(WORKDIR)

test: lint types
	$(BIN)/python -m pytest -m "not slow" -n $(TEST_WORKERS) --dist=loadfile

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-test
	$(BIN)/mypy lacy_jax

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/input.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/label.py

bench-quick: $(VENV)/.installed-test
	$(BIN)/python benchmarks/step.py --quick
	$(BIN)/python benchmarks/input.py --quick
	$(BIN)/python benchmarks/decode.py --quick
	$(BIN)/python benchmarks/label.py --quick

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-core: setup.cfg | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-compile --editable .
	touch $@

$(VENV)/.installed-test: setup.cfg | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[test]"
	# Beam asks for protobuf below 7, SentencePiece for a later one, with which both work: pip cannot know that.
	$(BIN)/python -m pip install --quiet --no-compile apache-beam
	$(BIN)/python -m pip install --quiet --no-compile --no-deps "protobuf>=7.36.1"
	touch $@ $(VENV)/.installed-core

clean:
	rm -rf $(VENV) runs build *.egg-info
