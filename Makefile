# `make stylize` and `make test` each set everything up on a fresh machine (in .venv) and then do their job.
PYTHON ?= python3
# CPU builds are enough here; a GPU user installs the torch that fits the driver, and nothing below forces this one on them.
TORCH  ?= torch==2.13.0
BIN    := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK=1

STYLE ?= ink
OUT   ?= out

.PHONY: stylize app test tables control export readme clean
stylize: .venv/run
	$(BIN)/stylekit stylize $(if $(IMAGE),"$(IMAGE)") --style "$(STYLE)" $(if $(CAPTION),--caption "$(CAPTION)") --out "$(OUT)" --seed 0

# a page in the browser, for people who do not code
app: .venv/run
	$(BIN)/pip install -q -e ".[app]" && $(BIN)/stylekit app

test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
	OMP_NUM_THREADS=1 MPLBACKEND=agg HF_HUB_OFFLINE=1 $(BIN)/nbdev-test --n-workers 2 --timing

# hours on a processor; goes on where it was stopped
tables: .venv/dev
	$(BIN)/python -c "from stylekit.mini.tables import make_tables; make_tables()"

control: .venv/dev
	$(BIN)/python -c "from stylekit.mini.control import make_control; make_control()"

export: .venv/dev
	$(BIN)/nbdev-export && $(BIN)/nbdev-clean

readme: .venv/dev
	$(BIN)/python tests/readme.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/torch: .venv/bin/python Makefile
	$(BIN)/pip install -q "$(TORCH)" && touch $@

.venv/run: .venv/torch settings.ini pyproject.toml setup.py
	$(BIN)/pip install -q -e . && touch $@

.venv/dev: .venv/run
	$(BIN)/pip install -q -e ".[dev]" && touch $@

clean:
	rm -rf build dist *.egg-info out
