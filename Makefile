# Everything is set up in .venv; nothing is installed outside of it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check docs corpus bench atheris fuzz clean

demo: $(READY)  ## set up, and show the main job on bundled models
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh docs/demo.sh

test: $(READY) check  ## set up, and run everything that CI runs
	$(BIN)/python -m pytest -q -m "not corpus and not slow"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/reference.py --check

docs: $(READY)  ## write the generated pages anew
	$(BIN)/python docs/reference.py

corpus: $(READY)  ## the tests on real checkpoints: PARAMCTL_CORPUS and PARAMCTL_MANIFEST name them
	$(BIN)/python -m pytest -q -m corpus

bench: $(READY)
	$(BIN)/python bench/data.py
	$(BIN)/python bench/look.py

SECONDS ?= 2
FUZZED ?= pickle torch-zip torch-legacy safetensors-header gguf sharded dcp select
fuzz: atheris  ## a coverage-guided fuzz of FUZZED, for SECONDS each; of every reader with FUZZED=
	$(BIN)/python fuzz/readers.py $(FUZZED) --seconds $(SECONDS)

atheris: $(READY)  ## what the fuzz needs: an extra of its own, as it does not install everywhere
	$(BIN)/python -c 'import atheris' 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -c 'import atheris'

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -q src
	touch $(READY)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
