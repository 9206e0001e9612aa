# The main job:  make export K=4 BLOCKS=12 TOKENS=432 [MODEL=…] [SCORES=…] [FORM=int4] [DTYPE=…] [STATIC=1024] [OUT=…] [FORCE=1]
# Every target creates .venv and installs by itself when pyproject.toml changed or a package is gone.
.PHONY: FORCE setup export score search sweep pick test test-versions test-all check fix bench bench-variant push pull faults fuzz gpu-check small-env genai-env mlflow-env registry-env moto-env js-env browser-env ort-envs report nano nano-data nano-report nano-curves clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := $(VENV)/.extras
SMALL := .venv-small
GENAI := .venv-genai
MLFLOW := .venv-mlflow
JS := .venv-js
BROWSER := .venv-browser
ORT := .venv-ort
MOTO := .venv-moto
# Run with the oldest and with the newest of every dependency: parity, generate, graphs, scoring, the main job.
VERSIONS := versions molmoe_parity molmoe_auto molmoe_generate molmoe_traps preprocessing runtime cache_name calling \
  engine metrics evaluate search readers ray plot onnx_parity onnx_olmoe forms packed gate export run publish_hub
export PYTHONHASHSEED := 0
# A path as one word of the shell, whatever is in it; only ~/ in front is left for the shell.
quoted = $(if $(filter ~/%,$(firstword $(1))),~/'$(subst ','\'',$(subst ~/,,$(1)))','$(subst ','\'',$(1))')

# Without an NVIDIA driver, and unless pip is configured to look elsewhere, ask for torch's CPU build. pip shows its
# progress on a terminal, and warnings alone elsewhere.
QUIET = $$(test -t 2 || echo -q)
define install
$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or later is needed, this is {v[0]}.{v[1]}; set PYTHON=")' \
  && echo "Installing PyTorch, transformers, onnxruntime and the tools into $(VENV), once: about 600 MB to download and 1.8 GB on disk (measured without CUDA)." \
  && $(PYTHON) -m venv $(VENV) \
  && if ! command -v nvidia-smi >/dev/null 2>&1 && [ "$$(uname -s)" = Linux ] && [ -z "$$($(BIN)/pip config list 2>/dev/null)" ] \
    && [ -z "$$PIP_INDEX_URL$$PIP_EXTRA_INDEX_URL$$PIP_FIND_LINKS" ]; then \
    $(BIN)/pip install $(QUIET) "torch>=2.13,<2.14" --index-url https://download.pytorch.org/whl/cpu; fi \
  && $(BIN)/pip install $(QUIET) -e ".[dev]"
endef

# Packages came or went, or the command is gone: is all there that is needed?
$(STAMP): pyproject.toml $(wildcard $(VENV)/lib/python*/site-packages) $(if $(wildcard $(BIN)/knobcast),,FORCE)
	@{ [ $@ -nt pyproject.toml ] && $(BIN)/python .ci/installed.py dev; } || { $(install); }
	@touch $@

FORCE:

setup: $(STAMP)

$(EXTRAS): $(STAMP)
	$(BIN)/pip install $(QUIET) -e ".[eval,ray,llamacpp,mlflow,oci,s3,sign]" "onnxscript>=0.7,<0.8" # transformers' exporter: a source of graphs for tests
	@touch $@

export: $(STAMP)
	@$(BIN)/knobcast export $(if $(MODEL),$(call quoted,$(MODEL))) $(if $(K),--k $(K)) $(if $(BLOCKS),--blocks $(BLOCKS)) $(if $(KEEP),--keep-blocks $(KEEP)) \
	  $(if $(DROP),--drop-blocks $(DROP)) $(if $(TOKENS),--tokens $(TOKENS)) $(if $(SCORES),--scores $(call quoted,$(SCORES))) \
	  $(if $(DTYPE),--dtype $(DTYPE)) $(if $(OUT),--out $(call quoted,$(OUT))) $(if $(FORCE),--force) \
	  $(if $(FORM),--form $(FORM)) $(if $(FAMILY),--family $(call quoted,$(FAMILY))) $(if $(STATIC),--static $(STATIC)) $(ARGS)

