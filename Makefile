# One command each: demo, test, lab, bench, lint, record, clean. Each makes the environment first if it is missing or old.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
endif
READY := $(VENV)/.ready
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))

.PHONY: demo lab test bench lint record clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[lab,test]" -c constraints.txt
	$(BIN)/python -c "open('$(READY)', 'w').close()"

demo: $(READY)
	$(BIN)/python -m modelopt_nb demo

lab: $(READY)
	$(BIN)/jupyter lab notebooks/00_start_here.ipynb

# two workers of one thread each; the notebooks were recorded with one thread too
test: export OMP_NUM_THREADS = 1
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 10 --nbval tests notebooks

bench: $(READY)
	$(BIN)/python -m tests.bench

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/ty check
	$(BIN)/python tests/size.py

record: export OMP_NUM_THREADS = 1
record: $(READY)
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=-1 $(NOTEBOOKS)
	$(BIN)/python tests/record.py $(NOTEBOOKS)

clean:
	rm -rf $(VENV) output notebooks/output .pytest_cache .ruff_cache .import_linter_cache
