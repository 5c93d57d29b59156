PYTHON ?= python3
NOTEBOOKS ?=
PARTS ?=
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := true

.PHONY: tutorial test test-slow lab setup notebooks results bench bench-report

tutorial: setup  ## run the notebooks on copies under artifacts/tutorial; NOTEBOOKS="01 03" for some
	@$(BIN)/python notebooks/run.py tutorial $(NOTEBOOKS)

test: setup  ## lint, then all tests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2

test-slow: .venv/.bench  ## the tests that take minutes
	@$(BIN)/python -m pytest -m slow

lab: setup  ## open JupyterLab on the notebooks
	@$(BIN)/jupyter lab notebooks

notebooks: setup  ## run the committed notebooks anew, in place
	@$(BIN)/python notebooks/run.py regenerate $(NOTEBOOKS)

results: setup  ## write what notebook 06 measured into the README
	@$(BIN)/python notebooks/results.py

bench: .venv/.bench  ## measure speed and memory beside other ways to distil; PARTS="speed reading" for some of it
	@$(BIN)/python tests/bench/run.py $(PARTS)

bench-report: setup  ## write what make bench measured into the README
	@$(BIN)/python tests/bench/report.py

setup: .venv/.installed  ## only install

# pip 24.1 and later refuse the metadata of Catalyst's last release, so the environment gets the last pip before that.
.venv/.installed: pyproject.toml
	@echo "Installing into .venv (some minutes, once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet pip==24.0
	@$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

.venv/.bench: .venv/.installed
	@$(BIN)/python -m pip install --quiet --editable ".[dev,bench]"
	@touch $@
