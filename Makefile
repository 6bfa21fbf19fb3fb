# Each target makes the virtual environment and installs what is missing, then does its job.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test docs lint types contracts venv clean

help:
	@echo "make demo       train a prior on the embedded world and generate images with it: out/demo/index.html"
	@echo "make test       run all tests"
	@echo "make docs       build the documentation: out/site/index.html"
	@echo "make lint       style        make types  static types        make contracts  layers"
	@echo "make venv       .venv with everything        make clean  remove .venv, out and caches"

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

venv: $(READY)

demo: $(READY)
	$(BIN)/syzygy demo --out out/demo

test: $(READY)
	$(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright

contracts: $(READY)
	$(BIN)/lint-imports

clean:
	rm -rf .venv out .pytest_cache .ruff_cache .import_linter_cache .hypothesis
