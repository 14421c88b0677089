# One command each: demo, test, lab, bench, lint, clean. Each makes the environment first where it is missing or old.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
endif
READY := $(VENV)/.ready

.PHONY: demo lab test bench lint clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]" -c constraints.txt
	$(BIN)/python -c "open('$(READY)', 'w').close()"

demo: $(READY)
	$(BIN)/python -m modelopt_nb.demo

lab: $(READY)
	$(BIN)/jupyter lab notebooks/00_start_here.ipynb

test: $(READY)
	$(BIN)/python -m pytest tests
	$(BIN)/python -m pytest --nbval notebooks

bench: $(READY)
	$(BIN)/python -m tests.bench

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) output notebooks/output .pytest_cache .ruff_cache
