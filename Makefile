# Every target sets itself up: .venv is made on first use, from the exact versions in the lock.
PYTHON ?= python3
PRESET ?= demo
ARGS ?=
JOBS ?= 1

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup reproduce test test-all lab figures base bench

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | expand -t 12
	@echo
	@echo "make reproduce PRESET=ham10000 ARGS='--data-root DIR'   runs another preset"

setup: $(READY) ## make .venv with the pinned requirements and the package

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "derm_rl needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1)."; \
	    echo "Name another: make PYTHON=python3.11 …"; exit 1; }
	@echo "setting up $(VENV) (once, some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.lock)
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m ipykernel install --sys-prefix --name python3 >/dev/null
	@touch $@

reproduce: $(READY) ## run every notebook of a preset (PRESET=demo) and draw the figures
	@$(BIN)/python -m derm_rl reproduce --preset $(PRESET) --jobs $(JOBS) $(ARGS)

test: export DERM_RL_RUNS := $(CURDIR)/runs/test
test: $(READY) ## ruff, pytest, and nbval over the notebooks at the smoke preset
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf runs/test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n 2 --dist loadfile --durations 15
	$(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=600 notebooks

test-all: export DERM_RL_TEST_ALL := 1
test-all: test ## the same, with 2,000 files tried by the readers, and an edit of every source

lab: $(READY) ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir notebooks

figures: $(READY) ## redraw the figures of a preset from its finished stages
	@$(BIN)/python -m derm_rl figures --preset $(PRESET) $(ARGS)

base: $(READY) ## train models/ from nothing (about five hours on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m derm_rl.base

bench: $(READY) ## the demo's alignment gain for three seeds (an hour, or three to four in float32)
	$(BIN)/python benchmarks/seeds.py
