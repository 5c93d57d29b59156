PYTHON ?= python3
NOTEBOOKS ?=
PARTS ?=
REPOSITORY ?=
BIN := .venv/bin
NOTEBOOKS_AND_PROCESSES := notebooks experiments launch bench browser
export TOKENIZERS_PARALLELISM := true

# Each NAME=value of the command line as it was given, in quotes for the shell: with spaces, lists, any alphabet.
GIVEN = $(foreach name,$(filter-out PYTHON,$(.VARIABLES)),$(if $(filter command,$(origin $(name))),'$(name)=$(subst ','\'',$($(name)))'))

.PHONY: student tutorial lint test test-fast test-slow test-browser lab setup notebooks stale results pages address demo bench bench-report controls

# After Ctrl-C the command has said what there is to say; the rest keeps make from adding a line of its own.
tutorial: setup  ## run the notebooks on copies under artifacts/tutorial; NOTEBOOKS="01 03" for some
	@trap : INT; $(BIN)/python notebooks/tools/run.py tutorial $(NOTEBOOKS) || [ $$? = 130 ]

student: setup  ## your own student; CORPUS=my.csv TEXT_FIELD=body TEACHER=..., and any other parameter
	@trap : INT; $(BIN)/python -m helpers.runs.student $(GIVEN) || [ $$? = 130 ]

lint: setup  ## ruff alone
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

test: lint  ## lint, then all tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not browser" -n 2

test-fast: lint  ## lint, and the unit tests that need no notebook and no process group
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not browser" -n 2 $(NOTEBOOKS_AND_PROCESSES:%=--ignore=tests/test_%.py)

test-slow: .venv/.bench  ## the tests that take minutes
	@$(BIN)/python -m pytest -m slow

test-browser: .venv/.browser  ## JupyterLab, the report and the demo in Chromium, which is installed where apt-get may do it
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

controls: setup  ## make the runs of the controls that notebooks/records lacks: hours; PARTS="recipe layers" for some
	@trap : INT; $(BIN)/python notebooks/tools/controls.py $(PARTS) || [ $$? = 130 ]

results: setup  ## write what notebooks 03 and 06 measured into README and docs/results.md
	@$(BIN)/python notebooks/tools/results.py

pages: setup  ## the committed notebooks as pages for a browser, in artifacts/pages; nothing is run
	@$(BIN)/python notebooks/tools/html_report.py

address: setup  ## write the repository's address: set-up cells, badges; REPOSITORY=https://github.com/me/my-copy
	@$(BIN)/python notebooks/tools/setup_cell.py $(REPOSITORY)

demo: setup  ## a page with notebook 07's student, which answers in the browser; needs npm
	@$(BIN)/python notebooks/tools/demo.py

bench: .venv/.bench  ## measure speed and memory beside other ways to distil; PARTS="speed reading" for some of it
	@$(BIN)/python tests/bench/run.py $(PARTS)

bench-report: setup  ## write what make bench measured into docs/benchmark.md and README
	@$(BIN)/python tests/bench/report.py

setup: .venv/.installed  ## only install

# pip 24.1 and later refuse the metadata of Catalyst's last release, so the environment gets the last pip before that.
.venv/.installed: pyproject.toml
	@echo "Installing into .venv (some minutes, once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet pip==24.0
	@$(BIN)/python -m pip install --quiet --editable ".[dev,compress]"
	@touch $@

.venv/.bench: .venv/.installed
	@$(BIN)/python -m pip install --quiet --editable ".[dev,compress,bench,loggers]"
	@touch $@

.venv/.browser: .venv/.installed
	@$(BIN)/python -m pip install --quiet --editable ".[dev,compress,browser]"
	@touch $@
