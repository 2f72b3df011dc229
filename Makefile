# Hindcast. `make run` and `make test` set up everything they need.
SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DATA ?= demo
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help run test check bench bench-peers load soak honesty unit cluster long chaos chaos-bench clean format

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt scripts/setup.sh
	@scripts/setup.sh $(PYTHON) $(VENV)

run: $(STAMP) ## Set up, make the demo world, build a release, serve it (Ctrl-C stops all)
	@$(BIN)/hindcast demo --data $(DATA)

test: $(STAMP) ## Set up and run all tests but the long ones
	@scripts/test.sh $(BIN)

unit: $(STAMP) ## The quick tests only
	@$(BIN)/pytest tests/unit -n auto --dist loadfile

cluster: $(STAMP) ## Tests that start Ray, and those that kill things, the long ones too
	@$(BIN)/pytest tests/cluster tests/chaos

long: $(STAMP) ## Only the tests that `make test` leaves out because they take minutes
	@$(BIN)/pytest -m long

chaos: $(STAMP) ## Exactness under fire at full length: 200,000 decisions while processes are killed
	@FIRE_DECISIONS=200000 EVERY_TOPOLOGY=1 $(BIN)/pytest -s tests/chaos/test_exact_under_fire.py tests/cluster/test_server_deferrals.py

chaos-bench: $(STAMP) ## kill -9 of every kind of process under steady load: what clients see, time to recover, log and ledger
	@$(BIN)/python -m loadtests.bench_chaos --out bench-results
	@$(BIN)/python -m loadtests.bench_chaos --out bench-results --topology fused

check: $(STAMP) ## Lint, format check, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP) ## Mend formatting and imports
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP) ## Benchmarks: JSON and a table under bench-results/
	@mkdir -p bench-results
	@$(BIN)/python -m loadtests.bench_chain --out bench-results/chain.json
	@$(BIN)/python -m loadtests.bench_segments --out bench-results/segments.json
	@$(BIN)/python -m loadtests.bench_ledger --out bench-results/ledger.json
	@$(BIN)/python -m loadtests.bench_decide --out bench-results
	@$(BIN)/python -m loadtests.bench_replay --out bench-results/replay.json
	@$(BIN)/python -m loadtests.bench_parts --out bench-results
	@$(BIN)/python -m loadtests.bench_growth --out bench-results
	@$(BIN)/python -m loadtests.bench_width --out bench-results
	@$(BIN)/python -m loadtests.bench_peers --out bench-results
	@$(BIN)/python -m loadtests.bench_spike --out bench-results

bench-peers: $(STAMP) ## Set up what benchmarks compare with (BentoML, Feast, hnswlib, faiss, RLlib) and compare
	@scripts/peers.sh $(PYTHON) .venv-peers
	@mkdir -p bench-results
	@$(BIN)/python -m loadtests.bench_parts --out bench-results
	@$(BIN)/python -m loadtests.bench_peers --out bench-results
	@$(BIN)/python -m loadtests.bench_ope --out bench-results/ope.json

load: $(STAMP) ## A minute of shoppers and senders on the server that is up: RATE=50 SCENARIO=baseline DATA=demo
	@$(BIN)/hindcast load $(or $(SCENARIO),baseline) --data $(DATA) --rate $(or $(RATE),50) --out bench-results/load

soak: $(STAMP) ## An hour of traffic; fails where memory, handles or files grow (DURATION=10m for less)
	@$(BIN)/python -m loadtests.soak --duration $(or $(DURATION),1h) --out bench-results

honesty: $(STAMP) ## Do intervals hold what they promise? 2,000 small worlds, and logs of large ones, against the truth (long)
	@$(BIN)/python -m simulators.estimators.coverage --workers 2 --out simulators/estimators/coverage.json --plot simulators/estimators/coverage.svg
	@$(BIN)/python -m simulators.replay.honesty --out bench-results/honesty.json

clean: ## Remove what was built (not the demo's data)
	@rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
