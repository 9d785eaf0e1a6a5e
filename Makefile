# Each verb makes the virtual environment it needs with pip, and makes it anew when pyproject.toml changes.
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000

RECIPE ?= models/e5-zh-sentiment/recipe.toml
RUN ?= runs/e5-zh-sentiment
BUNDLE ?= models/e5-zh-sentiment/1.0.0

.PHONY: run test test-fast lint train bench clean

run: .venv/serve/ready
	.venv/serve/bin/python -m app serve --host $(HOST) --port $(PORT)

test: .venv/dev/ready
	.venv/dev/bin/pytest

test-fast: .venv/fast/ready
	.venv/fast/bin/pytest --ignore tests/parity

lint: .venv/dev/ready
	.venv/dev/bin/ruff check .
	.venv/dev/bin/ruff format --check .
	.venv/dev/bin/mypy
	.venv/dev/bin/lint-imports

# DATA names the directory with the files of the recipe.
train: .venv/dev/ready
	@test -n "$(DATA)" || { echo "say where the data is: make train DATA=directory" >&2; exit 2; }
	.venv/dev/bin/python -m app train $(RECIPE) --data $(DATA) --output $(RUN)
	.venv/dev/bin/python -m app export $(RECIPE) $(RUN)
	.venv/dev/bin/python -m app evaluate $(BUNDLE) $(DATA)/*.test.jsonl.gz --output $(BUNDLE)/evaluation.json

bench: .venv/fast/ready
	.venv/fast/bin/python -m loadtest.bench

clean:
	rm -rf .venv build runs .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info

.venv/serve/ready: EXTRAS = cpu
.venv/fast/ready: EXTRAS = cpu,test
.venv/dev/ready: EXTRAS = cpu,test,lint,train
.venv/%/ready: pyproject.toml
	$(PYTHON) -m venv --clear .venv/$*
	.venv/$*/bin/pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	touch $@
