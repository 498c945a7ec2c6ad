# Two commands set everything up: `make demo` and `make test`.
# PIP_TORCH names the torch to install first; a CUDA or Mac machine may leave it at plain `torch`.

PYTHON ?= python3
PIP_TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEV := $(VENV)/.dev

.PHONY: help demo test slow long lint types check bench voice clean

help:
	@echo "make demo   install into .venv, adapt csm-tiny to the example voice, score it, keep it"
	@echo "make test   install and run the fast tests"
	@echo "make slow   the slow tests that CI runs"
	@echo "make long   every test"
	@echo "make check  lint, types"
	@echo "make bench  speed beside transformers"
	@echo "make voice  make the example voice anew"

# torch goes in first: pip would else choose a build with gigabytes of CUDA where a CPU build is configured
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(PIP_TORCH)"
	$(BIN)/pip install --quiet -e .
	@touch $@

# what tests, lint and the script that made the example voice need besides
$(DEV): $(INSTALLED)
	$(BIN)/pip install --quiet -e ".[dev,teacher,align,asr,denoise]"
	$(BIN)/pip install --quiet --no-deps distillmos==0.9.1 xls-r-sqa==0.1.0
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

test: $(DEV)
	$(BIN)/python -m pytest -m "not slow and not long"

slow: $(DEV)
	$(BIN)/python -m pytest -m "slow and not long"

long: $(DEV)
	$(BIN)/python -m pytest

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy

check: lint types

bench: $(DEV)
	$(BIN)/python -m benchmarks.table

voice: $(DEV)
	$(BIN)/python examples/make_voice.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
