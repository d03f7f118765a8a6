## sweep: which cloud setup can really fine-tune these models, and what does it cost?
##
# `make` prints what stands behind the double hashes of this file.

# Set with `:=`, so that only the command line changes them: an OUT in the environment is not ours.
SPEC := catalogs/sweeps/deepseek-r1-one-day.toml
NAME := $(shell basename '$(SPEC)' .toml)
OUT  := outputs/$(NAME)
FLAGS :=
PYTHON :=

.DEFAULT_GOAL := help
.SUFFIXES:
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
# The code that runs is that of this folder, whatever the caller's shell puts first.
unexport PYTHONPATH PYTHONHOME

.PHONY: help
help:
	@awk -F ':[^#]*## ' '/^## ?/ { sub(/^## ?/, ""); print; next } \
	    /^[a-z][^ :]*:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

# Setting up ---------------------------------------------------------------------------------------

# The first Python that is new enough: the one named on the command line, or one of the usual names.
define find_python
for python in $(if $(PYTHON),'$(PYTHON)',python3 python3.13 python3.12 python3.11); do \
    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
        && echo "$$python" && exit; \
done; \
found="$$('$(or $(PYTHON),python3)' --version 2>&1)" || found="not found"; \
echo "Python 3.11 or newer is needed, '$(or $(PYTHON),python3)' is: $$found" >&2; \
echo "Install one, or name one you have: make install PYTHON=path/to/python3.12" >&2; \
exit 1
endef
NO_VENV := Python cannot make a virtual environment; on Debian or Ubuntu: apt install python3-venv

# The stamp holds the folder it was written in. A virtual environment does not survive a move or a
# copy of its folder (its scripts would run the code of the original): it is then made anew.
STALE := $(shell [ "$$(cat .venv/.installed 2>/dev/null)" = "$$(pwd -P)" ] \
    && $(BIN)/python -c '' 2>/dev/null || echo stale)

.PHONY: install
install: .venv/.installed ## set up .venv, once and after each change of pyproject.toml

# Only wheels: where one is missing for this Python or machine, pip then says so at once instead of
# trying to compile.
.venv/.installed: pyproject.toml $(STALE)
	@set -e; \
	if [ -n '$(STALE)' ]; then \
	    python="$$($(find_python))"; \
	    echo "Setting up .venv with $$("$$python" --version) (about a minute)"; \
	    "$$python" -m venv --clear .venv || { echo '$(NO_VENV)' >&2; exit 1; }; \
	else \
	    echo 'Updating .venv: pyproject.toml has changed'; \
	fi; \
	$(BIN)/python -m pip install -qq --only-binary :all: --editable '.[dev]'; \
	pwd -P > $@

.PHONY: stale
stale:

# Sweeps -------------------------------------------------------------------------------------------

# What a finished run depends on: the catalogs and the code that decides, not the code that shows.
# (After a new price alone, `sweep top` is enough: prices are joined when it reads the run.)
INPUTS := $(wildcard catalogs/*.csv) \
    $(filter-out sweep/cli/% sweep/report/%,$(wildcard sweep/*.py sweep/*/*.py))
