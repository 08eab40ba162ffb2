# Two commands set up everything on a machine with Python 3.11 or 3.12:
#   make demo   environment, install, then a whole federation on phantom CT
#   make test   environment, install, lint, types, then the whole suite
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= demo
REHEARSAL ?= rehearsal
export PYTHONSAFEPATH := 1
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: demo test lint types suite debian install install-dev bench faults attacks wheelhouse federation clean

demo: install
	$(BIN)/fedct demo --out $(OUT)

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else "FedCT needs Python 3.11 or 3.12; this is %d.%d: make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

test: lint types suite

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/mypy

suite: install-dev debian
	$(BIN)/pytest -n 2 --dist worksteal

# Outside checkers that some tests ask: those tests skip, and say so, without them.
debian:
	@sh tests/debian.sh

bench: install-dev
	$(BIN)/python tests/bench/run.py

# Every fault on a real federation, and the table of what was seen: docs/faults.md.
faults: install-dev
	$(BIN)/python -m tests.faults.run --write docs/faults.md

# Every attack with its control, and the table of what came of it: docs/attacks.md.
attacks: install-dev
	$(BIN)/python -m tests.attacks.run --write docs/attacks.md

# For machines without a network and for images: docs/howto/install-without-network.md.
WHEELHOUSE ?= wheelhouse
wheelhouse: install
	$(BIN)/python -m deploy.wheelhouse $(WHEELHOUSE) --constraints constraints.txt

# A hub and three hospitals on this machine, with everything going wrong.
federation: install
	$(BIN)/fedct rehearse --out $(REHEARSAL)

clean:
	rm -rf $(VENV) demo runs rehearsal
