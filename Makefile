# Everything starts here: `make run` and `make test` do all that they need on a fresh clone.

BIN := .venv/bin
TL4 := .venv-tl4/bin
PIP := -m pip install --quiet --quiet --disable-pip-version-check
LAB := .venv/share/jupyter/lab/settings
NOTEBOOKS ?=
ARGS ?=

# Threads that wait for work give up their core; otherwise a second busy process slows torch 25-fold.
export OMP_WAIT_POLICY ?= passive

# glibc keeps freed memory for the next tensor; mapping it anew each time costs a fifth of the time.
export MALLOC_MMAP_THRESHOLD_ ?= 33554432
export MALLOC_TRIM_THRESHOLD_ ?= 4294967296

# The first Python from 3.11 on that really starts (a version manager's shim may not).
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; \
	done)

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links

# The arithmetic of another processor: other vectors, other matrix kernels, one thread.
OTHER := ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE OMP_NUM_THREADS=1

.PHONY: help setup run test test-fast test-portable test-tl4 lab render book bench lint lock

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: .venv/.installed  ## create .venv from the lock and fetch the default model
	@$(BIN)/mi fetch

run: setup  ## execute notebooks 00 to 10 and print their scorecard; NOTEBOOKS="00 16" for some, =all for all
	@$(BIN)/mi run $(NOTEBOOKS) $(ARGS)

test: setup lint  ## lint, types, all tests, and half of the stored notebooks; ARGS=--exhaustive for all
	@$(BIN)/python -m pytest $(ARGS)

test-portable: setup  ## all stored notebooks under another processor's arithmetic
	@$(OTHER) $(BIN)/python -m pytest tests/notebooks/test_stored.py --exhaustive $(ARGS)

test-fast: setup  ## the tests without the notebooks and the book made of them
	@$(BIN)/python -m pytest --ignore=tests/notebooks --ignore=tests/book $(ARGS)

test-tl4: setup .venv-tl4/.installed  ## the fast tests on transformer-lens 4, in .venv-tl4
	@$(TL4)/python -m pytest --ignore=tests/notebooks $(ARGS)

lab: setup $(LAB)/overrides.json  ## open the README in JupyterLab; its tables lead to the notebooks
	@$(BIN)/jupyter lab README.md

# In this .venv alone: Markdown opens as a page to read, and nobody is asked about news.
LAB_SETTINGS := {"@jupyterlab/docmanager-extension:plugin": {"defaultViewers": {"markdown": "Markdown Preview"}}, \
	"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}
$(LAB)/overrides.json: .venv/.installed
	@mkdir -p $(LAB)
	@echo '$(LAB_SETTINGS)' > $@

render: setup  ## execute the notebooks in place and store their outputs; needs Chrome or Chromium
	@$(BIN)/mi render $(NOTEBOOKS) $(ARGS)
	@$(BIN)/python docs/links.py
	@$(BIN)/mi scorecard --readme

book: .venv/.installed  ## build the site from the stored notebooks: papermill_runs/book/index.html
	@$(BIN)/python docs/make.py
	@echo "built: papermill_runs/book/index.html"

bench: setup  ## time the engine against plain hooked forward passes
	@$(BIN)/python -m tests.benchmarks.run $(ARGS)

lint: .venv/.installed  ## ruff and mypy
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary

# CUDA packages are left to torch: which it needs depends on the build that a machine installs.
PINS := { echo '\# Exact versions for every platform, written by make lock'; grep -vE '^(\#|cuda|nvidia|triton)'
lock: .venv/.installed  ## write both lock files anew from pyproject.toml; ARGS=--upgrade for newer versions
	@$(LOCK) $(ARGS) --all-extras pyproject.toml --output-file requirements.lock
	@$(PINS) requirements.lock; } > .lock.tmp && mv .lock.tmp requirements.lock
	@grep -vE '^transformer-lens==' requirements.lock > .lock.tmp
	@echo 'transformer-lens>=4' | $(LOCK) $(ARGS) --constraint .lock.tmp --extra notebooks \
		--extra dev --extra book pyproject.toml - --output-file requirements-tl4.lock
	@$(PINS) requirements-tl4.lock; } > .lock.tmp && mv .lock.tmp requirements-tl4.lock

.venv/.installed: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the packages of requirements.lock into .venv; this takes some minutes once"
	@$(BIN)/python $(PIP) --requirement requirements.lock
	@$(BIN)/python $(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

.venv-tl4/.installed: requirements-tl4.lock pyproject.toml
	@test -x $(TL4)/python || $(PYTHON) -m venv .venv-tl4
	@echo "installing the packages of requirements-tl4.lock into .venv-tl4; this takes some minutes once"
	@$(TL4)/python $(PIP) --requirement requirements-tl4.lock
	@$(TL4)/python $(PIP) --no-deps --no-build-isolation --editable .
	@touch $@
