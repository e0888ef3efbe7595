# make help lists the targets. Each does all of its own set-up in .venv; TORCH=cuda and PYTHON=... are passed on.
.DEFAULT_GOAL := help
TORCH ?= cpu
PYTHON ?=
export TORCH PYTHON

BIN := .venv/bin
TEST_EXTRAS := test,train,benchmark,slicer
PYTEST_ARGS ?=
JOBS ?= 2

.PHONY: help demo test check lint format benchmark-smoke icon clean set-up set-up-tests

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: set-up ## simulate a patient, register, carry the labels over; writes demo/ (an earlier one is replaced)
	@$(BIN)/weaktumour demo --out demo

test: set-up-tests ## run the tests, two at a time (PYTEST_ARGS="-k volumes" for some of them; JOBS=1 one by one)
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadscope $(PYTEST_ARGS)

check: lint ## lint, and compare WeakTumourSeg/CMakeLists.txt with the files there are
	@$(BIN)/python Testing/check_cmake_lists.py

lint: set-up-tests ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: set-up-tests ## let ruff mend what it can, and rewrite the list in WeakTumourSeg/CMakeLists.txt
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/python Testing/check_cmake_lists.py --fix

benchmark-smoke: set-up-tests ## run each benchmark script on its smallest case (needs the real data, see CONTRIBUTING.md)
	@rm -rf build/benchmark-smoke && mkdir -p build/benchmark-smoke
	@export OMP_NUM_THREADS=1 ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS=1; \
	{ grep -l __main__ Testing/benchmark/*.py | sed 's/$$/ --smoke/'; \
	  echo "-m weaktumour.cli benchmark --cases 1 --methods affine --out build/benchmark-smoke/benchmark"; } | \
	xargs -P $(JOBS) -I COMMAND sh -c 'log=$$(mktemp); $(BIN)/python COMMAND >$$log 2>&1; code=$$?; \
		echo "== COMMAND"; tail -n 40 $$log; rm -f $$log; exit $$code'

icon: set-up-tests ## draw WeakTumourSeg.png again, for the extension and for the module
	@$(BIN)/python Resources/make_icon.py
	@cp WeakTumourSeg.png WeakTumourSeg/Resources/Icons/WeakTumourSeg.png

clean: ## remove .venv, demo/ and what tools leave behind
	@rm -rf .venv demo build dist WeakTumourSeg/*.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

set-up:
	@sh set_up.sh

set-up-tests:
	@sh set_up.sh $(TEST_EXTRAS)
