PYTHON ?= python3
MODEL ?= hiera-nano-digits
IMAGES ?=
APP ?=

BIN := .venv/bin
SOURCES := .venv/src

# Embed images, search them and draw their map, with nothing but this checkout
.PHONY: demo
demo: .venv/.demo
	$(BIN)/python examples/demo.py --model "$(MODEL)" $(if $(IMAGES),--images "$(IMAGES)") $(if $(APP),--app)

# Lint, type-check and test
.PHONY: test
test: .venv/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	MYPYPATH=$(SOURCES) $(BIN)/mypy
	MYPYPATH=$(SOURCES):examples:scripts $(BIN)/mypy --explicit-package-bases examples/*.py scripts/*.py
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.venv/.%: pyproject.toml scripts/install.py | .venv/bin/python
	$(BIN)/python scripts/install.py demo $(filter test,$*)
	touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv
