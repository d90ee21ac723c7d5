# Every target works from a fresh clone with Python 3.11+, make and whatever
# package index pip is configured for: launch/venv.sh makes the environment.
#
#   make demo ARGS="--photos DIR"      options for the program that is run
#   make test ARGS="-k ransac -x"
#   make test ARGS="-m ''"             the slow ones too, as .ci/run does
#   make test WORKERS=0                in one process, for a debugger
#   make test PYTHON=python3.12        another interpreter
#   make test VENV=/tmp/other          another place for the environment

VENV ?= .venv
ARGS ?=
WORKERS ?= 2
export VENV
PY = "$(VENV)/bin/python"

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench venv constraints

help:  ## say what can be made
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile

demo: venv  ## the whole system on made-up landmarks, with a report to look at
	@$(PY) -m delf_jax.demo $(ARGS)

test:  ## the tests
	@sh launch/venv.sh torch
	@$(PY) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: venv  ## the formatter and the linter, changing nothing
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .

bench:  ## timings beside the peers, one script after the other
	@sh launch/venv.sh bench
	@set -e; for script in tests/benchmarks/*.py; do \
	  echo "== $$script"; $(PY) "$$script" $(ARGS); done

venv:  ## the environment alone
	@sh launch/venv.sh

constraints:  ## pin the dependencies anew (needs uv; ARGS=--upgrade: newest)
	@sh launch/constraints.sh $(ARGS)
