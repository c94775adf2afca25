# make run    set up, then sort what is dropped into tray/inbox with the model that ships
# make test   set up, then run the tests against the built wheel
# make check  lint, types, import rules
# The environment is .venv; PYTHON names the interpreter that makes it (3.11 to 3.13).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
SOURCES := $(shell find daemon trainer -type f -not -name '*.pyc') pyproject.toml README.md LICENSE NOTICE
PYTEST_ARGS ?=
CPUS := $(shell nproc)

.PHONY: run setup test check format lock clean

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

# Away from the checkout, so that what is tested is the installed wheel.
test: setup
	cd $(VENV) && bin/pytest --config-file=../pyproject.toml --rootdir=.. --numprocesses=$(CPUS) $(PYTEST_ARGS) ../tests

check: $(VENV)/.dependencies
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dependencies
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# Write down the exact versions of a fresh resolution of pyproject.toml.
lock:
	rm -rf $(VENV)/lock && $(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/pip install --quiet '.[dev]' setuptools
	$(VENV)/lock/bin/pip freeze --all --exclude moodbox --exclude pip >constraints.txt

clean:
	rm -rf $(VENV) build *.egg-info