SPECS := $(wildcard catalogs/sweeps/*.toml)
RUNS  := $(SPECS:catalogs/sweeps/%.toml=outputs/%)

# A shipped spec run into its own folder follows its inputs. Any other pair of SPEC and OUT is left
# to `sweep run`, which finishes what was interrupted and refuses a folder that holds another run.
.PHONY: sweep
ifeq ($(SPEC) $(OUT),catalogs/sweeps/$(NAME).toml outputs/$(NAME))
sweep: outputs/$(NAME)/manifest.json ## run the default sweep and print its ranking
else
sweep: .venv/.installed
	@$(BIN)/sweep run '$(SPEC)' --out '$(OUT)' --no-ranking $(FLAGS)
endif
	@$(BIN)/sweep top '$(OUT)'

##   make sweep SPEC=my.toml OUT=folder [FLAGS="--threads 4"]
##                         run a spec of your own and print its ranking
##   make outputs/NAME     run catalogs/sweeps/NAME.toml, if its inputs have changed

# The folder itself is no good as a target: its time changes with every file in it. The manifest is
# written last, so its time is that of the finished run, and the folder's name stands for it.
.PHONY: $(RUNS)
$(RUNS): outputs/%: outputs/%/manifest.json
	@echo 'outputs/$* is up to date; its ranking: $(BIN)/sweep top outputs/$*'

# `sweep run` writes identity.json when it begins. What was interrupted goes on where it stopped,
# unless an input is newer than that; a finished run gets here because one is, and starts over.
outputs/%/manifest.json: catalogs/sweeps/%.toml $(INPUTS) | .venv/.installed
	@set -e; begun=outputs/$*/identity.json; fresh=; \
	if [ -e "$$begun" ] && [ -n "$$(find $^ -newer "$$begun" | head -n 1)" ]; then \
	    fresh=--fresh; \
	fi; \
	$(BIN)/sweep run $< --out outputs/$* --no-ranking $$fresh $(FLAGS)

# Without this, make would delete the manifest of a run that is interrupted while being finished.
.PRECIOUS: outputs/%/manifest.json

# Whoever mistypes a name is told the names there are.
outputs/%: FORCE
	@echo 'There is no catalogs/sweeps/$*.toml; there are: $(notdir $(RUNS))' >&2; exit 2
.PHONY: FORCE
FORCE:

# Checking -----------------------------------------------------------------------------------------

.PHONY: test
test: .venv/.installed ## run the tests
	@$(BIN)/python -m pytest --quiet

.PHONY: test-faults
test-faults: .venv/.installed ## kill runs at 50 moments and look whether they go on (3 minutes)
	@$(BIN)/python -m pytest --quiet -m faults

.PHONY: test-ray
test-ray: .venv/.installed ## install the extra `ray` and run on local clusters, a node of which is killed
	@$(BIN)/python -m pip install -qq --only-binary :all: --editable '.[ray]'
	@$(BIN)/python -m pytest --quiet tests/test_on_ray.py

# Each check is a target of its own: all of them report, and `make -j2 lint` runs two at once.
LINTS := lint-style lint-types lint-imports lint-catalogs lint-generated
.PHONY: lint $(LINTS)
lint: .venv/.installed ## check style, types, imports, catalogs and generated files
	@$(MAKE) --no-print-directory --keep-going $(LINTS)

lint-style: .venv/.installed
	@$(BIN)/ruff check --quiet --output-format concise .
	@$(BIN)/ruff format --check .

lint-types: .venv/.installed
	@$(BIN)/mypy

lint-imports: .venv/.installed
	@said="$$($(BIN)/lint-imports --no-logo)" || { echo "$$said"; exit 1; }

lint-catalogs: .venv/.installed
	@$(BIN)/sweep catalog check

SCHEMA := catalogs/sweeps/sweep.schema.json
COLUMNS := docs/columns.md
# $(call compare,module,file): what the module prints is what the file holds.
compare = $(BIN)/python -m $1 | diff -u $2 - \
    || { echo "$2 is not what $1 makes of it: run 'make generated'" >&2; exit 1; }
# $(call regenerate,module,file): the file is replaced only by a whole new one.
regenerate = $(BIN)/python -m $1 > $2.new && test -s $2.new && mv $2.new $2 \
    || { rm -f $2.new; echo "$1 printed nothing; $2 is as it was" >&2; exit 1; }

lint-generated: .venv/.installed
	@$(call compare,sweep.schema,$(SCHEMA))
	@$(call compare,sweep.columns,$(COLUMNS))

.PHONY: generated
generated: .venv/.installed ## write the schema of specs and the table of columns anew
	@$(call regenerate,sweep.schema,$(SCHEMA))
	@$(call regenerate,sweep.columns,$(COLUMNS))

.PHONY: validate
validate: .venv/.installed ## compare predicted with measured memory
	@$(BIN)/sweep validate --estimators

# llm-analysis, which `make bench` compares with: apart from ours, its dependencies are of 2023.
.PHONY: peers
peers: .venv/.installed ## install the planner that the benchmarks compare with into .venv-peers
	@$(BIN)/python -m venv --clear .venv-peers
	@.venv-peers/bin/python -m pip install -qq llm-analysis==0.2.2

.PHONY: bench
bench: .venv/.installed ## run the benchmarks and print their times
	@$(BIN)/python -m pytest --quiet --benchmark-only benchmarks

.PHONY: clean
clean: ## remove .venv, caches and builds; the runs in outputs/ stay
	@rm -rf .venv .venv-peers build dist .benchmarks .hypothesis .import_linter_cache \
	    .mypy_cache .pytest_cache .ruff_cache
	@find sweep tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
