# `make help` says what there is. Needs Python 3.11 or newer with its venv module, and make; everything else goes into .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TEST_ARGS ?= -n 2

# uv looks for local wheels where UV_FIND_LINKS says (split by commas), pip where PIP_FIND_LINKS does (by spaces).
ifdef PIP_FIND_LINKS
comma := ,
export UV_FIND_LINKS ?= $(subst $() ,$(comma),$(strip $(PIP_FIND_LINKS)))
endif

UV_INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python --constraints constraints.txt \
	--build-constraints constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test drill attacks lint format bench-gpu clean

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(VENV)/.core ## make images with the bundled model, in demo/
	$(BIN)/nextscale demo

test: lint ## lint, then run the tests
	$(BIN)/python -m pytest $(TEST_ARGS)

drill: $(VENV)/.development ## kill trainings again and again; they must lose nothing (minutes)
	$(BIN)/python tests/drill.py

attacks: $(VENV)/.development ## spoil trainings in many ways; each must be found by what should find it (minutes)
	$(BIN)/python -m pytest -q -m attack $(TEST_ARGS)
	$(BIN)/python tests/honest_runs.py

lint: $(VENV)/.development ## check style, types and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.development ## lay the code out, sort imports
	$(BIN)/ruff check --fix-only --select I .
	$(BIN)/ruff format .

bench-gpu: $(VENV)/.core ## measure everything on a GPU, one table last (minutes)
	$(BIN)/python benchmarks/gpu.py

clean: ## remove the environment, caches and what was built
	rm -rf $(VENV) build dist demo .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps below spare a second call the installation; a change of the pins or of the dependencies renews it.
$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/uv
	$(UV_INSTALL) --editable .
	touch $@

$(VENV)/.development: pyproject.toml constraints.txt | $(BIN)/uv
	$(UV_INSTALL) --editable '.[dev,train,eval,bench,datasets,export,hub,serve,demo,ray,sign]'
	touch $(VENV)/.core $@
