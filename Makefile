# Patchwork: from raw text to a trained byte latent transformer. `make` lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin

# The default corpus is on every machine: the Python standard library's own sources, tests left out.
STDLIB_FILTER := --include '*.py' --exclude '__pycache__' --exclude 'site-packages' --exclude 'test' --exclude 'tests' --exclude '*_test' --exclude 'config-*'
ifeq ($(origin CORPUS),undefined)
CORPUS = $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
CORPUS_OPTIONS ?= $(STDLIB_FILTER)
OUT ?= runs/stdlib
else
CORPUS_OPTIONS ?=
OUT ?= runs/$(firstword $(subst ., ,$(notdir $(patsubst %/,%,$(CORPUS)))))
endif

CORPUS_BYTES ?= 4000000
SEED ?= 1
NPROC ?= 2
THREADS ?= 1
EXECUTOR ?= ray
PATCH_SIZE ?= 4.5
CONFIG ?= trainer/recipes/blt-small.toml
ENTROPY_CONFIG ?= trainer/recipes/entropy-small.toml
PROMPT ?= def
BYTES ?= 300

# Of comparisons: CORPUS may be several paths.
LABORATORY ?= $(OUT)/laboratory
BUDGET ?= 5e12
SEEDS ?= 0,1
ONLY ?=
COMPARED = $(CORPUS) --out $(LABORATORY) --corpus-bytes $(CORPUS_BYTES) --sample-seed $(SEED) --jobs $(NPROC) --executor $(EXECUTOR) \
  $(if $(CORPUS_OPTIONS),--corpus-options "$(CORPUS_OPTIONS)")

TORCHRUN := OMP_NUM_THREADS=$(THREADS) $(BIN)/torchrun --standalone --nproc-per-node $(NPROC)
PIPELINE := $(BIN)/python -m pipeline
TRAINER := $(BIN)/python -m trainer
# One process a core; PROCESSES=0 runs the tests in this one.
PROCESSES ?= auto
PYTEST := $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile
PARALLEL := --executor $(EXECUTOR) --workers $(NPROC) --threads $(THREADS)

.PHONY: help setup plan corpus entropy calibrate preprocess blt train evaluate generate compare compare-full scaling test drills test-all test-numerics coverage bench lint format clean

help: ## list what there is
	@echo "Patchwork: byte latent transformers from raw text. The one to start with: make train"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14 | sed 's/^/  make /'
	@echo
	@echo "  Variables: CORPUS=file or folder ($(notdir $(CORPUS))), CORPUS_BYTES=$(CORPUS_BYTES) (0: all), OUT=$(OUT),"
	@echo "  CONFIG=$(CONFIG), ENTROPY_CONFIG=$(ENTROPY_CONFIG),"
	@echo "  NPROC=$(NPROC) ranks and workers, THREADS=$(THREADS) each, EXECUTOR=$(EXECUTOR), PATCH_SIZE=$(PATCH_SIZE) bytes, PROMPT=, BYTES=, SEED=,"
	@echo "  LABORATORY=$(LABORATORY), BUDGET=$(BUDGET) FLOPs a run, SEEDS=$(SEEDS)"

setup: ## make the virtual environment (VENV=.venv) with the versions of constraints.txt
	@PYTHON=$(PYTHON) infra/setup.sh $(VENV) $(CONSTRAINTS)

plan: setup ## what CONFIG takes in memory, FLOPs and time; PLAN="--plan.ranks 8 --plan.device H200"
	@$(BIN)/python trainer/main.py $(CONFIG) --plan $(PLAN)

corpus: setup ## CORPUS into unpatched shards: a seeded sample of CORPUS_BYTES, split into train and validation
	@echo "== corpus -> $(OUT)/corpus"
	@$(PIPELINE) preprocess $(CORPUS) $(CORPUS_OPTIONS) --out $(OUT)/corpus --rule none --executor inline \
	  $(if $(filter-out 0,$(CORPUS_BYTES)),--sample-bytes $(CORPUS_BYTES) --seed $(SEED))

entropy: corpus ## train the small byte model whose uncertainty makes the patches
	@echo "== entropy model -> $(OUT)/entropy"
	@$(TORCHRUN) trainer/main.py $(ENTROPY_CONFIG) --data.path $(OUT)/corpus --run.out $(OUT)/entropy

