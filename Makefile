# Every target makes what it needs: a venv in .venv, pinned dependencies, the compiled extension.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HF_HUB_DISABLE_PROGRESS_BARS := 1

CXX_SOURCES := $(wildcard csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu)

.PHONY: install demo test lint format bench clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed  ## make the venv and build the extension

$(VENV)/.torch: constraints.txt
	@command -v c++ >/dev/null || { echo "a C++ compiler is needed: apt install g++"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python3-venv is needed: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install -q torch numpy "setuptools>=77" wheel ninja pybind11
	@touch $@

$(VENV)/.installed: $(VENV)/.torch setup.py pyproject.toml constraints.txt $(CXX_SOURCES)
	@mkdir -p build
	@echo "installing tarq and its dependencies"
	@$(BIN)/python -m pip install -v --no-build-isolation -e ".[dev]" >build/install.log 2>&1 || { cat build/install.log; exit 1; }
	@grep -ho 'tarq: .* left out.*' build/install.log | sort -u || true
	@touch $@

# A real Whisper body and speech, where they lie beside the repository.
ASSETS ?= ../shared/assets
DEMO_MODEL ?= $(ASSETS)/whisper-tiny-relearned
DEMO_CALIBRATION ?= $(ASSETS)/speech/librispeech_train/manifest.jsonl
DEMO_DATA ?= $(ASSETS)/speech/lj/manifest.jsonl
# Its recognizer has seen most of these transcripts in training; score the others.
DEMO_OPTIONS ?= --where in_training=false

demo: install  ## quantize, save, reload, transcribe and score
	@test -d $(DEMO_MODEL) || { echo "no model at $(DEMO_MODEL): make demo DEMO_MODEL=… DEMO_CALIBRATION=… DEMO_DATA=…"; exit 1; }
	$(BIN)/tarq demo $(DEMO_MODEL) --calibration $(DEMO_CALIBRATION) --data $(DEMO_DATA) $(DEMO_OPTIONS)

test: install  ## run the test-suite
	$(BIN)/python -P -m pytest

lint: install  ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	@rm -rf build/typing && TARQ_SKIP_EXTENSION=1 $(BIN)/python setup.py -q build_py --build-lib build/typing >/dev/null
	$(BIN)/mypy --config-file pyproject.toml build/typing/tarq

format: install  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix -q .
	$(BIN)/ruff format -q .
	$(BIN)/clang-format -i $(CXX_SOURCES)

bench: install  ## time group_quantize and w4_linear against their peers
	$(BIN)/python -P benchmarks/bench_group_quantize.py
	$(BIN)/python -P benchmarks/bench_w4_linear.py

clean:  ## remove what the build made
	rm -rf build dist *.egg-info tarq/_C*.so $(VENV)/.installed .pytest_cache .mypy_cache .ruff_cache .hypothesis
