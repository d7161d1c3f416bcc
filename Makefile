# Two commands do everything on a fresh machine: `make demo` and `make test`. CONTRIBUTING.md tells about the rest.

# The first Python that is new enough.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
# How many test processes; `auto` is one for each core.
JOBS ?= auto

.PHONY: help demo test machine develop lint format bench clean need-python

help:  ## what there is
	@sed -n 's/^\([a-z]*\): .*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

# The demo gets an environment of its own: it installs the package as a user does, `make test` an editable checkout.
demo: VENV ?= .venv-demo
demo: need-python  ## install into a virtual environment and run the examples; needs no root and no apt
	@$(PYTHON) tools/environment.py $(VENV)
	$(VENV)/bin/python -m pip install --quiet .
	-$(VENV)/bin/sandbox doctor
	$(VENV)/bin/pytest -p no:cacheprovider --verbose --durations=5 examples

test machine lint format bench develop: VENV ?= .venv

test: need-python  ## everything CI runs: lint, types, the built wheel, the suite as root and as an ordinary user
	@VENV=$(VENV) JOBS=$(JOBS) $(PYTHON) tools/suite.py

machine: develop  ## a shell in a machine with systemd and cgroup v2 (AS=tester: as its ordinary user)
	@VENV=$(VENV) $(VENV)/bin/python tools/machine.py shell --user $(or $(AS),root)

develop: need-python  ## the virtual environment to work in
	@$(PYTHON) tools/environment.py $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'

lint: develop  ## ruff and mypy
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy

format: develop  ## what ruff can mend by itself
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

bench: develop  ## side by side with every peer found on this machine; writes bench.json
	$(VENV)/bin/python -m benchmarks --json bench.json

clean:  ## what the other targets made
	rm -rf .venv .venv-demo .tox .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist bench.json

need-python:
	@test -n "$(PYTHON)" || { echo 'Python 3.11 or later is needed (PYTHON=… names one)' >&2; exit 1; }
