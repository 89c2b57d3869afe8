# Everything runs in .venv, which the first target makes from constraints.txt.
#
#     make demo     install and run the demonstration
#     make test     install and run the tests
#     make exhaustive  what that leaves out of sweeps over very many cases
#     make check    lint, types, docs and tests
#     make oldest   the tests on the oldest versions that pyproject.toml promises
#     make bench    compare with other methods, five minutes
#
# PYTHON picks the interpreter that makes .venv, and .venv-oldest, for which there are packages up to Python 3.12; PYTEST_ARGS goes to pytest, in place of two workers of one thread each (for
# example PYTEST_ARGS="-k softmax").

PYTHON ?= python3
PYTEST_ARGS ?= -n 2
BENCH_MINUTES ?= 40

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OLDEST := .venv-oldest

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export NO_MKDOCS_2_WARNING := 1
export KEOPS_VERBOSE := 0

.PHONY: demo test exhaustive lint types docs check oldest bench bench-reference clean

demo: $(STAMP)
	$(BIN)/itergp demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --doctest-modules itergp tests $(PYTEST_ARGS)

exhaustive: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m exhaustive $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/mkdocs build --strict --quiet --site-dir site

check: lint types docs test

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	@echo "Setting up $(OLDEST) (some minutes, once) ..."
	@$(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/python -m pip install -qq --constraint constraints-oldest.txt --editable '.[test]'
	@touch $@

oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest tests $(PYTEST_ARGS)

$(VENV)/.installed-bench: $(STAMP)
	@echo "Adding what the benchmarks compare with to $(VENV) ..."
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[bench]'
	@touch $@

# Five minutes, small data, nothing beyond what the other targets install.
bench: $(STAMP)
	$(BIN)/python -m benchmarks run --quick --results build/bench/quick.jsonl
	$(BIN)/python -m benchmarks report --results build/bench/quick.jsonl --output build/bench

# The results that documentation and README cite; BENCH_MINUTES says for how long, and calling it again goes on.
bench-reference: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks run --preset reference --threads 1 --budget-minutes $(BENCH_MINUTES)
	$(BIN)/python -m benchmarks report --readme README.md

$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (some minutes, once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Leaves .venv and .venv-oldest, which are expensive; to start afresh, remove these folders too.
clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis itergp-demo.png
	find . \( -path ./$(VENV) -o -path ./$(OLDEST) \) -prune -o -name __pycache__ -type d -exec rm -rf {} +
