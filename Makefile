# The two that matter: `make demo` shows every step on the built-in model, `make test` proves that it works.
PYTHON ?= python3
BIN := .venv/bin
# One thread per test process: several in parallel would compete for the cores and run ten times slower.
# Compiled modules are kept, even where the environment says not to: the tests start many processes.
# Tests of one file stay on one worker, the slowest start first (tests/conftest.py).
TEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt torch==2.13.0
# What torch 2.11 brings. Builds for the CPU alone bring none; the kernels' tests then use this one (tools/README.md).
TRITON := triton==3.6.0
SIZES := 1.2 GB on disk with PyTorch's CPU build, 5.7 GB with CUDA

.PHONY: setup demo test test-fast test-kills test-fuzz test-kernels test-soak check fix bench docs clean

demo: .venv/.run
	$(BIN)/lorgnette demo

setup: .venv/.dev

# The browser tests need Debian's chromium and a font with Chinese characters; they skip without.
test: .venv/.dev .venv/.system .venv/.triton
	$(TEST)

# For the inner loop: under a minute, without the tests that take seconds each.
test-fast: .venv/.dev
	$(TEST) -m "not slow" $(addprefix --ignore tests/,e2e fuzz kills parity tools)

# A short training recovers from every state of the disk before, in and after each of its file-system calls: some minutes.
# Then one of three ranks in which everything goes wrong that can, and `teach`, killed at each event of its journal.
test-kills: .venv/.dev
	folder=$$(mktemp -d) && OMP_NUM_THREADS=1 $(BIN)/python tests/kills/kill_points.py --jobs $$(nproc) $$folder/points && \
	  OMP_NUM_THREADS=1 $(BIN)/python tests/kills/rank_faults.py --table --resume $$folder/ranks && \
	  OMP_NUM_THREADS=1 $(BIN)/python tests/kills/teach_kills.py --jobs $$(nproc) $$folder/teach && \
	  OMP_NUM_THREADS=1 $(BIN)/python tests/kills/teach_kills.py --model --jobs $$(nproc) $$folder/taught; \
	  status=$$?; rm -rf $$folder; exit $$status

# 1,800 damaged or hostile files: data, models, adapters, runs. `make test` has a sample of them.
test-fuzz: .venv/.dev
	LORGNETTE_FUZZ=all $(TEST) tests/fuzz

# 10,000 requests to a server, half of them broken or hostile, 16 at once: 20 minutes on two cores. `make test` has a
# sample of them.
test-soak: .venv/.dev
	folder=$$(mktemp -d) && OMP_NUM_THREADS=1 $(BIN)/python tests/soak.py $$folder/soak; \
	  status=$$?; rm -rf $$folder; exit $$status

# Every kernel for every card at the shapes of every model, compiled without a GPU: from nothing, half an hour on two
# cores. `make docs` prints the result.
test-kernels: .venv/.dev .venv/.triton
	OMP_NUM_THREADS=1 $(BIN)/python tools/kernel_matrix.py tools/kernel_matrix.json --all

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# On a GPU: the benchmark job, timed stage by stage (bench/README.md).
bench: .venv/.run
	$(BIN)/python bench/job.py bench/out/job
	$(BIN)/python bench/training_run.py bench/out/job --out bench/out/training_run.json

# docs/settings.md, docs/coming-from.md and docs/kernels.md are generated.
docs: .venv/.run
	$(BIN)/python tools/settings_page.py > docs/settings.md
	$(BIN)/python tools/coming_from_page.py > docs/coming-from.md
	$(BIN)/python tools/kernels_page.py > docs/kernels.md
	$(BIN)/python tools/models_page.py
	$(BIN)/python tools/cards_page.py

clean:
	rm -rf .venv bench/out runs

.venv/bin/python:
	$(PYTHON) -m venv .venv || { apt-get update -qq && apt-get install -y -qq python3-venv && $(PYTHON) -m venv .venv; }

.venv/.run: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installs Python packages into .venv: $(SIZES); takes some minutes"
	$(PIP) --editable .
	touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installs Python packages into .venv, with those of the tests: $(SIZES), and 0.9 GB more"
	$(PIP) --editable '.[dev,excel,heic,parquet,dashboard,tensorboard,wandb]'
	touch $@ .venv/.run

.venv/.system: | .venv/bin/python
	command -v chromium > /dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium fonts-noto-cjk > /dev/null; } || \
	  echo "no chromium: the browser tests will skip (apt-get install chromium fonts-noto-cjk)"
	touch $@

# In a folder of its own: beside torch's packages, torch would find it.
.venv/.triton: | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/triton $(TRITON) || \
	  echo "no Triton for this machine: the test that compiles the kernels will skip"
	touch $@
