# `make train` and `make test` work on a machine that has only Python 3.11+ and make: each installs what it needs into .venv.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
DEVICE ?= cuda
OUT ?= runs/gpu
GPU_PYTHON = $(if $(filter command environment,$(origin PYTHON)),$(PYTHON),$(or $(wildcard $(RUN)),$(PYTHON)))
PIP = $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: train test test-long test-processors check fix bench bench-quick gpu docs site clean

train: $(VENV)/.demo  ## train the VAE on real handwritten digits; pictures go to runs/digits
	$(RUN) -m fastvae train --out runs/digits --overwrite $(ARGS)

# Processes that share kernels share a group, so that each kernel is compiled once; see tests/conftest.py.
test: $(VENV)/.test  ## every test, doctests included, on all cores
	$(RUN) -m pytest -n auto --maxprocesses 8 --dist loadgroup $(ARGS)

test-processors: $(VENV)/.test  ## the kernels' numerics as on the kind of processor that this machine is not
	$(RUN) tests/processors.py $(ARGS)

test-long: override ARGS += --long
test-long: test  ## the long searches as well

check: $(VENV)/.dev  ## only looks: formatting, lint, types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

fix: $(VENV)/.dev  ## what `check` can mend by itself
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: $(VENV)/.bench  ## every timing, in ten minutes on two cores: a line in bench/history, and the report on it
	$(RUN) -m pytest bench -q --benchmark-enable --benchmark-quiet --show-capture=no $(ARGS)
	$(RUN) -m bench report

bench-quick: $(VENV)/.bench  ## some of them, in two minutes
	$(RUN) -m pytest bench -q --benchmark-enable --benchmark-quiet --show-capture=no --quick $(ARGS)

# With the Python that has torch: of .venv, if it is there, else the system's. No network, no git, nothing installed.
gpu:  ## on a CUDA GPU, in ten minutes: the Triton kernels' tests, timings and tuning; DEVICE=cpu tries all of it here
	@$(GPU_PYTHON) -m bench.gpu --device $(DEVICE) --out $(OUT) $(ARGS)

docs: train  ## renew the pictures of the README
	cp runs/digits/samples.png runs/digits/elbo.png docs/

site: $(VENV)/.docs  ## the documentation as a site, in site/: warnings are errors, links are checked
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build site *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("fastvae needs Python 3.11 or newer: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[demo]'
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[demo,test]'
	touch $@

$(VENV)/.bench: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[demo,test,bench]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[demo,test,dev]'
	touch $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[docs]'
	touch $@
