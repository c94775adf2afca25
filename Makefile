# make run    set up, then sort what is dropped into tray/inbox with the model that ships
# make test   set up, then run the tests against the built wheel
# make check  lint, types, import rules
# make bench  measure the speed (20 minutes; BENCH_ARGS=--quick: a few), into benchmarks/RESULTS.md
# make wheels for an installation without a network: deploy/install.sh --wheels .venv/wheels
# The environment is .venv; PYTHON names the interpreter that makes it (3.11 to 3.13).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
SOURCES := $(shell find daemon trainer -type f -not -name '*.pyc') pyproject.toml README.md LICENSE NOTICE
PYTEST_ARGS ?=
BENCH_ARGS ?=
CPUS := $(shell nproc)

.PHONY: run setup wheels test check bench format lock clean

run: setup
	@$(BIN)/moodbox run --settings settings.toml

setup: $(VENV)/.installed

# Dependencies change rarely and take a minute; the wheel changes often and takes seconds: two stamps.
$(VENV)/.dependencies: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (once; about 2.5 GB)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "Moodbox needs Python 3.11 to 3.13: make PYTHON=python3.11 …" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt setuptools
	@$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  print("\n".join(p["dependencies"] + p["optional-dependencies"]["dev"]))' >$(VENV)/wanted.txt
	@$(PIP) install --constraint constraints.txt --requirement $(VENV)/wanted.txt
	@touch $@

$(VENV)/.installed: $(VENV)/.dependencies $(SOURCES)
	@echo "installing moodbox"
	@rm -rf build $(VENV)/wheel
	@$(PIP) wheel --no-deps --no-build-isolation --wheel-dir $(VENV)/wheel .
	@$(PIP) install --no-deps --force-reinstall $(VENV)/wheel/moodbox-*.whl
	@rm -rf build moodbox.egg-info
	@touch $@

# Ray is 500 MB that only `moodbox backfill` and the tests need.
$(VENV)/.ray: $(VENV)/.dependencies
	@echo "installing Ray (500 MB)"
	@$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  print("\n".join(p["optional-dependencies"]["ray"]))' >$(VENV)/ray.txt
	@$(PIP) install --constraint constraints.txt --requirement $(VENV)/ray.txt
	@touch $@

wheels: $(VENV)/wheels/.complete

$(VENV)/wheels/.dependencies: $(VENV)/.dependencies
	@rm -rf $(VENV)/wheels
	@$(BIN)/python -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]))' \
	  >$(VENV)/needed.txt
	@$(PIP) wheel --constraint constraints.txt --wheel-dir $(VENV)/wheels --requirement $(VENV)/needed.txt
	@touch $@

$(VENV)/wheels/.complete: $(VENV)/wheels/.dependencies $(VENV)/.installed
	@rm -f $(VENV)/wheels/moodbox-*.whl
	@cp $(VENV)/wheel/moodbox-*.whl $(VENV)/wheels
	@touch $@

# Away from the checkout, so that what is tested is the installed wheel.
test: setup $(VENV)/.ray
	cd $(VENV) && bin/pytest --config-file=../pyproject.toml --rootdir=.. --numprocesses=$(CPUS) $(PYTEST_ARGS) ../tests

bench: setup
	@$(PIP) install --constraint constraints.txt opencv-python-headless
	$(BIN)/python -m benchmarks.speed $(BENCH_ARGS)

check: $(VENV)/.dependencies
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck --external-sources deploy/install.sh tests/systemd.sh .ci/run

format: $(VENV)/.dependencies
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# Write down the exact versions of a fresh resolution of pyproject.toml.
lock:
	rm -rf $(VENV)/lock && $(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/pip install --quiet '.[dev,ray]' setuptools
	$(VENV)/lock/bin/pip freeze --all --exclude moodbox --exclude pip >constraints.txt

clean:
	rm -rf $(VENV) build *.egg-info
