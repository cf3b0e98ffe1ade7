# Everything a user or a reviewer runs. Needs Python >= 3.11 and make; PYTHON=python3.12 picks another one.
# INSTALL=--newest installs the newest versions that pyproject.toml allows instead of those of requirements/.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Spinning worker threads make torch many times slower on a shared machine; waiting passively costs nothing.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: lock compat demo test quick check house format bench bench-training bench-latency bench-solver bench-structure bench-methods models options exports results package coverage docs clean

$(VENV)/.installed: pyproject.toml tools/install.py $(wildcard requirements/lock-*.txt)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m tools.install $(INSTALL)
	touch $@

lock: ## writes the exact versions that are installed, for every Python
	$(PYTHON) -m tools.install --lock

compat: ## the tests on every torch and Python, into docs/compatibility.md; COMPAT=--full runs the slow ones too
	$(PYTHON) -m tools.compat $(COMPAT)

demo: $(VENV)/.installed ## the whole path on a small network: profile, plan, train, shrink, export, measure
	$(BIN)/halpiee demo

# A process of tests for each core that has its memory (tests/conftest.py); a file of tests stays in one process, for what
# its tests share. What times this machine runs alone, behind the rest.
TESTS ?= -n auto --dist loadfile --no-loadscope-reorder
test: $(VENV)/.installed ## the CPU test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not timing" $(TESTS); all=$$?; \
	$(BIN)/python -m pytest -m timing; exit $$((all ? all : $$?))

quick: $(VENV)/.installed ## the tests that take seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not timing" $(TESTS)

check: $(VENV)/.installed ## format, lint and complexity, types, arrows between packages, size of the source
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	MYPYPATH=. $(BIN)/mypy --explicit-package-bases tests
	$(BIN)/lint-imports
	$(BIN)/python -m tools.house --check

house: $(VENV)/.installed ## lines, files, circles of imports, the longest functions, those with most parameters
	$(BIN)/python -m tools.house

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed ## what masking costs a training step, and what shrinking saves
	$(BIN)/python -m tools.bench_training

bench-training: $(VENV)/.installed ## a whole training by IEE to 30 % of the latency against a dense one, a step of each in turn
	$(BIN)/python -m tools.bench_training --trainings

bench-latency: $(VENV)/.installed ## predicted against measured on random shrunk networks; regret; intervals
	$(BIN)/python -m tools.bench_latency
	$(BIN)/python -m tools.bench_latency --regret runs/bench-latency
	$(BIN)/python -m tools.bench_latency --model resnet20 --size 32 --networks 100 --rounds 10 --no-record

bench-solver: $(VENV)/.installed ## exact selection: time and certified gap per network, and linear against joint
	$(BIN)/python -m tools.bench_solver --profile profiles/intel-xeon-avx512-ort-1t/resnet50-224-b1.jsonl profiles/intel-xeon-avx512-ort-1t/mobilenet_v1-224-b1.jsonl profiles/intel-xeon-avx512-ort-1t/mobilenet_v2-224-b1.jsonl

bench-structure: $(VENV)/.installed ## seconds of a trace and of a shrink
	$(BIN)/python -m tools.bench_structure

DATA ?= path/to/cifar10
bench-methods: $(VENV)/.installed ## orders the methods on CIFAR-10, rewinding among them: make bench-methods DATA=folder
	$(BIN)/halpiee study benchmarks/methods.yaml --data $(DATA) --size 16 --seeds 3 --out runs/bench-methods
	$(BIN)/halpiee study benchmarks/rewinding.yaml --data $(DATA) --size 16 --seeds 3 --out runs/bench-rewinding

models: $(VENV)/.installed ## every torchvision network: what is prunable, and that the cut is exact
	$(BIN)/python -m tools.models_table --out docs/models.md

options: $(VENV)/.installed ## docs/options.md: the options of every verb, from the fields that they are read of
	$(BIN)/python -m tools.docs_pages

results: $(VENV)/.installed ## the tables of docs/results.md, from benchmarks/history
	$(BIN)/python -m tools.results

exports: $(VENV)/.installed ## every torchvision classification network, pruned at random, exported and verified
	$(BIN)/python -m tools.models_table --exports --out docs/exports.md

package: $(VENV)/.installed ## builds the wheel and the source archive, and checks what the index will show of them
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*

coverage: $(VENV)/.installed ## the CPU test suite, and the share of lines and branches that it runs
	$(BIN)/python -m pytest --cov --cov-report=term

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

docs: $(VENV)/.docs ## the documentation site, into site/; any warning fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean

clean:
	rm -rf $(VENV) runs dist site .coverage .pytest_cache .mypy_cache .ruff_cache
