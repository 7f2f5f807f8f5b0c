# Everything happens in .venv, which is made when it is missing, from any Python 3.11 or newer.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

NEWEST_FIRST := python3 python3.14 python3.13 python3.12 python3.11
PYTHON ?= $(shell for p in $(NEWEST_FIRST); do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo test check golden clean

help: ## Say what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## Play Istio's automatic mutual TLS task with real Envoys
	@$(BIN)/xds demo

test: $(READY) ## Run all tests (those in network namespaces need root)
	@$(BIN)/pytest

check: $(READY) ## Lint, formatting, types, layers, and packages that must not be here
	@$(BIN)/python -c "$$FOREIGN"
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

golden: $(READY) ## Write the golden files anew; read the diff before you commit it
	@$(BIN)/pytest tests/golden --golden

clean: ## Remove .venv and what tools left behind (.cache stays: it is slow to fill)
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
	find . -name __pycache__ -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { \
		echo "Python 3.11 or newer is needed, and none of these is: $(NEWEST_FIRST)."; \
		echo "Install one, or say where it is: make PYTHON=/path/to/python3"; exit 2; } >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1)."; exit 2; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments."; \
		echo "On Debian and Ubuntu: apt-get install python3-venv"; exit 2; } >&2
	@echo "Making .venv with $$($(PYTHON) -V): the first time takes a minute or two"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo]' --group test --group check
	@touch $@

# These own the top-level packages `xds` and `envoy`, and would overwrite ours.
define FOREIGN
from importlib.metadata import distributions
found = {d.name.lower() for d in distributions()} & {"xds-protos", "grpcio-admin", "grpcio-csds"}
if found:
    raise SystemExit(f"{', '.join(sorted(found))} must not be installed here; `make clean` removes it with .venv")
endef
export FOREIGN
