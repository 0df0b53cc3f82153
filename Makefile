# Everything sets itself up: `make demo` and `make test` work on a fresh machine with Python 3.11 or 3.12.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEMO   ?= demo
MODEL  ?= models/pycoder
AXE     = $(VENV)/axe
PROMPT ?= def mean(values):
# Two worker processes of one thread each: the suite is many small tests.
PYTEST  = ALLOTROPE_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

.PHONY: setup native sanitize nightly demo test test-slow test-browser test-gpu check bench peers clean

setup: $(READY) ## the environment, pinned

# torch first and by itself, so that pip takes the exact build that the constraints name.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(MAKE) --no-print-directory native || echo "No native core: a C++20 compiler, CMake and Python's headers are needed. torch's tactics serve."
	touch $(READY)

native: ## the native core, beside the package: what changed since the last time is compiled again
	@mkdir -p build
	@$(BIN)/cmake -S . -B build/native -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DPython_EXECUTABLE=$(abspath $(BIN))/python > build/native.log
	@$(BIN)/cmake --build build/native
	@$(BIN)/cmake --install build/native --prefix . > /dev/null

# What makes the module's own sources work: steps of every form, engines of native calls, calls one by one.
MODULE_TESTS = tests/test_native_joints.py tests/test_native_step.py tests/test_native_repeats.py tests/test_native_executor.py tests/test_eager_reports.py tests/test_native_timing.py

sanitize: setup ## the native core and its Python face under the address, undefined-behaviour and thread sanitizers: minutes
	@$(BIN)/python -c "import sys; from allotrope import native; sys.exit(native.why_not())"
	PYTHONPATH=. $(BIN)/python native/test/cases.py build/cases
	PYTHONPATH=. $(BIN)/python native/test/programs.py build/programs
	@for kind in address,undefined thread; do \
	  echo "sanitizers: $$kind"; \
	  $(BIN)/cmake -S . -B build/sanitize-$$kind -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	    -DPython_EXECUTABLE=$(abspath $(BIN))/python -DALLOTROPE_SANITIZE=$$kind > build/sanitize.log && \
	  $(BIN)/cmake --build build/sanitize-$$kind && \
	  UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1 build/sanitize-$$kind/check build/cases build/programs && \
	  native/test/module.sh build/sanitize-$$kind $(abspath $(BIN))/python $(MODULE_TESTS) || exit 1; \
	done

nightly: test-slow sanitize ## what CI's minutes do not hold; the table beside every peer: bench/cpu_table.py

demo: setup ## build an engine, prove it, hear it speak, time it beside the original, and open the report
	$(BIN)/allotrope doctor --measure
	$(BIN)/allotrope inspect $(MODEL)
	$(BIN)/allotrope build $(MODEL) -o $(DEMO)/engine --tune fast
	$(BIN)/allotrope run $(DEMO)/engine "$(PROMPT)" --max-tokens 64 --temperature 0
	$(BIN)/allotrope verify $(DEMO)/engine
	$(BIN)/allotrope bench $(DEMO)/engine --batch 1 --io 32,16 --against hf --repeat 3
	$(BIN)/allotrope report $(DEMO)/engine -o $(DEMO)/report.html
	@if [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ] || [ "$$(uname)" = Darwin ]; then \
	  $(BIN)/python -m webbrowser "file://$(abspath $(DEMO))/report.html"; \
	fi

test: setup ## the default suite: CPU, no network
	$(PYTEST) -m "not gpu and not slow and not browser" tests

test-slow: setup ## what takes minutes
	$(BIN)/pytest -m "slow and not gpu and not browser" tests

test-browser: setup ## the report in headless Chromium (apt-get install chromium chromium-driver; npm)
	$(BIN)/python -m pip install -q --disable-pip-version-check selenium==4.51.0
	test -f $(AXE)/package/axe.min.js || (mkdir -p $(AXE) && cd $(AXE) && npm pack --silent axe-core@4.14.1 && tar xzf *.tgz)
	$(BIN)/pytest -m browser tests

test-gpu: ## on a machine with a GPU, with that machine's own Python and torch
	$(PYTHON) -m pytest -m gpu tests

check: setup ## before each commit
	$(BIN)/ruff check allotrope tests bench tools
	$(BIN)/ruff format --check allotrope tests bench tools
	$(BIN)/mypy
	$(PYTEST) -x -m "not gpu and not slow and not browser" tests

bench: setup ## loading, first token and decode speed of a real shape, beside the machine's limit
	$(BIN)/python bench/step.py

peers: setup ## the environments of the runtimes that `bench --against` compares with, pinned; one alone: PEERS=llama.cpp
	$(BIN)/python -m allotrope.bench.install $(PEERS)

clean: ## everything that these targets made
	rm -rf $(VENV) $(DEMO) .mypy_cache .ruff_cache .pytest_cache .hypothesis
