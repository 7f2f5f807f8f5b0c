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
# Every branch of these is tested: their tests fail below 100 % coverage.
COVERED := tests/policy tests/protocol
# These measure latency and memory, so they run apart, one for each core.
MEASURING := tests/hostile tests/server/test_pressure.py
# These need Docker, or Kubernetes built from source.
COMPOSE := tests/compose
IN_KUBERNETES := tests/kubernetes

# Most tests wait for processes, so there are more workers than cores.
WORKERS ?= $(shell echo $$(( $$(nproc) * 2 )))
GROUPED = --dist loadgroup --no-loadscope-reorder
PARALLEL = -n $(WORKERS) $(GROUPED)
PER_CORE = -n $$(nproc) $(GROUPED)

# Workers and the processes that tests start import the same modules: compile them once.
export PYTHONDONTWRITEBYTECODE :=

PROTOS := $(wildcard protos/xds/mesh/v1/*.proto)
PROTOC = $(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=$(1) --pyi_out=$(1) \
	--include_source_info --descriptor_set_out=$(1)/xds/mesh/v1/descriptors.binpb $(PROTOS)

KUBERNETES = $(BIN)/python -m tests.kubernetes.environment.binaries

.NOTPARALLEL:
.PHONY: help demo unit test test-slow test-all coverage test-kubernetes test-compose kubernetes check docs proto golden bench clean

help: ## Say what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## Play Istio's automatic mutual TLS task with real Envoys
	@$(BIN)/xds demo

unit: $(READY) ## Run the pure tests, which start no processes: under a minute
	@$(BIN)/pytest $(PER_CORE) -m "not real"

test: $(READY) ## Run all tests that need neither Docker nor Kubernetes (network namespaces need root)
	@$(BIN)/pytest $(PARALLEL) $(addprefix --ignore=,$(MEASURING) $(COMPOSE) $(IN_KUBERNETES))
	@$(BIN)/pytest $(PER_CORE) $(MEASURING)

test-slow: coverage test-kubernetes test-compose ## Run the coverage gate and the tests in Kubernetes and Docker

test-all: test test-slow ## Run every test, as CI does

coverage: $(READY) ## Fail unless the tests of policy, rollout and protocol cover every branch
	@$(BIN)/pytest $(PER_CORE) $(COVERED) --cov=xds.mesh.policy --cov=xds.mesh.rollout --cov=xds.protocol --cov-branch \
		--cov-report=term-missing:skip-covered --cov-fail-under=100

test-kubernetes: $(READY) ## Run the tests with a Kubernetes control plane, built first where Go is installed
	@$(KUBERNETES) || test -z "$$XDS_REQUIRE_KUBERNETES"
	@$(BIN)/pytest $(PARALLEL) $(IN_KUBERNETES)

test-compose: $(READY) ## Build the image, and run the demo in containers, with Docker
	@$(BIN)/pytest $(COMPOSE)

kubernetes: $(READY) ## Build the Kubernetes control plane that the tests run, where Go is installed
	@$(KUBERNETES)

check: $(READY) ## Lint, formatting, types, layers, generated code, and packages that must not be here
	@$(BIN)/python -c "$$FOREIGN"
	@made=$$(mktemp -d) && trap 'rm -rf "$$made"' EXIT && mkdir -p "$$made/xds/mesh/v1" && $(call PROTOC,$$made) && \
		diff -rq --exclude=__init__.py --exclude=__pycache__ "$$made/xds/mesh/v1" xds/mesh/v1 || \
		{ echo "xds/mesh/v1 is not what protos/ gives: run make proto, and commit the result"; exit 1; } >&2
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/codespell
	@$(MAKE) --no-print-directory docs

# The variable silences a notice about MkDocs 2, which the docs group excludes.
docs: $(READY) ## Build the site into build/site; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

proto: $(READY) ## Generate xds/mesh/v1 from protos/
	$(call PROTOC,.)

golden: $(READY) ## Rewrite the golden files; read their diff before you commit it
	@$(BIN)/pytest tests/golden tests/inject/test_golden.py --golden

bench: $(READY) ## Measure how long changes take to reach 1,000 sidecars: several minutes
	@$(BIN)/python benchmarks/bench.py

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
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo]' --group test --group check --group docs
	@touch $@

# These own the top-level packages `xds` and `envoy`, and would overwrite ours.
define FOREIGN
from importlib.metadata import distributions
found = {d.name.lower() for d in distributions()} & {"xds-protos", "grpcio-admin", "grpcio-csds"}
if found:
    raise SystemExit(f"{', '.join(sorted(found))} must not be installed here; `make clean` removes it with .venv")
endef
export FOREIGN
