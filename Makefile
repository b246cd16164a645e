# make demo    compare the methods on made-up languages and write a report
# make lint    check the code: rules, format, spelling, types
# make test    the same, and run the tests, but for those marked slow
# make test-all    run those, too
# All first make an environment of their own in .venv. Another Python: make PYTHON=python3.12 demo

.POSIX:
.PHONY: demo test test-all lint clean

PYTHON = python3
VENV = .venv
WORKERS = 2
PIP = $(VENV)/bin/python -m pip
# A file's tests stay in one process, which makes their fixtures once.
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(WORKERS) \
	--dist loadfile --no-loadscope-reorder
LEARN2LEARN = $(PIP) install --no-deps -r requirements-learn2learn.txt
SOURCES = setup.cfg pyproject.toml constraints.txt requirements-learn2learn.txt metaser/version.py

demo: $(VENV)/demo.installed
	$(VENV)/bin/metaser demo

test: lint
	@echo "Tests marked slow are left out: make test-all runs them, too."
	$(PYTEST) -m "not slow" --cov --cov-report=term:skip-covered

test-all: lint
	$(PYTEST)

lint: $(VENV)/test.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell
	$(VENV)/bin/mypy

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	"MetaSER needs Python 3.11 or newer, not %d.%d: make PYTHON=python3.11 ..." % v[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.installed: $(VENV)/bin/python $(SOURCES)
	$(PIP) install "pip>=23.1"
	$(PIP) install -c constraints.txt -e ".[synthetic]"
	$(LEARN2LEARN) || echo "The demo goes on without learn2learn, an optional back end." >&2
	touch $@

$(VENV)/test.installed: $(VENV)/bin/python $(SOURCES)
	$(PIP) install "pip>=23.1"
	$(PIP) install -c constraints.txt -e ".[test]"
	$(LEARN2LEARN)
	touch $@

clean:
	rm -rf $(VENV) build dist metaser.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache
