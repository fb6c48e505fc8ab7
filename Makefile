# 'make demo' and 'make test' each work on a fresh checkout; both set up .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LAYOUT := build/layout

# A thread count left in the shell would change timings and test speed.
unexport OMP_NUM_THREADS

.PHONY: demo test lint clean

demo: $(INSTALLED)
	$(BIN)/foveate demo

test: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist loadfile

# mypy and import-linter read folders: the copy has the rooms where an install puts them.
lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	rm -rf $(LAYOUT) && mkdir -p $(LAYOUT)
	cp -R foveate engines exporter runtime $(LAYOUT)
	mv $(LAYOUT)/engines $(LAYOUT)/exporter $(LAYOUT)/runtime $(LAYOUT)/foveate
	$(BIN)/mypy
	cd $(LAYOUT) && $(CURDIR)/$(BIN)/lint-imports --no-logo --config $(CURDIR)/pyproject.toml

# Keeps .venv, which takes minutes to fill.
clean:
	rm -rf build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# TensorRT's bindings come without its libraries, which PyPI has not: tests read its API from them.
# torch goes first and alone, pinned: another requirement may otherwise choose a build of several gigabytes.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "'$(PYTHON)' is not Python 3.11 or newer. Run: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[cpu,openvino,tensorrt-rtx,export,report,video,serve,bench,dev]'
	$(BIN)/pip install --quiet --no-deps -c constraints.txt tensorrt-cu13-bindings
	touch $@
