PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PHANTOMS := build/phantoms
SPARK := build/spark

.PHONY: help demo test lint format benchmark demo-bundle demo-phantoms demo-distance pictures \
	gpu-check spark-jar spark-test fuzz clean

help: ## Show this help.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

demo: $(VENV)/installed ## Install, write a sample archive, score it.
	test -e sample/manifest.csv || $(BIN)/prescreen sample sample
	$(BIN)/prescreen score --manifest sample/manifest.csv --output results

test: $(VENV)/installed lint ## Check style and run all tests but the long ones.
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/installed ## Check style.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed ## Mend style.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(VENV)/installed ## Measure this machine's rates on the images in IMAGES=folder.
	mkdir -p build
	$(BIN)/prescreen manifest $(IMAGES) --output build/images.csv
	$(BIN)/prescreen benchmark --manifest build/images.csv --output build/benchmark.json

demo-phantoms: $(VENV)/installed
	rm -rf $(PHANTOMS)
	$(BIN)/prescreen sample $(PHANTOMS)/train1 --seed 11 --count 2400 --size 448
	$(BIN)/prescreen sample $(PHANTOMS)/train2 --seed 12 --count 1600 --size 448
	$(BIN)/prescreen sample $(PHANTOMS)/validation --seed 2 --count 700
	$(BIN)/prescreen sample $(PHANTOMS)/test --seed 3 --count 600
	$(BIN)/python scripts/join_manifests.py $(PHANTOMS)/manifest.csv \
		train=$(PHANTOMS)/train1/manifest.csv train=$(PHANTOMS)/train2/manifest.csv \
		validation=$(PHANTOMS)/validation/manifest.csv test=$(PHANTOMS)/test/manifest.csv

demo-bundle: demo-phantoms ## Train the demonstration bundle anew; an hour and a half on 2 cores.
	rm -rf build/demo_bundle
	$(BIN)/prescreen train --manifest $(PHANTOMS)/manifest.csv \
		--config scripts/demo.toml --output build/demo_bundle --cache $(PHANTOMS)/cache
	rm -rf model/demo_bundle
	mv build/demo_bundle model/demo_bundle

demo-distance: demo-phantoms ## Give it the distance from its training data; its network stays.
	rm -rf build/demo_bundle
	$(BIN)/prescreen prepare --manifest $(PHANTOMS)/manifest.csv --output $(PHANTOMS)/cache
	$(BIN)/python scripts/fit_feature_distance.py model/demo_bundle \
		--cache $(PHANTOMS)/cache --config scripts/demo.toml --into build/demo_bundle
	rm -rf model/demo_bundle
	mv build/demo_bundle model/demo_bundle

pictures: $(VENV)/installed ## Make the pictures of README.md anew; needs chromium.
	rm -rf build/pictures
	for seed in 41 42; do \
		$(BIN)/prescreen sample build/pictures/$$seed --count 200 --seed $$seed && \
		$(BIN)/prescreen score --manifest build/pictures/$$seed/manifest.csv \
			--output build/pictures/results --run-id phantoms-$$seed --review-budget 50 || exit 1; \
	done
	$(BIN)/python -m scripts.pictures build/pictures/results/runs/phantoms-42.json docs/images

gpu-check: $(VENV)/installed ## Check scores and rates on a machine with a GPU.
	$(BIN)/python benchmarks/gpu_check.py

spark-jar: $(SPARK)/beam-spark-job-server.jar ## Put together Beam's job server for Spark; needs Maven, Java 17, 1 GB.

# Maven downloads, anew only what it lacks; what it got must be what was tested.
$(SPARK)/beam-spark-job-server.jar: scripts/spark_job_server/pom.xml scripts/spark_job_server/jars.sha256
	rm -rf $(SPARK)/maven
	mvn -q -B -f scripts/spark_job_server/pom.xml dependency:copy-dependencies
	@cd $(SPARK)/maven/parts && sha256sum --check --strict --quiet \
		$(CURDIR)/scripts/spark_job_server/jars.sha256 || { \
		echo "A jar named above is not the one in scripts/spark_job_server/jars.sha256, or missing." \
		"Remove it from Maven's repository (~/.m2) and run again." >&2; exit 1; }
	mvn -q -B -f scripts/spark_job_server/pom.xml package
	mv $(SPARK)/maven/beam-spark-job-server.jar $@
	rm -rf $(SPARK)/maven

spark-test: $(VENV)/installed spark-jar ## Score IMAGES=folder, or phantoms, on a Spark cluster here; compare.
	$(BIN)/pip install -q -c constraints.txt -e '.[spark]'
	$(BIN)/python scripts/spark_test.py $(IMAGES)

fuzz: $(VENV)/installed ## Feed damaged images and manifests to what reads them; 15 min at most.
	$(BIN)/python scripts/fuzz.py $(IMAGES)

clean: ## Remove what was built, not what was scored.
	rm -rf $(VENV) build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# constraints.txt is the exact set that was tested, so that two machines get the same.
$(VENV)/installed: $(VENV)/bin/python setup.py constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e '.[dev,dicom,web]'
	touch $@
