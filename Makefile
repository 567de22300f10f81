# Two commands: `make demo` and `make test`. Each makes what it needs: a virtual environment, the
# build. PYTHON picks the interpreter the environment is made with.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TORCH  ?= torch==2.13.0
# The interpreter of the environment may be called from a shell that has another on its PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test lint format bench cuda-check cuda-link-check gpu wheel clean build

build: .make/build

demo: .make/build
	pyext demo splat-fit -o out/demo

test: .make/build
	python -m pytest

lint: .make/tools
	ruff check .
	ruff format --check .
	git ls-files -co --exclude-standard 'csrc/*' 'tests/cuda/*' | grep -E '\.(h|cpp|cu|cuh)$$' | xargs clang-format --dry-run --Werror
	mypy

format: .make/tools
	ruff format .
	ruff check --fix .
	git ls-files -co --exclude-standard 'csrc/*' 'tests/cuda/*' | grep -E '\.(h|cpp|cu|cuh)$$' | xargs clang-format -i

bench: .make/build
	pyext bench splat

cuda-check: .make/tools
	python tests/cuda/compile_check.py

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
	python -m pip install --quiet setuptools wheel build cmake ninja pybind11 pytest hypothesis ruff mypy clang-format==23.1.3
	mkdir -p .make && touch $@

.make/build: .make/tools setup.py CMakeLists.txt $(shell find csrc cmake -type f)
	python -m pip install --quiet --no-build-isolation -e '.[dev]'
	touch $@
