# The two that matter: `make demo` shows the whole road on the built-in model, `make test` proves it.
PYTHON ?= python3
BIN := .venv/bin
# A test process has one thread: several in parallel would fight over the cores, and run ten times slower.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0

.PHONY: setup demo test check fix bench docs clean

demo: .venv/.run
	$(BIN)/lorgnette demo

setup: .venv/.dev

# pytest's browser tests want Debian's chromium and a font with Chinese characters; they skip without.
test: .venv/.dev .venv/.system
	$(TEST)

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_house.py tests/test_docs.py

fix: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# On a GPU: the benchmark job, timed stage by stage (bench/README.md).
bench: .venv/.run
	$(BIN)/python bench/job.py bench/out/job
	$(BIN)/python bench/road.py bench/out/job --out bench/out/road.json

# docs/settings.md is printed from the settings themselves.
docs: .venv/.run
	$(BIN)/python -m lorgnette.config > docs/settings.md

clean:
	rm -rf .venv bench/out runs

.venv/bin/python:
	$(PYTHON) -m venv .venv || { apt-get update -qq && apt-get install -y -qq python3-venv && $(PYTHON) -m venv .venv; }

.venv/.run: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable .
	touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable '.[dev,hub,dashboard,tensorboard,wandb]'
	touch $@ .venv/.run

.venv/.system: | .venv/bin/python
	command -v chromium > /dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium fonts-noto-cjk > /dev/null; } || \
	  echo "no chromium: the browser tests will skip (apt-get install chromium fonts-noto-cjk)"
	touch $@
