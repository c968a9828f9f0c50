# make train   install and train the quickstart network
# make test    install and check everything: lint, types, tests
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test lint types tests clean

train: .venv/installed
	$(BIN)/binep train quickstart

test: lint types tests

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev
	$(BIN)/mypy

tests: .venv/installed-dev
	$(BIN)/pytest

.venv/bin/pip:
	$(PYTHON) -m venv .venv || { rm -rf .venv; \
	    echo "No virtual environment: on Debian, apt-get install python3-venv"; exit 1; }

.venv/installed: .venv/bin/pip pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

.venv/installed-dev: .venv/bin/pip pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@ .venv/installed

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
