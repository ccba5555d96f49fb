# `make help` lists the targets. PROFILE is smoke, book or paper.
PROFILE ?= book
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SHELL := bash
.SHELLFLAGS := -eo pipefail -c
export PYTHONHASHSEED := 0
export PYDEVD_DISABLE_FILE_VALIDATION := 1

# A file of tests is one process's; with more of torch's threads than cores they would wait for each other.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: help setup book execute site test test-notebooks test-colab validate new-chapter address bench study audit dry dist clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: $(VENV)/.done ## create .venv with the locked environment (LEAN=1: without chapter 11's pretrained teacher, 93 MB)

PYTHON_IS_THERE = command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is needed, and there is no $(PYTHON): \
	get it from python.org or with your system's packages, or say PYTHON=..." >&2; exit 1; }

$(VENV)/.done: requirements.lock pretrained.lock pyproject.toml
	@$(PYTHON_IS_THERE)
	@$(PYTHON) tools/setup.py $(VENV) $(if $(LEAN),--lean)
	@touch $@

book: ## check what is needed, set up, execute every chapter at PROFILE, build the site, say where it is
	@$(PYTHON_IS_THERE)
	@$(PYTHON) tools/setup.py --check --site
	@$(MAKE) --no-print-directory setup
	@$(BIN)/python tools/fetch_site_assets.py
	@$(BIN)/python tools/execute.py --profile $(PROFILE) --keep-cost
	@$(MAKE) --no-print-directory site

execute: setup ## execute the chapters (CHAPTER=NN_name for one) at PROFILE, and record what they cost
	$(BIN)/python tools/execute.py --profile $(PROFILE) $(CHAPTER)

site: setup ## build the site from the executed chapters
	@$(BIN)/python tools/fetch_site_assets.py
	@$(BIN)/python tools/build_site.py --profile $(PROFILE)

test: setup site ## everything a change can break
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell book/text book/*.md README.md CONTRIBUTING.md CHANGELOG.md paper.md kdutils
	$(PYTEST) tests/unit tests/notebooks
	$(BIN)/python -m pytest tests/site
	$(MAKE) test-notebooks

test-notebooks: setup ## run the committed chapters at smoke and compare their verdicts (nbval)
	KDUTILS_PROFILE=smoke KDUTILS_QUIET=1 KDUTILS_RESULTS=$(CURDIR)/_build/nbval \
		$(PYTEST) --nbval-lax --nbval-cell-timeout=3600 --nbval-kernel-startup-timeout=600 $(wildcard book/*.ipynb)

test-colab: setup ## every chapter as in Colab, in an environment of its own (`make test` runs two)
	KDUTILS_COLAB=all $(BIN)/python -m pytest tests/notebooks/test_colab.py

validate: setup ## re-execute the book profile from scratch and compare the verdicts (GPU=1 on a GPU)
	KDUTILS_RUNS=$$(mktemp -d) $(BIN)/python tools/execute.py --profile book --check $(if $(GPU),--gpu)

new-chapter: setup ## start a chapter from the template (NAME=NN_name)
	$(BIN)/python tools/new_chapter.py "$(NAME)"

address: ## change the repository's address wherever it stands (URL=https://github.com/OWNER/NAME)
	@URL='$(subst ','\'',$(URL))'; $(PYTHON) tools/address.py "$$URL"

bench: setup ## speed, as ratios within one run
	$(BIN)/python benchmarks/bench.py

study: setup ## train what is missing of a study (NAME=grammar; SMOKE=1 the small version; SCHEDULER=tcp://... elsewhere)
	$(BIN)/python tools/study.py "$(NAME)" $(if $(SMOKE),--smoke) $(if $(WORKERS),--workers $(WORKERS)) \
		$(if $(THREADS),--threads $(THREADS)) $(if $(SCHEDULER),--scheduler $(SCHEDULER)) $(if $(DEVICE),--device $(DEVICE)) \
		$(if $(BUDGETS),--budgets $(BUDGETS)) $(if $(ARMS),--arms "$(ARMS)") $(if $(filter-out undefined,$(origin SIZES)),--sizes "$(SIZES)")

audit: setup ## train a few cells of a study's records anew and compare every number (NAME=grammar; SMOKE=1; SEED=0)
	$(BIN)/python tools/audit.py "$(NAME)" $(if $(SMOKE),--smoke) $(if $(SEED),--seed $(SEED)) $(if $(CELLS),--cells $(CELLS))

dry: setup ## build every lab at PROFILE and train three steps of each arm, or say what does not fit (PROFILE=paper; LIMIT=60 seconds a lab)
	$(BIN)/python tools/dry.py --profile $(PROFILE) $(if $(DEVICE),--device $(DEVICE)) $(if $(LIMIT),--limit $(LIMIT))

dist: site ## wheel, source archive and site with their checksums, in _build/dist (TAG=vX.Y.Z for a release)
	$(BIN)/python tools/release.py --tag "$(TAG)"

clean: ## remove built files (kept runs stay in book/runs)
	rm -rf _build
