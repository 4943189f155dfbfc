# The everyday words. `make run` and `make test` work in a fresh clone; each sets up what it needs in .venv.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
# The lock files hold each version and its hashes; pip takes nothing else (docs/decisions/0037).
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TOOLS := .venv/tools
COMPILE := $(TOOLS)/bin/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes --custom-compile-command 'make lock'

.PHONY: help setup run test test-fast test-install coverage lint format bench docs site js lock audit clean

help:  ## show these words
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/run.stamp: setup.cfg pyproject.toml requirements/embedded.txt | $(BIN)/python
	$(INSTALL) --require-hashes -r requirements/embedded.txt
	$(INSTALL) --no-deps -e .
	@touch $@

.venv/dev.stamp: setup.cfg pyproject.toml requirements/dev.txt | $(BIN)/python
	$(INSTALL) --require-hashes -r requirements/dev.txt
	$(INSTALL) --no-deps --no-build-isolation -e .
	@# PgBouncer, Chromium and tmux are no wheels: Debian's, where we may install them; without one its tests skip and say so.
	@for tool in pgbouncer chromium tmux; do \
	  if PATH="$$PATH:/usr/sbin" command -v $$tool || [ "$$(id -u)" != 0 ] || ! command -v apt-get; then continue; fi >/dev/null; \
	  get="env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $$tool"; \
	  ($$get || { apt-get -qq update && $$get; }) >/dev/null 2>&1 || echo "$$tool could not be installed: its tests will be skipped"; done
	@touch $@ .venv/run.stamp

# npm writes this file last. Without Node 20 or later it never appears, and each word that wants it says so.
NODE_MODULES := node_modules/.package-lock.json

$(NODE_MODULES): package.json package-lock.json clients/js/package.json
	@if node -e 'process.exit(Number(parseInt(process.versions.node) < 20))' 2>/dev/null && command -v npm >/dev/null; then \
	  npm ci --ignore-scripts --no-audit --no-fund --loglevel=error && touch $@; \
	else echo "Node.js 20 or later, with npm, is not here: the JavaScript tests will be skipped"; fi

setup: .venv/dev.stamp $(NODE_MODULES)  ## everything for development, in .venv and node_modules

run: .venv/run.stamp  ## set up and run chatd with a PostgreSQL of its own; ARGS="--port 9000" adds flags
	$(BIN)/chatd serve $(ARGS)

test: .venv/dev.stamp $(NODE_MODULES) lint  ## set up, check the style and run all tests (some 15 minutes on 2 cores)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: .venv/dev.stamp  ## the tests that take seconds: pure modules, SDK, house rules, and the chat itself
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m "not slow" tests/unit tests/oracles tests/tidy tests/wire tests/integration/test_chat.py $(ARGS)

test-install: .venv/dev.stamp  ## the install of docs/operations.md, word for word, under systemd (some 2 minutes); as root (77: it cannot be done here)
	$(BIN)/python -m tests.install || [ $$? = 77 ]

coverage: .venv/dev.stamp  ## the same tests, and what of chatd they do not run (a third slower)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered $(ARGS)

lint: .venv/dev.stamp $(NODE_MODULES)  ## ruff, mypy --strict, import contracts; Biome and tsc --strict
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if [ -e $(NODE_MODULES) ]; then npm run --silent lint; fi

bench: .venv/dev.stamp  ## all budgets of bench/budgets.toml, in some minutes; ARGS="budget" is the whole, ARGS="send --help" one scenario
	$(BIN)/python -m bench $(or $(ARGS),budget --quick)

docs: .venv/dev.stamp  ## write what of docs/ is generated: tables, the page of frames, the index of decisions
	$(BIN)/python -m tests.tidy.generated

js: .venv/dev.stamp $(NODE_MODULES)  ## the gates of clients/js: generated frames, build, types, tests, package, docs
	$(BIN)/python -m pytest -q tests/js $(ARGS)

site: .venv/dev.stamp  ## build the docs site into site/ and check it: site/index.html opens without a server
	$(BIN)/python -m tests.site.build

$(TOOLS)/stamp: requirements/tools.txt | $(BIN)/python
	$(BIN)/python -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/tools.txt
	@touch $@

lock: $(TOOLS)/stamp  ## write requirements/*.txt from setup.cfg; pins that still fit stay, ARGS=--upgrade renews all
	$(COMPILE) $(ARGS) requirements/tools.in -o requirements/tools.txt
	$(COMPILE) $(ARGS) setup.cfg --extra dev -o requirements/dev.txt
	$(COMPILE) setup.cfg --extra embedded -c requirements/dev.txt -o requirements/embedded.txt
	$(COMPILE) setup.cfg --extra tui -c requirements/dev.txt -o requirements/tui.txt
	$(COMPILE) setup.cfg -c requirements/dev.txt -o requirements/server.txt
	$(MAKE) audit

audit: $(TOOLS)/stamp .venv/dev.stamp  ## known vulnerabilities of what is locked; fails if there is one (77: nobody could be asked)
	@$(BIN)/python -m tests.tidy.audit || [ $$? = 77 ]

clean:  ## remove what the other words made
	rm -rf .venv node_modules clients/js/dist clients/js/build clients/js/docs build dist site .cache bench/out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage*
