PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PHANTOMS := build/phantoms

.PHONY: help demo test lint format benchmark demo-bundle clean

help: ## Show this help.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

demo: $(VENV)/installed ## Install, write a sample archive, score it.
	test -e sample/manifest.csv || $(BIN)/prescreen sample sample
	$(BIN)/prescreen score --manifest sample/manifest.csv --output results

test: $(VENV)/installed lint ## Check style and run all tests but the long ones.
	$(BIN)/python -m pytest

lint: $(VENV)/installed ## Check style.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed ## Mend style.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(VENV)/installed ## Measure rates and memory on the images in IMAGES=folder.
	$(BIN)/python benchmarks/end_to_end.py $(IMAGES)

demo-bundle: $(VENV)/installed ## Train the demonstration bundle anew; an hour on 2 cores.
	rm -rf $(PHANTOMS)
	$(BIN)/prescreen sample $(PHANTOMS)/s11 --seed 11 --count 2000
	$(BIN)/prescreen sample $(PHANTOMS)/s12 --seed 12 --count 1500
	$(BIN)/prescreen sample $(PHANTOMS)/s2 --seed 2 --count 800
	$(BIN)/prescreen sample $(PHANTOMS)/s3 --seed 3 --count 600
	$(BIN)/python scripts/join_manifests.py $(PHANTOMS)/manifest.csv \
		train=$(PHANTOMS)/s11/manifest.csv train=$(PHANTOMS)/s12/manifest.csv \
		validation=$(PHANTOMS)/s2/manifest.csv test=$(PHANTOMS)/s3/manifest.csv
	$(BIN)/prescreen train --manifest $(PHANTOMS)/manifest.csv --config scripts/demo.toml \
		--output model/demo_bundle

clean: ## Remove what was built, not what was scored.
	rm -rf $(VENV) build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# constraints.txt is the exact set that was tested, so that two machines get the same.
$(VENV)/installed: $(VENV)/bin/python setup.py constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@