SCORING = $(if $(MODEL),$(call quoted,$(MODEL))) $(if $(DATA),--data $(call quoted,$(DATA))) $(if $(K),--k $(K)) \
  $(if $(TOKENS),--tokens $(TOKENS)) $(if $(OUT),--out $(call quoted,$(OUT))) $(if $(FORCE),--force) $(ARGS)

# Which blocks matter on your own samples:  make score DATA=questions.jsonl [MODEL=…] [K=…] [TOKENS=…] [OUT=…] [FORCE=1]
score: $(STAMP)
	@$(BIN)/knobcast score $(SCORING)

# Which blocks to drop together:  make search DATA=questions.jsonl STRATEGY=exact [MODEL=…] [K=…] [TOKENS=…] [OUT=…]
search: $(STAMP)
	@$(BIN)/knobcast search $(SCORING) $(if $(STRATEGY),--strategy $(STRATEGY))

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 -m "not extra"

# Both ends of every range in pyproject.toml, and each one's variants in the other (docs/versions.md). An end that has
# the versions of .venv gets only what `make test` doesn't run there.
test-versions: .venv-oldest/.installed .venv-newest/.installed $(EXTRAS)
	@for age in oldest newest; do echo "with the $$age of every dependency:"; files="$(VERSIONS:%=tests/test_%.py)"; \
	  if $(BIN)/python -m tests.versions.environments $$age --repeats; then files=; echo "(those of $(VENV): make test ran them)"; fi; \
	  OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 \
	  .venv-$$age/bin/pytest -q -n 2 -p no:cacheprovider $$files tests/versions/quiet.py || exit 1; done
	OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/versions/across.py

.venv-oldest/.installed .venv-newest/.installed: .venv-%/.installed: pyproject.toml $(STAMP)
	$(BIN)/python -m tests.versions.environments $*

test-all: $(STAMP) $(EXTRAS) small-env $(GENAI)/.installed mlflow-env js-env browser-env ort-envs registry-env moto-env
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile -m extra

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m tests.bench $(ARGS)

# Every setting of a grid, measured:  make sweep DATA=questions.jsonl GRID="k=2,4,8 blocks=12,16" [MODEL=…] [SWEEP=DIR]
# Without DATA the embedded model answers questions that are drawn for it. What is done isn't done again.
GRID ?= k=2,4,8 blocks=12,16 tokens=288,432
SWEEP ?= artifacts/sweep-$(if $(MODEL),$(notdir $(patsubst %/,%,$(MODEL))),molmoe-nano)
DRAWN := artifacts/molmoe-nano/data/few
sweep: $(STAMP)
	@$(if $(DATA),,$(if $(MODEL),echo "error: make sweep MODEL=… needs DATA=…" >&2; exit 1,\
	  test -f $(DRAWN)/test.jsonl || $(BIN)/python -m artifacts.nano.data $(DRAWN) 12))
	@$(BIN)/knobcast sweep $(if $(MODEL),$(call quoted,$(MODEL))) --data $(if $(DATA),$(call quoted,$(DATA)),$(DRAWN)/test.jsonl) \
	  --grid $(call quoted,$(GRID)) $(if $(SCORES),--scores $(call quoted,$(SCORES))) --out $(call quoted,$(SWEEP)) $(ARGS)

# The variant for a device, with the evidence on one page:  make pick LATENCY=200 MEMORY=6000 ACCURACY=">=0.95x"
# sweeps first (see above: MODEL, DATA, GRID, SWEEP), then chooses and writes the report.
pick: sweep
	@$(BIN)/knobcast pick $(call quoted,$(SWEEP)) $(if $(LATENCY),--latency-ms $(LATENCY)) $(if $(MEMORY),--memory-mb $(MEMORY)) \
	  $(if $(ACCURACY),--accuracy $(call quoted,$(ACCURACY))) $(if $(AT),--at $(AT)) $(if $(OUT),--export $(call quoted,$(OUT))); \
	  code=$$?; $(BIN)/knobcast report $(call quoted,$(SWEEP)) --force && exit $$code

