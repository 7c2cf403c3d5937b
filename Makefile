# Everything runs in .venv, which is made when it is missing and again when the pinned requirements change.
# A fresh machine needs Python 3.11 or newer, make and a package index; nothing else.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
TYPED := $(wildcard src tests examples bench tools)
PYTEST := $(BIN)/python -m pytest

.PHONY: help
help: ## Print the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: venv
venv: $(STAMP) ## Make .venv from the pinned, hash-checked requirements

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "cannot be had: Python 3.11 or newer ('$(PYTHON)' is not; name another: make PYTHON=python3.12 ...)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "cannot be had: a virtual environment ('$(PYTHON) -m venv' failed; Debian: apt install python3-venv)" >&2; exit 1; }
	@echo "installing the pinned requirements into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --require-hashes -r requirements/dev.txt || \
	  { echo "cannot be had: the packages of requirements/dev.txt (pip's reason stands above)" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: check check-format check-lint check-types check-api check-architecture
check: check-format check-lint check-types check-api check-architecture ## Format, lint, types, architecture
check-format: venv
	$(BIN)/ruff format --check .
check-lint: venv
	$(BIN)/ruff check .
check-types: venv
	$(BIN)/mypy $(TYPED)
check-api: venv
	$(BIN)/python -m tools.public_api
check-architecture: venv
	$(PYTEST) -q tests/architecture

.PHONY: format
format: venv ## Put the code into its one format and sort imports
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

.PHONY: test
test: venv ## All tests but the long ones
	$(BIN)/python -m tools.servers
	$(PYTEST) -m "not long" -n 2 --dist loadfile

.PHONY: test-long
test-long: venv ## All tests, the long ones too
	$(BIN)/python -m tools.servers
	$(PYTEST) -o faulthandler_timeout=1500

.PHONY: demo
demo: venv ## Three services, a real broker and a bad day; ends with lost=0 applied_twice=0
	$(BIN)/python -m examples.shop

.PHONY: promises drill mutants bench conformance proof order
promises: venv ## Promise x broker x store: passed, allowed gap or MISSING
	$(BIN)/python -m tools.promises
drill: venv ## What a new user does wrong and what a bad day does
	$(BIN)/python -m tools.drill
mutants: venv ## Seed known bugs one by one and see the tests catch them
	$(BIN)/python -m tools.mutants
proof: venv ## Kill workers, databases and brokers at every point; ROUNDS= STORES= POINTS= SEED= narrow it
	$(BIN)/python -m tools.servers
	$(BIN)/python -m tools.proof --rounds "$(or $(ROUNDS),0)" --stores "$(STORES)" --points "$(POINTS)" --seed "$(SEED)" \
	  $(if $(ROUNDS)$(STORES)$(POINTS)$(SEED),,--write)
order: venv ## 16 keys, 4 processes, 100,000 events, one killed every two seconds: in order, lost=0 applied_twice=0
	$(PYTEST) -s -m long -o faulthandler_timeout=1500 tests/acceptance/test_order.py
bench: venv ## Measure, beside the same by hand and a peer; exits 1 where a target is missed (half an hour)
	$(BIN)/python -m bench
conformance: venv ## The conformance suite, on every broker, in full; writes its table (hours); BROKERS= narrows it
	$(BIN)/python -m tools.servers
	$(BIN)/python -m tools.conformance $(BROKERS)

.PHONY: alarm
alarm: venv ## Break one thing after the other: its alert, and no other, fires in a real Prometheus, and clears
	$(BIN)/python -m tools.servers
	$(BIN)/python -m tools.alarm

.PHONY: dashboards
dashboards: venv ## Make the dashboards of the package anew, with Grafana's SDK
	$(BIN)/python -m tools.dashboards

.PHONY: reference
reference: venv ## Write into docs/reference what the code says of itself
	$(BIN)/python -m tools.reference

PIP_COMPILE := PIP_FIND_LINKS= CUSTOM_COMPILE_COMMAND="make requirements" ../build/pip-tools/bin/pip-compile --quiet \
  --upgrade --strip-extras --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --allow-unsafe

.PHONY: requirements
requirements: ## Pin the newest of requirements/*.in, with hashes
	$(PYTHON) -m venv build/pip-tools
	build/pip-tools/bin/python -m pip install --quiet --disable-pip-version-check pip-tools
	cd requirements && $(PIP_COMPILE) --output-file=run.txt run.in
	cd requirements && $(PIP_COMPILE) --output-file=dev.txt dev.in

.PHONY: clean
clean: ## Remove .venv and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
