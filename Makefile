# All targets run in .venv, which is created if missing, with any Python 3.11 or newer.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

NEWEST_FIRST := python3 python3.14 python3.13 python3.12 python3.11
PYTHON ?= $(shell for p in $(NEWEST_FIRST); do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready
# `make coverage` requires 100 % branch coverage from these tests. Hypothesis tests do not count: coverage must not
# depend on random examples.
COVERED := tests/policy tests/protocol $(addprefix tests/controlplane/test_,rollouts.py rollout_streams.py)
# Tests that measure latency and memory run separately, with one worker per core.
MEASURING := tests/hostile tests/server/test_pressure.py
# What failed in both parts of `make test`, and how many tests passed. Printed at the end.
SUMMARY := .pytest_cache/summary
# Tests that need Docker, and tests that need Kubernetes built from source.
COMPOSE := tests/compose
IN_KUBERNETES := tests/kubernetes
# Tests that need programs built with Go or Java.
WITH_GO := tests/conformance/test_matrix.py

# Most tests wait for processes: use more workers than cores.
WORKERS ?= $(shell echo $$(( $$(nproc) * 2 )))
GROUPED = --dist loadgroup --no-loadscope-reorder
PARALLEL = -n $(WORKERS) $(GROUPED)
PER_CORE = -n $$(nproc) $(GROUPED)

# Write bytecode: workers and the processes that tests start import the same modules.
export PYTHONDONTWRITEBYTECODE :=

PROTOS := $(wildcard protos/xds/mesh/v1/*.proto)
GENERATE = $(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=$(1) --pyi_out=$(1)
PROTOC = $(GENERATE) --include_source_info --descriptor_set_out=$(1)/xds/mesh/v1/descriptors.binpb $(PROTOS) && \
	$(GENERATE) protos/xds/conformance/v1/adapter.proto
GENERATED := xds/mesh/v1 xds/conformance/v1

GO_PROGRAM = $(BIN)/python -m tests.kubernetes.environment.go_programs
KUBERNETES = $(BIN)/python -m tests.kubernetes.environment.binaries && \
	$(GO_PROGRAM) helm containerd ctr containerd-shim-runc-v2 coredns && \
	$(BIN)/python -m tests.conformance.building && $(BIN)/python -m tests.kubernetes.environment.node

.NOTPARALLEL:
.PHONY: help demo cluster unit test test-slow test-all coverage test-kubernetes test-compose kubernetes check docs proto \
	chart golden bench pictures release clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## Run Istio's automatic mutual TLS task with real Envoys
	@$(BIN)/xds demo

unit: $(READY) ## Run the tests that start no processes (2 minutes on two cores)
	@$(BIN)/pytest $(PER_CORE) -m "not real"

test: $(READY) ## Run all tests that need neither Docker nor Kubernetes (15 minutes on two cores); some need root
	@rm -f $(SUMMARY); status=0; export XDS_TEST_SUMMARY=$(SUMMARY); \
	for tests in "$(PARALLEL) $(addprefix --ignore=,$(MEASURING) $(COMPOSE) $(IN_KUBERNETES) $(WITH_GO))" \
			"$(PER_CORE) $(MEASURING)"; do \
		$(BIN)/pytest $$tests || { status=$$?; test $$status = 1 || break; }; done; \
	echo; echo "Both parts of make test:"; cat $(SUMMARY); exit $$status

test-slow: coverage test-kubernetes test-compose ## Check coverage, and run the tests that need Kubernetes or Docker

test-all: test test-slow ## Run all tests, as CI does

coverage: $(READY) ## Require full branch coverage of policy, rollout and protocol
	@$(BIN)/pytest $(PER_CORE) $(COVERED) -m "not hypothesis" \
		--cov=xds.mesh.policy --cov=xds.mesh.rollout --cov=xds.protocol --cov-branch \
		--cov-report=term-missing:skip-covered --cov-fail-under=100

test-kubernetes: $(READY) ## Run the tests with a Kubernetes control plane and other programs, built first if Go is installed
	@{ $(KUBERNETES); } || test -z "$$XDS_REQUIRE_KUBERNETES"
	@$(BIN)/pytest $(PARALLEL) $(IN_KUBERNETES) $(WITH_GO)

test-compose: $(READY) ## Build the image and run the demo in containers (needs Docker)
	@$(BIN)/pytest $(COMPOSE)

kubernetes: $(READY) ## Build the Kubernetes control plane, helm and a go-control-plane server for the tests (needs Go)
	@$(KUBERNETES)

cluster: $(READY) ## Run a Kubernetes cluster with a real node, xds and the Istio task's workloads, until Ctrl-C (needs Go and root)
	@$(KUBERNETES)
	@$(BIN)/python -m tests.kubernetes.developing

check: $(READY) ## Check lint, formatting, types, import contracts, generated code, spelling and docs
	@$(BIN)/python -c "$$CONFLICTS"
	@generated=$$(mktemp -d) && trap 'rm -rf "$$generated"' EXIT && \
		mkdir -p $(addprefix "$$generated"/,$(GENERATED)) && $(call PROTOC,$$generated) && \
		for package in $(GENERATED); do \
			diff -rq --exclude=__init__.py --exclude=__pycache__ "$$generated/$$package" "$$package" || \
			{ echo "$$package is out of date: run 'make proto' and commit the result" >&2; exit 1; }; done
	@$(BIN)/python charts/generate.py --check
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/zizmor --offline --quiet .github
	@actionlint=$$($(GO_PROGRAM) actionlint) && { test -z "$$actionlint" || "$$actionlint"; }
	$(BIN)/codespell
	@$(MAKE) --no-print-directory docs

# The variable silences a notice about MkDocs 2. The docs group requires an older version.
docs: $(READY) ## Build the site into build/site; dead links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

proto: $(READY) ## Generate xds/mesh/v1 and xds/conformance/v1 from protos/
	$(call PROTOC,.)

chart: $(READY) ## Generate the templates of charts/xds from xds/mesh/kube
	@$(BIN)/python charts/generate.py

golden: $(READY) ## Rewrite the golden files; review the diff before you commit it
	@$(BIN)/pytest tests/golden tests/inject/test_golden.py --golden

bench: $(READY) ## Measure how fast changes reach 1,000 sidecars (a few minutes)
	@$(BIN)/python benchmarks/bench.py

pictures: $(READY) ## Draw the pictures of the page in docs/assets with Chromium; review them before you commit
	@$(BIN)/python -m tests.page.pictures

# The library and then the demo run in an environment outside of this tree, with the wheel and what each requires.
release: $(READY) ## Build the wheel and the sdist in dist/, check them, run the library and the demo, and list the parts
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group release
	rm -rf dist build/sbom.cdx.json
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	@mkdir -p build && outside=$$(mktemp -d) && trap 'rm -rf "$$outside"' EXIT && \
		$(BIN)/python -m venv --without-pip "$$outside" && \
		install() { $(BIN)/python -m pip --python "$$outside/bin/python" install --quiet --disable-pip-version-check \
			-c constraints.txt "$$(echo dist/*.whl)$$1"; } && \
		install "" && "$$outside/bin/python" -P tests/library/alone.py && \
		install "[demo]" && (cd "$$outside" && bin/xds demo) && \
		$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
			--output-file build/sbom.cdx.json "$$outside/bin/python"

clean: ## Remove .venv and generated files, except .cache, which is slow to rebuild
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
	find . -name __pycache__ -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { \
		echo "Python 3.11 or newer is required, but none was found (tried $(NEWEST_FIRST))."; \
		echo "Install it, or set its path: make PYTHON=/path/to/python3"; exit 2; } >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is required, but $(PYTHON) is $$($(PYTHON) -V 2>&1)."; exit 2; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot create virtual environments: a module is missing."; \
		echo "On Debian and Ubuntu, run: apt-get install python3-venv"; exit 2; } >&2
	@echo "Creating .venv with $$($(PYTHON) -V); this takes a minute or two"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,otel]' --group test --group check --group docs
	@touch $@

# xds-protos, which the others depend on, installs top-level packages `xds` and `envoy` over ours.
define CONFLICTS
from importlib.metadata import distributions
conflicts = {d.name.lower() for d in distributions()} & {"xds-protos", "grpcio-admin", "grpcio-csds"}
if conflicts:
    raise SystemExit(f"{', '.join(sorted(conflicts))} must not be installed in .venv: run 'make clean'")
endef
export CONFLICTS
