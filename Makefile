# Kizu needs Python 3.11 or newer and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test check format lock

help:  ## what can be made
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

install: $(STAMP)  ## make .venv with exactly the versions of requirements.lock

$(STAMP): requirements.lock bootstrap.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Kizu needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r bootstrap.lock
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

demo: $(STAMP)  ## render two products, train, serve on 127.0.0.1:8000, inspect parts (EXIT=1: end after the table)
	$(BIN)/kizu demo $(if $(EXIT),--exit)

# One thread for each process: threads that share cores wait for each other more than they work. In the order of the files:
# xdist would put files with few tests last, and these are the longest.
test: $(STAMP)  ## run the test suite, then say what it covers (ARGS="-n 0 -k name" for one test)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
	  $(if $(ARGS),$(ARGS),--cov --cov-report=)
	$(if $(ARGS),,@echo "lines covered by the tests: $$($(BIN)/coverage report --format=total) %")

check: $(STAMP)  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## put code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# UPGRADE= keeps the versions that are locked and only adds what is missing. The images' locks take the versions of
# requirements.lock. service-cpu.overrides exchanges the GPU build of ONNX Runtime for the small CPU build.
UPGRADE ?= --upgrade
COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
COMPILE_IMAGE := $(COMPILE) --constraint requirements.lock pyproject.toml

lock: $(STAMP)  ## renew requirements.lock, bootstrap.lock and the locks of the images
	echo uv | $(COMPILE) $(UPGRADE) - -o bootstrap.lock
	$(COMPILE) $(UPGRADE) --extra dev pyproject.toml -o requirements.lock
	echo 'hatchling>=1.27' | $(COMPILE) $(UPGRADE) --constraint requirements.lock - -o docker/build.lock
	$(COMPILE_IMAGE) $(UPGRADE) --extra service --override docker/service-cpu.overrides -o docker/service-cpu.lock
	$(COMPILE_IMAGE) $(UPGRADE) --extra service --extra gpu -o docker/service-gpu.lock
	$(COMPILE_IMAGE) $(UPGRADE) --extra service --extra training --extra gpu -o docker/training.lock
