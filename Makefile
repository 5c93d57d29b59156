PYTHON ?= python3
NOTEBOOKS ?=
PARTS ?=
BIN := .venv/bin
NOTEBOOKS_AND_PROCESSES := notebooks experiments launch bench browser
export TOKENIZERS_PARALLELISM := true

.PHONY: tutorial test test-fast test-slow test-browser lab setup notebooks stale results bench bench-report

# After Ctrl-C the command has said what there is to say; the rest keeps make from adding a line of its own.
tutorial: setup  ## run the notebooks on copies under artifacts/tutorial; NOTEBOOKS="01 03" for some
	@trap : INT; $(BIN)/python notebooks/tools/run.py tutorial $(NOTEBOOKS) || [ $$? = 130 ]

test: setup  ## lint, then all tests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not browser" -n 2

test-fast: setup  ## lint, and the unit tests that need no notebook and no process group
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not browser" -n 2 $(NOTEBOOKS_AND_PROCESSES:%=--ignore=tests/test_%.py)

test-slow: .venv/.bench  ## the tests that take minutes
	@$(BIN)/python -m pytest -m slow

test-browser: .venv/.browser  ## JupyterLab and the report in Chromium, which is installed where apt-get may do it
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq --no-install-recommends chromium; } || \
		{ echo "Chromium is missing: sudo apt-get install chromium, or Google Chrome's own package"; exit 1; }
	@$(BIN)/python -m pytest -m browser

lab: setup  ## open JupyterLab on the notebooks
	@$(BIN)/jupyter lab notebooks

stale: setup  ## say which committed notebooks show what the code no longer does, and why
	@$(BIN)/python notebooks/tools/stale.py

notebooks: setup  ## run the stale notebooks anew, in place, and those that read from them; NOTEBOOKS="03 05" for some
	@$(BIN)/python notebooks/tools/run.py regenerate $(NOTEBOOKS)

results: setup  ## write what notebooks 03 and 06 measured into README and docs/results.md
	@$(BIN)/python notebooks/tools/results.py

bench: .venv/.bench  ## measure speed and memory beside other ways to distil; PARTS="speed reading" for some of it
	@$(BIN)/python tests/bench/run.py $(PARTS)

bench-report: setup  ## write what make bench measured into docs/benchmark.md
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

.venv/.browser: .venv/.installed
	@$(BIN)/python -m pip install --quiet --editable ".[dev,browser]"
	@touch $@
