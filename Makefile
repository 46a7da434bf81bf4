# `make demo` and `make test` need Python 3.11 or later and pip; the rest they install into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WORKERS ?= 2
RUNS ?= $(if $(DATA),runs/mine,runs/demo)
DEMO ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUNBUFFERED := 1
# Where the environment forbids it, every one of some hundred processes would compile the package anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test lint types serve wheel clean install
.DEFAULT_GOAL := demo

install: $(INSTALLED)

# DeepSpeed's build asks torch for its version, so torch comes first, and is not looked for in a fresh environment.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel ninja torch numpy
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation deepspeed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $@

# RUNS: where everything is written. DATA: a folder of your photographs; FAKES: one folder per generator; DEMO: overrides, e.g. DEMO='pretrain.train.epochs=2'
demo: $(INSTALLED)
	$(BIN)/python jobs/demo.py --runs $(RUNS) $(if $(DATA),--data '$(DATA)') $(if $(FAKES),--fakes '$(FAKES)') $(DEMO)

# WORKERS: processes that share the test files; 0 runs them in one. TESTS: files or folders, or any option of pytest
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

serve: $(INSTALLED)
	$(BIN)/python jobs/serve.py detector=$(RUNS)/detectors/oc

# dist/: the wheel and the versions that it runs with, for cluster/install.sh on hosts and in images
wheel: $(INSTALLED)
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	cp constraints.txt dist/

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
