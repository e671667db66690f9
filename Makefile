# make book       set up, build the book, print where to click
# make test       set up, then everything that must hold before a change is kept
# make notebooks  execute every chapter and save it with its outputs
# make clean      remove what the others made, but not the environment

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/ready
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout=60 \
	--nbval-sanitize-with tests/sanitize.cfg -n 2 --dist loadscope

.PHONY: book test lint unit nbval strict html notebooks clean

book: $(READY)
	rm -rf _build
	$(BIN)/jupyter-book build . --quiet
	@echo "The book is built. Open it here:"
	@echo "    file://$(CURDIR)/_build/html/index.html"

test: $(READY)
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory unit
	$(MAKE) --no-print-directory nbval
	$(MAKE) --no-print-directory html
	@echo "All tests passed."

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

unit: $(READY)
	$(BIN)/python -m pytest tests -n 2 --ignore=tests/test_html.py

nbval: $(READY)
	$(BIN)/python -m pytest book $(NBVAL)

# From scratch: an incremental build does not repeat its warnings.
strict: $(READY)
	rm -rf _build
	$(BIN)/jupyter-book build . -W -n --keep-going --quiet

html: strict
	$(BIN)/python -m pytest tests/test_html.py

notebooks: $(READY)
	$(BIN)/python book/tables.py
	$(BIN)/python book/execute.py

clean:
	rm -rf _build .pytest_cache .ruff_cache .hypothesis

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $(READY)
