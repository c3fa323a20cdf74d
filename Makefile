# Every target works on a fresh clone: each sets up what it needs first, and does nothing twice.
.PHONY: demo test check bench soak chaos docs release setup lock clean
PY := .venv/bin/python
# Processes that run tests at the same time. Each takes whole files, so that what a module shares is made once, in the
# order of their names: the short ones come last.
JOBS ?= 2

demo: .venv/.ready
	@$(PY) -m aerodrome runtime install
	@$(PY) -m aerodrome demo

test: check
	@$(PY) -m aerodrome runtime install
	$(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

check: .venv/.ready
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports

bench: .venv/.ready
	@$(PY) -m aerodrome runtime install
	$(PY) -m aerodrome bench

soak: .venv/.ready
	@$(PY) -m aerodrome runtime install
	$(PY) -m pytest -m soak --timeout=3600

# SEED, USERS, MINUTES, TURNS, PAUSE, THINK and JSON in the environment; see CONTRIBUTING.md.
chaos: .venv/.ready
	@$(PY) -m aerodrome runtime install
	PYTHONPATH=tests $(PY) -m support.fleet_chaos

# The documentation as a site, in build/docs. A link that leads nowhere, and any other warning, is an error.
docs: .venv/.ready
	$(PY) -m sphinx -q -W --keep-going -b html docs build/docs
	@echo build/docs/index.html

# REHEARSAL=1 for a version that has no date yet; see CONTRIBUTING.md.
release: .venv/.ready
	$(PY) scripts/release.py $(if $(REHEARSAL),--rehearsal)

setup: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml scripts/setup.sh
	@bash scripts/setup.sh

# All that a node may be asked for by its settings: what the image has not, nobody can add to it.
IMAGE_EXTRAS := redis postgresql sandbox otel vault

# Re-resolve the pins; the index addresses of the machine stay out of the file.
lock: .venv/.ready
	$(PY) -m piptools compile --quiet --strip-extras --allow-unsafe --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-emit-trusted-host --extra dev --output-file requirements.lock pyproject.toml
	$(PY) -m piptools compile --quiet --strip-extras --allow-unsafe --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-emit-trusted-host --constraint requirements.lock $(addprefix --extra ,$(IMAGE_EXTRAS)) \
	  --output-file deploy/docker/requirements.lock pyproject.toml
	$(PY) -m piptools compile --quiet --strip-extras --allow-unsafe --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-emit-trusted-host --constraint requirements.lock \
	  --output-file deploy/docker/build.lock deploy/docker/build.in

clean:
	rm -rf .venv dist build
