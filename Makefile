# Everything starts here: `make help`. Needed: Python 3.11 or newer with its venv module, and make. pip is used as it is
# configured (index, proxy, certificates); everything is installed into .venv (what only a test installs: .cache).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Arguments for pytest: make test ARGS="-k outbox -x"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test bench soak fuzz lint format venv system clean

help:  ## Show this text
	@echo "edge-runtime: PLC in, anomaly out, nothing lost. Targets:"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 17

run: $(VENV)/.run  ## Show one gateway at work, end to end (SECONDS=20: end by itself; GATEWAYS=3: a mesh)
	@$(BIN)/edge-runtime demo $(if $(filter command%,$(origin SECONDS)),--seconds $(SECONDS)) $(if $(GATEWAYS),--gateways $(GATEWAYS))

test: $(VENV)/.dev system lint  ## Lint, types and all tests
	@# Hundreds of processes start: where bytecode may not be written, each of them would compile all of us once more.
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

bench: $(VENV)/.dev system  ## Measure, and print a table of ratios
	$(BIN)/python -m tests.bench $(ARGS)

soak: $(VENV)/.dev system  ## Campaigns at full length (EDGE_SEEDS=3000 EDGE_FLEET_SEEDS=3000 EDGE_CHANGES_SEEDS=1000 EDGE_KILLS=50 EDGE_OUTAGE_S=35)
	EDGE_SEEDS=$(or $(EDGE_SEEDS),3000) EDGE_FLEET_SEEDS=$(or $(EDGE_FLEET_SEEDS),3000) \
	  EDGE_CHANGES_SEEDS=$(or $(EDGE_CHANGES_SEEDS),1000) EDGE_CHANGES_EVERY=1 $(BIN)/pytest -s $(ARGS) tests/sim
	EDGE_FUZZ=$(or $(EDGE_FUZZ),100000) $(BIN)/pytest -s --timeout 3600 $(ARGS) tests/unit/test_fuzz_gateway.py
	EDGE_FLOOD_S=10 $(BIN)/pytest -s $(ARGS) tests/integration/test_attacker.py -k floods
	$(BIN)/pytest -m soak -s $(ARGS) tests

fuzz: $(VENV)/.dev  ## Coverage-guided fuzzing of what is parsed (FUZZ_S=300 seconds in all; ARGS="desired frame": these)
	$(BIN)/python -m tests.fuzz $(or $(FUZZ_S),300) $(ARGS)

lint: $(VENV)/.dev  ## Style (ruff) and types (mypy --strict)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## Put the code into the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

venv: $(VENV)/.dev  ## Create .venv with everything that developing needs

system:  # The Debian packages that some tests need: installed where we may, else named
	@.ci/system-packages

clean:  ## Remove .venv, caches and build results
	rm -rf $(VENV) .cache build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment knows its folder by the full name: moved it does not start, and in a copy it runs what stands in the old place.
PLACE := $(VENV)/.place
ifneq ($(wildcard $(PLACE)),)
ifneq ($(shell cat $(PLACE)),$(CURDIR))
$(shell rm -rf $(VENV))
endif
endif

# Two stamps, one environment: `make run` does not wait for what only tests need.
$(VENV)/.run: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(VENV)/.run $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "edge-runtime needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)"; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(VENV) cannot be made. Is Python's venv module there (Debian, Ubuntu: apt install python3-venv), may this folder be written?"; \
	  exit 1; }
	@echo "$(CURDIR)" >$(PLACE)
