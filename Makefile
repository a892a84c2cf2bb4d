# The two commands of a fresh machine: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test several parity lint format bench readme clean

help:
	@echo "make demo    set up, then the whole two-stage run beside its dense baseline (minutes)"
	@echo "make test    set up, then the test suite"
	@echo "make several the tests that start several processes, or imitate a card"
	@echo "make parity  compare with torch and transformers, which it installs"
	@echo "make lint    ruff (format and lint) and mypy"
	@echo "make bench   measure again what docs/performance.md states"
	@echo "make readme  write the key table of the YAML into README.md"

# One environment for everything; made anew when the dependencies change.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[cpu,dev]'
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/python benchmarks/demo.py

# Two files at a time, each computing on one core.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not several"

several: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m several

# Where torch comes from: pyproject.toml, at the extra `parity`.
$(VENV)/.parity: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[cpu,dev,parity]'
	@touch $@

parity: $(VENV)/.parity
	$(BIN)/python -m pytest -m parity

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/all.py

clean:
	rm -rf $(VENV) build dist

readme: $(VENV)/.installed
	$(BIN)/python benchmarks/readme.py
