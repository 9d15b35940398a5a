# Every target works on a fresh clone with only make and a Python of at least 3.11: the rest is installed into .venv.
# Another Python: make setup PYTHON=python3.13

.DEFAULT_GOAL := help
.PHONY: help setup lint breaking test mutations test-harnesses test-releases harnesses pythons demo demo-agents bench hostile simulate chaos failpoints takeover storm failover cascade invariants generate format clean

VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
PYTHONS := $(VENV)/.pythons
PYTHON  ?=
WORKERS ?= 2
N       ?= 10000
ROUNDS  ?= 300
SEED    ?=
EFFECTS ?= 1000
SECONDS ?= 120
PERIOD  ?= 8
ROOTS   ?= 5

# Set iteration must not differ from run to run, nor between a run and its replay.
export PYTHONHASHSEED := 0
# gRPC's fork handlers hang children of asyncio programs; we only ever spawn.
export GRPC_ENABLE_FORK_SUPPORT := 0

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv and install everything (done by the other targets when needed)

$(STAMP): pyproject.toml
	@if ! $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python; do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	    python=; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "Backburner needs Python 3.11 or newer; found: $$(python3 --version 2>&1 || true)." >&2; \
	    echo "Install one, or name it: make setup PYTHON=/path/to/python3.12" >&2; exit 1; \
	  fi; \
	  echo "creating $(VENV) with $$("$$python" --version)"; \
	  "$$python" -m venv --clear $(VENV) || { \
	    echo "$$python cannot make a virtual environment: install its venv module (Debian: python3-venv)" >&2; \
	    rm -rf $(VENV); exit 1; }; \
	fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

lint: $(STAMP) ## Format, lint, types, import rules, stubs, protos
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python proto/generate.py --check
	$(BIN)/buf lint proto
	@$(MAKE) --no-print-directory breaking

# Clients and stored journals hold on to what main has. On main itself this guards what is not yet committed.
breaking: $(STAMP) ## Compare the protos with those of main
	@if [ -z "$$(git rev-list --max-count=1 --all 2>/dev/null)" ]; then \
	  echo "buf breaking: skipped, there is no commit to compare with"; exit 0; \
	fi; \
	base=$$(git rev-parse --verify --quiet main || git rev-parse --verify --quiet origin/main) || { \
	  echo "buf breaking: there is no branch main here to compare with; run: git fetch origin main:main" >&2; exit 1; }; \
	if [ -z "$$(git ls-tree -r --name-only "$$base" -- proto | grep '\.proto$$')" ]; then \
	  echo "buf breaking: skipped, main has no protos yet"; exit 0; \
	fi; \
	before=$$(mktemp -d); trap 'rm -rf "$$before"' EXIT; \
	echo "buf breaking proto --against main ($$base)"; \
	git archive "$$base" proto | tar -x -C "$$before" && $(BIN)/buf breaking proto --against "$$before/proto"

# Replay is tried on each Python that is here: only it must not differ between them.
pythons: ## Make the other supported Pythons of this machine ready for the tests of replay
	@rm -f $(PYTHONS)
	@$(MAKE) --no-print-directory $(PYTHONS)

$(PYTHONS): $(STAMP)
	$(BIN)/python -m tests.support.pythons
	@touch $@

test: $(STAMP) $(PYTHONS) ## All tests (WORKERS=n processes)
	@$(BIN)/python -m tests.support.harnesses
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --durations=10

# Real agent CLIs against a model server that plays a script. claude-code and codex are of `make test` too.
harnesses: $(STAMP) ## Install all agent CLIs that are tested, in .venv (1.6 GB; needs node and npm)
	$(BIN)/python -m tests.support.harnesses --all

mutations: $(STAMP) ## Each parser of agent CLIs against 100,000 mutated lines
	LINES_MUTATED=100000 $(BIN)/python -m pytest tests/harnesses/test_mutations.py

test-harnesses: harnesses ## The tests of all agent CLIs
	$(BIN)/python -m pytest -m "not soak" tests/harnesses --durations=10

# The ends of the ranges that the adapters name: a tool call, a refusal, a cancel in a tool, a session that goes on.
test-releases: $(STAMP) ## The oldest and newest agent CLIs that are known to work (2.5 GB)
	for end in oldest newest; do \
	  export AGENT_RELEASES=$$end; \
	  $(BIN)/python -m tests.support.harnesses --all && \
	  $(BIN)/python -m pytest -m all_harnesses tests/harnesses/test_installed.py tests/harnesses/test_clis.py \
	    -k "release or tool_call_and or authentication or cancel_in or goes_on" || exit 1; \
	done

demo: $(STAMP) ## A guided example: the command `backburner demo`
	$(BIN)/backburner demo

demo-agents: $(STAMP) ## Coding agents on a sample repository: the command `backburner demo agents`
	$(BIN)/backburner demo agents

bench: $(STAMP) ## Measure latency and throughput on this machine
	$(BIN)/python -m tests.benchmarks

hostile: $(STAMP) ## Random and hostile messages to each rpc (N=10000 to each, SEED=s to repeat)
	$(BIN)/python -m tests.attack.hostile --count $(N) $(if $(SEED),--seed $(SEED))

simulate: $(STAMP) ## Random processes and random schedules of dispatch, in made-up time (N schedules, SEED=s of the first)
	$(BIN)/python -m tests.property.replay_simulation --schedules $(N) $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.property.dispatch_simulation --schedules $(N) $(if $(SEED),--seed $(SEED))

chaos: $(STAMP) ## Random faults to all parts at work, and a judge (ROUNDS=300, SEED=s to repeat)
	$(BIN)/python -m tests.crash.chaos --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED))

failpoints: $(STAMP) ## Kill each service at each of its failpoints, one after the other
	ALL_FAILPOINTS=1 $(BIN)/python -m pytest -q -m soak tests/crash/test_failpoints.py

takeover: $(STAMP) ## kill -9 and SIGTERM of an owner with EFFECTS=1000 in flight: how long, what ran again
	$(BIN)/python -m tests.crash.outages takeover --effects $(EFFECTS)

storm: $(STAMP) ## Postgres stopped and started under load (SECONDS=120, PERIOD=8): what was lost, throughput
	$(BIN)/python -m tests.crash.outages storm --seconds $(SECONDS) --period $(PERIOD)

cascade: $(STAMP) ## Cancel of ROOTS=5 runs with child runs and children: how long until each is told, and dead
	$(BIN)/python -m tests.crash.outages cascade --roots $(ROOTS)

failover: $(STAMP) ## kill -9 of a primary with a synchronous standby, under a run: what was lost, how long until it goes on
	$(BIN)/python -m tests.crash.outages failover

invariants: $(STAMP) ## Which tests hold which invariant of the design
	@$(BIN)/python -m tests.support.invariants

generate: $(STAMP) ## Write proto/gen from the .proto files
	$(BIN)/python proto/generate.py

format: $(STAMP) ## Format the code and apply safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove caches and build results (not .venv, not data)
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
