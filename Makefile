# The one list of commands, for people and for .ci/run alike. PYTHON names the interpreter that .venv is made with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
JOBS := $(shell nproc 2>/dev/null || echo 1)

INSTALLED := $(VENV)/installed
BUILT := $(VENV)/built
TEST_TOOLS := $(VENV)/test-tools
FUZZ_TOOLS := $(VENV)/fuzz-tools
BENCH_TOOLS := $(VENV)/bench-tools
SOURCES := setup.py pyproject.toml $(shell find ctcore datapath offload -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi')

DEMO := pcap_tests/captures/demo.pcap
ASAN := build/asan
ASAN_TESTS ?= pcap_tests/test_ctcore pcap_tests/test_datapath
FUZZ_SECONDS ?= 60
SECONDS ?= 60
ASAN_FUZZ_SECONDS ?= 20
# Everything takes many times longer there, so that properties are tried with fewer examples; ASAN_SHARE=1 tries all.
ASAN_SHARE ?= 0.1
# What the fuzzers give is a small object of Python's, whose end only malloc guards; what tests give lies in arrays.
FUZZ_ENV := PYTHONMALLOC=malloc
ASAN_ENV := CTMIRROR_SHARE=$(ASAN_SHARE) CTMIRROR_PAIRS=5000 PYTHONPATH=. \
    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:malloc_context_size=4

.PHONY: help build demo test test-vm lint bench fuzz fuzz-kernel asan docs wheel clean

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS='	' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

build: $(BUILT)  ## make .venv and build everything into the source tree

demo: $(BUILT)  ## replay the bundled capture and print what conntrack says of it
	$(BIN)/ctmirror replay $(DEMO)

test: $(BUILT) $(TEST_TOOLS) lint  ## run ruff, mypy and all tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-vm: $(BUILT) $(TEST_TOOLS)  ## run the tests of pcap_tests/vm under Debian's stock kernel in QEMU, which it fetches by apt; needs root
	$(BIN)/python -m pcap_tests.vm.suite build/vm $(PYTEST_ARGS)

lint: $(TEST_TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(BUILT) $(BENCH_TOOLS)  ## measure the engine against the limit of this machine
	$(BIN)/ctmirror bench engine --flows 1000,100000,1000000

fuzz: $(BUILT) $(TEST_TOOLS) $(FUZZ_TOOLS)  ## run each coverage-guided fuzzer for FUZZ_SECONDS
	set -e; for fuzzer in pcap_tests/fuzz/fuzz_*.py; do \
	    echo "$$fuzzer"; $(BIN)/python $$fuzzer -max_total_time=$(FUZZ_SECONDS); done

fuzz-kernel: $(BUILT)  ## compare the engine with the running kernel on random traffic for SECONDS, by SEED or a new one, PLAN=nat: with translation and helpers; needs root
	$(BIN)/python -m pcap_tests.fuzz_kernel --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(if $(PLAN),--plan $(PLAN))

# libcrypt: the sanitizer guards its functions, and calls nothing where a library that loads it comes later (an FTP server, in tests).
asan: $(BUILT) $(TEST_TOOLS) $(FUZZ_TOOLS)  ## run the tests of the compiled code and the fuzzers under AddressSanitizer, in a tree of its own
	mkdir -p $(ASAN)
	cp -Rp setup.py pyproject.toml README.md bench ctcore datapath offload pcap_tests docs deploy examples $(ASAN)/
	find $(ASAN) -path $(ASAN)/build -prune -o -name '*.so' -exec rm {} +
	cd $(ASAN) && CTMIRROR_DEBUG=asan $(CURDIR)/$(BIN)/python setup.py --quiet build_ext --inplace -j $(JOBS)
	cd $(ASAN) && LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so) libcrypt.so.1" \
	    $(ASAN_ENV) $(CURDIR)/$(BIN)/python -m pytest -p no:cacheprovider $(ASAN_TESTS)
	cd $(ASAN) && set -e; preload=$$($(CURDIR)/$(BIN)/python -c 'import atheris; print(atheris.path())')/asan_with_fuzzer.so; \
	    for fuzzer in pcap_tests/fuzz/fuzz_*.py; do \
	    echo "$$fuzzer"; LD_PRELOAD=$$preload $(ASAN_ENV) $(FUZZ_ENV) $(CURDIR)/$(BIN)/python $$fuzzer -max_total_time=$(ASAN_FUZZ_SECONDS); done

docs: $(BUILT)  ## write what of the documentation is made from the code
	$(BIN)/python docs/generate.py

wheel: $(BUILT)  ## build a wheel into dist/
	$(PIP) wheel --no-deps --wheel-dir dist .

clean:  ## remove everything that was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find ctcore datapath offload \( -name '*.so' -o -name '*.c' \) -exec rm {} +
	find . -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"$(PYTHON) is Python {sys.version.split()[0]}: 3.11 or later is needed; name one with make PYTHON=...")'
	@$(PYTHON) -c 'import os, sys, sysconfig; h = os.path.join(sysconfig.get_paths()["include"], "Python.h"); sys.exit(0 if os.path.exists(h) else f"{h} is missing: install the headers of Python (python3-dev on Debian and Ubuntu)")'
	@echo "making .venv with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

# The first build is pip's, which also installs the command; later ones compile only what has changed.
# compat: a path on sys.path and no import hook, which would take a fifth of the start.
$(BUILT): $(SOURCES) | $(BIN)/python
	@if [ ! -e $(INSTALLED) ] || [ pyproject.toml -nt $(INSTALLED) ]; then \
	    set -e; echo "fetching what the build needs: setuptools, Cython, NumPy"; \
	    $(call install,d["build-system"]["requires"]); \
	    echo "compiling ctmirror and fetching what it needs (one to ten minutes, once)"; \
	    $(PIP) install --no-build-isolation --config-settings editable_mode=compat --editable .; touch $(INSTALLED); \
	else echo "building what has changed"; $(BIN)/python setup.py --quiet build_ext --inplace -j $(JOBS); fi
	@$(BIN)/python -m compileall -q ctcore datapath offload  # as pip does for what it copies: a start without takes a fifth longer
	@touch $@

$(TEST_TOOLS): pyproject.toml | $(BUILT)
	@echo "installing what the tests need"
	@$(call install,d["project"]["optional-dependencies"]["test"])
	@touch $@

$(BENCH_TOOLS): pyproject.toml | $(BUILT)
	@$(call install,d["project"]["optional-dependencies"]["bench"])
	@touch $@

$(FUZZ_TOOLS): pyproject.toml | $(BUILT)
	@$(call install,d["project"]["optional-dependencies"]["fuzz"])
	@touch $@

# Installs a list of requirements of pyproject.toml, of which there shall be no second copy.
install = $(BIN)/python -c 'import tomllib; d = tomllib.load(open("pyproject.toml", "rb")); print(*$(1), sep="\n")' | $(PIP) install -r /dev/stdin