calibrate: entropy ## choose the threshold that gives PATCH_SIZE bytes a patch
	@echo "== calibration -> $(OUT)/patching.json"
	@$(PIPELINE) calibrate $(OUT)/corpus/train --patcher $(OUT)/entropy/model --target $(PATCH_SIZE) --sample-bytes 500000 --threads $(THREADS) --out $(OUT)/patching.json

preprocess: calibrate ## score the corpus with Ray and write patched shards
	@echo "== preprocess -> $(OUT)/patched"
	@$(PIPELINE) preprocess $(OUT)/corpus --out $(OUT)/patched --patcher $(OUT)/entropy/model --patching $(OUT)/patching.json $(PARALLEL)

blt: preprocess ## train the byte latent transformer on the patched shards (FSDP, NPROC ranks)
	@echo "== byte latent transformer -> $(OUT)/blt"
	@$(TORCHRUN) trainer/main.py $(CONFIG) --data.path $(OUT)/patched --run.out $(OUT)/blt

# $(call once,NAME,WORDS,COMMAND): run COMMAND and keep what it prints in OUT/NAME.txt; when model, data and WORDS are those
# that it was made from, show that instead.
once = key=$$( (echo "$(2)"; cat $(OUT)/blt/model/*.json $(OUT)/blt/model/*.safetensors $(OUT)/patched/*/manifest.json) | sha256sum); \
  if [ "$$(cat $(OUT)/$(1).identity 2>/dev/null)" != "$$key" ]; then \
    rm -f $(OUT)/$(1).identity; $(3) | tee $(OUT)/$(1).txt; echo "$$key" >$(OUT)/$(1).identity; \
  else cat $(OUT)/$(1).txt; fi

evaluate: blt ## bits per byte on validation by subset, beside baselines
	@echo "== evaluation -> $(OUT)/evaluation.txt, evaluation.json"
	@$(call once,evaluation,,$(TRAINER) evaluate $(OUT)/blt/model $(OUT)/patched --baselines --json $(OUT)/evaluation.json)

generate: blt ## BYTES of text after PROMPT
	@echo "== sample -> $(OUT)/sample.txt"
	@$(call once,sample,$(PROMPT) $(BYTES),$(TRAINER) generate $(OUT)/blt/model --prompt "$(PROMPT)" --bytes $(BYTES))

train: evaluate generate ## everything: raw text in, trained model, figures and a sample out
	@echo "== done: model in $(OUT)/blt/model, figures in $(OUT)/evaluation.json, curves: $(OUT)/blt/report.html"

compare: setup ## systems trained at equal BUDGET (FLOPs) on CORPUS, a run for each of SEEDS; ONLY="bytes bpe"
	@$(TRAINER) compare $(COMPARED) --budget $(BUDGET) --seeds $(SEEDS) $(if $(ONLY),--only $(ONLY))

compare-full: setup ## the same with all ablations, and a second table at equal bytes
	@$(TRAINER) compare $(COMPARED) --budget $(BUDGET) --seeds $(SEEDS) --full

# SEEDS only when they were given: a grid has its own.
scaling: setup ## sizes and budgets of four families on CORPUS, fitted; BUDGETS="1e12 4e12" SIZES="s m l" FAMILIES="bytes bpe" GRID=file
	@$(TRAINER) scaling $(COMPARED) $(if $(GRID),--grid $(GRID)) $(if $(BUDGETS),--budgets $(BUDGETS)) $(if $(SIZES),--sizes $(SIZES)) \
	  $(if $(FAMILIES),--families $(FAMILIES)) $(if $(filter-out file,$(origin SEEDS)),--seeds $(SEEDS))

test: setup ## the test suite, a process a core (minutes); TESTS="tests/shared -k scoring"
	@$(PYTEST) $(TESTS)

drills: setup ## runs that are killed and resumed, and runs of two ranks
	@$(PYTEST) -m drill $(TESTS)

test-all: setup ## all tests, the slow ones too (Ray matrices, large data)
	@$(PYTEST) -m "" $(TESTS)

test-numerics: setup ## the tests that compare floating-point results, as they come out on other processors and with two threads
	@$(BIN)/python tests/numerics_matrix.py $(TESTS)

coverage: setup ## the test suite, its twenty slowest tests, and how much of the packages it runs
	@$(PYTEST) --durations 20 --cov pipeline --cov shared --cov trainer --cov-report term:skip-covered $(TESTS)

bench: setup ## measure speed as ratios against peers in the same run
	@for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file; done

lint: setup ## ruff (lint and format) and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: setup ## format the code
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean: ## remove the runs (not the environment)
	rm -rf runs
