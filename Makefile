# `make demo` shows it, `make test` proves it in five minutes, `make test-all` proves all of it (tests/README.md).
# Each makes .venv first, from requirements.lock and nothing else.

PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready
# A test with a daemon waits more than it computes. So there are more processes than processors, each takes one test at a
# time, and the tests that wait begin first.
PARALLEL := --numprocesses=3 --dist=load --maxschedchunk=1
# One test of all: make test PYTEST_ARGS="-k name"
PYTEST_ARGS ?= $(PARALLEL) -m "not rest"
REST_ARGS ?= $(PARALLEL) -m rest
CODE := bridged tests benchmarks
# Some of them only: make bench BENCH_ARGS="throughput rest". To see that all work: BENCH_ARGS=--small
BENCH_ARGS ?=

.PHONY: demo test test-rest test-all packages bench lint types imports check lock clean

demo: $(READY)
	$(BIN)/bridged demo

test: $(READY)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-rest: $(READY)
	$(BIN)/python -m pytest $(REST_ARGS)

test-all: packages
	@$(MAKE) --no-print-directory test test-rest

packages:
	@$(PYTHON) -m tests.support.packages

bench: $(READY)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

lint: $(READY)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports

check: lint types imports test

# The build backend comes with the lock, so the project itself is installed without asking any index.
$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "bridged needs Python 3.11 or newer, and none was found. Install it: apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing. Install it: apt install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

# Only for whoever changes a dependency in pyproject.toml.
lock:
	@set -e; t=$$(mktemp -d); trap 'rm -rf "$$t"' EXIT; $(PYTHON) -m venv "$$t"; "$$t/bin/pip" install --quiet uv; \
	"$$t/bin/uv" pip compile pyproject.toml -o requirements.lock --universal --python-version 3.11 \
		--generate-hashes --all-extras --custom-compile-command "make lock" --quiet

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
