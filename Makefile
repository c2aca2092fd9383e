# `make` alone prints help. PYTHON picks the interpreter (3.11 to 3.13); HARDWARE=gpu installs the CUDA set.
PYTHON ?= python3
VENV := .venv
HARDWARE ?= $(if $(wildcard $(VENV)/.ready-gpu),gpu,cpu)
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(HARDWARE)
RAY := .venv-ray
.DEFAULT_GOAL := help
FOLDER ?= data/mine
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*## .*/\1/p' $(MAKEFILE_LIST))

help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  HARDWARE=gpu make setup   the same with CUDA builds; PYTHON=python3.12 make setup for another interpreter"

setup: $(READY) ## create .venv and install the locked packages

$(READY): requirements-$(HARDWARE).lock setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" HARDWARE="$(HARDWARE)" sh setup.sh
	@touch $@

new-data: ## a folder for your own texts: FOLDER=data/mine, with a few rows of each file as an example
	@test ! -e "$(FOLDER)" || { echo "$(FOLDER) is there already: choose another FOLDER, or remove it" >&2; exit 1; }
	@mkdir -p "$(FOLDER)" && cp data/example/*.csv "$(FOLDER)"
	@echo "$(FOLDER) holds pool.csv, gold.csv, labels.csv and test.csv: replace their rows by yours (data/README.md), then"
	@echo "  make setup && . $(BIN)/activate && dvc exp run -S raw.source=folder -S raw.folder=$(FOLDER)"

repro: setup ## run the pipeline: only what changed
	@$(BIN)/python -m stages.parts.run.params
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro
	@echo "report: reports/index.html"

compare: setup ## two revisions, A=main B=branch: metrics, plots, paired difference (reports/compare/index.html); without B: the workspace
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m stages.parts.numbers.compare $(or $(A),main) $(B)

seeds: setup ## the pipeline over N=5 seeds, as DVC experiments: mean and spread (reports/seeds); WITH="-S raw.source=url" changes more
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m stages.parts.numbers.seeds $(or $(N),5) $(WITH)
	@$(BIN)/python -m stages.parts.numbers.readme

readme: setup ## write the README's results from reports/
	@$(BIN)/python -m stages.parts.numbers.readme

check-setup: setup ## check GPU, driver, memory, disk, models and keys for the profile, within seconds
	@$(BIN)/python -m stages.parts.preflight.checks

plan: setup ## what labelling will cost, from 20 rows: requests, tokens, dollars, time; for models on GPUs without downloading them
	@PATH="$(CURDIR)/$(BIN):$$PATH" SKIP_PREFLIGHT=1 $(BIN)/dvc repro -q embed
	@$(BIN)/python -m stages.parts.tuning.plan

tune-teacher: setup ## compare prompts on the gold rows: the cheapest that none beats goes into data/prompts/PROFILE.json
	@PATH="$(CURDIR)/$(BIN):$$PATH" SKIP_PREFLIGHT=1 $(BIN)/dvc repro -q embed
	@$(BIN)/python -m stages.parts.tuning

review: setup ## look at the ROWS=100 rows that the teacher may have labelled wrongly; the next `dvc repro` learns from what you decide
	@$(BIN)/python -m stages.parts.review --rows $(or $(ROWS),100)

relabel: setup ## after a change of labels.csv: keep the teacher's answers, but for SHARE=0.2 of the rows that it may touch
	@$(BIN)/python -m stages.parts.traffic relabel --share $(or $(SHARE),0.2)

retrain: setup ## a new student from the pool and the stored queries, as a DVC experiment; WITH="-S lora.r=16" changes more
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m stages.parts.traffic retrain $(WITH)

serve: setup ## serve the student that serve.model names on http://127.0.0.1:8000
	@$(BIN)/python -m serve

promote: setup ## serve this student from now on: STUDENT=models/encoder; a running service swaps without a failed request
	@test -n "$(STUDENT)" || { echo "which one? make promote STUDENT=models/encoder" >&2; exit 1; }
	@$(BIN)/python -m stages.parts.students.promotion promote "$(STUDENT)" $(if $(OTHER_LABELS),--other-labels)

rollback: setup ## serve the student before the promoted one, at last the run's own
	@$(BIN)/python -m stages.parts.students.promotion rollback

serve-many: setup ## serve many students on one base: python -m serve.many add NAME REPOSITORY takes one in (serve/many/README.md)
	@$(BIN)/python -m serve.many

serve-ray: setup-ray ## serve on Ray: the LLM endpoint and the classifier, each scaled on its own (serve/ray_serve/README.md)
	@$(RAY)/bin/python -m serve.ray_serve

setup-ray: $(RAY)/.ready ## create .venv-ray: Ray on top of the packages of .venv, which stays as it is

# Environments of their own, so that `make check` and `make test` see the packages that the locks name and no others. Their .pth
# file names .venv's packages, which they need too, and which are 4 GB.
.venv-%/.ready: $(READY) requirements-%.lock
	@test -x .venv-$*/bin/python || $(BIN)/python -m venv --without-pip .venv-$*
	@$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > .venv-$*/base
	@.venv-$*/bin/python -c "import shutil, sysconfig; shutil.move('.venv-$*/base', sysconfig.get_path('purelib') + '/base.pth')"
	@.venv-$*/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes -r requirements-$*.lock
	@touch $@

