# Each of demo, test and check does all set-up that it needs on a bare Debian machine with Python 3.10 or newer.
# Packages are installed again only when requirements.lock changes; the library itself when pyproject.toml changes.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export MUJOCO_GL ?= egl
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUNBUFFERED := 1

# What MuJoCo needs to render without a display, and what Debian splits off its Python.
LIBRARIES := libegl1 libgl1-mesa-dri
HAS_LIBRARIES = [ -z "$(LIBRARIES)" ] || if command -v dpkg-query >/dev/null; \
  then found=$$(dpkg-query -W -f '$${db:Status-Abbrev}\n' $(LIBRARIES) 2>/dev/null) && ! grep -qv '^ii' <<<"$$found"; \
  else PATH="$$PATH:/usr/sbin:/sbin" ldconfig -p | grep -q 'libEGL\.so\.1 '; fi
HAS_VENV := $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null

.PHONY: help demo test test-benchmark test-libero test-report test-simpler check setup system

help: ## Shows this list.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

demo: setup ## Quantizes the reference policy, drives the simulated arm with it and writes runs/demo/.
	$(BIN)/python scripts/demo.py

test: setup ## Runs every test.
	$(BIN)/python -m pytest

test-benchmark: setup .venv/benchmark ## Runs the tests of `daptq benchmark` with the runtimes of the extra `benchmark`.
	$(BIN)/python -m pytest -m benchmark tests/benchmark

test-libero: system .venv-libero/installed ## Runs the tests of LIBERO, whose pins need an environment of their own.
	.venv-libero/bin/python -m pytest -m libero tests/libero

test-report: BROWSER := chromium
test-report: setup ## Looks at a report in a headless browser: on a phone, in the dark, without colour vision.
	$(BIN)/python -m pytest -m report tests/report

test-simpler: LIBRARIES += libvulkan1
test-simpler: system .venv-simpler/installed ## Runs the tests of SimplerEnv's tasks; see docs/reference/simpler.md.
	.venv-simpler/bin/python -m pytest -m simpler tests/simpler

check: setup ## Lints, checks formatting, types and layers.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

setup: system .venv/installed ## Makes .venv and installs everything.

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: Python must be 3.10 or newer, got $$($(PYTHON) -V). Set PYTHON=/path/to/python3.11." >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/packages: requirements.lock | .venv/bin/python
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	@touch $@

.venv/installed: .venv/packages pyproject.toml
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv/benchmark: .venv/packages pyproject.toml
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --no-build-isolation --editable '.[benchmark]'
	@touch $@

# What conflicts with LIBERO's pins is left out of the constraints; the extra names the versions instead.
.venv-libero/installed: requirements.lock pyproject.toml
	@[ -x .venv-libero/bin/python ] || $(PYTHON) -m venv .venv-libero
	grep -v -E '^(mujoco|cloudpickle|pillow)' requirements.lock >.venv-libero/constraints
	.venv-libero/bin/python -m pip install --quiet --constraint .venv-libero/constraints --editable '.[dev,libero]'
	@touch $@

# Without a GPU, SAPIEN draws with SwiftShader, which goes into the user's cache.
.venv-simpler/installed: requirements.lock pyproject.toml
	@[ -x .venv-simpler/bin/python ] || $(PYTHON) -m venv .venv-simpler
	.venv-simpler/bin/python -m pip install --quiet --constraint requirements.lock --editable '.[dev,simpler]'
	command -v nvidia-smi >/dev/null || .venv-simpler/bin/daptq install simpler-driver
	@touch $@

system:
	@wanted=""; \
	{ $(HAS_LIBRARIES); } || wanted="$(LIBRARIES)"; \
	[ -x .venv/bin/python ] || $(HAS_VENV) || wanted="$$wanted python3-venv"; \
	[ -z "$(BROWSER)" ] || command -v $(BROWSER) >/dev/null || wanted="$$wanted $(BROWSER) fonts-dejavu-core"; \
	if [ -z "$$wanted" ]; then exit 0; fi; \
	as_root=""; if [ "$$(id -u)" -ne 0 ]; then as_root="sudo"; fi; \
	if ! command -v apt-get >/dev/null || { [ -n "$$as_root" ] && ! command -v sudo >/dev/null; }; then \
	  echo "error: system packages must be installed by an administrator, got no right to do so for: $$wanted." \
	    "Debian: apt-get install $$wanted. If EGL comes from elsewhere: make LIBRARIES= ..." >&2; exit 2; \
	fi; \
	echo "installing system packages: $$wanted"; \
	$$as_root apt-get update -qq; \
	$$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$wanted >/dev/null
