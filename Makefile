# Streamer: `make run` and `make test` set up everything they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev run fleet-demo test check bench clean

help: ## say what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# The CPU build of torch by its local version where a wheel is at hand, else from torch's own index: PyPI's plain one brings CUDA.
$(VENV)/.torch: Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "streamer needs Python 3.11 or newer; $(PYTHON) is older: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==$(TORCH)+cpu" 2>/dev/null \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check --index-url $(TORCH_CPU_INDEX) "torch==$(TORCH)"
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[daemon]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

setup: $(VENV)/.installed ## build .venv with the daemon in it
setup-dev: $(VENV)/.installed-dev ## the same, with what the tests need

run: setup ## start the daemon on the demo clip, ask it a first question
	$(BIN)/streamer run --source demo: --ask "What is happening?"

fleet-demo: setup ## watch 30 files with a head and three engines, and kill one while it is asked
	$(BIN)/python examples/fleet_demo.py

test: setup-dev ## run the tests, three modules at a time: one waits for something most of the time
	@sh tests/system-packages.sh
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: setup-dev ## lint, type-check and hold the contracts of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup ## measure the daemon on this machine
	$(BIN)/streamer bench

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist
