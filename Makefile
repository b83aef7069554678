# On a fresh Debian-like machine, make run and make test install what they need.

VENV := .venv
BIN := $(VENV)/bin
TRACE ?= trace

.PHONY: run test lint unit test-kernel bench nightly clean

run: $(VENV)/installed
	tools/first-run $(BIN) $(TRACE)

test: lint unit

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(VENV)/installed
	tools/run-tests $(BIN)/pytest

test-kernel: $(VENV)/installed
	$(BIN)/pytest tests/kernel

bench: $(VENV)/installed-bench
	$(BIN)/python -m bench

# Tests that are too slow for every change: hundreds of kills, systemd, fuzzing, full benchmarks.
nightly: $(VENV)/installed-bench
	LTTD_NIGHTLY=1 tools/run-tests $(BIN)/pytest
	$(BIN)/python -m tests.fuzz --minutes 10
	$(BIN)/python -m bench

$(VENV)/bin/python:
	tools/make-venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/installed-bench: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[dev,bench]'
	touch $@

clean:
	rm -rf $(VENV) $(TRACE) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
