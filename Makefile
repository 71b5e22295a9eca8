# `make stylize` and `make test` each set everything up on a fresh machine (in .venv) and then do their job.
PYTHON ?= python3
# A GPU user installs the torch that fits the driver (make TORCH="torch==2.14.1"): everything else stays what was tested.
TORCH  ?= $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints.txt | head -n 1)
BIN    := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK=1
# The tests start some hundred processes: each would compile the package anew
unexport PYTHONDONTWRITEBYTECODE

STYLE ?= ink
OUT   ?= out

.PHONY: stylize app test slow tables limits control feedforward flow lint export readme docs demo dist constraints versions
.PHONY: clean
stylize: .venv/run
	$(BIN)/stylekit stylize $(if $(IMAGE),"$(IMAGE)") --style "$(STYLE)" $(if $(CAPTION),--caption "$(CAPTION)") --out "$(OUT)" --seed 0

# a page in the browser, for people who do not code
app: .venv/run
	$(INSTALL) -e ".[app]" && $(BIN)/stylekit app

# tests/conftest.py says which files begin: xdist would take those of most tests, and the long ones have few.
# One more than there are cores: one of them waits for a browser, a hub, a disk.
WORKERS ?= $(shell $(PYTHON) -c "import os; print(min(8, os.cpu_count()+1))")
# What hangs is shown and ended after so many minutes, some five times what it takes
LIMIT := $(BIN)/python tools/limit.py
NOTEBOOKS := OMP_NUM_THREADS=1 MPLBACKEND=agg HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

test: .venv/dev
	OMP_NUM_THREADS=1 $(LIMIT) 60 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow"
	$(NOTEBOOKS) $(LIMIT) 30 $(BIN)/nbdev-test --n-workers $(WORKERS) --timing --do-print

# the tests that take half a minute each; CI runs both
slow: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

# hours on a processor; goes on where it was stopped
tables: .venv/dev
	$(BIN)/python -c "from stylekit.studies.tables import make_tables; make_tables()"

# what lambda does to single pictures; goes on where it was stopped
limits: .venv/dev
	$(BIN)/python -c "from stylekit.studies.limits import make_curves; make_curves()"

control: .venv/dev
	$(BIN)/python -c "from stylekit.studies.control import make_control; make_control()"

# the networks of one pass for the five styles, and what they are worth
feedforward: .venv/dev
	$(BIN)/python -c "from stylekit.studies.feedforward import make_networks; make_networks()"

# the embedded model as a flow model, with its styles: an hour or two on a processor; goes on where it was stopped
flow: .venv/dev
	$(BIN)/python -c "from stylekit.mini.flow import build_flow; build_flow()"

# lines that a person can step through
lint: .venv/dev
	$(BIN)/ruff check -q

export: .venv/dev
	$(BIN)/nbdev-export && $(BIN)/nbdev-clean

readme: .venv/dev
	$(BIN)/python tests/readme.py

# the site, in docs/_build/html; a dead link ends it
docs: .venv/docs
	$(BIN)/python tools/pages.py

# its page in the browser alone: cd docs/_build/demo && python -m http.server
demo: .venv/bin/python
	$(BIN)/python tools/pages.py demo

# wheel and sdist, looked at as PyPI does
dist: .venv/dev
	rm -rf dist && $(BIN)/python -m build -q && $(BIN)/twine check --strict dist/*

.venv/bin/python:
	$(PYTHON) -m venv .venv

# the exact versions that were tested, for every Python that is stated: run the tests before you commit what it writes
constraints: .venv/bin/python
	$(BIN)/pip install -q uv
	$(BIN)/python tools/requirements.py | $(BIN)/uv pip compile - -q --universal --upgrade --python-version 3.10 \
	  -c tools/tested.txt --no-annotate --custom-compile-command 'make constraints' -o .venv/resolved.txt
	grep -Ev '^(nvidia|cuda|triton)' .venv/resolved.txt > constraints.txt    # these follow the build of torch

# the tests with the newest or the oldest versions that pip users may have
VERSIONS ?= newest
OTHER    := .venv-$(VERSIONS)/bin
versions: .venv/bin/python
	$(BIN)/pip install -q uv
	test -d .venv-$(VERSIONS) || $(PYTHON) -m venv .venv-$(VERSIONS)
	$(BIN)/python tools/requirements.py $(VERSIONS) > .venv-$(VERSIONS)/asked.txt
	$(BIN)/uv pip install -q --upgrade --python $(OTHER)/python -r .venv-$(VERSIONS)/asked.txt
	$(OTHER)/pip install -q --no-deps -e .
	OMP_NUM_THREADS=1 $(OTHER)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

INSTALL := $(BIN)/pip install -q -c .venv/constraints.txt

.venv/torch: .venv/bin/python constraints.txt
	$(BIN)/pip install -q "$(TORCH)"
	grep -v '^torch==' constraints.txt > .venv/constraints.txt && touch $@

.venv/run: .venv/torch settings.ini pyproject.toml setup.py
	$(INSTALL) -e . && touch $@

# pages are made from text: the package itself need not be there
.venv/docs: .venv/bin/python constraints.txt settings.ini
	$(BIN)/python tools/requirements.py docs > .venv/docs.txt
	$(BIN)/pip install -q -c constraints.txt -r .venv/docs.txt && touch $@

.venv/dev: .venv/run
	$(INSTALL) -e ".[dev]" && touch $@

clean:
	rm -rf build dist *.egg-info out docs/_build docs/api
