# Patchwork: from raw text to a trained byte latent transformer. `make` lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt

# Values reach the shell as they were typed, whatever is in them: $(call quoted,NAME) is the value of the variable NAME as
# one word of the shell, $(call each,NAME) its words, each quoted. $(call raw,NAME) does not expand a $ that a user typed.
hash := \#
raw = $(if $(filter command environment,$(firstword $(origin $(1)))),$(value $(1)),$($(1)))
as_word = '$(subst ','\'',$(1))'
quoted = $(call as_word,$(call raw,$(1)))
each = $(foreach word,$(call raw,$(1)),$(call as_word,$(word)))
# Options of a command, in which quotes hold words together as in a shell; nothing else of a shell's is done: `a;b` is a word.
# Leaves them in the array `options`.
options = options=(); $(if $(strip $(call raw,$(1))),words=$$(xargs printf '%s\n' <<<$(call quoted,$(1))); \
  while IFS= read -r word; do options+=("$$word"); done <<<"$$words";)
# CORPUS is one path, with spaces or without, or several without: leaves them in $$@.
corpus = corpus=$(call quoted,CORPUS); if [ -e "$$corpus" ]; then set -- "$$corpus"; else set -- $$corpus; fi;
BIN := $(call quoted,VENV)/bin

# The default corpus is on every machine: the Python standard library's own sources, tests left out.
STDLIB_FILTER := --include '*.py' --exclude '__pycache__' --exclude 'site-packages' --exclude 'test' --exclude 'tests' --exclude '*_test' --exclude 'config-*'
ifeq ($(origin CORPUS),undefined)
CORPUS = $(shell $(call quoted,PYTHON) -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
CORPUS_OPTIONS ?= $(STDLIB_FILTER)
OUT ?= runs/stdlib
else
CORPUS_OPTIONS ?=
ifeq ($(origin OUT),undefined)
OUT := runs/$(shell $(corpus) name=$$(basename -- "$${1-}"); name=$${name$(hash).}; printf '%s' "$${name%%.*}")
endif
endif

# All that a target asks for. What else is given to make is a mistake in a name, without which it would have no effect.
VARIABLES := PYTHON VENV CONSTRAINTS CORPUS CORPUS_OPTIONS CORPUS_BYTES OUT SEED NPROC THREADS EXECUTOR PATCH_SIZE CONFIG \
  ENTROPY_CONFIG PROMPT BYTES PLAN EXPERIMENT BUDGET SEEDS ONLY EQUAL GRID BUDGETS SIZES FAMILIES NEW BASE_BYTES NEW_BYTES PROCESSES TESTS
given = $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
unknown := $(filter-out $(VARIABLES) -% MAKE% SHELL .SHELLFLAGS,$(given))
ifneq ($(unknown),)
# A make above this one passes on what it was given itself.
$(if $(filter 0,$(MAKELEVEL)),$(error no target reads $(unknown); the variables are $(VARIABLES)))
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

EXPERIMENT ?= $(call raw,OUT)/experiment
BUDGET ?= 2e12
SEEDS ?= 0,1,2
ONLY ?=
EQUAL ?=
COMPARED = "$$@" --out $(call quoted,EXPERIMENT) --corpus-bytes $(call quoted,CORPUS_BYTES) --sample-seed $(call quoted,SEED) \
  --jobs $(call quoted,NPROC) --executor $(call quoted,EXECUTOR) $(if $(call raw,CORPUS_OPTIONS),--corpus-options $(call quoted,CORPUS_OPTIONS))
BUDGETED = --budget $(call quoted,BUDGET) --seeds $(call quoted,SEEDS) \
  $(if $(call raw,ONLY),--only $(call each,ONLY)) $(if $(call raw,EQUAL),--equal $(call each,EQUAL))

# `python -m`, here as everywhere: the programs beside it name the interpreter of the folder that they were installed in.
TORCHRUN := OMP_NUM_THREADS=$(call quoted,THREADS) $(BIN)/python trainer/launch.py --standalone --nproc-per-node $(call quoted,NPROC)
PIPELINE := $(BIN)/python -m pipeline
TRAINER := $(BIN)/python -m trainer
# One process a core, and two more; PROCESSES=0 runs the tests in this one. In their order: else files with one long test
# come last.
PROCESSES ?= auto
PYTEST := $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder
PARALLEL := --executor $(call quoted,EXECUTOR) --workers $(call quoted,NPROC) --threads $(call quoted,THREADS)
AT := $(call quoted,OUT)
PATCHING := $(AT)/patching-$(call quoted,PATCH_SIZE).json


.PHONY: help setup plan amounts checks corpus entropy calibrate preprocess blt train evaluate generate compare compare-full scaling adaptation test drills test-all test-numerics coverage bench lint format clean

help: ## list what there is
	@echo "Patchwork: byte latent transformers from raw text. The one to start with: make train"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14 | sed 's/^/  make /'
	@echo
	@printf '  %s\n' "Variables: CORPUS=file or folder, or several ("$(call as_word,$(notdir $(call raw,CORPUS)))"), CORPUS_BYTES="$(call quoted,CORPUS_BYTES)" (0: all), OUT="$(AT)"," \
	  "CONFIG="$(call quoted,CONFIG)", ENTROPY_CONFIG="$(call quoted,ENTROPY_CONFIG)"," \
	  "NPROC="$(call quoted,NPROC)" ranks and workers, THREADS="$(call quoted,THREADS)" each, EXECUTOR="$(call quoted,EXECUTOR)", PATCH_SIZE="$(call quoted,PATCH_SIZE)" bytes, PROMPT="$(call quoted,PROMPT)", BYTES="$(call quoted,BYTES)", SEED="$(call quoted,SEED)"," \
	  "EXPERIMENT="$(call quoted,EXPERIMENT)", BUDGET="$(call quoted,BUDGET)" FLOPs a run, SEEDS="$(call quoted,SEEDS)

setup: ## make the virtual environment (VENV=.venv) with the versions of constraints.txt
	@PYTHON=$(call quoted,PYTHON) infra/setup.sh $(call quoted,VENV) $(call quoted,CONSTRAINTS)

# A recipe of somebody may say itself for how many ranks it is.
plan: setup ## what CONFIG takes on NPROC ranks in memory, FLOPs and time; PLAN="--plan.device H200"
	@$(call options,PLAN) $(BIN)/python trainer/main.py $(call quoted,CONFIG) --plan \
	  $(if $(filter-out file,$(origin NPROC))$(filter file,$(origin CONFIG)),--plan.ranks $(call quoted,NPROC)) "$${options[@]}"

amounts: export CORPUS_BYTES := $(call raw,CORPUS_BYTES)
amounts:
	@[[ $$CORPUS_BYTES =~ ^[0-9]+$$ ]] || { echo "make: CORPUS_BYTES is a number of bytes, as 4000000, or 0 for all, not '$$CORPUS_BYTES'" >&2; exit 2; }

corpus: setup amounts ## CORPUS into unpatched shards: a seeded sample of CORPUS_BYTES, split into train and validation
	@echo "== corpus -> "$(AT)/corpus
	@$(corpus) $(call options,CORPUS_OPTIONS) $(PIPELINE) preprocess "$$@" "$${options[@]}" --for-training --out $(AT)/corpus --rule none \
	  --executor inline \
	  $(if $(filter-out 0,$(call raw,CORPUS_BYTES)),--sample-bytes $(call quoted,CORPUS_BYTES) --seed $(call quoted,SEED))

# Before anything is trained: a mistake in the last step would be found minutes later.
checks: export NPROC := $(call raw,NPROC)
checks: export THREADS := $(call raw,THREADS)
checks: setup amounts
	@for name in NPROC THREADS; do [[ $${!name} =~ ^[1-9][0-9]*$$ ]] || { echo "make: $$name is a whole number of 1 or more, not '$${!name}'" >&2; exit 2; }; done
	@[[ $(call quoted,PATCH_SIZE) =~ ^[0-9]*[.]?[0-9]+$$ ]] || { echo "make: PATCH_SIZE is a number of bytes, as 4.5, not "$(call quoted,PATCH_SIZE) >&2; exit 2; }
	@for recipe in $(call quoted,ENTROPY_CONFIG) $(call quoted,CONFIG); do $(BIN)/python trainer/main.py "$$recipe" --plan >/dev/null; done

entropy: checks corpus ## train the small byte model whose uncertainty makes the patches
	@echo "== entropy model -> "$(AT)/entropy
	@$(TORCHRUN) trainer/main.py $(call quoted,ENTROPY_CONFIG) --data.path $(AT)/corpus --run.out $(AT)/entropy

calibrate: entropy ## choose the threshold that gives PATCH_SIZE bytes a patch
	@echo "== calibration -> "$(PATCHING)
	@$(PIPELINE) calibrate $(AT)/corpus/train --entropy-model $(AT)/entropy/model --target $(call quoted,PATCH_SIZE) --sample-bytes 500000 \
	  --threads $(call quoted,THREADS) --out $(PATCHING)

preprocess: calibrate ## score the corpus with Ray and write patched shards
	@echo "== preprocess -> "$(AT)/patched
	@$(PIPELINE) preprocess $(AT)/corpus --out $(AT)/patched --entropy-model $(AT)/entropy/model --patching $(PATCHING) $(PARALLEL)

blt: preprocess ## train the byte latent transformer on the patched shards (FSDP, NPROC ranks)
	@echo "== byte latent transformer -> "$(AT)/blt
	@$(TORCHRUN) trainer/main.py $(call quoted,CONFIG) --data.path $(AT)/patched --run.out $(AT)/blt

# $(call once,NAME,WORDS,COMMAND): run COMMAND and keep what it prints in OUT/NAME.txt; when model, data and WORDS are those
# that it was made from, show that instead.
once = key=$$( (printf '%s\n' $(2); cat $(AT)/blt/model/*.json $(AT)/blt/model/*.safetensors $(AT)/patched/*/manifest.json) | sha256sum); \
  if [ "$$(cat $(AT)/$(1).identity 2>/dev/null)" != "$$key" ]; then \
    rm -f $(AT)/$(1).identity; $(3) | tee $(AT)/$(1).txt; echo "$$key" >$(AT)/$(1).identity; \
  else cat $(AT)/$(1).txt; fi

evaluate: blt ## bits per byte on validation by subset, beside baselines
	@echo "== evaluation -> "$(AT)/evaluation.txt, evaluation.json
	@$(call once,evaluation,,$(TRAINER) evaluate $(AT)/blt/model $(AT)/patched --baselines --json $(AT)/evaluation.json)

generate: blt ## BYTES of text after PROMPT
	@echo "== sample -> "$(AT)/sample.txt
	@$(call once,sample,$(call quoted,PROMPT) $(call quoted,BYTES),$(TRAINER) generate $(AT)/blt/model --prompt $(call quoted,PROMPT) --bytes $(call quoted,BYTES))

train: evaluate generate ## everything: raw text in, trained model, figures and a sample out
	@echo "== done: model in "$(AT)"/blt/model, figures in "$(AT)"/evaluation.json, curves: "$(AT)/blt/report.html

compare: setup amounts ## systems trained at equal BUDGET (FLOPs) on CORPUS, a run for each of SEEDS; ONLY="bytes bpe" EQUAL="flops bytes"
	@$(corpus) $(TRAINER) compare $(COMPARED) $(BUDGETED)

compare-full: setup amounts ## the same with all ablations, and a second table at equal bytes; ONLY and EQUAL choose parts of it
	@$(corpus) $(TRAINER) compare $(COMPARED) $(BUDGETED) --full

# SEEDS only when they were given: a grid has its own.
scaling: setup amounts ## sizes and budgets of four families on CORPUS, fitted; BUDGETS="1e12 4e12" SIZES="s m l" FAMILIES="bytes bpe" GRID=file
	@$(corpus) $(TRAINER) scaling $(COMPARED) $(if $(call raw,GRID),--grid $(call quoted,GRID)) $(if $(call raw,BUDGETS),--budgets $(call each,BUDGETS)) \
	  $(if $(call raw,SIZES),--sizes $(call each,SIZES)) $(if $(call raw,FAMILIES),--families $(call each,FAMILIES)) \
	  $(if $(filter-out file,$(origin SEEDS)),--seeds $(call quoted,SEEDS))

# BASE_BYTES and NEW_BYTES only when they were given: the command has its own.
adaptation: setup amounts ## a model of CORPUS adapted to each of NEW, by its local models alone or whole; NEW="el=greek/ ru=russian/" BASE_BYTES=2000000
	@$(corpus) $(TRAINER) adaptation $(COMPARED) $(if $(call raw,NEW),--new $(call each,NEW)) $(if $(call raw,ONLY),--only $(call each,ONLY)) --seeds $(call quoted,SEEDS) \
	  $(if $(BASE_BYTES),--base-bytes $(call quoted,BASE_BYTES)) $(if $(NEW_BYTES),--bytes $(call quoted,NEW_BYTES))

test: setup ## the test suite, in parallel (minutes); TESTS="tests/shared -k scoring"
	@$(PYTEST) $(TESTS)

drills: setup ## runs that are killed and resumed, runs of two ranks, pages in a browser
	@$(PYTEST) -m drill $(TESTS)

test-all: setup ## all tests, the slow ones too (Ray matrices, large data, exported folders in environments of their own)
	@$(PYTEST) -m "" --hypothesis-profile other $(TESTS)

test-numerics: setup ## the tests that compare floating-point results, as they come out on other processors and with two threads
	@$(BIN)/python tests/numerics_matrix.py $(TESTS)

coverage: setup ## the test suite, its twenty slowest tests, and how much of the packages it runs
	@$(PYTEST) --durations 20 --cov pipeline --cov shared --cov trainer --cov-report term:skip-covered $(TESTS)

bench: setup ## measure speed as ratios against peers in the same run
	@for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file; done

lint: setup ## ruff (lint and format), mypy (benchmarks too), words to avoid, and which folder may import which
	@$(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check . && $(BIN)/python -m mypy
	@$(BIN)/python tests/wording.py
	@$(BIN)/python -c 'from importlinter.cli import lint_imports_command as check; check()'

format: setup ## format the code
	@$(BIN)/python -m ruff check --fix . && $(BIN)/python -m ruff format .

clean: ## remove the runs (not the environment)
	rm -rf runs
