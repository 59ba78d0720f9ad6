# The commands of this project; `make help` lists them.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
BENCHMARKS ?= rollout ppo_cycle random_walks packing sb3
PIP_INSTALL := $(BIN)/pip install -qq --disable-pip-version-check --constraint constraints.txt
CLIENTS := .venv-clients
CLIENTS_INSTALL := $(CLIENTS)/bin/pip install -qq --disable-pip-version-check --constraint tests/clients/constraints.txt
FOLDERS := textenv agents rewards tasks

# Tests and checks never ask a network, and one thread per worker is fastest on few cores.
export HF_HUB_OFFLINE := 1
export WANDB_MODE := offline
export TOKENIZERS_PARALLELISM := false
export OMP_NUM_THREADS ?= 1
export MPLBACKEND := Agg

.PHONY: help install test test-clients lint types pytest test-portable docs data demo smollm bench clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

install: $(STAMP)  ## make .venv with the package (editable) and everything the tests use

# torch comes first and by its exact version: a later resolve then keeps it instead of fetching another build.
# Build isolation is off so that the pinned setuptools builds the package, too.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "textenv needs Python >= 3.11, got %s; say make PYTHON=python3.12" % sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) setuptools "$$(grep '^torch==' constraints.txt)"
	$(PIP_INSTALL) --no-build-isolation --editable '.[dev,docs,gguf,lora,metrics,pipeline,quantized,ray,reviews,study,tensorboard,textarena]'
	$(PIP_INSTALL) --no-build-isolation deepspeed || echo "DeepSpeed, which comes as source, was not installed: its tests are skipped" >&2
	touch $@

test: $(STAMP)  ## lint, types and tests; all three run, and it fails if one fails
	@failed=(); \
	for check in lint types pytest; do $(MAKE) --no-print-directory $$check || failed+=($$check); done; \
	if (( $${#failed[@]} )); then echo "failed: $${failed[*]}" >&2; exit 1; fi

lint: $(STAMP)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy on the package as it is imported
	MYPYPATH=src $(BIN)/mypy -p textenv | sed -E 's#^(src/)?textenv/(agents|rewards|tasks)/#\2/#; s#^src/##'

pytest: $(STAMP)  ## the tests alone
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# Which instructions are used decides how float32 sums are rounded; torch and oneDNN each take their own variable.
test-portable: export ATEN_CPU_CAPABILITY := default
test-portable: export ONEDNN_MAX_CPU_ISA := AVX2
test-portable: pytest  ## the tests with the instructions of an older CPU

# The clients of docs/works_with.md ask for older packages than constraints.txt has: an environment of their own.
$(CLIENTS)/.installed: pyproject.toml constraints.txt tests/clients/constraints.txt tests/clients/requirements.txt
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS_INSTALL) setuptools "$$(grep '^torch==' tests/clients/constraints.txt)"
	$(CLIENTS_INSTALL) --no-build-isolation --editable . --requirement tests/clients/requirements.txt
	touch $@

test-clients: $(CLIENTS)/.installed  ## the tests that need TorchRL, Tianshou, skrl, RL Zoo, moviepy; makes .venv-clients
	$(CLIENTS)/bin/python -m pytest tests/clients tests/envs/test_gymnasium_wrappers.py tests/envs/test_pictures.py

docs: $(STAMP)  ## build the documentation into site/, offline; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

data: $(STAMP)  ## fetch the real texts and ratings that the tasks use into the user's cache
	$(BIN)/python -m textenv.tasks.fetch

demo: data  ## RLHF on real film reviews, from nothing: about 10 minutes on two CPU cores; results in runs/reviews
	OMP_NUM_THREADS=$${DEMO_THREADS:-2} $(BIN)/python examples/reviews_pipeline.py --run-dir $(or $(RUN_DIR),runs/reviews)

smollm: data  ## the same with SmolLM2-135M (4-bit, dequantised) and LoRA: see docs/pipeline.md; results in runs/smollm
	$(BIN)/python -m textenv.tasks.fetch --model smollm2
	OMP_NUM_THREADS=$${DEMO_THREADS:-2} $(BIN)/textenv pipeline --config examples/smollm_reviews.yaml --run_dir $(or $(RUN_DIR),runs/smollm)

bench: $(STAMP)  ## run the benchmarks and print their tables
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name; done

clean:  ## remove what builds and tests left; .venv stays
	rm -rf build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info src/*.egg-info
	find $(FOLDERS) tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
