# Every target makes what it needs: a venv in .venv, pinned dependencies, the compiled extension.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HF_HUB_DISABLE_PROGRESS_BARS := 1

CXX_SOURCES := $(wildcard $(foreach depth,* */*,csrc/$(depth)/*.cpp csrc/$(depth)/*.h csrc/$(depth)/*.cu))

.PHONY: install wheel wheel-check docs sbom figures demo study-quick test test-all test-assets sanitize cuda-build triton-build gpu-check lint format bench testbed testbed-check clean help

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

# What an earlier build left in build/lib would go into the wheel as well.
wheel: $(VENV)/.torch  ## build the wheels of tarq and of its testbed into dist/
	@rm -rf build/lib* build/bdist* testbed/build dist && mkdir -p dist build
	$(BIN)/python -m pip wheel -v --no-build-isolation --no-deps -w dist . >build/wheel.log 2>&1 || { cat build/wheel.log; exit 1; }
	$(BIN)/python -m pip wheel -q --no-build-isolation --no-deps -w dist ./testbed
	@ls -l dist

wheel-check: install wheel  ## install the wheels in a fresh venv without a compiler, run tarq demo there
	TARQ_WHEELS=dist $(BIN)/python -P -m pytest -q tests/packaging/test_wheel.py

$(VENV)/.docs: $(VENV)/.torch constraints.txt
	@$(BIN)/python -m pip install -q mkdocs-material "mkdocstrings[python]"
	@touch $@

# The site mirrors the repository, so that a link works in both: what pages refer to is linked into one folder.
SITE := README.md CHANGELOG.md CONTRIBUTING.md LICENSE CITATION.cff docs benchmarks examples kernels tarq
docs: $(VENV)/.docs  ## build the site into build/site; a broken link fails
	@rm -rf build/site build/site-source && mkdir -p build/site-source && ln -s $(abspath $(SITE)) build/site-source
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -q --strict

build/release/.tools: constraints.txt
	$(PYTHON) -m venv build/release/venv
	build/release/venv/bin/python -m pip install -q cyclonedx-bom pip-tools
	@touch $@

sbom: install build/release/.tools  ## write the bill of materials, requirements with hashes, docs/licences.md
	@$(BIN)/python release/sbom.py build/release/venv/bin/python

figures: install  ## draw README's figure again from the kept results
	@$(BIN)/python -m benchmarks.study.figure

demo: install  ## quantize the packaged model three ways, save, reload, transcribe and score
	@$(BIN)/tarq demo

# Two processes of one thread each. What an earlier run has measured is kept; `make clean` forgets it.
study-quick: install  ## four methods on Whisper tiny.en (TARQ_MODELS, TARQ_SPEECH) or the testbed, then a report (ten minutes)
	@$(BIN)/python -m benchmarks.study run benchmarks/study/quick.yaml --out build/study/quick.json --workers 2
	@$(BIN)/tarq report build/study/quick.json --out build/study/quick

testbed: install  ## rebuild the packaged model and speech from nothing (espeak-ng; about two hours)
	$(BIN)/python benchmarks/testbed/build.py all

testbed-check: install  ## make ten packaged clips again and compare them
	@$(BIN)/python benchmarks/testbed/build.py check

# Two workers of one thread each (tests/conftest.py) take half as long as one of two: most tests are small.
PYTEST := $(BIN)/python -P -m pytest -n 2 --dist loadfile
test: install  ## run the tests that are enough to trust a change (under five minutes on two cores)
	$(PYTEST) -m "not slow"

# How long it takes does not depend on what lies beside the clone.
test-all: install  ## run every test but test-assets: also interpreter sweeps, compilations, torchrun, memory, contracts
	$(PYTEST) -m "not (assets and slow)" --durations=25

test-assets: install  ## run the tests on real models and speech, where they lie beside the clone (TARQ_MODELS)
	$(PYTEST) -m assets --durations=25

# A copy of the package beside the installed one: its extension is built with the sanitizers, which must be loaded first.
KERNEL_TESTS := $(addprefix tests/kernels/,test_gram.py test_group_quantize.py test_group_refine.py test_w4_linear.py test_w4_linear_int8.py)
sanitize: install  ## run the kernels' tests on an extension built with ASan and UBSan
	TARQ_SANITIZE=1 $(BIN)/python setup.py -q build --build-base build/sanitize --build-lib build/sanitize/lib
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	  PYTHONPATH=build/sanitize/lib $(BIN)/python -P -m pytest -p no:cacheprovider $(KERNEL_TESTS)

# The newest of the index, not a local CPU build: 2.2 GB, once. Its tests need no GPU.
CUDA_BIN := build/cuda/venv/bin
CUDA_ARCHITECTURES ?= 9.0
build/cuda/.torch: constraints.txt
	$(PYTHON) -m venv build/cuda/venv
	PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= \
	  $(CUDA_BIN)/python -m pip install -q torch numpy "setuptools>=77" wheel ninja pybind11 pytest
	@touch $@

cuda-build: build/cuda/.torch  ## build the extension against torch for CUDA and see that it links and imports (nvcc, no GPU)
	TARQ_CUDA=1 TORCH_CUDA_ARCH_LIST="$(CUDA_ARCHITECTURES)" \
	  $(CUDA_BIN)/python setup.py -q build --build-base build/cuda --build-lib build/cuda/lib >build/cuda/build.log 2>&1 \
	  || { cat build/cuda/build.log; exit 1; }
	PYTHONPATH=build/cuda/lib TARQ_TEST_PACKAGE=build/cuda/lib \
	  $(CUDA_BIN)/python -P -m pytest --noconftest -p no:cacheprovider tests/kernels/test_cuda_extension.py

# A kernel found in a cache would be reported on by no ptxas.
triton-build: install  ## compile every Triton kernel that a call can ask for, for four architectures (40 minutes)
	@export TRITON_DUMP_PTXAS_LOG=1; printf '%s\n' sm_80 sm_90 sm_100 sm_120 | xargs -P 2 -I {} sh -c \
	  'TRITON_CACHE_DIR=$$(mktemp -d) && export TRITON_CACHE_DIR && $(BIN)/python -P tests/kernels/test_triton_build.py {} every; \
	  status=$$?; rm -rf "$$TRITON_CACHE_DIR"; exit $$status'

# Whatever Python has torch is used as it is; only where PYTHON has none is the venv made.
gpu-check:  ## on a machine with an NVIDIA GPU: build, test and benchmark for it (STAGES, RESULTS; PYTHON=… with torch)
	@if $(PYTHON) -c "import torch" 2>/dev/null; then python=$(PYTHON); else $(MAKE) install && python=$(BIN)/python; fi; \
	  $$python benchmarks/gpu_check.py $(STAGES) --results $(or $(RESULTS),benchmarks/results)

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

bench: install  ## time the three operations against their peers, on 1 and 2 threads
	$(BIN)/tarq bench --threads 1 --threads 2 --json build/bench.json --plot build/bench.png

clean:  ## remove what the build made
	rm -rf build dist *.egg-info tarq/_C*.so $(VENV)/.installed .pytest_cache .mypy_cache .ruff_cache .hypothesis
