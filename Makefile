# gpu-nodeagent: `make help` lists the targets.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# Tests that keep all processors busy for minutes and need no other process: in a PID namespace (root's), an epilog of
# theirs that looks at every process does not meet those of the tests beside them.
BUSY := tests/contract/test_crash.py tests/contract/test_races.py tests/contract/test_memory_flat.py
ALONE := $(if $(filter 0,$(shell id -u)),unshare --pid --fork --kill-child --mount-proc)
# Storms of agents on the real schedulers.
LIMITS := tests/integration/test_limit_slurm.py tests/integration/test_limit_gridengine.py
GRIDENGINE := $(filter-out $(LIMITS),$(wildcard tests/integration/test_*gridengine*.py))
SLURM := $(wildcard tests/integration/test_slurm*.py)
SCRIPTS := prolog/slurm prolog/slurm-task prolog/sge prolog/sge-shepherd prolog/sge-login epilog/slurm epilog/sge rpm/build rpm/gpu-nodeagent

.DEFAULT_GOAL := help
.PHONY: help demo test unit lint docs soak hardware corpus mutants bench rpm clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(STAMP)  ## jobs, a dying GPU and one that returns on a simulated 8-GPU node, in under a minute
	@$(BIN)/python -m tests.demo

test: provision $(STAMP)  ## everything: unit, contract, real schedulers, RPM in a booted systemd
	@$(MAKE) --no-print-directory --keep-going -j4 --output-sync=target \
		test-schedulers test-rest test-limits test-slurm test-gridengine test-busy test-packaging

# The real schedulers and systemd are waited for most of the time, so four of these run at once. `pytest` alone runs all
# tests, in turn.
.PHONY: test-slurm test-schedulers test-limits test-gridengine test-packaging test-rest test-busy
test-slurm:
	$(BIN)/python -m pytest $(SLURM)
test-schedulers:
	$(BIN)/python -m pytest tests/integration $(addprefix --ignore=,$(LIMITS) $(GRIDENGINE) $(SLURM))
test-limits:
	$(BIN)/python -m pytest $(LIMITS)
test-gridengine:
	$(BIN)/python -m pytest $(GRIDENGINE)
test-packaging:
	$(BIN)/python -m pytest tests/packaging
test-rest:
	$(BIN)/python -m pytest $(addprefix --ignore=,tests/integration tests/packaging $(BUSY))
test-busy:
	$(ALONE) $(BIN)/python -m pytest $(BUSY)

unit: $(STAMP)  ## pure tests: no process, no scheduler
	$(BIN)/python -m pytest -q tests/unit

lint: $(STAMP)  ## ruff and mypy strict
	$(BIN)/ruff check . $(SCRIPTS)
	$(BIN)/ruff format --check . $(SCRIPTS)
	$(BIN)/mypy

docs: $(STAMP)  ## docs/checks.md from what each check says of itself
	@$(BIN)/python -m tests.make_docs

soak: $(STAMP)  ## larger tests: a million operations on locks, 100000 polls, 10000 drains in a race, storms of 100 nodes
	GPU_NODEAGENT_RACE_OPERATIONS=1000000 $(BIN)/python -m pytest tests/contract/test_races.py
	GPU_NODEAGENT_MEMORY_POLLS=100000 GPU_NODEAGENT_MEMORY_GPUS=8 $(BIN)/python -m pytest -s tests/contract/test_memory_flat.py
	GPU_NODEAGENT_DRAIN_RACES=5000 $(BIN)/python -m pytest -s tests/integration/test_drain_races.py
	GPU_NODEAGENT_STORM_NODES=100 $(BIN)/python -m pytest -s tests/integration/test_limit_slurm.py tests/integration/test_limit_gridengine.py tests/integration/soak_limit.py

hardware: $(STAMP)  ## on a node with a real NVIDIA GPU: probe, NVML calls, recording, the stand-in compared; reads only
	@$(BIN)/python -m tests.hardware

corpus: $(STAMP)  ## every fault on six GPU models and 30 healthy node-days through the engine; prints what it found
	@$(BIN)/python -m tests.corpus

mutants: $(STAMP)  ## faults put into nodeagent/health/ one by one: 90 % of them have to fail a test; some minutes
	@$(BIN)/python -m pip --disable-pip-version-check -qq install -r requirements-mutants.txt
	@$(BIN)/python -m tests.mutants $(MUTANTS)

bench: $(STAMP)  ## hooks against a bare interpreter, agent at rest; prints the figures with their limits
	$(BIN)/python -m bench

rpm: $(STAMP)  ## build the RPM into dist/
	$(BIN)/python rpm/build dist

clean:  ## remove what the targets above made
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache $(VENV)

.PHONY: provision provision-demo
provision:
	@/usr/bin/python3 tests/provision.py test
provision-demo:
	@/usr/bin/python3 tests/provision.py demo

# One virtual environment for all targets, made anew when what goes into it has changed.
$(STAMP): pyproject.toml requirements-dev.txt | provision-demo
	@tests/make-venv $(PYTHON) $(VENV)
	@touch $@
