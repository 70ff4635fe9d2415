# Each target sets up what it needs in .venv; a second run starts at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TORCH := torch==2.13.0
# A process for each core; tests of a file stay together, since they share what it sets up.
PARALLEL := -n auto --dist loadfile

.PHONY: setup demo docs test test-all docs-tables test-web web lint format dist audit licences sbom fuzz clean

setup: $(VENV)/.installed-dev

demo: $(VENV)/.installed-dev
	$(BIN)/tdmpc-opt demo

test: lint
	$(BIN)/python -m pytest $(PARALLEL)

# Everything, slow tests and experts included.
test-all: $(VENV)/.installed-all lint test-web
	$(BIN)/python -m pytest $(PARALLEL) -m ""

# The site, in site/docs/index.html; the tests build it too. Search needs a server:
# python -m http.server -d site
docs: $(VENV)/.installed-dev
	$(BIN)/zensical build --strict
	cp -r results examples experts weights site/

# The page's own checks and tests, where there is npm; Python's tests cover the built page.
test-web:
	@if command -v npm >/dev/null; then \
	  npm --prefix web ci --no-audit --no-fund && npm --prefix web run check \
	  && npm --prefix web test; \
	else echo "npm is not installed: the tests of web/ are left out"; fi

# Builds the page that `tdmpc-opt play` serves, with an agent in it: make web AGENT=file
AGENT ?= mt30-1m
web: $(VENV)/.installed-all
	$(BIN)/python web/tools/export_models.py
	$(BIN)/python web/tools/bundle_agent.py $(AGENT)
	npm --prefix web ci --no-audit --no-fund
	npm --prefix web run check
	npm --prefix web run build

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Wheel and sdist; the same bytes for the same commit, whenever and wherever they are built.
dist: $(VENV)/.installed-dev
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --outdir dist .

# Known weaknesses of the pinned versions; asks a database, so it needs a network. Strict, since
# pip-audit without a network finds nothing and would call that a success.
audit: $(VENV)/.installed-audit
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r constraints.txt

licences: $(VENV)/.installed-all $(VENV)/.installed-audit
	$(BIN)/python tools/licences.py

# What the pinned versions are, in the form that tools for supply chains read.
sbom: $(VENV)/.installed-audit
	mkdir -p dist
	$(BIN)/cyclonedx-py requirements constraints.txt --pyproject pyproject.toml \
	  --output-reproducible --of JSON -o dist/sbom.cdx.json

# Rewrites the tables of docs/ from results/ and the picture of the rooms; the tests compare them.
docs-tables: $(VENV)/.installed-dev
	$(BIN)/cog -I tools -p "import tables" -r docs/*.md
	$(BIN)/python tools/rooms_figure.py

# The tests of damaged and hostile files with 10,000 cases of each kind; about an hour a core.
fuzz: $(VENV)/.installed-all
	nice -n 19 $(BIN)/python -m pytest -n auto --hypothesis-profile=fuzz tests/test_fuzz.py

clean:
	rm -rf $(VENV) build dist site .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
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

$(VENV)/.installed-audit: $(VENV)/.installed-dev
	$(PIP) -e ".[audit,fuzz]"
	touch $@
