# Two commands: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3
BIN := .venv/bin
# The versions that have passed, written by `make constraints`.
TESTED := .ci/constraints.txt
INSTALL := pip install --quiet --disable-pip-version-check

.PHONY: demo test slow newest constraints nightly coverage mutants lint clean

.venv/demo.stamp: pyproject.toml $(TESTED)
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/$(INSTALL) -c $(TESTED) -e .
	touch $@

.venv/test.stamp: .venv/demo.stamp
	$(BIN)/$(INSTALL) -c $(TESTED) -e ".[test]"
	touch $@

.venv/mutants.stamp: .venv/test.stamp
	$(BIN)/$(INSTALL) -c $(TESTED) -e ".[mutants]"
	touch $@

# The newest versions that our ranges allow, in an environment of their own; `+cpu` and the like are left out.
newest:
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/$(INSTALL) -e ".[test]"
	.venv-newest/bin/pip freeze --exclude-editable > .venv-newest/versions.txt
	sed -i 's/+.*//' .venv-newest/versions.txt

constraints: newest
	cp .venv-newest/versions.txt $(TESTED)

demo: .venv/demo.stamp
	PATH="$(CURDIR)/$(BIN):$$PATH" ./demo.sh

# One thread a worker: two pools of two threads on two cores wait for each other.
test: .venv/test.stamp lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal $(ARGS)

slow: .venv/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m "slow and not nightly" $(ARGS)

coverage: .venv/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal --cov --cov-report=term $(ARGS)

# The newest versions, then everything on the instructions that every machine has, then what takes longest.
nightly: newest .venv/test.stamp
	OMP_NUM_THREADS=1 .venv-newest/bin/pytest -n 2 --dist worksteal -m "not nightly" || \
		{ echo "Versions of $(TESTED) (<) and of this environment (>) that differ:"; diff $(TESTED) .venv-newest/versions.txt; exit 1; }
	MLFLOW_UNLEARN_PROCESSES=8 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 \
		$(BIN)/pytest -n 2 --dist worksteal -m "slow or not slow"
	MLFLOW_UNLEARN_KILLS=50 MLFLOW_UNLEARN_KILL_SEED=$$(date +%s) OMP_NUM_THREADS=1 $(BIN)/pytest -m slow tests/end_to_end/test_kills.py
	MLFLOW_UNLEARN_LISTEN_KILLS=20 MLFLOW_UNLEARN_KILL_SEED=$$(date +%s) OMP_NUM_THREADS=1 $(BIN)/pytest -m slow tests/end_to_end/test_listen.py
	MLFLOW_UNLEARN_FAULTS=50 MLFLOW_UNLEARN_FAULT_SEED=$$(date +%s) OMP_NUM_THREADS=1 $(BIN)/pytest -m slow tests/end_to_end/test_faults.py
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=2 $(BIN)/pytest tests/engine tests/methods tests/testing
	$(MAKE) coverage mutants

mutants: .venv/mutants.stamp
	OMP_NUM_THREADS=1 $(BIN)/python .ci/mutants.py $(ARGS)

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell docs plugins mlflow_unlearn README.md CHANGELOG.md CONTRIBUTING.md

clean:
	rm -rf .venv .venv-newest demo mutants
