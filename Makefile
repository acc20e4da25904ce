# The commands of this project. `make demo` and `make test` set everything up by themselves.
.DEFAULT_GOAL := help
.PHONY: help venv peers demo test explore crash stress bench docs lint format clean
BIN := .venv/bin
SEED ?= $(shell od -An -N4 -tu4 /dev/urandom | tr -d " ")
TESTS ?= tests
CRASH_STATES ?= 500000
STRESS_STEPS ?= 10000
JOBS ?= $(shell nproc)

help:
	@echo 'make demo     what blockio does, on real images, in some seconds'
	@echo 'make test     all tests [TESTS=tests/io] [JOBS=n]; fetches the peers of the interop tests where it may'
	@echo 'make explore  the property tests, long and at random [SEED=n] [TESTS=…]'
	@echo 'make stress   requests while a backend moves, drains, resizes, throttles [STRESS_STEPS=n] [SEED=n]'
	@echo 'make crash    every state that a crash may leave of a qcow2 image [CRASH_STATES=n] [SEED=n]'
	@echo 'make bench    side by side with what else there is quickly [ARGS="--suite reads"]; in full: make bench ARGS='
	@echo 'make docs     the pages of the tools, docs/commands and docs/man, from their definitions, and the recording in the README'
	@echo 'make lint     ruff, mypy, import contracts'
	@echo 'make venv     only set up: .venv/bin/blockio'

venv: .venv/.stamp

.venv/.stamp: pyproject.toml scripts/venv
	scripts/venv
	@touch $@

peers:
	@scripts/peers

demo: .venv/.stamp
	@$(BIN)/python examples/demo.py

test: .venv/.stamp peers
	$(BIN)/pytest -n $(JOBS) --dist worksteal $(TESTS)

explore: .venv/.stamp peers
	HYPOTHESIS_PROFILE=explore $(BIN)/pytest -n $(JOBS) --dist worksteal $(TESTS) --hypothesis-seed=$(SEED)

crash: .venv/.stamp peers
	CRASH_STATES=$(CRASH_STATES) CRASH_SEED=$(SEED) \
		$(BIN)/pytest -n $(JOBS) --dist worksteal -rP tests/qcow2/test_*crash*.py

stress: .venv/.stamp
	STRESS_STEPS=$(STRESS_STEPS) STRESS_SEED=$(SEED) $(BIN)/pytest -rP tests/backend/test_stress.py

bench: ARGS ?= --quick
bench: .venv/.stamp peers
	@$(BIN)/python -m benchmarks $(ARGS)

docs: .venv/.stamp
	$(BIN)/python -m blockio.cli.manual docs
	$(BIN)/python examples/recording.py

lint: .venv/.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.stamp
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
