# What a person runs here. Each target does its own set-up; `make setup` does only that.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

# importing jax without cached bytecode takes three times as long
unexport PYTHONDONTWRITEBYTECODE

# a uv on PATH serves when it runs; otherwise one is installed into .uv/
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)
BIN := .venv/bin
DEMO := runs/demo
# a worker that crashes ends the run: files that wait for its successor would wait forever
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --max-worker-restart=0

# the published data sets, where a folder of them lies beside the clone
ifeq ($(MOEJAX_DATA),)
ifneq ($(wildcard ../shared/data/.),)
export MOEJAX_DATA := $(abspath ../shared/data)
endif
endif

.PHONY: help setup lint format test device demo clean

help:
	@echo 'make setup   install everything into .venv/ (and uv into .uv/ when it is missing)'
	@echo 'make demo    train, evaluate, lower, check and report one model into runs/demo'
	@echo 'make test    run all tests'
	@echo 'make device  run all programs on a card or the simulator; writes docs/device_parity.md'
	@echo 'make lint    check format, lint and types'
	@echo 'make format  format the code'
	@echo 'make clean   remove what these commands made, except runs/'

setup: .venv/.synced

.venv/.synced: pyproject.toml uv.lock .python-version | $(filter .uv/%,$(UV))
	$(UV) sync --locked
	@touch $@

# made from outside this folder, where pyenv does not insist on the version in .python-version
.uv/bin/uv:
	cd / && python3 -m venv '$(CURDIR)/.uv'
	.uv/bin/pip install --quiet --disable-pip-version-check uv

lint: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright

format: setup
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# what one model goes through: real data (or the embedded set, saying so) to a ttnn program
demo: setup
	$(BIN)/moejax train mole_etth1 --workdir $(DEMO)
	$(BIN)/moejax eval $(DEMO) --plots
	$(BIN)/moejax lower $(DEMO) --out $(DEMO)/program --arch wormhole_b0 --check mock
	$(BIN)/moejax lower $(DEMO) --out $(DEMO)/program-float32 --policy float32 --check mock
	$(BIN)/moejax lower $(DEMO) --out $(DEMO)/program-bfloat8_b --policy bfloat8_b --check mock
	$(BIN)/moejax parity $(DEMO)/program --bisect
	$(BIN)/moejax report $(DEMO)
	@echo
	@echo 'Everything is in $(DEMO)/. Open $(DEMO)/report.html in a browser; the same numbers are in'
	@echo '$(DEMO)/report.json. The generated ttnn code: $(DEMO)/program/model.py'

test: setup
	$(PYTEST) $(ARGS)

# ttnn's own numbers: needs a card or the simulator (docs/device.md)
device: setup
	$(PYTEST) tests/device -m device --device required \
	    --device-table docs/device_parity.md $(ARGS)

clean:
	rm -rf .uv .venv .pytest_cache .ruff_cache .hypothesis dist *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
