# make demo | test | check | bench | chaos | soak | gpu | audit | clean      (needs Python 3.11+ and make; everything else it installs)
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DATA   := $(wildcard ../shared/data)
export CLD_STREAM_DATA ?= $(abspath $(DATA))

MINUTES ?= 60

.PHONY: demo test check lint bench chaos soak gpu audit clean

demo: $(READY)
	$(BIN)/cld-stream demo --out demo-out

test: $(READY)
	$(BIN)/pytest -n 2 -m "not soak and not gpu"

check: lint test

lint: $(READY)
	$(BIN)/ruff format --check cld_stream tests benchmarks
	$(BIN)/ruff check cld_stream tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/pip install -q -e '.[bench]'
	$(BIN)/python -m benchmarks.frames
	$(BIN)/python -m benchmarks.ingest
	$(BIN)/python -m benchmarks.query
	$(BIN)/python -m benchmarks.kmeans
	$(BIN)/python -m benchmarks.incremental

chaos: $(READY)
	$(BIN)/python -m benchmarks.chaos --minutes $(MINUTES) --write

soak: $(READY)
	$(BIN)/pip install -q -e '.[bench]'
	$(BIN)/pytest -m soak
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) --write

gpu: $(READY)
	$(BIN)/pytest -m gpu

audit: $(READY)
	$(BIN)/pip install -q pip-audit bandit
	-$(BIN)/pip-audit --skip-editable
	-$(BIN)/bandit -q -r cld_stream

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "cld-stream needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q -e '.[dev,demo]'
	@touch $@

clean:
	rm -rf $(VENV) demo-out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
