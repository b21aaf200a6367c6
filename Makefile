# Every target sets up .venv by itself and leaves it alone when it is already right.
# `make` alone lists the targets. PYTHON=python3.12 picks another interpreter;
# ARGS="..." is handed on to pytest, the demo and the benchmark. `make test TEST_SEED=1`
# draws other random numbers. `make test-next SBI=../sbi` takes the sbi of a folder, or of
# anything else that pip installs.

PYTHON ?= python3
ARGS ?=
SBI ?= git+https://github.com/sbi-dev/sbi

# Small torch operations are many times slower when OpenMP threads compete for the
# cores; tests and benchmarks run in parallel over processes instead.
export OMP_NUM_THREADS = 1

BIN := .venv/bin
STAMP := .venv/.installed
STAMP_OF_DOCS := .venv/.installed-docs
QUIET := -qq

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-gpu test-next check bench reproduce docs \
	clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

install: $(STAMP) ## Set up .venv with the versions of constraints.txt
	@echo "$(BIN) is ready."

# The stamp is written last: without it, .venv is a half-finished install and is made
# anew. torch comes first, by its pin, so that no later step picks another build.
# sbibm pins an old sbi, hence --no-deps; its tasks need only our extra [sbibm].
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "The pinned versions need Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@test -f $@ || $(PYTHON) -m venv --clear .venv
	@echo "Installing torch into .venv (with the next steps, takes a minute or two) ..."
	@$(BIN)/pip install $(QUIET) "$$(grep '^torch==' constraints.txt)"
	@echo "Installing sbi_boed_plugin and what it needs ..."
	@$(BIN)/pip install $(QUIET) -c constraints.txt -e ".[dev,sbibm]"
	@echo "Installing the sbibm benchmark ..."
	@$(BIN)/pip install $(QUIET) -c constraints.txt --no-deps sbibm
	@touch $@

demo: $(STAMP) ## Find the best time to measure an epidemic (writes results/sir)
	$(BIN)/sbi-boed design sir --output results/sir $(ARGS)

test: $(STAMP) ## Run the tests, without the slow ones
	$(BIN)/pytest -n 2 --dist worksteal $(ARGS)

test-slow: $(STAMP) ## Run the slow tests
	$(BIN)/pytest -n 2 --dist worksteal -m slow $(ARGS)

test-gpu: $(STAMP) ## Run the tests that need a GPU, in one process
	$(BIN)/pytest -m gpu $(ARGS)

# That sbi lies in a folder of its own, in front of the one of .venv.
test-next: $(STAMP) ## Run the tests with the main branch of sbi, or SBI=another
	rm -rf .sbi-next
	$(BIN)/pip install $(QUIET) --no-deps --target .sbi-next "$(SBI)"
	PYTHONPATH=$(CURDIR)/.sbi-next $(BIN)/pytest -n 2 --dist worksteal $(ARGS)

check: $(STAMP) ## Lint, check the format and the types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(STAMP) ## Measure the speed of training and design
	$(BIN)/python benchmarks/speed.py $(ARGS)
	$(BIN)/python benchmarks/search_speed.py $(ARGS)
	$(BIN)/python benchmarks/parallel_speed.py $(ARGS)
	$(BIN)/python benchmarks/hybrid_speed.py $(ARGS)

reproduce: $(STAMP) ## Make a table of a paper: NAME=two-moons, ARGS=--list or --quick
	$(BIN)/python -m benchmarks $(NAME) $(ARGS)

$(STAMP_OF_DOCS): $(STAMP)
	@$(BIN)/pip install $(QUIET) -c constraints.txt -e ".[docs]"
	@touch $@

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(STAMP_OF_DOCS) ## Build the site (DOCS_EXECUTE=false does not run tutorials)
	$(BIN)/python -m mkdocs build $(ARGS)

clean: ## Remove .venv, build artefacts and caches (results are kept)
	rm -rf .venv .sbi-next build dist site .cache .pytest_cache .ruff_cache sbi-logs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
