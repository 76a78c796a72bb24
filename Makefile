# One command per chore. Each makes its own virtual environment in .venv on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
ROOMS := artifacts calibration engines export planner runtime

.PHONY: demo test check format clean

demo: $(VENV)/dev      ## the main job on the CPU with real data: export, calibrate, plan, serve, measure
	$(BIN)/python -m export resnet --segments
	$(BIN)/python -m calibration resnet
	$(BIN)/python -m planner --run runs/resnet --tolerance 0.01
	$(BIN)/python -m runtime.bench --run runs/resnet --plot runs/resnet/bench.png --json runs/resnet/bench.json

test: $(VENV)/dev      ## all tests
	$(BIN)/python -m pytest

check: $(VENV)/dev     ## linters, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev    ## rewrite the code as the linter wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:                 ## forget everything that was made here
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
