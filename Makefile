# make demo | test | check | bench | chaos | soak | fuzz | gpu | audit | clean      (needs Python 3.11+ and make; everything else it installs)
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DATA   := $(wildcard ../shared/data)
export CLD_STREAM_DATA ?= $(abspath $(DATA))

MINUTES ?= 60
FILES   ?= 20000

.PHONY: demo test check lint bench chaos soak fuzz gpu audit clean

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

fuzz: $(READY)
	$(BIN)/pip install -q -e '.[bench]'
	rm -f build/fuzz.jsonl
	$(BIN)/python -m benchmarks.fuzz --files $(FILES) --write

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
	$(BIN)/bandit -q -c pyproject.toml -r cld_stream
	@echo "bandit: nothing found"
	@said=$$($(BIN)/pip-audit --skip-editable --progress-spinner off --timeout 15 2>&1); code=$$?; \
	  unknown=$$(echo "$$said" | grep -c 'not found on PyPI'); all=$$($(BIN)/pip list 2>/dev/null | tail -n +3 | wc -l); \
	  if echo "$$said" | grep -q '^Found'; then echo "$$said"; exit 1; fi; \
	  if [ $$code -ne 0 ]; then echo "$$said" | tail -1; unknown=$$all; fi; \
	  echo "pip-audit: no vulnerability known; $$unknown of $$all packages NOT CHECKED (its service cannot be reached, or does not know them)"

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "cld-stream needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q -e '.[dev,demo]'
	@touch $@

clean:
	rm -rf $(VENV) demo-out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
