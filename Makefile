# Two commands do everything on a machine with Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MANIFEST := dbt_project/target/manifest.json
DBT_SOURCES := $(shell find dbt_project/models dbt_project/macros dbt_project/seeds dbt_project/tests dbt_project/*.yml -type f 2>/dev/null)
# Other flags for the demo, such as `make demo ARGS="--customers 100"`.
ARGS ?=

.PHONY: help install demo up test test-slow test-faults bench lint format lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) $(MANIFEST) ## Build .venv, with .venv/bin/apex in it

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing into $(VENV) (one to two minutes the first time) ..."
	@# The lock is complete, so pip need not resolve anything: --no-deps halves the time and `pip check` proves it.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m pip check --disable-pip-version-check
	@touch $@

$(MANIFEST): $(STAMP) $(DBT_SOURCES)
	@$(BIN)/python -m apex_pipelines.platform.dbt

demo: install ## Run the whole chain on 500 simulated customers (DATA=file adds a file of yours)
	@$(BIN)/apex demo $(if $(DATA),--data "$(DATA)") $(ARGS)

up: install ## Start everything and leave it running: API on 8080, Dagster UI on 3000
	@$(BIN)/apex up

test: install ## Run all tests
	@# Two workers, a file each: tests wait for disks and processes half of the time. In the order of the
	@# folders, since those that take minutes come first in it, and none of them is left for the end.
	@$(BIN)/python -m pytest -m "not faults and not bench and not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: install ## Run the tests that take minutes: large real files through everything
	@$(BIN)/python -m pytest -m "slow and not faults and not bench"

test-faults: install ## Kill every process many times and count
	@$(BIN)/python -m pytest -m faults

bench: install ## Print the ratios that the docs quote
	@$(BIN)/python -m pytest benchmarks -m "bench and not slow" -s

lint: install ## Lint, format, types, import directions, SQL
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/sqlfluff lint --processes 1 --disable-progress-bar dbt_project/models dbt_project/tests

format: install ## Format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: ## Compile requirements.in into requirements.txt (needs uv on the PATH)
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate requirements.in -o requirements.txt

clean: ## Remove the environment, the data folder and caches
	@rm -rf $(VENV) .apex dbt_project/target dbt_project/logs .pytest_cache .mypy_cache .ruff_cache
