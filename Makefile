# Everything a newcomer runs. Each target does all its own set-up, in a .venv in this folder.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Pins torch to its CPU build, as far as the machine has no GPU driver.
export PIP_CONSTRAINT := $(if $(shell command -v nvidia-smi 2>/dev/null),,constraints.txt)

.PHONY: demo test test-slow test-browser lab explore lint notebooks figures bench clean

demo: $(VENV)/installed            ## train three tiny networks and compare them
	$(BIN)/ddsa-lab demo $(ARGS)

test: $(VENV)/installed-dev        ## all tests but the minutes-long ones
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-slow: $(VENV)/installed-dev   ## the minutes-long tests
	$(BIN)/python -m pytest -m slow $(ARGS)

test-browser: $(VENV)/installed-dev ## JupyterLab and voila in a real Chromium
	$(BIN)/python -m pytest -m browser $(ARGS)

lab: $(VENV)/installed             ## JupyterLab in notebooks/
	$(BIN)/ddsa-lab lab $(ARGS)

explore: $(VENV)/installed         ## the explorers as a page without code
	$(BIN)/ddsa-lab explore $(ARGS)

lint: $(VENV)/installed-dev        ## ruff on code and notebooks
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

notebooks: $(VENV)/installed-dev   ## rebuild and execute every notebook from its source
	$(BIN)/python notebooks/build.py $(ARGS)

figures: $(VENV)/installed         ## every figure of figures/
	$(BIN)/ddsa-lab figures all

bench: $(VENV)/installed           ## this package against the released order of operations
	$(BIN)/ddsa-lab bench $(ARGS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/installed

clean:                             ## remove what was built (runs/ stays: it may hold your trainings)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
