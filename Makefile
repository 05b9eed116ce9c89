# Penstock's few commands; `make help` lists them. Everything is installed into .venv.
#
# ARGS adds arguments: make serve ARGS="--port 8000 ~/models/Qwen3-8B"
#
# torch: on Linux pip finds the CUDA build, some gigabytes. On a machine without a GPU, set PIP_EXTRA_INDEX_URL to
# PyTorch's index of CPU builds before the first `make`; pip prefers those, and the pinned version fits both.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NPM ?= $(CURDIR)/tests/e2e/js
INSTALLED := $(VENV)/.installed

.PHONY: help install serve test check bench agents clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 16

install: $(INSTALLED)  ## make .venv with Penstock and every pinned dependency

$(INSTALLED): pyproject.toml setup.py requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	    f"Penstock needs Python 3.11 or newer, but {sys.executable} is {sys.version.split()[0]}; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint requirements.lock pip
	$(BIN)/python -m pip install --constraint requirements.lock --editable '.[dev]'
	@touch $@

serve: install  ## serve the two starter models, or those named in ARGS, on port 1234
	$(BIN)/penstock serve $(ARGS)

test: check  ## run the checks, then every test that needs no GPU
	$(BIN)/pytest $(ARGS)

check: install  ## lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

agents: install $(NPM)/node_modules  ## test with the JavaScript clients and coding agents that npm has
	PENSTOCK_TEST_NPM=$(NPM) $(BIN)/pytest tests/e2e/test_agents.py tests/e2e/test_codex.py tests/e2e/test_js_clients.py \
		tests/serving/test_codex_turns.py tests/serving/test_claude_code_turns.py

$(NPM)/node_modules: tests/e2e/js/package.json
	npm install --prefix $(NPM) --no-package-lock --no-audit --no-fund
	cd $(NPM) && node node_modules/@anthropic-ai/claude-code/install.cjs  # newer npms leave this to the caller
	cd $(NPM) && node node_modules/opencode-ai/postinstall.mjs
	@touch $@

bench: install  ## measure the server on this machine, which should be idle otherwise
	$(BIN)/python benchmarks/server.py $(ARGS)

clean:  ## remove what tools have left behind; .venv and models stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
