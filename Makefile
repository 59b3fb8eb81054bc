# Two commands on a fresh machine (Python >= 3.11, make, git): `make debut` shows the main job, `make test` runs every test.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STUBS  := services/watertower/v1
LOAD_REPORT ?= load-report

.DEFAULT_GOAL := help
.PHONY: help setup debut debut-cluster up load down chart test check lint types fast simulate storm kubernetes autoscale stubs stubs-check lock bench clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready ## a virtual environment with everything locked; leaves the command at .venv/bin/watertower

$(VENV)/.ready: requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Watertower needs Python >= 3.11; set PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

debut: setup ## a million followers arrive at once; counted exactly while reads stay fast
	$(BIN)/watertower debut

test: setup ## every test: pure, contracts, processes, docs
	$(BIN)/python -m pytest

check: lint types fast ## lint, types and the fast tests, under a minute

lint: setup
	$(BIN)/ruff check services tests benchmarks deploy
	$(BIN)/ruff format --check services tests benchmarks deploy
	$(BIN)/buf lint proto

types: setup
	$(BIN)/mypy

fast: setup
	$(BIN)/python -m pytest -q -m "not slow" tests/core tests/contract tests/ingest tests/query tests/cli tests/client tests/projector tests/languages tests/deploy

stubs: setup ## generate the API stubs from proto/
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=services --pyi_out=services --grpc_python_out=services proto/watertower/v1/*.proto

stubs-check: setup ## fail when the committed stubs differ from proto/
	@out=$$(mktemp -d) && \
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=$$out --pyi_out=$$out --grpc_python_out=$$out proto/watertower/v1/*.proto && \
	for f in $$out/watertower/v1/*; do diff -u $(STUBS)/$$(basename $$f) $$f || { echo "stubs drifted: run make stubs"; exit 1; }; done && \
	echo "stubs match proto/"

LOCK := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -U

lock: ## choose the newest allowed versions and write requirements/ (needs uv); the image's are those of dev.txt
	$(LOCK) --group dev pyproject.toml -o requirements/dev.txt
	$(LOCK) -c requirements/dev.txt pyproject.toml -o requirements/service.txt
	$(LOCK) -c requirements/dev.txt --group build -o requirements/build.txt

debut-cluster: setup ## the debut on a real Kafka and a real Cassandra, which it starts (Docker, or Java and Maven)
	$(BIN)/python -m benchmarks.cluster debut

up: ## the whole service with Kafka and Cassandra in containers (Docker with compose)
	docker buildx version >/dev/null 2>&1 || export DOCKER_BUILDKIT=0; docker compose up --detach --build --wait

down: ## stop what `make up` started and remove its data
	docker compose --profile load down --volumes

load: ## a load test of the service in containers, as LOAD_SCENARIO and LOAD_ARGS say; its report goes to LOAD_REPORT
	docker buildx version >/dev/null 2>&1 || export DOCKER_BUILDKIT=0; \
	docker compose --profile load up --build --exit-code-from load load; code=$$?; \
	docker compose --profile load cp load:/report/. $(LOAD_REPORT); exit $$code

chart: setup ## build helm and the schemas of Kubernetes, and check the chart with them (needs Go; minutes the first time)
	deploy/test-cluster/tools.sh
	deploy/test-cluster/schemas.py
	WATERTOWER_REQUIRE_ENGINES=1 $(BIN)/python -m pytest -q tests/deploy

simulate: setup ## ten thousand bad days by seed, on the real code (most of an hour)
	$(BIN)/watertower simulate --seeds 10000 --jobs $$(nproc)

storm: setup ## kill, freeze and restart everything on real Kafka and Cassandra, and recount (most of half an hour)
	$(BIN)/python -m pytest -s -m storm tests/engines

kubernetes: setup ## install the chart in a real cluster on this machine, and roll, evict and scale it under load (root, Go, Docker, Java)
	deploy/test-cluster/build.sh
	deploy/test-cluster/tools.sh
	WATERTOWER_REQUIRE_ENGINES=1 $(BIN)/python -m pytest -s -m kubernetes --durations=0 tests/kubernetes

autoscale: setup ## the same cluster with metrics-server: an autoscaler acts under load (minutes more to build)
	deploy/test-cluster/build.sh metrics
	deploy/test-cluster/tools.sh
	METRICS=1 WATERTOWER_REQUIRE_ENGINES=1 $(BIN)/python -m pytest -s -m autoscale tests/kubernetes

bench: setup ## the figures of docs/performance.md (minutes)
	$(BIN)/python -m benchmarks.service

clean: ## remove what setup and runs made
	rm -rf $(VENV) build dist *.egg-info services/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis watertower-data