# A sweep as one page:  make report DIR=artifacts/sweep [OUT=report.html] [FORCE=1]
report: $(STAMP)
	@$(BIN)/knobcast report $(call quoted,$(DIR)) $(if $(OUT),--out $(call quoted,$(OUT))) $(if $(FORCE),--force) $(ARGS)

# How fast a variant is, beside PyTorch on the same weights:  make bench-variant DIR=artifacts/… [ARGS="--threads 2"]
bench-variant: $(STAMP)
	@$(BIN)/knobcast bench $(call quoted,$(DIR)) $(ARGS)

# A variant into a registry, named by an alias once it is confirmed (docs/publishing.md):
# make push TO=oci://localhost:5000/molmoe DIR=artifacts/… [ALIAS=edge-prod] [ARGS="--dry-run"]
push: $(STAMP)
	@$(BIN)/knobcast push $(call quoted,$(DIR)) $(call quoted,$(TO)) $(if $(ALIAS),--alias $(call quoted,$(ALIAS))) $(ARGS)

# And back:  make pull FROM=oci://localhost:5000/molmoe:edge-prod OUT=artifacts/… [FORCE=1]
pull: $(STAMP)
	@$(BIN)/knobcast pull $(call quoted,$(FROM)) $(call quoted,$(OUT)) $(if $(FORCE),--force) $(ARGS)

# Kill runs at every call that changes a file, at drawn times, by full disks (docs/robustness.md). Linux and gcc.
faults: $(STAMP)
	@$(BIN)/python -m tests.faults.run $(ARGS)

# Changed input for every reader of files (docs/robustness-fuzz.md):  make fuzz [ARGS="--minutes 30 --seed 7"]
fuzz: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.run $(ARGS)

# Verify and measure on a CUDA device (docs/gpu.md):  make gpu-check [ARGS="--only layer"]; 2 where there is none
gpu-check: $(STAMP)
	@$(BIN)/python -m tests.gpu.check $(ARGS)

# What a device gets: onnxruntime and no torch (docs/device.md). No editable install: what isn't packaged is missed.
small-env: $(SMALL)/.installed

$(SMALL)/.installed: pyproject.toml $(shell find transform export importance -name '*.py' -o -name '*.json' -o -name '*.css' -o -name '*.js' 2>/dev/null)
	rm -rf $(SMALL) build
	$(PYTHON) -m venv $(SMALL)
	$(SMALL)/bin/pip install $(QUIET) ".[run]"
	rm -rf build
	@touch $@

# onnxruntime-genai pulls in the CPU onnxruntime, which would overwrite onnxruntime-gpu's files: a place of its own.
genai-env: $(GENAI)/.installed

$(GENAI)/.installed: docs/clients/genai/requirements.txt
	$(PYTHON) -m venv $(GENAI)
	$(GENAI)/bin/pip install $(QUIET) -r $< "safetensors>=0.6,<1"
	@touch $@

# A registry to publish to. The package brings tools for training; what its server takes is half of that.
mlflow-env: $(MLFLOW)/.installed

$(MLFLOW)/.installed: tests/mlflow/requirements.txt
	$(PYTHON) -m venv $(MLFLOW)
	$(MLFLOW)/bin/pip install $(QUIET) -r $<
	$(MLFLOW)/bin/pip install $(QUIET) --no-deps "$$(sed -n 's/^mlflow-skinny==/mlflow==/p' $<)"
	@touch $@

# transformers.js for the tests under node. Without the flag onnxruntime-node fetches CUDA libraries as well.
js-env:
	@if command -v npm >/dev/null 2>&1; then $(MAKE) --no-print-directory $(JS)/.installed; \
	  else echo "no npm: transformers.js is not installed, its tests are skipped"; fi

