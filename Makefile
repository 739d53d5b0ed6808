# make study          install into .venv, then run the miniature study from clips to report (about 20 minutes on two cores)
# make study QUICK=1  the short version of the same study (about six minutes, installation included)
# make test           install what the tests need and run them
# make docs           build the documentation site into build/docs, without the network
# make disturb        a study on a real Slurm, preempted, cut and restarted, held to the same study inline (about six minutes; root, Debian)
# make crash          disturb a small study in every way: kills, full disks, wrong clocks (about ten minutes)
# make check          lint, format check and types
# make clean          remove .venv and caches; clips and the run store stay

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QUICK ?=
PLAN := miniature$(if $(QUICK),-quick)

SOURCES := salt slurm sweeps analysis tests benchmarks salt_cli.py

.PHONY: study test docs crash disturb check clean
.DELETE_ON_ERROR:

study: $(VENV)/.installed
	$(BIN)/salt-data digits clips/
	$(BIN)/salt-data scan clips/train.csv
	$(BIN)/salt-sweep plan examples/miniature.yaml $(if $(QUICK),--quick)
	$(BIN)/salt-sweep submit $(PLAN) --on local
	$(BIN)/salt-sweep status $(PLAN)
	$(BIN)/salt-analyze pareto $(PLAN)
	$(BIN)/salt-analyze weak-teacher $(PLAN)
	$(BIN)/salt-analyze report $(PLAN)
	@store="$${SALT_STORE:-salt-store}"; $(BIN)/salt-analyze verify "$$store/reports/$(PLAN)"
	@store="$${SALT_STORE:-salt-store}"; \
	echo "report:  $$store/reports/$(PLAN)/report.html"; \
	echo "figures: $$store/reports/$(PLAN)/figures/"

test: $(VENV)/.test-installed
	$(BIN)/python -m pytest

docs: $(VENV)/.docs-installed
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "documentation: build/docs/index.html"

crash: $(VENV)/.test-installed
	$(BIN)/python -m tests.crash --kills 300

disturb: $(VENV)/.test-installed
	$(BIN)/python -m tests.slurm.disturb

check: $(VENV)/.test-installed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# The stamps make an installation happen again only when what is to be installed has changed.
$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.test-installed: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.docs-installed: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@ $(VENV)/.installed

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "salt needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	{ echo "$(PYTHON) cannot make virtual environments. On Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@
