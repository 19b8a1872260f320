# Targets build their own .venv; PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
EXPERIMENT ?= quickstart
BUDGET ?= tiny
SEEDS ?= 0
CORPUS ?=
OVERRIDES ?=
RUN ?= runs/$*/$(EXPERIMENT)
GENERATE_voice2face = generate --checkpoint $(RUN)/last.ckpt --held-out --out $(RUN)/portrait.png
GENERATE_lipsync = dub --checkpoint $(RUN)/last.ckpt --held-out --out $(RUN)/dubbed.mp4
GENERATE_dubbing3d = dub --expression $(RUN)-expression/last.ckpt --renderer $(RUN)/last.ckpt --held-out \
	--out $(RUN)/dubbed.mp4 --debug $(RUN)/dubbed.png

.DEFAULT_GOAL := help
.PHONY: help install lint format test test-slow smoke bench

help: ## list the targets
	@grep -hE '^[a-zA-Z0-9_%-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-22s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## make .venv and install the project with the versions of requirements.lock

$(VENV)/.installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@touch $@

lint: install ## ruff (rules and format) and mypy (strict on common)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: install ## let ruff format and mend what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

test: install ## the fast tests; with SPEECHFACE_MEDIA set, those on real media as well
	$(PY) -m pytest -n auto --dist loadfile --max-worker-restart 0

test-slow: install ## the minutes-long tests
	$(PY) -m pytest -m slow

smoke: install ## train, resume, evaluate and generate for two steps on tiny data
	$(PY) -m pytest tests/test_smoke.py tests/test_configs.py

bench: install ## speed of each part beside its reference or floor, in one run
	$(PY) -m benchmarks

train-%: install ## train experiments/<package>/$(EXPERIMENT).yaml, evaluate it and generate (train-voice2face)
	$(PY) -m $* train experiments/$*/$(EXPERIMENT).yaml $(OVERRIDES) --resume
	$(PY) -m $* evaluate --checkpoint $(RUN)/last.ckpt
	$(PY) -m $* $(GENERATE_$*)

evaluate-%: install ## evaluate RUN=runs/<package>/<name> (evaluate-voice2face)
	$(PY) -m $* evaluate --checkpoint $(RUN)/last.ckpt

table-%: install ## train or reuse every row of the papers' tables with BUDGET=tiny|full SEEDS CORPUS (table-voice2face)
	$(PY) -m $* table --budget $(BUDGET) --seeds "$(SEEDS)" --corpus "$(CORPUS)"
