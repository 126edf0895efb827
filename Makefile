# make demo    sets everything up, trains a small 3D Gaussian GAN for a few minutes and films the result
# make test    sets everything up and runs the tests
# make quick   runs those that take no more than a minute in all
# make lint    runs the linter and the type checker
# make docs    builds the documentation as a site, into site/
#
# TORCH_INDEX=URL   another package index for torch alone, e.g. https://download.pytorch.org/whl/cpu for CPU builds
# PYTHON=python3.12 another interpreter (3.11 to 3.13)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?=
TORCH_INDEX ?=
VENV ?= .venv
BIN := $(VENV)/bin
CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)

DEMO_MINUTES ?= 7
# The whole demo ends within 10 minutes: training must leave 100 s for what follows it. A DEMO_MINUTES from outside
# is taken as it is.
DEMO_TRAINED_BY := 500
STARTED := $(shell date +%s)
DEMO_DATA ?= datasets/demo
DEMO_OUT ?= out/demo
DEMO_SEED ?= 0

.PHONY: help setup setup-dev demo test quick lint docs clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

# ---------------------------------------------------------------- environment

setup: $(VENV)/.ready
setup-dev: $(VENV)/.ready-dev

# torch comes first and alone: --index-url then serves it and nothing else, and no later package can pull another build.
$(VENV)/.ready: requirements.txt
	@python="$(PYTHON)"; supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; \
	if [ -z "$$python" ]; then \
	  for name in python3 python3.13 python3.12 python3.11 python; do \
	    if $$name -c "$$supported" >/dev/null 2>&1; then python=$$name; break; fi; \
	  done; \
	fi; \
	if [ -z "$$python" ] || ! $$python -c "$$supported"; then \
	  echo "SplatGAN needs Python 3.11, 3.12 or 3.13; set PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$($$python --version)"; \
	$$python -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.txt
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	@touch $@

# ---------------------------------------------------------------- demo

# Heads whose expression is a part of the latent (docs/control.md), without the regressor, which takes longer to train.
# Without a compiler the splatting falls back to PyTorch: the same minutes then train on fewer images, and the metric
# and the films are made smaller to end in time.
demo: setup
	@export PATH="$(CURDIR)/$(BIN):$$PATH"; \
	device='"cuda" if torch.cuda.is_available() else "cpu"'; \
	backend=$$(python -W ignore -c "import torch, gaussian; print(gaussian.resolve_backend('auto', $$device))"); \
	if [ "$$backend" = torch ]; then \
	  echo "No native renderer could be built here: rendering in PyTorch, which is slower, so the demo trains on fewer images"; \
	  images=2000 metric=swd200 frames=40; \
	else \
	  images=4000 metric=swd1k frames=120; \
	fi; \
	step() { echo; echo "== $$*"; "$$@"; }; \
	step python dataset_tool.py synthesize --kind=expressions --dest=$(DEMO_DATA) --num=$$images --resolution=64 --seed=0; \
	minutes=$(DEMO_MINUTES); \
	if [ "$(origin DEMO_MINUTES)" = file ]; then \
	  left=$$(($(STARTED) + $(DEMO_TRAINED_BY) - $$(date +%s))); \
	  minutes=$$(python -c "print(round(min($(DEMO_MINUTES), max($$left, 60) / 60), 2))"); \
	fi; \
	step python train.py --data=$(DEMO_DATA)/64 --outdir=$(DEMO_OUT)/training --preset=cgs-control-tiny --recon=0 --seed=$(DEMO_SEED) --minutes=$$minutes --metrics=none; \
	network=$$(ls -t $(DEMO_OUT)/training/*/network-snapshot-*.pkl | head -n 1); \
	step python calc_metrics.py --network=$$network --data=$(DEMO_DATA)/64 --metrics=$$metric; \
	step python gen_videos.py --outdir=$(DEMO_OUT) --trunc=0.7 --seeds=0-3 --grid=2x2 --network=$$network --w-frames=$$frames --enlarge=3; \
	step python gen_videos.py --outdir=$(DEMO_OUT) --trunc=0.7 --seeds=0-3 --grid=2x2 --network=$$network --w-frames=$$((frames / 5)) --enlarge=3 --control=expression; \
	step python gen_samples.py --outdir=$(DEMO_OUT) --network=$$network --enlarge=2; \
	name=$$(basename $$network .pkl); run=$$(dirname $$network); \
	echo; echo "== Results"; \
	echo "data set    $(DEMO_DATA)/64"; \
	echo "checkpoint  $$network"; \
	echo "progress    $$run/fakes*.png (beside $$run/reals.png), $$run/stats.jsonl"; \
	echo "metrics     $$run/metric-$$metric.jsonl"; \
	echo "turntable   $$(ls -d $(DEMO_OUT)/$$name-orbit*)"; \
	echo "expressions $$(ls -d $(DEMO_OUT)/$$name-expression.*), $(DEMO_OUT)/$$name-expression-grid.png"; \
	echo "pictures    $(DEMO_OUT)/$$name-samples.png"; \
	echo "splats      $(DEMO_OUT)/$$name-seed*.ply (drop one on any Gaussian-splat viewer)"

# ---------------------------------------------------------------- checks

# One worker per core and one thread per worker: the tests are many small ones, and thread counts change float sums.
test: setup-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) $(PYTEST_ARGS)

# Without what tests/slow.py lists.
quick: setup-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) -m "not slow" $(PYTEST_ARGS)

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

# NO_MKDOCS_2_WARNING: the theme's advertisement for its successor
docs: setup-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "site/index.html"

clean:
	rm -rf site $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist splatgan.egg-info
