# Two commands: `make demo` and `make test`. Each sets up .venv by itself; PYTHON names the interpreter (3.11 to 3.14).
PYTHON ?= python3
BIN := .venv/bin
STUDY := search_spaces/quickstart.yaml

.PHONY: demo test test-fast test-faults lint format clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev]'
	touch $@

# A second `make demo` shows the finished sweep, or goes on with one that was interrupted.
demo: .venv/ready
	$(BIN)/mmsweep tune $(STUDY) $(if $(wildcard sweeps/quickstart/sweep.json),--resume)

# What starts Ray has all cores to itself; the rest has one each.
test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 8 --dist loadfile
	$(BIN)/python -m pytest -m "slow and not faults"

# For the work between: below 4 minutes on 2 cores, without Ray and without the files that take longest.
test-fast: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not long" -n auto --maxprocesses 8 --dist loadfile

# Every way in which a sweep can end on a real Ray, one after the other: minutes, and nothing else may run beside it.
test-faults: .venv/ready
	$(BIN)/python -m pytest -m faults

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff format .

clean:
	rm -rf .venv sweeps mlflow.db mlflow.db.lock mlartifacts
