# Two commands: `make demo` and `make test`. Each makes what it needs: a virtual environment, the
# build. PYTHON picks the interpreter the environment is made with.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TORCH  ?= torch==2.13.0
# The interpreter of the environment may be called from a shell that has another on its PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)

CXX_SOURCES = git ls-files -co --exclude-standard 'csrc/*' 'tests/cuda/*' | grep -E '\.(h|cpp|cu|cuh)$$'

.PHONY: build demo test lint format bench cuda-check cuda-link-check gpu wheel clean

build: .make/build

demo: .make/build
	pyext demo splat-fit -o out/demo

test: .make/build
	python -m pytest

lint: .make/build
	ruff check .
	ruff format --check .
	$(CXX_SOURCES) | xargs clang-format --dry-run --Werror
	mypy

format: .make/tools
	ruff format .
	ruff check --fix .
	$(CXX_SOURCES) | xargs clang-format -i

bench: .make/build
	pyext bench -o out/bench

# The CUDA sources through nvcc, where there is one: warnings, registers, spills. No GPU needed.
cuda-check: .make/tools
	python tests/cuda/compile_check.py

# The whole extension against a CUDA build of torch (gigabytes from the package index). No GPU
# needed.
cuda-link-check: .make/tools
	python tests/cuda/link_check.py

# On a machine with a GPU. Uses PYTHON and its torch as they are and installs nothing else there.
gpu:
	PYEXT_CUDA=on $(PYTHON) -m pip install --no-index --no-deps --no-build-isolation -e .
	$(PYTHON) tests/cuda/gpu_run.py

wheel: .make/tools
	python -m build --no-isolation --wheel

clean:
	rm -rf build dist out .make pyext/_C*.so

# The environment with everything a developer and CI need; torch first, pinned, so that nothing
# pulls in another build of it.
.make/tools: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --upgrade pip
	python -m pip install --quiet '$(TORCH)' numpy
	python -m pip install --quiet --group dev
	mkdir -p .make && touch $@

.make/build: .make/tools plugins/pyproject.toml setup.py CMakeLists.txt $(shell find csrc cmake -type f)
	python -m pip install --quiet --no-build-isolation -e '.[bench]' -e 'plugins[all]'
	touch $@