export: setup ## models/export: the chosen adapter folded into its base, for vLLM and transformers, and the encoder student in encoder/
	@$(BIN)/python -m serve.export

check: setup lint ## lint, types, and the quick tests: before every commit
	@$(BIN)/python -m pytest -n 2 -m "not engine and not slow"

test: setup lint ## lint, types, and all tests: a file's tests one after the other, two files side by side
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

setup-tracking: ## create .venv-tracking for MLflow and W&B; then set tracking.mlflow or tracking.wandb in params.yaml
	@test -x .venv-tracking/bin/python || "$(PYTHON)" -m venv .venv-tracking
	@.venv-tracking/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes -r requirements-tracking.lock

mlflow-ui: ## MLflow's pages on http://127.0.0.1:5000, over STORE=sqlite:///mlflow.db
	@.venv-tracking/bin/mlflow ui --backend-store-uri "$(or $(STORE),sqlite:///mlflow.db)"

bench-train: setup ## stock TRL against shared-prefix training, step by step (reports/bench/train.json)
	@$(BIN)/python -W ignore -m tests.bench.train

bench-serve: setup ## the service: in-process students; a decoder against the reference's handler and the bare engine (reports/bench)
	@$(BIN)/python -m tests.bench.in_process
	@$(BIN)/python -m tests.bench.serve

bench-adapters: setup ## ten students on one base against engines of their own: memory, starts, answers (reports/bench/adapters.json)
	@$(BIN)/python -m tests.bench.adapters

bench-styles: setup ## the whole pipeline in both program styles: accuracy, tokens, latency (reports/bench/styles.json)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.bench.styles

bench-review: setup ## a hundred looks at the review's queue against a hundred random ones: two seeds, both corpora (reports/bench/review.json)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.bench.review

bench-teacher: setup ## labelling through an endpoint of half a second: rows a second, processor time, memory (reports/bench/teacher.json)
	@$(BIN)/python -m tests.bench.teacher

bench-batch: setup-ray ## whole files on Ray and on the plain path: rows a second, processor time, memory (reports/bench/batch.json)
	@$(RAY)/bin/python -m tests.bench.batch

bench-cleaning: setup ## what dropping likely label errors is worth, a teacher of 80 % on Banking77: three kinds of errors (reports/bench/cleaning.json)
	@$(BIN)/python -m tests.bench.cleaning

bench-relabel: setup ## one more label for a run of the 24 others of Banking77-25: rows queried again, accuracy lost (reports/bench/relabel.json)
	@$(BIN)/python -m tests.bench.relabel

bench-traffic: setup ## the service with a teacher behind it on Banking77: answered locally, kills -9, ten minutes of load (reports/bench/traffic.json)
	@$(BIN)/python -m tests.bench.traffic

bench-embedded: setup ## the embedded teacher with vectors and without, on true labels and on gold: five seeds, three settings (reports/bench/embedded_teacher.json)
	@$(BIN)/python -m tests.bench.embedded_teacher

bench-promise: setup ## a hundred draws of gold rows: how often fewer than the wanted answers are right (reports/bench/promise.json)
	@$(BIN)/python -m tests.bench.promise

bench-peers: .venv-peers/.ready ## SetFit and heartcut on the run in the working tree: same rows, labels and machine (reports/bench/peers.json)
	@.venv-peers/bin/python -m tests.bench.peers

lint: setup ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

lock: ## resolve all locks anew (needs uv)
	uv pip compile pyproject.toml --extra cpu --group dev --universal --python-version 3.11 --no-emit-package torch --generate-hashes -o requirements-cpu.lock
	uv pip compile pyproject.toml --no-config --extra gpu --group dev --universal --python-version 3.11 --generate-hashes -o requirements-gpu.lock
	cp requirements-cpu.lock requirements-s3.lock  # its versions are preferred
	cp requirements-cpu.lock requirements-ray.lock
	cp requirements-cpu.lock requirements-peers.lock
	cp requirements-cpu.lock requirements-serve.lock
	uv pip compile --group ray --universal --python-version 3.11 --generate-hashes -o requirements-ray.lock
	uv pip compile --group peers --universal --python-version 3.11 --no-emit-package torch --generate-hashes -o requirements-peers.lock
	uv pip compile --group serve --universal --python-version 3.11 --generate-hashes -o requirements-serve.lock
	uv pip compile --no-config --group tracking --universal --python-version 3.11 --generate-hashes -o requirements-tracking.lock
	uv pip compile --group s3 --universal --python-version 3.11 --generate-hashes -o requirements-s3.lock
