# `make run` and `make test` are all a new machine needs (Python 3.11 to 3.13 and make).
PYTHON ?= python3
VENV ?= .venv
DOCS_VENV ?= .venv-docs
BIN := $(VENV)/bin
SCHEMA := src/llm_forgetting/data/results.schema.json
WORKERS ?= $(shell $(PYTHON) -c "import os; print(min(os.cpu_count() or 1, 8))")

.PHONY: run check test nightly golden schema docs gpu-check bench-landscape bench-curvature bench-evaluation bench-completions bench-memory bench-study bench-run bench-methods bench-growth bench-7b clean

run: $(VENV)/installed          ## environment, install, the main job; ARGS="--config smoke" and the like are passed on
	$(BIN)/llm-forgetting run $(ARGS)

check: $(VENV)/installed-dev    ## style, types, and the tests that start no process and take no seconds: after every edit
	$(call checked,-m "not study and not process and not browser and not slow")

test: $(VENV)/installed-dev     ## style, types, all tests; THOROUGH=1 for every moment a run can be killed at, as in CI
	$(call checked)

nightly: $(VENV)/installed      ## what takes too long for every change: runs of 2 to 16 tasks and of 57, with sizes, seconds and exponents
	$(BIN)/python benchmarks/growth.py --tasks 2 4 8 16 57 $(ARGS)

golden: $(VENV)/installed       ## the numbers of a run and of the published study are what they were; ARGS="--run FOLDER"
	$(BIN)/python scripts/golden.py $(ARGS)

schema: $(VENV)/installed       ## results.schema.json from the record types
	$(BIN)/python -c "from llm_forgetting.files import schema_text; from llm_forgetting.results import Results; print(schema_text(Results), end='')" > $(SCHEMA).new
	mv $(SCHEMA).new $(SCHEMA)

# Types are checked beside the tests, on whichever CPU is idle. OpenMP's threads wait asleep: awake, two tests slow each other threefold.
define checked
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy & types=$$!; \
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=25 $(1) $(ARGS); \
	tests=$$?; wait $$types && exit $$tests
endef

docs: $(DOCS_VENV)/installed    ## the documentation's site, in site/: it opens from the disk and needs no network
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet

bench-landscape: $(VENV)/installed      ## landscapes: a plain loop, loss-landscapes and ours; ARGS="--repeats 1 --cells 2" for a quick look
	$(BIN)/python benchmarks/landscape.py $(ARGS)

bench-curvature: $(VENV)/installed      ## Hessian-vector products: hessian-eigenthings and ours
	$(BIN)/python benchmarks/curvature.py $(ARGS)

bench-evaluation: $(VENV)/installed     ## MMLU scores: lm-evaluation-harness and ours; ARGS="--mmlu FOLDER"
	$(BIN)/python benchmarks/evaluation.py $(ARGS)

bench-completions: $(VENV)/installed    ## losses and gradients of completions: TRL's SFTTrainer and ours
	$(BIN)/python benchmarks/completions.py $(ARGS)

bench-memory: $(VENV)/installed         ## memory of every phase: what --dry_run counts, and what a process takes
	$(BIN)/python benchmarks/memory.py $(ARGS)

bench-study: $(VENV)/installed          ## cells of a study per minute: one worker and two
	$(BIN)/python benchmarks/study_throughput.py $(ARGS)

bench-run: $(VENV)/installed            ## one run, its phases one after the other and side by side
	$(BIN)/python benchmarks/run_workers.py $(ARGS)

bench-methods: $(VENV)/installed        ## what every method against forgetting costs: time of a step, and memory
	$(BIN)/python benchmarks/methods.py $(ARGS)

bench-growth: $(VENV)/installed         ## files and seconds of runs of 2, 4, 8 and 16 tasks; ARGS="--tasks 57"
	$(BIN)/python benchmarks/growth.py $(ARGS)

bench-7b: $(VENV)/installed             ## LLaMA-2 7B's shape on this CPU: 13.5 GB of random weights, a kill, --resume
	$(BIN)/python benchmarks/seven_billion.py $(ARGS)

# Where nothing can be installed, any Python with torch, transformers and peft does it: make gpu-check PYTHON=python3
gpu-check:                      ## on a machine with a CUDA GPU: right numbers, memory and speed at LLaMA-2 7B's shape, 8 minutes
	$(PYTHON) scripts/gpu_check.py $(ARGS)

$(VENV)/python:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/installed: $(VENV)/python requirements.txt pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	touch $@

$(DOCS_VENV)/installed: docs/requirements.txt
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --disable-pip-version-check -q -r docs/requirements.txt
	touch $@

clean:                          ## the environment and caches, never results
	rm -rf $(VENV) $(DOCS_VENV) site build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
