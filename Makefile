# `make demo` and `make test` do all the set-up on a fresh machine with Python 3.11+ and pip.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test torture check setup lock clean

demo: $(VENV)/ready
	$(BIN)/convscope demo --out demo

test: $(VENV)/ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

# Crashes and failing disks at every call, and hundreds of kills: half an hour on a quiet machine.
torture: $(VENV)/ready-dev
	$(BIN)/python -m pytest -m slow -s tests/scale/test_torture.py

setup: $(VENV)/ready-dev

$(BIN)/uv:
	$(PYTHON) -c "import sys; sys.exit('convscope needs Python 3.11 or newer, this is ' + sys.version.split()[0]) if sys.version_info < (3, 11) else None"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

# Bytecode is compiled once, here: where Python may not keep it, as in many containers, every process
# would compile torch anew, which takes longer than most of what is asked of it.
$(VENV)/ready: requirements.lock pyproject.toml | $(BIN)/uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode -r requirements.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps -e .
	$(BIN)/python -m compileall -q src
	touch $@

$(VENV)/ready-dev: requirements-dev.lock pyproject.toml | $(BIN)/uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync --quiet --compile-bytecode requirements-dev.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps -e .
	$(BIN)/python -m compileall -q src
	touch $@ $(VENV)/ready

lock: | $(BIN)/uv
	$(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --python-version 3.11 --extra train pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --python-version 3.11 --all-extras --group dev pyproject.toml -o requirements-dev.lock

clean:
	rm -rf $(VENV)
