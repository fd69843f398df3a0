# Two commands on a fresh machine: `make quickstart` and `make test`. Nothing is needed but Python 3.11 to 3.13 and a package index.
# PYTHON=... takes another interpreter than the newest supported one.
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --no-compile
# The versions that were tested together; `make constraints` writes the file anew.
TESTED := lacy_jax/constraints.txt
WORKDIR ?= runs/quickstart
# Three workers for two cores: many tests wait for processes. More cores may take more.
TEST_WORKERS ?= 3

# Some images set it, and each of the many processes below would then compile JAX and all else from its text: 4 of 6 seconds.
unexport PYTHONDONTWRITEBYTECODE

# As the `lacy` command sets it for itself: why, see lacy_jax/__main__.py.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: quickstart docs test test-oldest test-maxtext test-slow wheel-check lint types bench bench-quick step-sizes constraints clean

quickstart: $(VENV)/.installed-core
	$(BIN)/python experiments/quickstart.py --workdir=$(WORKDIR)

test: lint types
	$(BIN)/python -m pytest -m "not slow" -n $(TEST_WORKERS) --dist=loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-test
	$(BIN)/mypy lacy_jax

# The part that speaks to JAX most, on the oldest Python that is supported and the JAX that it gets.
test-oldest:
	python=$$(tools/find_python.sh 3.11) && $(MAKE) PYTHON="$$python" VENV=.venv-oldest .venv-oldest/.installed-test
	.venv-oldest/bin/python -m pytest -m "oldest and not slow" -n $(TEST_WORKERS) --dist=loadfile --no-loadscope-reorder

wheel-check: $(VENV)/.installed-test
	tools/wheel_check.sh $(BIN)/python

# examples/maxtext_lacy.py in an environment that has MaxText, which asks for Python 3.12.
.venv-maxtext/.installed: setup.cfg setup.py $(TESTED) examples/maxtext_requirements.txt
	python=$$(tools/find_python.sh 3.13 3.12) && "$$python" -m venv .venv-maxtext
	.venv-maxtext/bin/python -m pip install --quiet --no-compile --no-deps maxtext==0.2.5
	.venv-maxtext/bin/python -m pip install --quiet --no-compile --constraint=$(TESTED) --editable ".[tpu]" pytest hypothesis --requirement examples/maxtext_requirements.txt
	touch $@

test-maxtext: .venv-maxtext/.installed
	.venv-maxtext/bin/python -m pytest tests/examples

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/input.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/label.py

# Tokens per second of the step over model size, batch and context, PyTorch's beside it, and their picture.
step-sizes: $(VENV)/.installed-test
	$(BIN)/python benchmarks/step_sizes.py --out=docs/results/step_sizes.json
	$(BIN)/python docs/pictures.py

bench-quick: $(VENV)/.installed-test
	$(BIN)/python benchmarks/step.py --quick
	$(BIN)/python benchmarks/input.py --quick
	$(BIN)/python benchmarks/decode.py --quick
	$(BIN)/python benchmarks/serve.py --quick
	$(BIN)/python benchmarks/label.py --quick

$(VENV)/bin/python:
	python=$${PYTHON:-$$(tools/find_python.sh)} && "$$python" -m venv $(VENV)

$(VENV)/.installed-core: setup.cfg setup.py $(TESTED) | $(VENV)/bin/python
	$(PIP) --constraint=$(TESTED) --editable .
	touch $@

$(VENV)/.installed-test: setup.cfg setup.py $(TESTED) | $(VENV)/bin/python
	$(PIP) --constraint=$(TESTED) --editable ".[test]"
	# Beam asks for protobuf below 7, SentencePiece for a later one, with which both work: pip cannot know that.
	sed '/^protobuf==/d' $(TESTED) >$(VENV)/constraints-beam.txt
	$(PIP) --constraint=$(VENV)/constraints-beam.txt apache-beam
	$(PIP) --constraint=$(TESTED) --no-deps --upgrade protobuf
	touch $@ $(VENV)/.installed-core

# The documentation as a site, build/site/index.html; any warning is an error.
docs: $(VENV)/.installed-core
	$(PIP) --constraint=$(TESTED) --editable ".[docs]"
	$(BIN)/python docs/pictures.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# Both stacks from what setup.cfg asks for, newest versions, frozen into one file. Test before you commit it.
constraints:
	tools/constraints.sh >$(VENV)-constraints.tmp
	mv $(VENV)-constraints.tmp $(TESTED)

clean:
	rm -rf $(VENV) .venv-oldest .venv-maxtext dist runs build .pytest_cache *.egg-info
