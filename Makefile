# Two commands: `make quickstart` and `make test`. Everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart test chaos check lint types contract format docs bench setup clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("asymbench needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

quickstart: $(STAMP)
	$(BIN)/asymbench run quickstart

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

# Twenty seeded runs on a cluster that dies piecemeal; CHAOS_SEEDS=7, repeats the one of seed 7.
chaos: $(STAMP)
	CHAOS_SEEDS=$${CHAOS_SEEDS:-20} $(BIN)/python -m pytest tests/integration/test_chaos.py

check: lint types contract

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

contract: $(STAMP)
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP)
	$(BIN)/python -m orchestrator.catalogue methods > docs/methods.md
	$(BIN)/python -m orchestrator.catalogue datasets > docs/datasets.md

bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.evaluation
	$(BIN)/python -m benchmarks.images
	$(BIN)/python -m benchmarks.sharing
	$(BIN)/python -m benchmarks.orchestration
	$(BIN)/python -m benchmarks.tuning
	$(BIN)/python -m benchmarks.reporting
	$(BIN)/python -m benchmarks.search
	$(BIN)/python -m benchmarks.export --int8

clean:
	rm -rf $(VENV) build *.egg-info
