# make install | demo | test | test-slow | lint | format: each sets up .venv first, once.
# PYTHON=python3.12 chooses the interpreter; MELODIA_NATIVE=0 leaves the native library out (see setup.py).
# JOBS=1 runs the tests in one process; otherwise there is one for each core.
PYTHON ?= python3
JOBS ?= auto
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.melodia-installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
SOURCES := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu)
PROBES := $(wildcard benchmarks/*.cu)
PYTEST := $(BIN)/python -m pytest --numprocesses $(JOBS) --maxprocesses 8 --dist worksteal

.PHONY: install demo test test-slow lint format clean

# The model that comes with melodia continues a piece: MIDI, picture and sound.
demo: $(STAMP)
	mkdir -p out
	$(BIN)/melodia generate --seed midi_samples/petzold_minuet_g_major.mid --seed-bars 8 --bars 16 --random-seed 7 \
	    --out out/demo.mid --plot --audio --force

install: $(STAMP)

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-slow: $(STAMP)
	$(PYTEST) -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES) $(PROBES)

format: $(STAMP)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES) $(PROBES)

# torch comes first, so that the native library is compiled against the torch that runs it.
$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard build_support/*.py) $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) setuptools wheel ninja pybind11
	$(PIP) --no-build-isolation -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf build dist *.egg-info melodia/*/*.so melodia/kernels/native_build.json
