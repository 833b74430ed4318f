# Everyday commands. `make demo` and `make test` set up all they need on a machine with only Python >= 3.11.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO := demo_output

# As the command line tells them, unless you have said how: waiting threads must leave the cores to a busy neighbour.
ifeq ($(OMP_WAIT_POLICY)$(GOMP_SPINCOUNT)$(KMP_BLOCKTIME),)
demo test test-all test-avx2: export GOMP_SPINCOUNT := 1000
endif

# One thread for each of two workers: torch's own threads would fight over the cores.
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n 2
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2

.PHONY: demo test test-all test-wheel test-avx2 compat check format dist bench bench-speed clean \
	nano-continue nano-status nano-hand-over nano-gpu-input nano-gpu

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(INSTALLED)

# Fit a head to unimol2-nano, which comes with the package, on the drugs in examples/ (labels computed with RDKit), then predict the same table.
demo: $(INSTALLED)
	$(BIN)/unimol2-hf finetune examples/drugs.csv --targets crippen_logp,tpsa --output-dir $(DEMO)/model
	$(BIN)/unimol2-hf predict $(DEMO)/model examples/drugs.csv --output $(DEMO)/predictions.csv
	@echo "see $(DEMO)/model/parity.png and $(DEMO)/predictions.csv"

test: $(INSTALLED)
	$(PYTEST) -m "not slow"

# Also the tests that kill jobs, load the machine or take minutes: before an issue is closed.
test-all: $(INSTALLED)
	$(PYTEST)

# Wheel and sdist, each in an empty environment; fetches packages from the index.
test-wheel: dist
	$(BIN)/python tests/wheel_trial.py

# The oldest and newest versions of what the package is built on; fetches packages, gigabytes for a newer torch: make compat ONLY=lowest
compat: $(INSTALLED)
	$(BIN)/python tests/compat.py $(ONLY)

# The tests that compare computed numbers, by the kernels that processors without AVX-512 run.
test-avx2: $(INSTALLED)
	$(AVX2) $(PYTEST) -m "numerical and not slow"

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src conversion tests benchmarks recipes

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Offline, by the setuptools of .venv. The wheel is made from the sdist, so neither sees what `build/` holds of earlier times.
dist: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m build --no-isolation

# Needs the benchmark data: make bench DATA=/path/to/data
bench: $(INSTALLED)
	$(BIN)/python benchmarks/featurization/coverage.py --data $(DATA)
	$(BIN)/python benchmarks/finetuning/run.py --data $(DATA) --scale micro --epochs 40

# Needs a quiet machine, and for its comparison PEER=/path/to/python of an environment with unimol_tools 0.1.6.
bench-speed: $(INSTALLED)
	$(BIN)/python benchmarks/speed/inference.py
	$(BIN)/python benchmarks/speed/training.py
	$(BIN)/python benchmarks/speed/growth.py --data $(DATA)
	$(BIN)/python benchmarks/speed/end_to_end.py --data $(DATA)
	$(BIN)/python benchmarks/speed/neighbour.py
	$(BIN)/python benchmarks/speed/gpu.py
	$(BIN)/python benchmarks/speed/exports.py --data $(DATA)
	$(BIN)/python benchmarks/speed/against_unimol_tools.py featurize --data $(DATA) --peer-python $(PEER)
	$(BIN)/python benchmarks/speed/against_unimol_tools.py embed --data $(DATA) --peer-python $(PEER)

# Go on with unimol2-nano's pretraining in the background (recipes/nano/README.md): make nano-continue DATA=/path/to/data
NANO_HOME = $(or $(UNIMOL2_NANO_HOME),$(HOME)/unimol2-nano)/$(shell cut -c1-12 recipes/nano/COMMIT)

nano-continue:
	recipes/nano/continue.sh $(DATA)

nano-status:
	$(NANO_HOME)/clone/.venv/bin/python recipes/nano/background.py status --home $(NANO_HOME)

nano-gpu-input: $(INSTALLED)
	$(BIN)/python recipes/nano/gpu_input.py pack --data $(DATA) --output runs/nano_gpu/input.parquet

# On the machine with the GPU, whose own Python has torch: PYTHON=python3 OUT=/folder/for/the/hand-over
nano-gpu:
	test -d runs/nano_gpu/library || PYTHONPATH=src $(PYTHON) recipes/nano/gpu_input.py unpack runs/nano_gpu/input.parquet --output runs/nano_gpu
	PYTHONPATH=src $(PYTHON) recipes/nano/background.py part --home $(CURDIR)/runs/nano_gpu --output $(OUT)

nano-hand-over: $(INSTALLED)
	$(BIN)/python recipes/nano/background.py hand-over --home $(NANO_HOME) --data $(DATA)

clean:
	rm -rf .venv $(DEMO) runs build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
