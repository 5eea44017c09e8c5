# make demo     train, evaluate and look at Double-Head on the digits data, on a CPU
# make test     the whole test suite
# make env      only the environment of the two
# make lint     ruff, as the settings in pyproject.toml say
# make clean    remove what builds, tests and the demo leave behind
#
# VENV=folder  PYTHON=interpreter  CONSTRAINTS=file or nothing  PIP_ARGS=...  TEST_ARGS=...
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?=
CONSTRAINTS ?= constraints.txt
PIP_ARGS ?=
WORKERS ?= 2
TEST_ARGS ?=
DEMO_CONFIG ?= projects/double_head/configs/digits/double_head_R_18_FPN.yaml
DEMO_OUTPUT ?= output/demo

BIN := $(VENV)/bin
STAMP := $(VENV)/.clsloc-installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install \
	$(if $(CONSTRAINTS),-c $(CONSTRAINTS)) $(PIP_ARGS)
CAN_BE_USED := import sys, ensurepip, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))

.PHONY: help demo test env lint clean

help:
	@sed -n 's/^#$$//p; s/^# \([mV]\)/\1/p' Makefile

# --- environment ------------------------------------------------------------------------------

env: $(STAMP)
	@# A real Detectron2 on the path imports packages that the embedded runtime does not need.
	@if $(BIN)/python -m clsloc.env --is-real && ! [ -e $(STAMP)-real ]; then \
		$(PIP) -e '.[dev-real]' && touch $(STAMP)-real; \
	fi

$(BIN)/python:
	@python=; \
	for candidate in $(if $(PYTHON),'$(PYTHON)',python3.11 python3.12 python3 python); do \
		if "$$candidate" -c '$(CAN_BE_USED)' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "No Python 3.11 or 3.12 with the venv module among:" \
			"$(or $(PYTHON),python3.11 python3.12 python3 python);" \
			"install one or name it: make PYTHON=/path/to/python3.11" >&2; \
		exit 2; \
	fi; \
	"$$python" -m venv '$(VENV)'

# `projects` is newer than the stamp once a project was added.
$(STAMP): setup.py pyproject.toml $(CONSTRAINTS) $(wildcard projects) | $(BIN)/python
	$(PIP) -e '.[dev]'
	@# Beside an OpenCV of another package name a second one would overwrite its files.
	@$(BIN)/python -c 'import cv2' 2>/dev/null || $(PIP) -e '.[opencv]' \
		|| echo 'OpenCV could not be installed: the programs that need it will say so.' >&2
	@rm -f $(STAMP)-real
	@touch $@

# --- what it is for ---------------------------------------------------------------------------

demo: env
	$(BIN)/python -m clsloc.env
	$(BIN)/python projects/double_head/train_net.py --config-file $(DEMO_CONFIG) \
		MODEL.DEVICE cpu OUTPUT_DIR $(DEMO_OUTPUT)
	$(BIN)/python tools/predict.py --config-file $(DEMO_CONFIG) \
		--weights $(DEMO_OUTPUT)/model_final.pth --dataset digits_val --max-images 12 \
		--compare-gt --output $(DEMO_OUTPUT)/pictures MODEL.DEVICE cpu
	@echo 'Results: $(DEMO_OUTPUT)/results.json; pictures: $(DEMO_OUTPUT)/pictures'

test: env
	$(BIN)/python -m clsloc.env
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) $(TEST_ARGS)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache output/demo
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
