# make train   install and train the quickstart network
# make test    install and check everything: lint, types, tests, documentation
# make docs    build the documentation as a site, docs/_build/html/index.html
# make page    build the page that runs a trained network in a browser, digit.html
# make fuzz    over 20,000 random configurations, damaged files and forged fields; with strace also
#              a kill at, and an error from, each system call of a run
# make bench   measure speed and memory into results/speed; BENCH="--help" lists its options
PYTHON ?= python3
MAKEFLAGS += --jobs=2  # the checks beside the tests
BIN := .venv/bin
INSTALL = $(BIN)/pip install -q --no-compile -c constraints.txt
# What pip does on one core; a few packages have files that are not to be compiled.
COMPILE = $(BIN)/python -m compileall -qq -j 0 .venv/lib || true

.PHONY: train test lint types tests docs page fuzz bench clean

train: .venv/installed
	$(BIN)/binep train quickstart

test: lint types docs tests

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev
	$(BIN)/mypy

tests: .venv/installed-dev
	$(BIN)/pytest -n 3 --dist worksteal --durations 25

docs: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -E -W --keep-going -q docs docs/_build/html

page: .venv/installed
	$(BIN)/binep page mnist-fc1 --output digit.html

fuzz: .venv/installed-dev
	BINEP_FUZZ=32 $(BIN)/pytest tests/runs/test_fuzz.py tests/runs/test_forged.py \
	    tests/runs/test_system_calls.py

bench: .venv/installed-dev
	$(BIN)/python -m benchmarks.speed $(BENCH)

.venv/bin/pip:
	$(PYTHON) -m venv .venv || { rm -rf .venv; \
	    echo "No virtual environment: on Debian, apt-get install python3-venv"; exit 1; }

.venv/installed: .venv/bin/pip pyproject.toml constraints.txt
	$(INSTALL) -e .
	$(COMPILE)
	touch $@

.venv/installed-dev: .venv/bin/pip pyproject.toml constraints.txt
	$(INSTALL) -e '.[dev]'
	$(COMPILE)
	touch $@ .venv/installed

clean:
	rm -rf .venv docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis
