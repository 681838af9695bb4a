# make demo: the whole way on this machine, without an account.  make test: all tests.
# Both set up what they need inside this folder (.venv, .cache), uv included, and nothing twice; make setup does that alone.

PYTHON ?= python3
# At once: tests wait as well as compute, so two cores carry three. Each takes up to 3 GB.
WORKERS ?= 3
VENV := .venv
BEGAN := $(shell date +%s)
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
export UV_CACHE_DIR ?= $(CURDIR)/.cache/uv
export UV_PYTHON ?= $(CURDIR)/$(BIN)/python
unexport PYTHONDONTWRITEBYTECODE  # libraries that are compiled again at each start take most of a test's time

.PHONY: demo setup quick test test-hub lint templates audit pictures tables clean

demo: $(VENV)/uv
	$(BIN)/python demo/demo.py

# Pure functions, properties and documents: what needs no Hub, no model and no environment of its own.
quick: $(VENV)/tests
	$(BIN)/python -m pytest -n 2 --quick

# How long set-up and lint take is said before the tests, and how long these take, at their end.
test: $(VENV)/environments lint
	@echo "Set-up and lint took $$(($$(date +%s) - $(BEGAN))) s."
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

setup: $(VENV)/environments

# The test Hub against the real one, by your own token (HF_TOKEN). It says what it will spend, and asks.
test-hub: $(VENV)/tests
	$(BIN)/python tests/real_hub.py

lint: $(VENV)/tests
	$(BIN)/python recipes/build.py --check
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# templates/*.py, from recipes/ and scripts/unsloth_jobs/training/.
templates: $(VENV)/tests
	$(BIN)/python recipes/build.py

# Known vulnerabilities in what the scripts and templates bring, by osv.dev: it needs the network, so `test` leaves it out.
audit: $(VENV)/uv
	@for script in scripts/*.py templates/*.py; do \
		echo "$$script"; \
		$(BIN)/uv audit --preview-features audit-command --script $$script || found=1; \
	done; test -z "$$found"

pictures: $(VENV)/tests
	$(BIN)/python demo/pictures.py

# The tables in references/ that are made from code and data.
tables: $(VENV)/tests
	$(BIN)/python tests/tables.py

$(VENV)/uv: tests/requirements-uv.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Python 3.11 or newer is needed; name it: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements-uv.txt
	@touch $@

$(VENV)/tests: $(VENV)/uv tests/requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r tests/requirements.txt
	@touch $@

$(VENV)/environments: $(VENV)/tests tests/set_up.py tests/package.json recipes/versions.toml
	$(BIN)/python tests/set_up.py
	@touch $@

clean:
	rm -rf $(VENV) .cache