$(JS)/.installed: tests/transformersjs/package.json
	mkdir -p $(JS)
	cp $< $(JS)/
	ONNXRUNTIME_NODE_INSTALL=skip npm install --prefix $(JS) --no-audit --no-fund --no-package-lock --loglevel=error
	@touch $@

# Chromium, a driver and an accessibility checker for the report's tests. The browser is Debian's, where we may install.
browser-env:
	@command -v chromium >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 \
	  && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; } \
	  || echo "no chromium, and it can't be installed here: the report's tests in a browser are skipped"
	@if command -v npm >/dev/null 2>&1; then $(MAKE) --no-print-directory $(BROWSER)/.installed; \
	  else echo "no npm: axe-core is not installed, the report's tests in a browser are skipped"; fi

$(BROWSER)/.installed: tests/browser/package.json
	$(PYTHON) -m venv $(BROWSER)
	$(BROWSER)/bin/pip install $(QUIET) "playwright>=1.50,<2"
	cp $< $(BROWSER)/
	npm install --prefix $(BROWSER) --no-audit --no-fund --no-package-lock --loglevel=error
	@touch $@

# An OCI registry for the tests: Debian's, where we may install.
registry-env:
	@command -v docker-registry >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 \
	  && apt-get update -qq && apt-get install -y -qq --no-install-recommends docker-registry >/dev/null; } \
	  || echo "no docker-registry, and it can't be installed here: the tests of oci:// are skipped"

# An S3 server for the tests, which s3fs in $(VENV) talks to.
moto-env: $(MOTO)/.installed

$(MOTO)/.installed:
	$(PYTHON) -m venv $(MOTO)
	$(MOTO)/bin/pip install $(QUIET) "moto[server]>=5,<6"
	@touch $@

# Several onnxruntimes for the tests: with a Python of their own, and two alone, to stand before the installed one.
# Nothing they only need for other things is installed.
ORT_OWN := 1.20.1 1.22.1 newest
ORT_ALONE := 1.24.4 1.25.0

ort-envs: $(ORT_OWN:%=$(ORT)/%/.installed) $(ORT_ALONE:%=$(ORT)/%/.installed)
	@if $(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 13))'; then $(MAKE) --no-print-directory $(ORT)/1.17.3/.installed; \
	  else echo "onnxruntime 1.17.3 has no wheels for this Python: its test is skipped"; fi

$(ORT)/%/.installed: VERSION = ==$*
$(ORT)/%/.installed: NUMPY = numpy>=2,<3
$(ORT)/newest/.installed: VERSION = <2
$(ORT)/1.17.3/.installed: NUMPY = numpy<2

$(ORT)/1.17.3/.installed $(ORT_OWN:%=$(ORT)/%/.installed): $(ORT)/%/.installed: | $(STAMP)
	$(PYTHON) -m venv --without-pip $(@D)
	$(BIN)/pip --python $(@D)/bin/python install $(QUIET) --no-deps "onnxruntime$(VERSION)" "$(NUMPY)"
	@touch $@

$(ORT_ALONE:%=$(ORT)/%/.installed): $(ORT)/%/.installed: | $(STAMP)
	$(BIN)/pip install $(QUIET) --no-deps --target $(@D) "onnxruntime$(VERSION)"
	@touch $@

# Train the embedded default model from nothing (hours; a stopped run goes on), score its blocks, measure its curves.
nano: $(STAMP)
	$(BIN)/python -m artifacts.nano.make
	$(BIN)/knobcast score --data artifacts/molmoe-nano/data/calibration.jsonl --max-new-tokens 4 --executor processes --force
	$(MAKE) nano-curves

nano-data: $(STAMP)
	$(BIN)/python -m artifacts.nano.data

# docs/report.html, from a sweep of 75 settings: minutes, on a quiet machine. The picture needs chromium.
nano-report: $(STAMP)
	$(BIN)/python -m artifacts.nano.report

nano-curves: $(STAMP) nano-data
	$(BIN)/python -m artifacts.nano.curves

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest $(SMALL) $(GENAI) $(MLFLOW) $(JS) $(BROWSER) $(ORT) $(MOTO) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
