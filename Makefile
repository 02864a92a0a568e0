PYTHON ?= python3
PHOTOS ?=
MODEL ?= hiera-nano-$(if $(PHOTOS),photos,digits)
IMAGES ?=
APP ?=
TESTS ?= quick
BRAIN ?= 0.27.0

BIN := .venv/bin
SOURCES := .venv/src
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

# Slow tests also wait for other processes: three keep two cores busy
PYTEST_quick := $(BIN)/pytest --numprocesses 2 --dist worksteal
PYTEST_all := $(BIN)/pytest --numprocesses 3 --dist loadgroup --no-loadscope-reorder -m "not hub"

# $(call timed,NAME,COMMANDS) runs a part of a recipe and prints its time
SHELL := /bin/bash
timed = @TIMEFORMAT='== $(1): %0R s'; time { $(2); }

install_chromium = command -v chromium chromium-browser > /dev/null || { $(SUDO) apt-get update -q && \
	$(SUDO) apt-get install -q -y --no-install-recommends chromium; }

EXTRAS_demo := demo
EXTRAS_test := demo test birder files ray lancedb milvus pgvector
EXTRAS_app := $(EXTRAS_test) app
EXTRAS_bench := demo test
EXTRAS_index := demo test lancedb milvus pgvector
EXTRAS_scale := demo test files ray

# Embed images, search them and draw their map, with nothing but this checkout
.PHONY: demo
demo: .venv/.demo
	$(BIN)/python examples/demo.py --model "$(MODEL)" $(if $(IMAGES),--images "$(IMAGES)") $(if $(PHOTOS),--photos) $(if $(APP),--app)

# Lint, type-check and run the quick tests or, with TESTS=all, also the slow ones and those
# in the App, all in one call
.PHONY: test
test: .venv/.$(if $(filter all,$(TESTS)),app,test)
	@$(if $(PYTEST_$(TESTS)),,$(error TESTS is "quick" or "all", not "$(TESTS)"))
	$(call timed,lint,$(BIN)/ruff format --check . && $(BIN)/ruff check . && \
		PYTHONPATH=$(SOURCES) $(BIN)/lint-imports --no-cache)
	$(call timed,types,MYPYPATH=$(SOURCES) $(BIN)/mypy && \
		MYPYPATH=$(SOURCES):benchmarks:examples:scripts $(BIN)/mypy --explicit-package-bases \
		benchmarks/*.py examples/*.py scripts/*.py)
	$(call timed,tests ($(TESTS)),$(PYTEST_$(TESTS)) --durations 25)

# Test the plugin in FiftyOne's App, in a real browser
.PHONY: test-app
test-app: .venv/.app
	$(BIN)/pytest -m app

# Test similarity indexes with the brain of the next FiftyOne
.PHONY: test-brain
test-brain: .venv/brain-$(BRAIN)
	PYTHONPATH=$(abspath $<) $(BIN)/pytest -m "not app and not hub" \
		tests/test_index*.py tests/test_vector_tables.py

# Measure the speed of everything, and of what users have otherwise
.PHONY: bench
bench: .venv/.bench
	$(BIN)/python benchmarks/forward.py
	$(BIN)/python benchmarks/jobs.py
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/heads.py

# Test and measure on an NVIDIA GPU
.PHONY: bench-gpu
bench-gpu: .venv/.bench
	$(BIN)/pytest tests/test_cuda.py
	$(BIN)/python benchmarks/forward.py --device cuda --compile \
		--variants tiny small base base-plus large huge \
		--dtypes float32 bfloat16 float16 --batch-sizes 64 256 1024
	$(BIN)/python benchmarks/jobs.py
	$(BIN)/python benchmarks/report.py --forward .bench/forward-cuda.json

# Measure runs with many samples, and on Ray
.PHONY: bench-scale
bench-scale: .venv/.scale
	PYTHONPATH=$(SOURCES) $(BIN)/python benchmarks/scale.py
	PYTHONPATH=$(SOURCES) $(BIN)/python benchmarks/ray_runs.py

# Measure the backends of similarity indexes
.PHONY: bench-index
bench-index: .venv/.index
	PYTHONPATH=$(SOURCES) $(BIN)/python benchmarks/indexes.py

# Measure how well vectors of checkpoints, stages and poolings tell labels apart
.PHONY: evaluate
evaluate: .venv/.demo
	$(BIN)/python examples/evaluate.py

# The installed FiftyOne's files, with another release of its brain
.venv/brain-%: .venv/.test
	rm -rf $@.part
	$(BIN)/pip install --quiet --no-deps --target $@.part fiftyone-brain==$*
	for path in $$(realpath .venv/lib)/python3*/site-packages/fiftyone/*; do \
		test -e $@.part/fiftyone/$${path##*/} || ln -s $$path $@.part/fiftyone || exit; done
	mv $@.part $@

.venv/.%: pyproject.toml scripts/install.py | .venv/bin/python
	$(BIN)/python scripts/install.py $(EXTRAS_$*)
	$(if $(filter app,$*),$(install_chromium))
	touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv
