# Each target sets up what it needs in .venv; a second run starts at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TORCH := torch==2.13.0

.PHONY: setup demo test test-all lint format clean

setup: $(VENV)/.installed-dev

demo: $(VENV)/.installed-dev
	$(BIN)/tdmpc-opt demo

test: lint
	$(BIN)/python -m pytest

# Everything, slow tests and experts included; torch.compile runs without the shape checks.
test-all: $(VENV)/.installed-all lint
	$(BIN)/python -m pytest -m "not compile"
	JAXTYPING_DISABLE=1 $(BIN)/python -m pytest -m compile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone, so that pip takes the build its index offers for this machine.
$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) $(TORCH)
	$(PIP) -e ".[train,envs,dev]"
	touch $@

$(VENV)/.installed-all: $(VENV)/.installed-dev
	$(PIP) -e ".[all,dev]"
	touch $@
