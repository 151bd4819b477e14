# Two commands matter: `make serve` and `make test`. Both create what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8080
DATA ?= data

.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e '.[text]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,text,lora,onnx,traces]'
	$(BIN)/pip install --quiet -c constraints.txt --no-deps torchvision==0.28.0
	@touch $@

install: $(VENV)/.installed ## create .venv with what serving needs

install-dev: $(VENV)/.installed-dev ## the same with what tests, demo and training need

serve: $(VENV)/.installed ## serve the shipped bundles (PORT=8080)
	$(BIN)/ltdi serve --port $(PORT)

test: $(VENV)/.installed-dev ## run all tests
	$(BIN)/pytest

fuzz: $(VENV)/.installed-dev ## hold the running service to its document in 5000 cases and more (FUZZ_OPTIONS='--seed 7')
	$(BIN)/pytest -s -m slow tests/service/test_fuzz.py

demo: $(VENV)/.installed-dev ## by the running service: ten digits that no training saw, then a text task step by step
	$(BIN)/python demo/digits.py
	$(BIN)/python demo/messages.py

bench: $(VENV)/.installed-dev ## time generation against fine-tuning and logistic regression
	$(BIN)/ltdi bench --out results/bench.json
	$(BIN)/ltdi bench --bundle minilm --rounds 15 --out results/bench-minilm.json
	$(BIN)/ltdi bench --bundle minilm-lora --rounds 3 --runs 3 --out results/bench-minilm-lora.json

test-ray: $(VENV)/.installed-dev ## run the tests of Ray Serve, which need the extra `ray`
	$(BIN)/pip install --quiet -c constraints.txt -e '.[ray]'
	$(BIN)/pytest -m "slow or not slow" tests/service/test_ray.py

bench-ray: $(VENV)/.installed-dev ## time a request through Ray Serve against one without
	$(BIN)/pip install --quiet -c constraints.txt -e '.[ray]'
	$(BIN)/python demo/ray_latency.py

evaluate: $(VENV)/.installed-dev ## the tables of the README, from the checkpoints under runs/ (DATA=data)
	$(BIN)/ltdi evaluate --config omniglot --data $(DATA)
	$(BIN)/ltdi evaluate --config minilm --data $(DATA)
	$(BIN)/ltdi evaluate --config any-embedding --data $(DATA)

figures: $(VENV)/.installed-dev ## the paper's figures and tables and docs/evidence.md, anew from what runs/figures keeps (DATA=data)
	$(BIN)/ltdi figure --all --data $(DATA)

openapi: $(VENV)/.installed ## write openapi/openapi.json anew
	$(BIN)/python -m service.openapi

lint: $(VENV)/.installed-dev ## check the style
	$(BIN)/ruff check .

system-deps: ## Debian packages that a bare machine may lack
	apt-get install --yes python3-venv chromium chromium-driver prometheus nginx-light

clean: ## remove the environment and caches
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache demo/out

.PHONY: help install install-dev serve test test-ray fuzz demo bench bench-ray evaluate figures openapi lint system-deps clean
