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

# One thread, as the notebooks were recorded. glibc keeps freed memory for the next tensor: generating is 5 to 9 % faster.
test record: export OMP_NUM_THREADS = 1
test record: export MALLOC_MMAP_THRESHOLD_ = 268435456
test record: export MALLOC_TRIM_THRESHOLD_ = 1073741824

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

record: $(READY)
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=-1 $(NOTEBOOKS)
	$(BIN)/python tests/record.py $(NOTEBOOKS)

clean:
	rm -rf $(VENV) output notebooks/output .pytest_cache .ruff_cache .import_linter_cache
