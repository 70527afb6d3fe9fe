PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help demo train sweep test lint bench clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@echo "vae_exp: variational autoencoders, from one command to a W&B run worth comparing"; echo
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1 \t/' | expand -t 16
	@echo; echo "  e.g. make train ARGS=\"model=beta model.beta=4 dataset=fashion_mnist\""

# Everything is installed once, and again only when pyproject.toml has changed.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' \
		|| { echo "vae_exp needs Python 3.10 to 3.14: make PYTHON=/path/to/python3.13 ..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' \
		|| { echo "$(PYTHON) has no venv module (Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@echo "Setting up $(VENV): about 3 minutes and 5.5 GB, once."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

demo: $(VENV)/.installed  ## train on bundled 8x8 digits: no account, no download, under a minute
	$(BIN)/vae-train experiment=demo $(ARGS)

train: $(VENV)/.installed  ## train a vanilla VAE on MNIST (downloaded once); more with ARGS="..."
	$(BIN)/vae-train $(ARGS)

sweep: $(VENV)/.installed  ## 24 runs over z_dim, learning rate and seed on the bundled digits, half a minute
	$(BIN)/vae-train experiment=sweep_z_lr wandb.mode=offline $(ARGS)

test: $(VENV)/.installed  ## run the tests, but for the slow ones: those are ARGS="-m slow"
	$(BIN)/python -m pytest -n 3 -m "not slow" $(ARGS)

lint: $(VENV)/.installed  ## check format and style with ruff, types with mypy
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

bench: $(VENV)/.installed  ## epochs, start-up and memory against the tutorial's own loop, 5 minutes; or ARGS=--sweep
	$(BIN)/python -m tests.bench $(ARGS)

clean:  ## remove the environment and caches; outputs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache dist build && find vae_exp tests -name __pycache__ -prune -exec rm -rf {} +
