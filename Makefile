# On a fresh machine (Debian, Python 3.11, make, git) each of these sets everything up that it needs:
#   make demo    infoscope with its defaults; ARGS='overrides'
#   make check   ruff, pyright, import contracts and the unit tests: a minute and a half on two cores
#   make test    the same with all tests: some ten minutes
#   make chaos   runs killed at 50 random moments, some 4 minutes
#   make bench   every benchmark against its peers, which it installs; ARGS='--device cuda'
#   make lint    mend and format what ruff can
#   make clean   remove what these have made, but for outputs/
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# compiled modules are kept, whatever the environment says: each process of the tests compiled all of them anew
export PYTHONDONTWRITEBYTECODE :=
BENCHMARKS := $(filter-out %/harness.py,$(wildcard experiments/benchmarks/*.py))
# processes of one thread each, which take the longest files first
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder

.PHONY: demo check test static suite units chaos bench lint clean

demo: $(READY)
	$(BIN)/infoscope $(ARGS)

check: $(READY)
	$(MAKE) --no-print-directory -j 2 static units

test: $(READY)
	$(MAKE) --no-print-directory -j 2 static suite

# three on two cores, for some tests wait for others (Slurm, Ctrl-C)
suite: $(READY)
	$(PYTEST) -n 3

units: $(READY)
	$(PYTEST) -n 2 -m "not long"

static: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

chaos: $(READY)
	INFOSCOPE_CHAOS=50 $(BIN)/python -m pytest tests/whole/test_chaos.py --timeout=3600

# one after the other, each on an otherwise idle machine; results go to experiments/benchmarks/results
bench: $(VENV)/.bench
	set -e; for file in $(BENCHMARKS); do echo "== $$file"; $(BIN)/python $$file --save $(ARGS); done

$(VENV)/.bench: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	touch $@

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "infoscope needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

lint: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
