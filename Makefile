# make demo    install, then train a tiny model while you watch
# make test    install, then run every test
# make test-ray  the tests of --launcher ray, in an environment of their own
# make check   linter and type checker
# make lock    write the lock files anew (needs uv)
# make test-vllm    the tests of engines vllm and vllm-server and of torchao, with a vLLM for CPUs in an environment of their own

PYTHON ?= python3
BIN := .venv/bin
.PHONY: demo test test-vllm test-ray check lock clean
# A virtual environment for vLLM, 3.5 GB, outside the checkout so that all checkouts share it. Emptied when the lock file
# is another one than it was made from.
VLLM_VENV ?= $(HOME)/.cache/sppo/vllm-venv

demo: .venv/installed
	$(BIN)/sppo demo

test: .venv/installed-dev
	$(BIN)/python -m pytest $(PYTEST_OPTIONS)

VLLM_TESTS = tests/rollouts tests/ranks/test_moments.py tests/training/test_bf16_weights.py

test-vllm:
	@cmp --silent requirements-vllm.lock $(VLLM_VENV)/installed || $(MAKE) --no-print-directory vllm-venv
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	PYTHONPATH=src SPPO_TEST_VLLM=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE \
		$(VLLM_VENV)/bin/python -m pytest -m "vllm or torchao" $(VLLM_TESTS) $(PYTEST_OPTIONS)

.PHONY: vllm-venv
vllm-venv:
	mkdir -p $(VLLM_VENV)
	$(PYTHON) -m venv --clear $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps --requirement requirements-vllm.lock
	cp requirements-vllm.lock $(VLLM_VENV)/installed

# Beside the checkout, so that it is made once: Ray and what it needs are half a gigabyte.
RAY_VENV ?= $(HOME)/.cache/sppo/ray-venv
RAY_LOCK = requirements-ray.lock

test-ray:
	cmp -s $(RAY_LOCK) $(RAY_VENV)/$(RAY_LOCK) || { rm -rf $(RAY_VENV) && $(PYTHON) -m venv $(RAY_VENV) && \
		$(RAY_VENV)/bin/pip install --quiet --no-compile --requirement $(RAY_LOCK) --constraint requirements-dev.lock pytest && \
		cp $(RAY_LOCK) $(RAY_VENV)/$(RAY_LOCK); }
	$(RAY_VENV)/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	PYTHONPATH=src $(RAY_VENV)/bin/python -m pytest -m ray tests/ranks

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: requirements.lock pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

.venv/installed-dev: requirements-dev.lock .venv/installed
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.lock
	touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "sppo needs Python 3.11 or newer, and $(PYTHON) is older: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

# torch itself pins the CUDA packages that its Linux build wants, and a CPU build wants none: neither belongs here.
LOCK = uv pip compile pyproject.toml --universal --python-version 3.11 --no-header --no-annotate --quiet \
	--override torch.pin | grep -Ev '^(nvidia-|cuda-|triton)' | sed -E 's/^torch==.*/torch==2.13.0/' | uniq

lock:
	echo 'torch==2.13.0' > torch.pin
	$(LOCK) > requirements.lock
	$(subst pyproject.toml,pyproject.toml --extra dev,$(LOCK)) > requirements-dev.lock
	$(subst pyproject.toml,pyproject.toml --extra ray --constraint requirements.lock,$(LOCK)) > requirements-ray.lock
	rm torch.pin

clean:
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache
